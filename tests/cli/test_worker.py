"""The studio's child: every line is an answer, cancel is obeyed amid a reply, and it goes when stdin does."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from macft.cli.worker import Worker
from tests.conftest import REPOSITORY
from tests.shelf import Shelf

HI = [{"role": "user", "content": "what is it?"}]


class Asker:
    """Sends requests to a worker in this process, and collects its lines; the worker runs in this thread."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.on_line: Callable[[dict[str, Any]], None] = lambda _: None
        self.worker = Worker(self._write)

    def _write(self, line: dict[str, Any]) -> None:
        json.dumps(line)
        self.lines.append(line)
        self.on_line(line)

    def __call__(self, *requests: dict[str, Any] | str) -> list[dict[str, Any]]:
        self.lines = []
        worker = self.worker
        for request in requests:
            worker._take(request if isinstance(request, str) else json.dumps(request))
        worker._waiting.put(None)
        worker.run()
        return self.lines

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]


@pytest.fixture
def ask(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Asker:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    shelf.add_run("one", seed=1)
    return Asker()


def compare(number: int, *, most: int = 6, **more: Any) -> dict[str, Any]:
    asks = [{"voice": voice, "turns": HI, "pane": str(voice), "sampling": {"max_tokens": most}} for voice in range(2)]
    return {"id": number, "type": "compare", "voices": ["one"], "asks": asks} | more


def test_voices_answer_side_by_side_and_stay_loaded(ask: Asker, shelf: Shelf) -> None:
    first = ask(compare(1))
    assert [voice["name"] for voice in ask.of("opened")[0]["voices"]] == ["Base", "one"]
    assert {line["id"] for line in first} == {1}
    assert first[-1] == {"id": 1, "type": "done", "result": None}
    assert [part["ask"] for part in ask.of("part")][:4] == [0, 1, 0, 1]
    texts = ["".join(part["text"] for part in ask.of("part") if part["ask"] == voice) for voice in range(2)]
    assert texts[0] != texts[1]
    (shelf.tiny / "model.safetensors").unlink()
    assert ask(compare(2))[-1]["type"] == "done", "nothing is loaded again"
    again = ["".join(part["text"] for part in ask.of("part") if part["ask"] == voice) for voice in range(2)]
    assert again == texts


def test_a_chat_is_one_voice(ask: Asker) -> None:
    ask({"id": "a", "type": "chat", "name": "one", "turns": HI, "sampling": {"max_tokens": 4}})
    assert len(ask.of("part")) == 4
    tuned = "".join(part["text"] for part in ask.of("part"))
    ask({"id": "b", "type": "chat", "name": "one", "base": True, "turns": HI, "sampling": {"max_tokens": 4}})
    assert "".join(part["text"] for part in ask.of("part")) != tuned


def test_cancel_ends_a_reply_amid_it_and_keeps_what_came(ask: Asker) -> None:
    def cancel(line: dict[str, Any]) -> None:
        if line["type"] == "part" and len(ask.of("part")) == 6:
            ask.worker._take('{"id": 2, "type": "cancel", "request": 1}')

    ask.on_line = cancel
    lines = ask(compare(1, most=200))
    assert lines[-1] == {"id": 1, "type": "cancelled"}
    assert len(ask.of("part")) == 6
    assert {"id": 2, "type": "done", "result": None} in lines
    kept = ask.worker._voices._decoder._kept
    assert len(kept) == 2


def test_a_waiting_request_is_cancelled_too(ask: Asker) -> None:
    lines = ask({"id": 8, "type": "cancel", "request": 1}, compare(1), {"id": 9, "type": "cancel", "request": 1})
    assert [(line["id"], line["type"]) for line in lines] == [(8, "done"), (9, "done"), (1, "cancelled")]
    assert ask(compare(1, asks=[]))[-1]["type"] == "done", "the id may be used again"


def test_scores_are_of_the_loaded_voices(ask: Asker) -> None:
    questions = [{"turns": HI, "answers": [{"text": "no"}]}]
    assert ask({"id": 1, "type": "score", "questions": questions})[0]["fix"] == "Ask them with `compare` first."
    lines = ask(compare(1, asks=[]), {"id": 2, "type": "score", "questions": questions, "kl": True})
    assert [line["type"] for line in lines] == ["opened", "done", "done"]
    (((base, tuned),),) = lines[-1]["result"]
    assert base["tokens"] == tuned["tokens"] == 2
    assert base["mean"] == base["logprob"] / 2
    assert base["kl"] == pytest.approx(0, abs=1e-6)
    assert tuned["kl"] > 0


def test_rows_and_models_are_told(ask: Asker, shelf: Shelf) -> None:
    rows = shelf.home / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "what?", "completion": "that"}) + "\n")
    data = {"train": [str(rows)], "valid_fraction": 0.0}
    checked, shown, described = ask(
        {"id": 1, "type": "check", "data": data, "model": "tiny"},
        {"id": 2, "type": "show", "data": data, "model": "tiny", "row": 1},
        {"id": 3, "type": "describe", "model": "tiny"},
    )
    assert checked["result"]["rows_read"] == 1
    assert "that" in json.dumps(shown["result"])
    assert described["result"]["family"] == "llama"


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        ("not json", 2, "invalid json"),
        ("[1]", 2, "request"),
        ({"id": 1}, 2, "'type'"),
        ({"id": 1, "type": "dance"}, 2, "'dance'"),
        ({"id": 1, "type": "chat", "name": "one"}, 2, "turns: field required"),
        ({"id": 1, "type": "chat", "name": "one", "turns": HI, "path": "/x"}, 2, "path: extra inputs"),
        ({"id": 1, "type": "chat", "name": "none", "turns": HI}, 3, "no run, adapter folder or model"),
        (
            {"id": 1, "type": "chat", "name": "one", "turns": HI, "sampling": {"heat": 1}},
            2,
            "sampling.heat: is unknown",
        ),
        ({"id": 1, "type": "chat", "name": "one", "turns": HI, "sampling": {"seed": "x"}}, 2, "sampling.seed"),
        ({"id": 1, "type": "chat", "name": "one", "turns": HI, "sampling": {"top_p": 0}}, 2, "top_p: is 0"),
        (compare(1, asks=[{"voice": 2, "turns": HI}]), 2, "asks: voice 2 of 2"),
        ({"id": 1, "type": "describe", "model": "./missing"}, 3, "missing"),
    ],
)
def test_errors_say_what_and_the_worker_goes_on(ask: Asker, request_: Any, code: int, said: str) -> None:
    lines = ask(request_, {"id": 2, "type": "describe", "model": "tiny"})
    (error,) = ask.of("error")
    assert set(error) == {"id", "type", "message", "fix", "exit_code"}
    assert error["exit_code"] == code
    assert said in error["message"]
    assert "Traceback" not in error["message"]
    assert lines[-1]["id"] == 2
    assert lines[-1]["type"] == "done"


def test_it_ends_with_stdin_amid_a_reply(shelf: Shelf) -> None:
    shelf.add_run("one", seed=1)
    environment = {**os.environ, "MACFT_HOME": str(shelf.home), "MACFT_RUNS": str(shelf.runs)}
    command = [sys.executable, "-m", "macft", "_worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **pipes) as child:
        child.stdin.write(json.dumps(compare(1, most=400)) + "\n")
        child.stdin.flush()
        while json.loads(child.stdout.readline())["type"] != "part":
            pass
        threading.Timer(0.0, child.stdin.close).start()
        started = time.monotonic()
        for line in child.stdout:
            assert json.loads(line)["id"] == 1
        assert child.wait(timeout=20) == 0
        assert time.monotonic() - started < 15
        assert child.stderr.read() == ""
