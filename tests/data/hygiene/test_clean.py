import json

import pytest

from macft.api import clean_rows
from macft.data.hygiene.check import check_rows
from macft.errors import DataError, RecipeError
from tests.data.hygiene.planted import chat, plant, write


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_wrong_is_left_out_and_named(tmp_path):
    train, held_out, faults = plant(tmp_path, rows=600, each=10)
    before = train.read_bytes()
    done = clean_rows([str(train)], [str(held_out)], out=tmp_path / "new" / "clean.jsonl")
    assert train.read_bytes() == before
    log = read(done.log)
    assert {row["line"] for row in log} >= set.union(
        *(
            lines
            for kind, lines in faults.items()
            if kind not in {"leak", "near_leak", "personal_data", "repeated_answer"}
        )
    )
    assert all(row["where"] == f"train.jsonl:{row['line']}" and row["reasons"] for row in log)
    gone = {row["line"] for row in log}
    kept = [line for number, line in enumerate(before.splitlines(keepends=True), 1) if number not in gone]
    assert done.out.read_bytes() == b"".join(kept)
    assert done.kept == len(kept)
    assert sum(done.removed.values()) == len(log)
    again = check_rows([str(done.out)], [str(held_out)])
    assert set(again.count()) == {"personal_data"}
    assert {path.name for path in done.out.parent.iterdir()} == {"clean.jsonl", "clean.removed.jsonl"}


def test_of_a_repeated_reply_the_first_stays(tmp_path):
    rows = [chat(f"What of the {n}th one?", f"It is told in the book of number {n}.") for n in range(40)]
    rows[10:16] = [chat(f"May I have the {n}th one?", "I am sorry, but I cannot help you.") for n in range(6)]
    done = clean_rows([str(write(tmp_path / "rows.jsonl", rows))], out=tmp_path / "out.jsonl")
    assert done.removed == {"repeated_answer": 5}
    assert rows[10] in read(done.out)


def test_rows_of_an_array_on_one_line_are_told_apart(tmp_path):
    rows = [
        chat("What is it?", "An implement, madam."),
        chat("what is it?", "An implement, madam."),
        chat("Who?", "I am."),
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    done = clean_rows([str(path)], out=tmp_path / "out.jsonl")
    assert read(done.out) == [rows[0], rows[2]]


def test_kinds_can_be_kept_or_chosen(tmp_path):
    rows = [chat("Who?", "It is me."), chat("Who?", "It is me."), chat("Where?", "At a@b.com and c@d.org.")]
    path = str(write(tmp_path / "rows.jsonl", rows))
    assert clean_rows([path], out=tmp_path / "1.jsonl", keep=["duplicate"]).kept == 3
    assert clean_rows([path], out=tmp_path / "2.jsonl", only=["personal_data"]).removed == {"personal_data": 1}
    with pytest.raises(RecipeError, match="twins: is not a kind"):
        clean_rows([path], out=tmp_path / "3.jsonl", keep=["twins"])


def test_nothing_is_written_over_what_is_read(tmp_path):
    path = write(tmp_path / "rows.jsonl", [chat("Who?", "It is me.")])
    for out in (path, tmp_path / "sub" / "out.jsonl"):
        files = [str(path)] if out == path else [str(tmp_path)]
        with pytest.raises(DataError, match="never changed"):
            clean_rows(files, out=out)
    with pytest.raises(DataError, match="only be read once"):
        clean_rows(["-"], out=tmp_path / "out.jsonl")
