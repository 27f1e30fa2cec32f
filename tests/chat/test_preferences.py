"""Picks become rows, undo takes them back, and the arithmetic is that of a coin."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from macft.chat.preferences import (
    Answered,
    Duel,
    Picks,
    Tally,
    append_line,
    remove_last_line,
    shuffled,
    sign_test,
)
from macft.data.chat_template import decode
from macft.data.prepare import Prepared, prepare
from macft.models.load import load_tokenizer
from macft.recipe import DataTable
from tests.golden import load_case

BASE, TUNED = Answered("Base", "a base answer"), Answered("tuned", "a tuned answer")
DUEL = Duel((("system", "be kind"), ("user", "what?")), (BASE, TUNED), {"temperature": 0.7, "max_tokens": 64}, 3)


@pytest.fixture
def picks(tmp_path: Path) -> Picks:
    return Picks(("Base", "tuned"), tmp_path / "picks.jsonl")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 · 1/2
        (5, 0, 0.0625),  # 2 · 1/32
        (0, 6, 0.03125),  # 2 · 1/64
        (3, 2, 1.0),  # 2 · (1 + 5 + 10) / 32
        (8, 2, 0.109375),  # 2 · (1 + 10 + 45) / 1024
        (17, 4, 15094 / 2**21),  # 2 · (1 + 21 + 210 + 1330 + 5985) / 2²¹
    ],
)
def test_the_sign_test_is_a_coins(first: int, second: int, p: float) -> None:
    assert sign_test(first, second) == pytest.approx(p, rel=1e-12)
    assert sign_test(second, first) == sign_test(first, second)


def test_the_tally_reads_as_people_say_it() -> None:
    assert str(Tally(("Base", "tuned"), (4, 17), ties=2)) == "tuned 17, Base 4, tie 2, p = 0.007"
    assert str(Tally(("Base", "tuned"), (1, 0), both_bad=1)) == "Base 1, tuned 0, both bad 1, p = 1.00"


def test_a_pick_is_a_line_with_exactly_these_keys(picks: Picks) -> None:
    picks.judge(DUEL, "2")
    (row,) = rows(picks.path)
    assert list(row) == ["prompt", "chosen", "rejected", "voices", "sampling", "seed", "time"]
    assert row.pop("time") > 1e9
    assert row == {
        "prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "what?"}],
        "chosen": "a tuned answer",
        "rejected": "a base answer",
        "voices": {"chosen": "tuned", "rejected": "Base"},
        "sampling": {"temperature": 0.7, "max_tokens": 64},
        "seed": 3,
    }
    assert stat.S_IMODE(picks.path.stat().st_mode) == 0o600


def test_verdicts_count_for_voices_not_for_sides(picks: Picks) -> None:
    swapped = Duel(DUEL.turns, (TUNED, BASE))
    for duel, verdict in ((DUEL, "1"), (swapped, "1"), (swapped, "2"), (DUEL, "tie"), (DUEL, "both bad")):
        picks.judge(duel, verdict)
    assert picks.tally == Tally(("Base", "tuned"), (2, 1), ties=1, both_bad=1)
    assert [row["voices"]["chosen"] for row in rows(picks.path)] == ["Base", "tuned", "Base"]


def test_an_edited_winner_is_what_is_chosen(picks: Picks) -> None:
    picks.judge(DUEL, "1", edited="a better answer")
    (row,) = rows(picks.path)
    assert (row["chosen"], row["rejected"]) == ("a better answer", "a tuned answer")
    assert row["voices"] == {"chosen": "Base", "rejected": "tuned"}


def test_what_teaches_nothing_is_counted_and_not_written(picks: Picks) -> None:
    same = Duel(DUEL.turns, (BASE, Answered("tuned", BASE.text)))
    assert same.is_same
    assert not DUEL.is_same
    picks.judge(same, "1")
    picks.judge(Duel(DUEL.turns, (BASE, Answered("tuned", " "))), "1")
    picks.judge(DUEL, "1", edited=" ")
    assert rows(picks.path) == []
    assert picks.tally.wins == (3, 0)


def test_thumbs_are_labeled_completions_in_a_file_of_their_own(picks: Picks) -> None:
    picks.thumb(DUEL, "1", up=False)
    picks.thumb(DUEL, "2", up=True)
    assert picks.labels.name == "picks-labels.jsonl"
    assert [(row["completion"], row["label"]) for row in rows(picks.labels)] == [
        ("a base answer", False),
        ("a tuned answer", True),
    ]
    assert rows(picks.labels)[0]["prompt"][-1] == {"role": "user", "content": "what?"}
    assert not picks.path.exists()


def test_undo_takes_back_one_after_the_other(picks: Picks) -> None:
    picks.judge(DUEL, "1")
    picks.judge(DUEL, "tie")
    picks.thumb(DUEL, "2", up=True)
    assert picks.undo()
    assert rows(picks.labels) == []
    assert picks.undo()
    assert (picks.tally.ties, picks.tally.wins) == (0, (1, 0))
    assert picks.undo()
    assert rows(picks.path) == []
    assert picks.tally == Tally(("Base", "tuned"))
    assert not picks.undo()


def test_undo_never_takes_a_line_of_somebody_elses(picks: Picks) -> None:
    picks.judge(DUEL, "1")
    append_line(picks.path, b'{"other": 1}\n')
    assert not picks.undo()
    assert len(rows(picks.path)) == 2
    assert picks.tally.wins == (1, 0)
    picks.path.unlink()
    assert not remove_last_line(picks.path, b"x\n")


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    path.write_text('{"old": 1}\n{"torn": ')
    append_line(path, b'{"new": 2}\n')
    assert path.read_text() == '{"old": 1}\n{"torn": \n{"new": 2}\n'


def test_a_line_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    append_line(path, b"x" * 59 + b"\n")
    code = f"""
