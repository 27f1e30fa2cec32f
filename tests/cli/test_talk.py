from typing import NamedTuple

from macft.cli.talk import answer_once, converse


class Part(NamedTuple):
    text: str
    finish_reason: str | None = None


class Echo:
    """A model that says how many turns it heard, and the last one."""

    def __init__(self, *parts):
        self.parts = parts
        self.heard = []

    def __call__(self, turns):
        self.heard.append(list(turns))
        yield from self.parts or (Part(f"{len(turns)}:"), Part(turns[-1][1], "stop"))


def test_one_reply_is_all_there_is_on_stdout(capsys):
    echo = Echo()
    answer_once(echo, "hi", system="be kind")
    assert capsys.readouterr().out == "2:hi\n"
    assert echo.heard == [[("system", "be kind"), ("user", "hi")]]


def test_a_conversation_remembers_until_it_is_reset(capsys):
    echo = Echo()
    converse(echo, ["a", "", "b", "/reset", "c"])
    assert capsys.readouterr().out == "1:a\n3:b\n1:c\n"
    assert echo.heard[1] == [("user", "a"), ("assistant", "1:a"), ("user", "b")]


def test_an_unknown_command_explains_itself(capsys):
    converse(Echo(), ["/wat"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "/reset" in captured.err


def test_a_reply_that_was_cut_says_so_on_stderr(capsys):
    answer_once(Echo(Part("long", "length")), "hi")
    captured = capsys.readouterr()
    assert captured.out == "long\n"
    assert "--max-tokens" in captured.err


def test_a_reply_cannot_steer_the_terminal(capsys):
    answer_once(Echo(Part("\x1b[2Jx", "stop")), "hi")
    assert capsys.readouterr().out == "␛[2Jx\n"
