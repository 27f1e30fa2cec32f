"""Invisible marks around people's words, to find them again in what a chat template makes of them.

The rule: a mark touches only words. It never stands next to the white space at a text's ends, nor inside or around tags
that templates look for, so that trimming and splitting do what they would have done without it. Marks are Unicode
noncharacters, which are meant for use inside a program and never stand in text.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_DIGITS = [chr(0xFDE0 + digit) for digit in range(16)]
_MARK = re.compile(f"{_OPEN}([{_DIGITS[0]}-{_DIGITS[-1]}]+)|{_CLOSE}")
_NONCHARACTER = re.compile("[\ufdd0-\ufdef]")
_TAG = re.compile(r"(</?(?:think|tool_call|tool_response)>)")


class Span(NamedTuple):
    """Text [start, end) that came from the message `owner`."""

    start: int
    end: int
    owner: int


def is_markable(value: object) -> bool:
    """Return whether a JSON value is free of the characters that marks are made of."""
    if isinstance(value, str):
        return value.isascii() or not _NONCHARACTER.search(value)
    if isinstance(value, Mapping):
        return all(is_markable(key) and is_markable(item) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(map(is_markable, value))


def mark(value: Any, owner: int) -> Any:
    """Return a JSON value with every text in it marked as the owner's; keys and numbers stay as they are."""
    if isinstance(value, str):
        return "".join(part if _TAG.fullmatch(part) else _mark_words(part, owner) for part in _TAG.split(value))
    if isinstance(value, dict):
        return {key: mark(item, owner) for key, item in value.items()}
    return [mark(item, owner) for item in value] if isinstance(value, list) else value


def _mark_words(text: str, owner: int) -> str:
    words = text.strip()
    if not words:
        return text
    start = text.index(words)
    number = "".join(_DIGITS[int(digit, 16)] for digit in f"{owner:x}")
    return f"{text[:start]}{_OPEN}{number}{words}{_CLOSE}{text[start + len(words) :]}"


def unmark(text: str) -> tuple[str, list[Span]]:
    """Take the marks out of a text.

    Returns:
        The text without marks, and where each owner's words stand in it, in order.

    Raises:
        ValueError: A mark has lost its other half.
    """
    parts: list[str] = []
    spans: list[Span] = []
    at = length = start = 0
    owner: int | None = None
    for found in _MARK.finditer(text):
        parts.append(text[at : found.start()])
        length, at = length + found.start() - at, found.end()
        if (found[1] is None) == (owner is None):
            raise ValueError("a mark has lost its other half")
        if owner is None:
            owner, start = int("".join(f"{_DIGITS.index(digit):x}" for digit in found[1]), 16), length
        else:
            spans.append(Span(start, length, owner))
            owner = None
    if owner is not None:
        raise ValueError("a mark has lost its other half")
    return "".join([*parts, text[at:]]), spans
