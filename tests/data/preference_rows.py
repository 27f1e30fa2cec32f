"""Generated rows of preferences, the same for macft's test and for the script that asks TRL about them.

The rule: a row is a function of its set and its number alone; a set is what one tokenizer and one trainer are given.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Object = dict[str, Any]

PHRASES = [
    *("hello there", "What is the weather in Paris today?", "the quick brown fox jumps over the lazy dog"),
    *(
        "你好，今天天气怎么样？",
        "人工智能是工程和科学的分支。",
        "العربية and ไทย",
        "naïve café — déjà vu",
        "a\u0301 is not á",
    ),
    *("👩‍👩‍👧 family, 🇫🇷 flag, 👍🏽 thumb", "\U00010348 gothic", "zero\u200bwidth", "non\u00a0breaking", "ß ẞ ﬁ ﬀ"),
    *('{"name": "x", "zip": "12345"}', "f(x) = x**2  # square", "<b>bold</b> &amp; <br/>", "1234567890", "3.14159e-10"),
    *("line one\nline two\n\nline four", "    indented\n\tand a tab", "- item\n- item", "U.S.A. e.g. Dr. O'Neill's"),
]
TRICKY = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "qwen3": "<|im_start|>",
    "phi4": "<|im_sep|>",
    "mistral_v3": "[INST]",
}
"""A control token of each format that people may have in their text."""
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say what the weather is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOOL_FORMATS = ("llama3", "qwen3")


class RowSet(NamedTuple):
    """Rows for one tokenizer and one trainer.

    Attributes:
        format: Of `tests.data.formats`.
        kind: What the rows look like: a function below.
        count: How many rows.
        method: Whose trainer reads them.
        max_length: In tokens; TRL cuts what is longer.
        thinking: `data.enable_thinking`; TRL takes it from the row.
    """

    format: str
    kind: str
    count: int
    method: str = "dpo"
    max_length: int = 1024
    thinking: bool = False

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.format, self.kind, self.method, self.max_length, self.thinking)))


STRING_FORMATS = ("chatml", "llama3", "zephyr", "mistral_v3", "gemma")
CHAT_FORMATS = ("chatml", "smollm2", "llama3", "qwen3", "phi4", "granite", "gemma")
SETS = [
    *(RowSet(format, "strings", 700) for format in STRING_FORMATS),
    *(RowSet(format, "transcripts", 350) for format in STRING_FORMATS),
    *(RowSet(format, "strings", 100, max_length=72) for format in STRING_FORMATS),
    *(RowSet(format, "labeled_strings", 150, "kto") for format in STRING_FORMATS),
    *(RowSet(format, "strings", 50, "kto") for format in STRING_FORMATS),
    *(RowSet(format, "chats", 240) for format in CHAT_FORMATS),
    *(RowSet(format, "conversations", 140) for format in CHAT_FORMATS),
    *(RowSet(format, "chats", 40, max_length=160) for format in CHAT_FORMATS),
    *(RowSet(format, "labeled_chats", 50, "kto") for format in CHAT_FORMATS),
    *(RowSet(format, "conversations", 20, "kto") for format in CHAT_FORMATS),
    *(RowSet(format, "tool_chats", 100) for format in TOOL_FORMATS),
    RowSet("qwen3", "chats", 100, thinking=True),
    RowSet("smollm2", "chats", 268, max_length=2048),
]
PARITY_ROWS = 10_000
CLASSES = ("parity", "control", "border", "same")
"""What TRL does with a row: nothing that macft does otherwise; takes people's text for a control token; loses a token
that lies across the border of prompt and response (it warns of that); keeps a pair that is the same when it is cut."""


def hash_parts(parts: Iterable[Sequence[int]]) -> int:
    """Return a hash of prompts and responses, 64 bits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.array([len(part), *part], np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little")


def make_rows(rows: RowSet) -> list[Object]:
    """Return the rows of a set."""
    random_ = random.Random(rows.name)
    return [_MAKERS[rows.kind](random_, rows.format) for _ in range(rows.count)]


def _text(random_: random.Random, format: str, *, most: int = 5) -> str:
    """Return a few phrases and words; seldom with a control token among them."""
    parts = []
    for _ in range(random_.randint(1, most)):
        kind = random_.random()
        if kind < 0.5:
            parts.append(random_.choice(PHRASES))
        elif kind < 0.996:
            parts.append("".join(chr(random_.choice(_RANGES[int(kind * 100) % len(_RANGES)])) for _ in range(6)))
        else:
            parts.append(TRICKY.get(format, "plain"))
    return random_.choice((" ", " ", "\n", ", ")).join(parts).strip() or "ok"


_RANGES = [range(0x61, 0x7B), range(0x30, 0x3A), range(0x410, 0x450), range(0x4E00, 0x4F00), range(0x1F600, 0x1F640)]


def _two(random_: random.Random, format: str) -> tuple[str, str]:
    """Return two different answers; at times one that begins as the other does."""
    chosen, rejected = _text(random_, format), _text(random_, format)
    if random_.random() < 0.1:
        rejected = f"{chosen} {rejected}"
    return chosen, rejected if rejected != chosen else f"{rejected} again"


def _strings(random_: random.Random, format: str) -> Object:
    prompt = _text(random_, format) + random_.choice(("\nAnswer:", "?", ":", "", "\n\n", "\n", " "))
    lead = random_.choice((" ", " ", "\n", ""))
    chosen, rejected = _two(random_, format)
    return {"prompt": prompt, "chosen": lead + chosen, "rejected": lead + rejected}


def _transcripts(random_: random.Random, format: str) -> Object:
    """Return whole conversations as HH-RLHF writes them."""
    text = ""
    for _ in range(random_.randint(0, 2)):
        text += f"\n\nHuman: {_text(random_, format)}\n\nAssistant: {_text(random_, format)}"
    text += f"\n\nHuman: {_text(random_, format)}\n\nAssistant:"
    chosen, rejected = _two(random_, format)
    return {"chosen": f"{text} {chosen}", "rejected": f"{text} {rejected}"}


def _labeled_strings(random_: random.Random, format: str) -> Object:
    row = _strings(random_, format)
    return {"prompt": row["prompt"], "completion": row["chosen"], "label": random_.random() < 0.5}


def _turn(role: str, text: str) -> Object:
    return {"role": role, "content": text}


def _prompt(random_: random.Random, format: str) -> list[Object]:
    turns = [_turn("system", _text(random_, format))] if format != "gemma" and random_.random() < 0.4 else []
    for _ in range(random_.randint(0, 2)):
        turns += [_turn("user", _text(random_, format)), _turn("assistant", _text(random_, format))]
    return [*turns, _turn("user", _text(random_, format))]


def _chats(random_: random.Random, format: str) -> Object:
    prompt = _prompt(random_, format)
    chosen, rejected = _two(random_, format)
    return {"prompt": prompt, "chosen": [_turn("assistant", chosen)], "rejected": [_turn("assistant", rejected)]}


def _conversations(random_: random.Random, format: str) -> Object:
    """Return whole conversations as lists of messages, as UltraFeedback has them, with scores."""
    row = _chats(random_, format)
    score = random_.random()
    return {
        "chosen": row["prompt"] + row["chosen"],
        "rejected": row["prompt"] + row["rejected"],
        "score_chosen": score + 1.0,
        "score_rejected": score,
    }


def _labeled_chats(random_: random.Random, format: str) -> Object:
    row = _chats(random_, format)
    return {"prompt": row["prompt"], "completion": row["chosen"], "label": random_.random() < 0.5}


def _tool_chats(random_: random.Random, format: str) -> Object:
    """Return a chat with a tool that was called in the prompt, and answers to what it said."""
    row = _chats(random_, format)
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": _text(random_, "", most=1)}}}
    asked = [_turn("assistant", "") | {"tool_calls": [call]}, _turn("tool", _text(random_, format))]
    return {**row, "prompt": row["prompt"] + asked, "tools": [TOOL]}


_MAKERS = {
    "strings": _strings,
    "transcripts": _transcripts,
    "labeled_strings": _labeled_strings,
    "chats": _chats,
    "conversations": _conversations,
    "labeled_chats": _labeled_chats,
    "tool_chats": _tool_chats,
}
