import json
from collections import Counter

import pytest

from macft.data.examples import parse_example
from macft.data.general import add_general
from macft.data.hygiene.leaks import refuse_leaks
from macft.data.mix import hash_place, is_held_out
from macft.data.sources import read_rows
from macft.errors import DataError
from macft.recipe import DataTable, make_recipe
from tests.data.hygiene.planted import chat, write


def table(folder, rows=450, **keys):
    path = write(folder / "train.jsonl", [chat(f"What of the {n}th?", f"It is {n}.") for n in range(rows)])
    return DataTable.model_validate({"train": [str(path)], "valid_fraction": 0.1, **keys})


def general_rows(found):
    return list(read_rows(found.data.train[1:], []))


def test_without_a_share_nothing_changes(tmp_path):
    data = table(tmp_path)
    assert add_general(data, tmp_path / "cache") == (data, 0, 0)
    assert not (tmp_path / "cache").exists()


def test_a_tenth_of_the_training_rows_is_general_and_none_is_held_out(tmp_path):
    found = add_general(table(tmp_path, keep_general=0.1), tmp_path / "cache")
    rows = general_rows(found)
    assert len(rows) == found.rows == found.wanted == 45  # 45 / (450 · 0.9 + 45) = 0.1
    assert not any(is_held_out(hash_place(parse_example(row)), 0.1) for row in rows)
    assert add_general(table(tmp_path, keep_general=0.1), tmp_path / "cache") == found
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_more_is_asked_than_there_is(tmp_path):
    own = write(tmp_path / "own.jsonl", [chat(f"General {n}?", "Yes, so it is.") for n in range(20)] * 2)
    found = add_general(table(tmp_path, keep_general=0.5, general=[str(own)], valid=["v"]), tmp_path / "cache")
    assert (found.wanted, found.rows) == (450, 20)
    assert set(Counter(json.dumps(row.value) for row in general_rows(found)).values()) == {1}


def test_general_rows_are_read_under_the_names_of_the_others(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"question": f"{n}?", "answer": f"{n}."} for n in range(90)])
    columns = {"prompt": "question", "completion": "answer"}
    data = DataTable(train=[str(path)], columns=columns, keep_general=0.1, valid_fraction=0.0)
    found = add_general(data, tmp_path / "cache")
    assert len([parse_example(row, columns) for row in read_rows(found.data.train, [])]) == 100


def test_a_general_row_that_cannot_be_read_is_named(tmp_path):
    own = write(tmp_path / "own.jsonl", [{"nothing": 1}])
    with pytest.raises(DataError, match=r"own\.jsonl:1: has no column"):
        add_general(table(tmp_path, keep_general=0.1, general=[str(own)]), tmp_path / "cache")


@pytest.mark.parametrize(("method", "key"), [("dpo", "data.keep_general"), ("pretrain", "data.general")])
def test_a_method_that_cannot_use_them_says_so(method, key):
    with pytest.raises(Exception, match=key):
        make_recipe({"model": "m", "method": method, "data": {"train": "t.jsonl", "keep_general": 0.1}})


def test_leaks_are_refused_with_the_way_out(tmp_path):
    held_out = write(
        tmp_path / "valid.jsonl", [chat("what of  the 7th?", "Another answer."), chat("Who?", "It is me.")]
    )
    with pytest.raises(DataError) as refused:
        refuse_leaks(table(tmp_path, valid=[str(held_out)]))
    (problem,) = refused.value.problems
    assert str(problem) == "valid.jsonl:1: is held out, and asks what train.jsonl:8 asks, which is trained on"
    assert "data.leaks=allow" in refused.value.fix
    assert "macft data clean" in refused.value.fix
    refuse_leaks(table(tmp_path, valid=[str(held_out)], leaks="allow"))
    refuse_leaks(table(tmp_path, rows=5, test=[str(held_out)]))
    refuse_leaks(table(tmp_path))
