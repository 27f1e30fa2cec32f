"""Rows from files to files.

The rule: a row that is passed on is passed on as it was written, byte for byte, when it is a line of JSONL. A file is
there as a whole or not at all: it is written aside, flushed, and renamed.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from macft.data.sources import STDIN, Row, list_files, read_rows
from macft.errors import DataError, Problem
from macft.run import PRIVATE_FILE

_RAW = {".jsonl", ".ndjson"}


def read_lines(files: Sequence[str], problems: list[Problem]) -> Iterator[tuple[Row, int, bytes]]:
    """Read rows with their number among the readable ones of their file, and as a line of JSONL.

    Args:
        files: Files and folders; not standard input.
        problems: Gets everything that could not be read.
    """
    problems += [Problem(name, "no such file or folder") for name in files if not Path(name).exists()]
    for path in list_files(files):
        raw = _number_lines(path) if path.suffix.lower() in _RAW else None
        for number, row in enumerate(read_rows([str(path)], problems), start=1):
            yield row, number, next(line for at, line in raw if at == row.line) if raw else dump_row(row.value)


def dump_row(value: Mapping[str, Any]) -> bytes:
    """Return an object as a line of JSONL."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8") + b"\n"


def _number_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"


def write_rows(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines to a new file, and return their number."""
    written = 0
    with new_file(path) as file:
        for line in lines:
            file.write(line)
            written += 1
    return written


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place when all of it is on the disk, and is gone when something fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, PRIVATE_FILE), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_target(files: Sequence[str], out: Path) -> None:
    """Refuse to write over what is read.

    Raises:
        DataError: `out` is one of the files or in a folder of them, or rows come from standard input.
    """
    if STDIN in files:
        raise DataError([Problem(STDIN, "can only be read once")], fix="Save the rows to a file and name that.")
    target = out.resolve()
    if any(target == Path(name).resolve() or Path(name).resolve() in target.parents for name in files):
        raise DataError([Problem(str(out), "is among what is read, which is never changed")], fix="Name another --out.")
