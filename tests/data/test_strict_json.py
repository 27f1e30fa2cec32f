"""What two readers would read differently is refused, and what comes behind it is still read."""

import json

import pytest

from macft.data.strict_json import (
    Unreadable,
    decode,
    explain,
    find_value,
    has_lone_surrogate,
    iterate_elements,
    line_of,
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', 'has the key "a" twice'),
        ('{"a": {"b": 1, "b": 1}}', 'has the key "b" twice'),
        ("[NaN]", "holds NaN, which is not JSON"),
        ("-Infinity", "holds -Infinity, which is not JSON"),
        ("1" * 401, "holds a number of 401 digits"),
        ('{"a"}', "is not valid JSON: expecting ':' delimiter at column 5"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_refused_is_explained(text: str, said: str) -> None:
    with pytest.raises((ValueError, RecursionError)) as caught:
        decode(text)
    assert explain(caught.value) == said


def test_elements_have_their_lines_and_reading_goes_on_behind_a_refused_one() -> None:
    text = '\n[ {"a": 1},\n  {"a": 1,\n "a": 2},\n\n  NaN, "x" ]\n'
    found = list(iterate_elements(text, text.index("[")))
    assert [line for line, _ in found] == [2, 3, 6, 6]
    assert [type(value) for _, value in found] == [dict, Unreadable, Unreadable, str]


@pytest.mark.parametrize("text", ["[1 2]", "[1,]", "[1", "[1] 2"])
def test_what_comes_before_a_break_is_read(text: str) -> None:
    elements = iterate_elements(text, 0)
    if text != "[1":
        assert next(elements) == (1, 1)
    with pytest.raises(json.JSONDecodeError):
        list(elements)


def test_an_array_may_stand_in_something_larger() -> None:
    text = '{"skip": [[1]], "rows": [] , "more": 0}'
    at = find_value(text, 0, "rows")
    assert text[at:].startswith("[]")
    assert list(iterate_elements(text, at, whole=False)) == []
    assert line_of("a\nb", 2) == 2


@pytest.mark.parametrize(
    ("value", "torn"), [("\ud83d", True), ({"\udc00": 1}, True), (["ok", ["\ud83d"]], True), ("😀", False), (7, False)]
)
def test_half_of_a_surrogate_pair_is_found_wherever_it_is(value: object, torn: bool) -> None:
    assert has_lone_surrogate(value) == torn
