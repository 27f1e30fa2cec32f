import pytest

from macft.cli.diagnostics import explain, guard
from macft.errors import DataError, DoesNotFit, MacftError, ModelError, NeedsNetwork, Problem, RunCrashed, Stopped


def fail_with(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MacftError("x"), 1),
        (DataError([Problem("a:1", "bad")]), 3),
        (ModelError("x"), 3),
        (DoesNotFit("x"), 4),
        (RunCrashed("x"), 5),
        (NeedsNetwork("x"), 6),
        (Stopped("x", signal_number=2), 130),
        (Stopped("x"), 143),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit("x"), 1),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error, code, capsys):
    assert guard(fail_with(error), debug=False) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_line_with_its_way_out(capsys):
    guard(fail_with(ModelError("gpt is not here", fix="Fetch it.")), debug=False)
    captured = capsys.readouterr()
    assert captured.err == "macft: gpt is not here. Fetch it.\n"
    assert captured.out == ""


def test_a_list_of_problems_stays_as_it_is():
    error = DataError([Problem("a.jsonl:1", "bad"), Problem("a.jsonl:2", "worse")], fix="Mend.")
    assert explain(error) == ("a.jsonl:1: bad\na.jsonl:2: worse\nMend.", 3)


def test_an_unexpected_error_says_how_to_see_more():
    message, _ = explain(ZeroDivisionError("by\nzero"))
    assert message == "macft: unexpected ZeroDivisionError: by zero; run again with --debug and report it"


def test_a_file_that_cannot_be_written_is_named():
    assert explain(PermissionError(13, "Permission denied", "/x/y"))[0] == "macft: /x/y: Permission denied"


def test_debug_shows_where(capsys):
    assert guard(fail_with(ModelError("x")), debug=True) == 3
    assert "in command" in capsys.readouterr().err


def test_file_names_cannot_steer_the_terminal():
    assert "\x1b" not in explain(DataError([Problem("a\x1b[2J.jsonl", "bad")]))[0]
