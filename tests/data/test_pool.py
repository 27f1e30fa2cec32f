"""Rows read by several processes: the same as by one, bit for bit, and nothing left behind."""

import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macft.data.cache import prepare_once
from macft.data.pool import ROWS_A_TASK, Workers
from macft.data.prepare import Prepared, prepare
from macft.data.spool import HELD_BYTES, Origins, Spool
from macft.errors import DataError
from macft.recipe import DataTable, EvaluateTable
from tests.data.formats import load

TWO = Workers(partial(load, "chatml"), processes=2, least_bytes=0)


def chats(count: int) -> list[dict[str, Any]]:
    """Rows of every length; some are the same, some too long to keep, and some hold a control token."""
    rows = []
    for number in (number % (count - 9) for number in range(count)):
        words = " ".join(f"word{number % 7}" for _ in range(1 + number % 40)) + (
            " <|im_end|>" if number % 50 == 0 else ""
        )
        asked = f"question {number}"
        rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": words}]})
    return rows


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def ready(workers: Workers | None, progress: Any = None, **data: Any) -> Prepared:
    return prepare(
        DataTable(**data),
        load("chatml"),
        method="sft",
        max_seq_length=64,
        vocab_size=10_000,
        evaluate=EvaluateTable(samples=2, test_rows=2),
        progress=progress,
        workers=workers,
    )


def test_several_processes_make_what_one_makes(tmp_path: Path) -> None:
    rows = chats(2 * ROWS_A_TASK + 5)
    data = {"train": [write(tmp_path / "rows.jsonl", rows)], "test": [write(tmp_path / "test.jsonl", rows[:30])]}
    told: list[list[tuple[int, int]]] = [[], []]
    one, two = (
        ready(workers, lambda *done, to=to: to.append(done), **data)
        for workers, to in zip((None, TWO), told, strict=True)
    )
    assert told[0] == told[1]
    assert (one.samples, one.test) == (two.samples, two.test)
    assert one.report == two.report
    assert one.report.duplicate_rows > 0
    assert one.report.leaked_rows > 0
    for ours, theirs in ((one.train, two.train), (one.valid, two.valid)):
        assert len(ours) > 0
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.mask, theirs.mask)
        assert np.array_equal(ours.offsets, theirs.offsets)
        assert ours.where == theirs.where
        assert ours.fingerprint == theirs.fingerprint
    assert multiprocessing.active_children() == []


def test_problems_keep_their_order_whoever_finds_them(tmp_path: Path) -> None:
    """Lines that are no JSON are found here, ahead of rows that workers still have; rows without an answer, there."""
    bad = {300: "{broken\n", 301: {"messages": []}, 10: {"nothing": 1}, 400: '"text"\n', 399: {"messages": [1]}}
    rows = [bad.get(number, row) for number, row in enumerate(chats(500))]
    path = write(tmp_path / "rows.jsonl", rows)
    found = []
    for workers in (None, TWO):
        with pytest.raises(DataError) as caught:
            ready(workers, train=[path])
        found.append([str(problem) for problem in caught.value.problems])
    assert found[0] == found[1]
    assert [text.partition(" ")[0] for text in found[0]] == [f"rows.jsonl:{line}:" for line in (11, 301, 302, 400, 401)]


def test_a_stop_leaves_no_process_and_no_entry(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chats(1000))

    def stop(done: int, _: int) -> None:
        if done >= ROWS_A_TASK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_once(tmp_path / "cache", DataTable(train=[path]), [], lambda: ready(TWO, stop, train=[path]))
    assert not list(tmp_path.glob("cache/*"))
    assert not list(tmp_path.glob("cache/.*"))
    assert multiprocessing.active_children() == []


def test_small_files_start_no_process(tmp_path: Path) -> None:
    small = write(tmp_path / "rows.jsonl", chats(20))
    workers = Workers(lambda: pytest.fail("a process was started"), processes=2)
    assert not workers.pay_for([small])
    assert len(ready(workers, train=[small]).train) > 0
    assert TWO.pay_for([small])
    assert not TWO._replace(processes=1).pay_for([small])
    text = tmp_path / "book.txt"
    text.write_text("one long document\n" * 200_000)
    assert not TWO._replace(least_bytes=2**20).pay_for([str(text)])  # one row, however long


def test_a_spool_gives_back_what_it_was_given() -> None:
    parts = [np.arange(start, start + 1000, dtype=np.int32) for start in range(0, 3 * HELD_BYTES // 4, 1000)]
    large, small, empty = Spool(), Spool(), Spool()
    small.add(parts[0])
    for part in parts:
        large.add(part)
    assert np.array_equal(large.array(np.int32), np.concatenate(parts))
    assert np.array_equal(small.array(np.int32), parts[0])
    assert len(empty.array(np.int32)) == 0


def test_places_are_the_texts_they_stand_for() -> None:
    texts = ["a.jsonl:1", "a.jsonl:20", "b c.jsonl:3", "no line", "x:0", "x:007", ":5", "book.txt:1", "x:12:9", ""]
    places = Origins.of(texts)
    assert list(places) == texts
    assert places == texts
    assert places[-1] == ""
    assert places[1:3] == texts[1:3]
    assert list(Origins(places.names, places.numbers.tobytes())) == texts
    with pytest.raises(IndexError):
        places[len(texts)]
