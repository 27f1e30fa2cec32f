"""A worker that speaks `macft _worker`'s lines without a model: every voice has sentences of its own.

    python fake_worker.py [SECONDS A PART]

It answers in the same order as the real one: one request after the other, `cancel` at once. A question that says `slow`
takes a hundred times as long, `same` is answered alike by all, `refuse` is an error, `long` goes on and on, and `die`
ends the process amid the answer.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

PAUSE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
ANSWERS = (
    "I'm sorry to hear that! There are **several** possible reasons:\n\n1. A neighbour has it.\n"
    "2. It was scanned early.\n\nPlease contact the courier and ask for proof of delivery.",
    "Sorry about that: I have opened a trace with the courier (2 working days).\n\n- your safe place: *porch*\n"
    "- your neighbours at 14 and 18\n\nI will send a replacement if nothing turns up.",
    "It is lost. `Order again.`",
    "Parcels come and go.\n\n```\nshrug()\n```",
)
waiting: "queue.Queue[dict | None]" = queue.Queue()
cancelled: set[int] = set()
lock = threading.Lock()


def write(values: dict) -> None:
    with lock:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()


def hear() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "cancel":
            cancelled.add(request["request"])
            write({"id": request["id"], "type": "done", "result": None})
        else:
            waiting.put(request)
    waiting.put(None)
    time.sleep(1.0)
    os._exit(0)


def answer(request: dict) -> None:
    names = [Path(name).name for name in request["voices"]]
    if any(name.endswith("missing") for name in names):
        said = {"message": "'missing' is no run, adapter folder or model on this machine", "fix": "v chooses others."}
        write({"id": request["id"], "type": "error", **said, "exit_code": 3})
        return
    voices = [*(["Base"] if request["base"] else []), *names]
    facts = [{"name": name, "model_path": "/models/tiny", "adapter": None, "note": ""} for name in voices]
    write({"id": request["id"], "type": "opened", "voices": facts})
    started = time.monotonic()
    texts = [text_of(ask) for ask in request["asks"]]
    if any(text is None for text in texts):
        said = {
            "message": "the talk is 9,000 tokens long, and the model reads 2,048",
            "fix": "Start a new one.",
        }
        write({"id": request["id"], "type": "error", **said, "exit_code": 1})
        return
    pieces = [text.replace(" ", " \0").split("\0") for text in texts]
    question = request["asks"][0]["turns"][-1]["content"] if request["asks"] else ""
    for number in range(max((len(own) for own in pieces), default=-1) + 1):
        for place, own in enumerate(pieces):
            if number > len(own) or request["id"] in cancelled:
                continue
            part = {"ask": place, "text": own[number] if number < len(own) else "", "token_id": number}
            part |= {"finish_reason": "stop" if number == len(own) else None, "seconds": time.monotonic() - started}
            write({"id": request["id"], "type": "part", **part})
        if "die" in question and number == 3:
            os._exit(9)
        time.sleep(PAUSE * (100 if "slow" in question else 1))
    write({"id": request["id"], "type": "cancelled"} if request["id"] in cancelled else done(request))


def done(request: dict) -> dict:
    return {"id": request["id"], "type": "done", "result": None}


def text_of(ask: dict) -> str | None:
    question = ask["turns"][-1]["content"]
    if "refuse" in question:
        return None
    answer = ANSWERS[0] if "same" in question else ANSWERS[ask["voice"] % len(ANSWERS)]
    return "\n\n".join([answer] * 100) if "long" in question else answer


if __name__ == "__main__":
    threading.Thread(target=hear, daemon=True).start()
    while (request := waiting.get()) is not None:
        if request["id"] in cancelled:
            write({"id": request["id"], "type": "cancelled"})
        else:
            answer(request)
