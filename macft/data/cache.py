"""Prepared rows, kept on the disk so that the same rows are tokenized once.

The rule: an entry is found by what it was made from (every byte of the files, the settings, the tokenizer and its
template), so it is never out of date. It is written aside and renamed, private like the runs, and
losing it costs only time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from macft import __version__
from macft.data.prepare import AnyRows, Prepared
from macft.data.questions import Question
from macft.data.report import DataReport
from macft.data.response_rows import ResponseRows
from macft.data.sources import list_files
from macft.data.spool import Origins
from macft.data.token_rows import TokenRows
from macft.recipe import DataTable

KEPT_ENTRIES = 8
_VERSION = 3
_ARRAYS = {"tokens": ("ids", "mask", "offsets"), "responses": ("ids", "offsets", "labels", "margins")}


def prepare_once(folder: Path, data: DataTable, settings: Sequence[object], make: Callable[[], Prepared]) -> Prepared:
    """Return what `make` returns, from the disk if it was made before.

    Args:
        folder: Where entries are kept.
        data: The rows and how they are read; rows from stdin are not kept.
        settings: Whatever else the result depends on.
        make: Reads and tokenizes.
    """
    paths = [*data.train, *data.valid, *data.test]
    if "-" in paths:
        return make()
    entry = folder / _key(paths, data, settings)
    try:
        found = _read(entry)
        os.utime(entry)
        return found
    except (OSError, ValueError, KeyError, TypeError):
        prepared = make()
    try:
        _write(entry, prepared)
    except OSError:
        pass  # a full disk or a read-only home: the rows are there all the same
    finally:  # whatever stops it: no half of an entry is left
        shutil.rmtree(_aside(entry), ignore_errors=True)
    return prepared


def _key(paths: Sequence[str], data: DataTable, settings: Sequence[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    how = data.model_dump(exclude={"train", "valid", "test"})
    parts = [len(data.train), len(data.valid), len(data.test)]
    digest.update(repr([_VERSION, __version__, how, parts, *settings]).encode())
    for path in paths:
        for file in list_files([path]):
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            digest.update(f"{Path(path).name}\0{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def _read(entry: Path) -> Prepared:
    told = json.loads((entry / "prepared.json").read_text(encoding="utf-8"))
    report = told["report"]
    report["histogram"] = tuple((bound, rows) for bound, rows in report["histogram"])
    return Prepared(
        _read_rows(entry, "train", told["train"]),
        _read_rows(entry, "valid", told["valid"]),
        [Question(*question) for question in told["samples"]],
        [Question(*question) for question in told["test"]],
        DataReport(**report),
    )


def _read_rows(entry: Path, name: str, told: dict[str, Any]) -> AnyRows:
    responses = int(told["responses"])
    arrays = {
        part: np.load(entry / f"{name}-{part}.npy", mmap_mode="r")
        for part in _ARRAYS["responses" if responses else "tokens"]
        if part != "labels" or responses == 1
    }
    where = Origins(told["origins"], np.load(entry / f"{name}-where.npy").tobytes())
    rows: AnyRows
    if responses:
        rows = ResponseRows(**{"labels": None, **arrays}, responses=responses, where=where)
    else:
        rows = TokenRows(**arrays, where=where)
    if len(where) != len(rows.lengths):
        raise ValueError("the entry is not whole")
    rows.__dict__["fingerprint"] = told["fingerprint"]
    return rows


def _tell_rows(rows: AnyRows) -> dict[str, Any]:
    responses = rows.responses if isinstance(rows, ResponseRows) else 0
    return {"fingerprint": rows.fingerprint, "responses": responses, "origins": _origins(rows).names}


def _origins(rows: AnyRows) -> Origins:
    return rows.where if isinstance(rows.where, Origins) else Origins.of(rows.where)


def _write(entry: Path, prepared: Prepared) -> None:
    aside = _aside(entry)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True, mode=0o700)
    for name, rows in (("train", prepared.train), ("valid", prepared.valid)):
        for part in _ARRAYS["responses" if isinstance(rows, ResponseRows) else "tokens"]:
            if (array := getattr(rows, part)) is not None:
                np.save(aside / f"{name}-{part}.npy", array)
        np.save(aside / f"{name}-where.npy", np.frombuffer(_origins(rows).numbers, np.int64))
    told = {
        "train": _tell_rows(prepared.train),
        "valid": _tell_rows(prepared.valid),
        "samples": prepared.samples,
        "test": prepared.test,
        "report": {name: getattr(prepared.report, name) for name in DataReport.__dataclass_fields__},
    }
    (aside / "prepared.json").write_text(json.dumps(told), encoding="utf-8")
    shutil.rmtree(entry, ignore_errors=True)
    aside.rename(entry)
    old = sorted(entry.parent.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_ENTRIES:]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _aside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
