"""The child that reads rows: every question has one answer, and none is slow."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from macft import api
from macft.cli.row_worker import RowsWorker
from tests.shelf import Shelf


@pytest.fixture
def worker(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> RowsWorker:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    return RowsWorker(seconds=0.01)


def ask(worker: RowsWorker, kind: str, **more: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(worker.answer(json.dumps({"type": kind, **more})))))


def open_all(worker: RowsWorker, file: str) -> list[dict[str, Any]]:
    assert "message" not in ask(worker, "open", data={"train": [file]}, model="tiny")
    parts = [ask(worker, "more")]
    while not parts[-1]["is_done"]:
        parts.append(ask(worker, "more"))
    return parts


def rows_file(folder: Path, count: int) -> str:
    rows = [{"prompt": f"what is {n}", "completion": f"it is {n}"} for n in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return str(folder / "rows.jsonl")


def test_rows_come_in_parts_and_each_can_be_shown(worker: RowsWorker, tmp_path: Path) -> None:
    opened = ask(worker, "open", data={"train": [rows_file(tmp_path, 300)]}, model="tiny")
    assert opened["method"] == "sft"
    assert opened["total"] == 301
    parts = open_all(worker, str(tmp_path / "rows.jsonl"))
    assert len(parts) > 1
    rows = [row for part in parts for row in part["rows"]]
    assert len(rows) == 301
    assert list(parts[-1]["said"]) == ["301"]
    shown = ask(worker, "show", row=200)
    assert shown["where"] == "rows.jsonl:200"
    assert json.loads(shown["raw"]) == {"prompt": "what is 199", "completion": "it is 199"}
    (part,) = shown["parts"]
    assert (part["count"], part["supervised"]) == tuple(rows[199][3:5])
    text = "".join(text for text, _, is_trained in part["tokens"] if is_trained)
    assert "it is 199" in text
    bad = ask(worker, "show", row=301)
    assert bad["said"].startswith("is not valid JSON")
    assert bad["raw"].startswith("{broken")
    assert ask(worker, "show", row=302)["message"] == "row: 302 was not read yet"


def test_a_window_shows_some_tokens(worker: RowsWorker, tmp_path: Path) -> None:
    open_all(worker, rows_file(tmp_path, 3))
    whole = ask(worker, "show", row=1)["parts"][0]
    some = ask(worker, "show", row=1, start=4, count=3)["parts"][0]
    assert some["count"] == whole["count"]
    assert [ids for _, ids, _ in some["tokens"]] == [ids for _, ids, _ in whole["tokens"]][4:7]


def test_words_are_looked_for_in_parts(worker: RowsWorker, tmp_path: Path) -> None:
    ask(worker, "open", data={"train": [rows_file(tmp_path, 3000)]}, model="tiny")
    worker.seconds = 0.0005
    found, after, parts = list[int](), 0, 0
    while True:
        part = ask(worker, "find", words=["IS 29", "what"], after=after)
        found, after, parts = found + part["rows"], part["after"], parts + 1
        if part["is_done"]:
            break
    assert parts > 1
    assert found == [number + 1 for number in range(3000) if str(number).startswith("29")]


def test_a_row_may_be_tried_before_it_is_kept(worker: RowsWorker, tmp_path: Path) -> None:
    open_all(worker, rows_file(tmp_path, 3))
    tried = ask(worker, "show", row=2, text='{"prompt": "new",\n "completion": "words words words"}')
    assert "words words words" in "".join(text for text, *_ in tried["parts"][0]["tokens"])
    assert tried["seen"][3] == tried["parts"][0]["count"]
    assert "not valid JSON" in ask(worker, "show", row=2, text="{")["message"]
    assert ask(worker, "show", row=2, text='{"strange": 1}')["said"].startswith("has no column that macft knows")


def test_a_copy_is_written_in_parts(worker: RowsWorker, tmp_path: Path) -> None:
    open_all(worker, rows_file(tmp_path, 500))
    worker.seconds = 0.001
    said = ask(worker, "save", folder=str(tmp_path / "copy"), dropped=[1], edited={"2": '{"text": "x"}'})
    while not said["is_done"]:
        said = ask(worker, "save")
    assert said["train"] == 498
    assert said["unusable"] == 2, "a text is no row of sft, and one line is broken"
    assert "there already" in ask(worker, "save", folder=str(tmp_path / "copy"))["message"]
    assert ask(worker, "save")["message"] == "nothing is being saved"


def test_wrong_questions_are_answered(worker: RowsWorker, tmp_path: Path) -> None:
    assert ask(worker, "more")["message"] == "no rows are open"
    assert "does not match" in ask(worker, "dance")["message"]
    assert ask(worker, "open", data={"train": []}, model="tiny")["message"] == "data.train: names no file"
    assert "no-such-model" in ask(worker, "open", data={"train": ["x"]}, model="./no-such-model")["message"]
    assert ask(worker, "open", data={"train": ["x"]}, model="tiny", speed=1)["exit_code"] == 2


def test_the_child_ends_with_its_stdin(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    question = {"type": "open", "data": {"train": [rows_file(tmp_path, 3)]}, "model": "tiny"}
    with api.start_rows() as child:
        said, _ = child.communicate(json.dumps(question) + "\n" + '{"type": "more"}\n' * 4, timeout=120)
    assert sum(len(json.loads(line).get("rows", [])) for line in said.splitlines()) == 4, "however slow, a row each"
    assert child.returncode == 0
    assert isinstance(child, subprocess.Popen)
