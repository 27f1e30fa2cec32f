"""JSON as macft takes it, and where in a text its values begin and end.

The rule: what two readers would understand differently is refused: a key that is there twice, NaN, a number of a
thousand digits. Reading goes on behind a value that was refused.
"""

import json
from collections.abc import Iterator
from typing import Any

_MOST_DIGITS = 400


class Unreadable(ValueError):
    """Text that is valid JSON to Python, but not to macft."""


def decode(text: str) -> Any:
    """Return the value that a text is.

    Raises:
        Unreadable: macft does not take it.
        json.JSONDecodeError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    return _DECODER.decode(text)


def decode_at(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at a place in a text, and where it ends; raises what `decode` raises."""
    return _DECODER.raw_decode(text, at)


def iterate_elements(text: str, at: int, *, whole: bool = True) -> Iterator[tuple[int, Any]]:
    """Yield the elements of the array that opens at `at`, each with its line; one that is refused as its `Unreadable`.

    Args:
        text: JSON.
        at: The place of the opening bracket.
        whole: Whether the text ends with the array.

    Raises:
        json.JSONDecodeError: The array is broken; what comes before the break has been yielded.
    """
    line, counted, first = 1, 0, True
    while True:
        at = skip_space(text, at + 1)
        if first and text[at : at + 1] == "]":
            break
        line, counted, first = line + text.count("\n", counted, at), at, False
        try:
            value, end = decode_at(text, at)
        except Unreadable as error:
            value, end = error, _LENIENT.raw_decode(text, at)[1]
        yield line, value
        at = skip_space(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if whole and text[at + 1 :].strip():
        raise json.JSONDecodeError("Extra data", text, at + 1)


def find_value(text: str, at: int, key: str) -> int:
    """Return where the value of a key starts in the valid JSON object that opens at `at`."""
    while True:
        name, at = decode_at(text, skip_space(text, at + 1))
        at = skip_space(text, skip_space(text, at) + 1)
        if name == key:
            return at
        at = skip_space(text, decode_at(text, at)[1])


def skip_space(text: str, at: int) -> int:
    """Return the place of the first character from `at` on that is not JSON's white space."""
    while text[at : at + 1] in {" ", "\t", "\r", "\n"}:
        at += 1
    return at


def line_of(text: str, at: int) -> int:
    """Return the line of a place in a text, from 1."""
    return text.count("\n", 0, at) + 1


def explain(error: Exception) -> str:
    """Say what is wrong with a text, from what `decode` raised."""
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at")
        return f"is not valid JSON: {what[0].lower()}{what[1:]} at column {error.colno}"
    return "is nested too deeply" if isinstance(error, RecursionError) else str(error)


def has_lone_surrogate(value: object) -> bool:
    """Return whether a value holds half of a surrogate pair, which is no character."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(has_lone_surrogate(key) or has_lone_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_lone_surrogate, value))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Unreadable(f'has the key "{twice}" twice')
    return value


def _refuse_constant(name: str) -> None:
    raise Unreadable(f"holds {name}, which is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise Unreadable(f"holds a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_whole_number)
_LENIENT = json.JSONDecoder(parse_int=len)
"""Finds where a value ends that `_DECODER` refuses."""
