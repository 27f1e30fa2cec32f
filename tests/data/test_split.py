import json
from collections import Counter
from pathlib import Path

import pytest

from macft.data.hygiene.check import check_rows
from macft.data.split import split_rows
from macft.errors import DataError, RecipeError
from tests.data.hygiene.planted import chat, write


def make(folder, rows=400):
    made = [chat(f"What of the {n // 2}th?", f"It is the answer {n}.") | {"customer": n % 40} for n in range(rows)]
    return write(folder / "rows.jsonl", made)


def read(done, part):
    return [json.loads(line) for line in Path(done.files[part]).read_text(encoding="utf-8").splitlines()]


def test_every_row_is_in_one_part_as_it_was_written(tmp_path):
    path = make(tmp_path)
    done = split_rows([str(path)], out=tmp_path / "out", valid=0.2, test=0.1)
    lines = [line for part in done.files.values() for line in Path(part).read_bytes().splitlines()]
    assert Counter(lines) == Counter(path.read_bytes().splitlines())
    assert sum(done.rows.values()) == 400
    assert 0.1 < done.rows["valid"] / 400 < 0.3
    assert 0.03 < done.rows["test"] / 400 < 0.2


def test_a_prompt_is_never_on_two_sides(tmp_path):
    done = split_rows([str(make(tmp_path))], out=tmp_path / "out", valid=0.3)
    assert done.groups == 200
    assert not check_rows([done.files["train"]], [done.files["valid"]], near=False).of("leak")


def test_a_group_is_never_on_two_sides(tmp_path):
    done = split_rows([str(make(tmp_path))], out=tmp_path / "out", valid=0.3, test=0.2, group="customer")
    sides = [{row["customer"] for row in read(done, part)} for part in done.files]
    assert done.groups == 40 == sum(map(len, sides))
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_a_row_never_moves_when_others_come(tmp_path):
    (tmp_path / "more").mkdir()
    few = split_rows([str(make(tmp_path))], out=tmp_path / "few", valid=0.2)
    many = split_rows([str(make(tmp_path / "more", 800))], out=tmp_path / "many", valid=0.2)
    assert [row for row in read(many, "valid") if row in read(few, "train")] == []
    assert [row for row in read(few, "valid") if row not in read(many, "valid")] == []


def test_another_seed_is_another_split(tmp_path):
    path = str(make(tmp_path))
    one, other = (split_rows([path], out=tmp_path / str(seed), valid=0.5, seed=seed) for seed in (0, 1))
    assert read(one, "valid") != read(other, "valid")


def test_rows_without_a_group_are_named_and_nothing_is_written(tmp_path):
    path = write(tmp_path / "rows.jsonl", [chat("Who?", "Me."), chat("Where?", "Here.") | {"meta": {"customer": 7}}])
    with pytest.raises(DataError, match=r'rows.jsonl:1: has no group in "meta.customer"'):
        split_rows([str(path)], out=tmp_path / "out", group="meta.customer")
    assert list((tmp_path / "out").iterdir()) == []


def test_shares_must_leave_something_to_train_on(tmp_path):
    with pytest.raises(RecipeError, match="expected shares below 1 together"):
        split_rows([str(make(tmp_path))], out=tmp_path / "out", valid=0.6, test=0.4)
    with pytest.raises(DataError, match="never changed"):
        split_rows([str(tmp_path)], out=tmp_path / "out")
