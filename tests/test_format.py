import pytest

from macft.format import clean, columns, count, duration, gigabytes, number, one_line


def test_control_characters_become_visible_and_harmless():
    assert clean("a\x1b[31mb\x07\r\nc\td\x7f\x9b1m") == "a␛[31mb␇␍\nc\td␡\ufffd1m"


def test_direction_overrides_and_lone_surrogates_are_replaced():
    assert clean("a\u202eb\u2066c\udcff") == "a\ufffdb\ufffdc\ufffd"


def test_joined_emoji_and_chinese_stay():
    assert clean("👩\u200d💻 你好") == "👩\u200d💻 你好"


def test_one_line_folds_white_space_and_cuts():
    assert one_line("a\n\n b\tc") == "a b c"
    assert one_line("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (0.0004, "4.00e-04"), (0.0, "0.000"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (4_884_480, "4.88 M"), (139_399_488, "139 M"), (13_500, "13.5 k"), (2 * 10**9, "2.00 B")],
)
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (12.4, "12 s"),
        (59.9, "60 s"),
        (800, "13 min"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_gigabyte_is_2_to_the_30():
    assert gigabytes(16 * 2**30) == "16.0 GB"


def test_columns_align_by_width_on_screen():
    lines = columns([["A", "N"], ["你好", "7"], ["abc", "10"]], right=[1])
    assert lines == ["A      N", "你好   7", "abc   10"]
