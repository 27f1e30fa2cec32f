"""Picking at a terminal: blind until the verdict, undo as far back as one likes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macft.chat.preferences import Answered, Duel, Picks, Tally
from macft.cli.picking import edit_text, judge


def make_duels(count: int) -> Iterator[Duel]:
    for number in range(count):
        sides = (Answered("Base", f"plain {number}"), Answered("tuned", f"fine {number}"))
        yield Duel((("user", f"question {number}"),), sides)


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Picks]:
    def run(*typed: str, duels: Iterator[Duel] | None = None, blind: bool = False) -> Picks:
        picks, lines = Picks(("Base", "tuned"), tmp_path / "picks.jsonl"), iter(typed)
        judge(
            picks,
            make_duels(3) if duels is None else duels,
            ask=lambda: next(lines, None),
            edit=lambda text: text.upper(),
            blind=blind,
            seed=1,
        )
        assert next(lines, "all was read") == "all was read"
        return picks

    return run


def chosen(picks: Picks) -> list[str]:
    return [json.loads(line)["chosen"] for line in picks.path.read_text().splitlines()]


def test_verdicts_become_rows(play: Callable[..., Picks], capsys: pytest.CaptureFixture[str]) -> None:
    picks = play("2", "1", "t", "q")
    assert chosen(picks) == ["fine 0", "plain 1"]
    assert picks.tally == Tally(("Base", "tuned"), (1, 1), ties=1)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Base 1, tuned 1, tie 1, p = 1.00" in said.err


def test_names_are_hidden_until_the_verdict(play: Callable[..., Picks], capsys: pytest.CaptureFixture[str]) -> None:
    play(blind=True)
    before = capsys.readouterr().err
    assert "── 1\n" in before
    assert "Base" not in before
    play("1", blind=True)
    after = capsys.readouterr().err
    assert "1 was Base, 2 was tuned" in after or "1 was tuned, 2 was Base" in after
    play()
    assert "── 1 Base\n" in capsys.readouterr().err


def test_a_blind_verdict_is_for_what_was_shown(play: Callable[..., Picks]) -> None:
    picks = play(*["1"] * 40, "q", duels=make_duels(40), blind=True)
    assert sum(picks.tally.wins) == 40
    assert min(picks.tally.wins) > 8
    assert sum("fine" in text for text in chosen(picks)) == picks.tally.wins[1]


def test_undo_asks_again_as_far_back_as_one_likes(play: Callable[..., Picks]) -> None:
    assert chosen(play("1", "1", "u", "u", "2", "2", "2", "q")) == ["fine 0", "fine 1", "fine 2"]
    picks = play("b", "u", "u", "t", "q")
    assert (picks.tally.both_bad, picks.tally.ties) == (0, 1)


def test_the_last_verdict_can_be_taken_back(play: Callable[..., Picks]) -> None:
    assert chosen(play("1", "u", "2", "q", duels=make_duels(1))) == ["fine 0"]


def test_thumbs_stay_at_the_question(play: Callable[..., Picks]) -> None:
    picks = play("1-", "2+", "u", "s", "2", "q")
    assert [json.loads(line)["label"] for line in picks.labels.read_text().splitlines()] == [False]
    assert chosen(picks) == ["fine 0"] or chosen(picks) == ["fine 1"]


def test_a_winner_can_be_edited(play: Callable[..., Picks]) -> None:
    assert chosen(play("e1", "e2", "q")) == ["PLAIN 0", "FINE 1"]


def test_what_is_the_same_is_skipped_and_nonsense_explained(
    play: Callable[..., Picks], capsys: pytest.CaptureFixture[str]
) -> None:
    same = Duel((("user", "q"),), (Answered("Base", "x"), Answered("tuned", "x")))
    picks = play("nonsense", "2", "q", duels=iter([same, *make_duels(1)]))
    assert chosen(picks) == ["fine 0"]
    said = capsys.readouterr().err
    assert "both say the same: skipped" in said
    assert said.count("1 or 2 is better") == 2
    play(duels=iter([same]))


def test_an_editor_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/bad/good/")
    assert edit_text("a bad answer") == "a good answer"
    assert edit_text("a bad answer\n") == "a good answer\n"
