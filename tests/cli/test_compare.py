"""`macft compare`: what goes to stdout, what is written, and that every voice keeps its own history."""

import io
import json
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from macft.chat.panes import Ask, Part, Sampling, Turn, Voice
from macft.cli.compare import converse, print_replies
from macft.cli.main import run
from tests.shelf import Shelf


@pytest.fixture
def macft(
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    shelf.add_run("one", seed=1)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["compare", *arguments, "--max-tokens", "6"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "what?"}\n{"prompt": "who?", "system": "be kind"}\n')
    return str(path)


def test_json_is_a_line_a_prompt(macft: Callable, prompts: str, shelf: Shelf) -> None:
    code, out, _ = macft("one", "--prompts", prompts, "--json")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert list(first) == ["schema", "prompt", "voices"]
    assert (first["schema"], first["prompt"]) == (1, "what?")
    assert second["prompt"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "who?"}]
    for voice in first["voices"]:
        assert list(voice) == ["name", "model_path", "adapter", "text", "token_ids", "seconds"]
        assert 0 < len(voice["token_ids"]) <= 6
        assert voice["seconds"] > 0
    assert [voice["name"] for voice in first["voices"]] == ["Base", "one"]
    assert first["voices"][0]["adapter"] is None
    assert first["voices"][1]["adapter"] == str(shelf.runs / "one" / "adapter")
    assert {voice["model_path"] for voice in first["voices"]} == {str(shelf.tiny)}
    assert not list((shelf.runs / "one").glob("compare/*"))


def test_a_report_goes_into_the_run_or_where_it_is_asked_to(
    macft: Callable,
    prompts: str,
    shelf: Shelf,
    tmp_path: Path,
) -> None:
    _, out, _ = macft("--prompts", prompts, "--kl")
    markdown, html = map(Path, out.splitlines())
    assert markdown.parent == html.parent == shelf.runs / "one" / "compare"
    assert "| Base |" in markdown.read_text()
    assert "KL a token" in html.read_text()
    assert stat.S_IMODE(html.stat().st_mode) == 0o600
    _, out, _ = macft("one", "--prompts", prompts, "--json", "--out", str(tmp_path / "new" / "report"))
    assert len(out.splitlines()) == 2
    assert (tmp_path / "new" / "report.md").exists()
    assert (tmp_path / "new" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 3, "'nothing' is no run, adapter folder or model"),
        (["one@9"], 1, "one has no checkpoint '9'"),
        (["one", "--top-p", "0"], 2, "top_p: is 0.0 (expected above 0 and at most 1)"),
        (["one", "one@2", "--pick"], 2, "--pick: is between two voices (got 3: Base, one, one@2)"),
        (["one", "--pick", "--prompts", "-"], 2, "reads verdicts from stdin"),
        (["one", "--prompts", "missing.txt"], 3, "missing.txt: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_done_is_said(macft: Callable, prompts: str, arguments: list[str], code: int, said: str) -> None:
    given = arguments if "--prompts" in arguments else [*arguments, "--prompts", prompts]
    result = macft(*given)
    assert result[0] == code
    assert said in result[2]


class Counters:
    """Voices that say how many turns they heard, one token after the other side."""

    def __init__(self, count: int) -> None:
        self.voices: Sequence[Voice] = [Voice(f"v{number}", "m") for number in range(count)]
        self.heard: list[tuple[Turn, ...]] = []
        self.closed = 0

    def stream(self, asks: Sequence[Ask]) -> Iterator[Part]:
        self.heard += [ask.turns for ask in asks]
        try:
            for length in range(3):
                for place, ask in enumerate(asks):
                    end = "length" if length == 2 else None
                    yield Part(place, f"{len(ask.turns)}{'abc'[length]}", 1, end, 1.0)
        finally:
            self.closed += 1


def test_replies_stand_under_each_other_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_replies(Counters(2), [(("user", "hi"),), (("user", "hi"), ("assistant", "a"), ("user", "b"))], Sampling())
    said = capsys.readouterr()
    assert said.out == "── v0\n1a1b1c\n\n── v1\n3a3b3c\n\n"
    assert "v0 3 tokens, 1.0 s, 3.0 tokens/s, cut · v1 3 tokens" in said.err


def test_every_voice_has_its_own_history(capsys: pytest.CaptureFixture[str]) -> None:
    voices = Counters(2)
    converse(voices, ["one", "two", "/reset", "/what", "three"], (("system", "kind"),), Sampling())
    assert [len(turns) for turns in voices.heard] == [2, 2, 4, 4, 2, 2]
    assert voices.heard[3][2] == ("assistant", "2a2b2c")
    assert voices.closed == 3
    assert "/scores" in capsys.readouterr().err


def test_answers_are_judged_later_without_a_model(
    macft: Callable, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, picks = tmp_path / "answers.jsonl", tmp_path / "picks.jsonl"
    answers.write_text(macft("one", "--prompts", prompts, "--json")[1])
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\nq\n"))
    code, out, _ = macft("--judge", str(answers), "--unblind", "--picks", str(picks))
    assert (code, out) == (0, "Base 1, one 1, p = 1.00\n")
    rows = [json.loads(line) for line in picks.read_text().splitlines()]
    assert [row["voices"]["chosen"] for row in rows] == ["one", "Base"]
    assert rows[1]["prompt"][0] == {"role": "system", "content": "be kind"}
    answers.write_text('{"prompt": "x"}\n')
    code, _, said = macft("--judge", str(answers))
    assert code == 3
    assert "answers.jsonl:1: is no prompt with the answers of two voices" in said
