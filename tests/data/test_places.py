"""A row found again is the row that was read, whatever the format and wherever it stands."""

import json
import random
from pathlib import Path

import pytest

from macft.data.places import Place, Places
from macft.data.sources import Row, read_rows
from macft.errors import DataError

TEXTS = ["plain", 'two\nlines, "quoted"', "中文 and é", "emoji 🎉", "tab\there", "x" * 5000]


def values(count: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    return [{"prompt": f"{number} {rng.choice(TEXTS)}", "completion": rng.choice(TEXTS)} for number in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[3:3] = ["", "not json", "[1]"]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())


def write_json(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(rows))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def write_text(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("\n".join(row["prompt"] for row in rows))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("rows.json", write_json),
        ("rows.csv", write_csv),
        ("rows.parquet", write_parquet),
        ("rows.txt", write_text),
    ],
)
def test_every_row_is_found_again(tmp_path: Path, name: str, write) -> None:
    path = tmp_path / name
    write(path, values(30))
    rows: list[Row] = list(read_rows([str(path)], []))
    places = Places()
    order = list(enumerate(rows))
    random.Random(1).shuffle(order)
    assert order
    for ordinal, row in order:
        assert places.read(Place(row.file, row.line, ordinal)) == row


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, values(5))
    places = Places()
    places.read(Place(str(path), 1, 0))
    path.write_text('{"text": "another"}\n')
    with pytest.raises(DataError, match="changed since it was read"):
        places.read(Place(str(path), 1, 0))


def test_what_is_no_row_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, values(5))
    places = Places()
    with pytest.raises(DataError, match=r"rows\.jsonl:5: is not valid JSON"):
        places.read(Place(str(path), 5, 0))
    assert places.line(Place(str(path), 5, 0)) == b"not json\n"
    with pytest.raises(DataError, match="no line 99"):
        places.read(Place(str(path), 99, 0))
