"""Rows as text: who says what, without a tokenizer.

The rule: a row is understood by the same code as in training; what training would refuse is refused here with the same
words, but for an empty answer, which is told apart.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from macft.data.examples import (
    ChatExample,
    CompletionExample,
    Message,
    ResponseExample,
    TextExample,
    Turns,
    parse_example,
)
from macft.data.preferences import detect_method, parse_preferences
from macft.data.sources import Row

_ANSWER_COLUMNS = ("completion", "output", "chosen", "rejected")
_SPEAKER_COLUMNS = (("messages", "role", "content"), ("conversations", "from", "value"))
_PLAIN_ROLES = {"system", "user", "assistant"}
_SPEAKERS = {"assistant", "gpt", "chatgpt", "bot", "model"}


class Turn(NamedTuple):
    """A text and who says it; `is_answer` when it is learned."""

    role: str
    text: str
    is_answer: bool = False


class Texts(NamedTuple):
    """A row as text.

    Attributes:
        kind: `chat`, `completion`, `text`, `pair` or `labeled`.
        turns: In order; of preferences the responses stand last.
        prompt: What stands before the last answer, system messages apart.
        answer: The last answer, both of a pair, or the whole document.
    """

    kind: str
    turns: tuple[Turn, ...]
    prompt: str
    answer: str

    @property
    def answers(self) -> list[str]:
        """What is learned as a reply; a document holds none."""
        return [turn.text for turn in self.turns if turn.is_answer]


def read_texts(row: Row, columns: Mapping[str, str]) -> Texts:
    """Understand a row.

    Raises:
        RowProblem: It cannot be understood.
    """
    if not columns and (plain := _plain_chat(row.value)):
        return plain
    method = detect_method(row.value, columns)
    if method != "sft":
        return _responses(parse_preferences(row, columns, method=method, strings="text"))
    example = parse_example(row, columns)
    if isinstance(example, ChatExample):
        return _chat(example)
    if isinstance(example, CompletionExample):
        return _completion(example)
    text = example.text if isinstance(example, TextExample) else ""
    return Texts("text", (Turn("text", text),), "", text)


def _plain_chat(value: Mapping[str, Any]) -> Texts | None:
    """Return a chat of nothing but roles and texts, which needs no parsing; None for all others."""
    messages = value.get("messages")
    if len(value) != 1 or not isinstance(messages, list):
        return None
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, dict) or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if role not in _PLAIN_ROLES or not isinstance(content, str) or not content.strip():
            return None
        turns.append(Turn(role, content, role == "assistant"))
    if not turns or not turns[-1].is_answer:
        return None
    return Texts("chat", tuple(turns), _join(tuple(turns[:-1])), turns[-1].text)


def _completion(example: CompletionExample) -> Texts:
    turns = (Turn("user", example.prompt), Turn("assistant", example.completion, is_answer=True))
    return Texts("completion", turns, example.prompt, example.completion)


def _chat(example: ChatExample) -> Texts:
    turns = _turns(example.messages)
    last = max(index for index, turn in enumerate(turns) if turn.is_answer)
    return Texts("chat", turns, _join(turns[:last]), turns[last].text)


def _responses(examples: list[ResponseExample]) -> Texts:
    """Return the pairs of a row, which share a prompt, as one."""
    prompt, said = _turns(examples[0].prompt), dict[Turn, None]()
    for example in examples:
        kinds = ("chosen", "rejected") if example.label is None else ("desirable" if example.label else "undesirable",)
        for kind, response in zip(kinds, example.responses, strict=True):
            said[Turn(kind, _join(_turns(response)), is_answer=True)] = None
    kind = "pair" if examples[0].label is None else "labeled"
    return Texts(kind, (*prompt, *said), _join(prompt), "\n".join(turn.text for turn in said))


def _turns(turns: Turns) -> tuple[Turn, ...]:
    return (Turn("user", turns),) if isinstance(turns, str) else tuple(map(_turn, turns))


def _turn(message: Message) -> Turn:
    text = message.content or ""
    if message.tool_calls:
        text += "".join(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in message.tool_calls)
    return Turn(message.role, text, is_answer=message.role == "assistant" and message.train)


def _join(turns: tuple[Turn, ...]) -> str:
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def has_empty_answer(value: dict[str, Any], columns: Mapping[str, str]) -> bool:
    """Tell whether a row that cannot be understood fails for an answer that is missing or blank."""
    for column in _ANSWER_COLUMNS:
        name = columns.get(column, column)
        if name in value and _is_blank(value[name]):
            return True
    for column, role, content in _SPEAKER_COLUMNS:
        turns = value.get(columns.get(column, column))
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict) and turn.get(role) in _SPEAKERS and _is_blank(turn.get(content)):
                return not (turn.get("tool_calls") or turn.get("function_call"))
    return False


def _is_blank(item: object) -> bool:
    return item is None or item == [] or (isinstance(item, str) and not item.strip())


def normalize(text: str) -> str:
    """Return what two texts must share to count as the same: letters without case, one space between words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


hash_bytes = partial(hashlib.blake2b, digest_size=8)


def hash_text(normalized: str) -> int:
    """Return 64 bits of a hash of a normalized text."""
    return int.from_bytes(hash_bytes(normalized.encode("utf-8", "surrogatepass")).digest(), "big")