import pathlib, resource, signal
from macft.chat.preferences import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    append_line(pathlib.Path({str(path)!r}), b"y" * 59 + b"\\n")
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert path.read_bytes() == b"x" * 59 + b"\n"


def test_picks_are_rows_that_preference_tuning_reads(picks: Picks) -> None:
    picks.judge(DUEL, "2")
    picks.judge(DUEL, "1", edited="more <|im_end|> lines\nof it")
    picks.thumb(DUEL, "1", up=False)
    tokenizer = load_tokenizer(load_case("llama").folder)

    def read(path: Path, method: str) -> Prepared:
        table = DataTable.model_validate({"train": [str(path)], "valid_fraction": 0.0})
        return prepare(table, tokenizer, method=method, max_seq_length=256, vocab_size=256)

    pairs = read(picks.path, "dpo").train
    prompt, chosen, rejected = (decode(tokenizer, part) for part in pairs.parts(0))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert "be kind" in prompt
    assert chosen.startswith("a tuned answer<|im_end|>")
    assert rejected.startswith("a base answer<|im_end|>")
    assert len(pairs) == 2
    labeled = read(picks.labels, "kto").train
    assert labeled.labels.tolist() == [False]
    assert decode(tokenizer, labeled.parts(0)[1]).startswith("a base answer")
    assert read(picks.path, "kto").train.labels.tolist() == [True, False, True, False]


def test_sides_are_shuffled_fairly_and_repeatably() -> None:
    def sides(seed: int) -> Iterator[str]:
        return (shuffled(DUEL, seed=seed, number=number).sides[0].voice for number in range(400))

    assert list(sides(1)) == list(sides(1))
    assert list(sides(1)) != list(sides(2))
    first = list(sides(1))
    assert 160 < first.count("Base") < 240
    assert sum(one == two for one, two in pairwise(first)) < 240
    assert set(shuffled(DUEL, seed=1, number=0).sides) == {BASE, TUNED}
