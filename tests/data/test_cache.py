"""Prepared rows from the disk: the same, and never out of date."""

from pathlib import Path

import numpy as np
import pytest

from macft.data.cache import KEPT_ENTRIES, prepare_once
from macft.data.prepare import Prepared, prepare
from macft.models.load import load_tokenizer
from macft.recipe import DataTable, EvaluateTable
from tests.golden import load_case

TOKENIZER = load_tokenizer(load_case("llama").folder)
ROW = '{{"messages": [{{"role": "user", "content": "q{0}?"}}, {{"role": "assistant", "content": "a\u2028{0}"}}]}}\n'


class Preparation:
    """Counts how often rows are really read."""

    def __init__(self, folder: Path, data: DataTable) -> None:
        self.folder, self.data, self.made = folder, data, 0

    def make(self) -> Prepared:
        self.made += 1
        evaluate = EvaluateTable(samples=2, test_rows=2)
        return prepare(self.data, TOKENIZER, method="sft", max_seq_length=64, vocab_size=256, evaluate=evaluate)

    def once(self, *settings: object) -> Prepared:
        return prepare_once(self.folder / "cache", self.data, settings, self.make)


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    rows, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    rows.write_text("".join(ROW.format(number) for number in range(30)))
    test.write_text(ROW.format(99))
    return Preparation(tmp_path, DataTable(train=[str(rows)], test=[str(test)], valid_fraction=0.3))


def test_the_second_time_nothing_is_read_and_everything_is_the_same(preparation: Preparation) -> None:
    first, second = preparation.once(), preparation.once()
    assert preparation.made == 1
    for ours, theirs in ((first.train, second.train), (first.valid, second.valid)):
        assert all(np.array_equal(ours.row(place).ids, theirs.row(place).ids) for place in range(len(ours)))
        assert all(np.array_equal(ours.row(place).mask, theirs.row(place).mask) for place in range(len(ours)))
        assert (ours.where, ours.fingerprint) == (theirs.where, theirs.fingerprint)
    assert second[2:] == first[2:]


def test_whatever_changes_the_result_makes_it_anew(preparation: Preparation) -> None:
    preparation.once("a")
    preparation.once("b")
    rows = Path(preparation.data.train[0])
    rows.write_text(rows.read_text().replace("q7?", "q8?"))
    preparation.once("a")
    preparation.data = preparation.data.model_copy(update={"train_on": "last"})
    preparation.once("a")
    assert preparation.made == 4


def test_a_damaged_entry_is_made_anew(preparation: Preparation) -> None:
    first = preparation.once()
    entry = next((preparation.folder / "cache").iterdir())
    (entry / "train-where.npy").write_bytes((entry / "valid-where.npy").read_bytes())
    again = preparation.once()
    assert preparation.made == 2
    assert again.train.where == first.train.where
    assert preparation.once().train.where == first.train.where
    assert preparation.made == 2


def test_entries_are_private_and_old_ones_go(preparation: Preparation) -> None:
    for number in range(KEPT_ENTRIES + 3):
        preparation.once(number)
    entries = list((preparation.folder / "cache").iterdir())
    assert len(entries) == KEPT_ENTRIES
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in entries)
    preparation.once(KEPT_ENTRIES + 2)
    assert preparation.made == KEPT_ENTRIES + 3


def test_a_cache_that_cannot_be_written_costs_only_time(preparation: Preparation) -> None:
    (preparation.folder / "cache").write_text("a file is in the way")
    assert len(preparation.once().train) == len(preparation.once().train) > 0
    assert preparation.made == 2
