"""Rows found again by where they stand, without reading what comes before them.

The rule: lines are found by seeking, so that the last of a million rows costs what the first does. A file that changed
since it was first looked at is refused: its lines are others now.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.sources import Row, csv_records, parse_line, read_rows
from macft.errors import DataError, Problem

_BLOCK = 2**22
_LINES, _CELLS, _TABLES = {".jsonl", ".ndjson"}, {".csv", ".tsv"}, {".parquet"}


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
        file: Its path.
        line: The line it starts on, from 1; the row's number in a Parquet file.
        ordinal: Rows of the file before it.
    """

    file: str
    line: int
    ordinal: int


class Places:
    """Reads single rows of files; keeps where the lines of each begin, and the last file that has no lines."""

    def __init__(self) -> None:
        self._starts: dict[str, npt.NDArray[np.int64]] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._kept: tuple[str, int, list[Row]] = ("", 0, [])

    def read(self, place: Place) -> Row:
        """Read a row that is known to be there.

        Raises:
            DataError: It cannot be read, or the file changed.
        """
        problems: list[Problem] = []
        ending = Path(place.file).suffix.lower()
        found: Row | None = None
        try:
            if ending in _LINES:
                where = f"{Path(place.file).name}:{place.line}"
                text = self.line(place).decode("utf-8-sig" if place.line == 1 else "utf-8", "replace")
                found = next(parse_line(text, where, place.file, place.line, problems), None)
            elif ending in _CELLS:
                found = self._cells(place)
            else:
                found = self._element(place, problems)
        except OSError as error:
            problems.append(Problem(place.file, f"cannot be read: {error.strerror or error}"))
        if found is None:
            raise DataError(problems or [Problem(place.file, f"has no row at line {place.line} any more")])
        return found

    def line(self, place: Place) -> bytes:
        """Return the bytes of a line.

        Raises:
            DataError: The file changed.
            OSError: It cannot be read.
        """
        starts = self._index(place.file)
        if place.line >= len(starts):
            raise DataError([Problem(place.file, f"has no line {place.line}")])
        with Path(place.file).open("rb") as file:
            file.seek(int(starts[place.line - 1]))
            return file.read(int(starts[place.line] - starts[place.line - 1]))

    def _cells(self, place: Place) -> Row | None:
        path = Path(place.file)
        starts = self._index(place.file)
        with path.open("rb") as file:
            header = [cell.strip() for cell in next(csv_records(file, path, []))[1]]
            file.seek(int(starts[place.line - 1]))
            _, cells = next(csv_records(file, path, []))
        where = f"{path.name}:{place.line}"
        return Row(dict(zip(header, cells, strict=False)), where, place.file, place.line)

    def _element(self, place: Place, problems: list[Problem]) -> Row | None:
        """Return a row of a file, or of a part of it, that is read as a whole and kept until another is asked for."""
        self._check(place.file)
        is_table = Path(place.file).suffix.lower() in _TABLES
        at, (name, first, rows) = place.line - 1 if is_table else place.ordinal, self._kept
        if name != place.file or not first <= at < first + len(rows):
            whole = (0, list(read_rows([place.file], problems))) if not is_table else _parquet_group(place.file, at)
            first, rows = whole
            self._kept = (place.file, first, rows)
        return rows[at - first] if at < first + len(rows) else None

    def _index(self, name: str) -> npt.NDArray[np.int64]:
        """Return where each line of a file begins, and where the last one ends."""
        self._check(name)
        if name not in self._starts:
            found, at = [np.zeros(1, np.int64)], 0
            with Path(name).open("rb") as file:
                while block := file.read(_BLOCK):
                    found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1)
                    at += len(block)
            starts = np.concatenate(found)
            self._starts[name] = starts if starts[-1] == at else np.append(starts, at)
        return self._starts[name]

    def _check(self, name: str) -> None:
        told = Path(name).stat()
        stamp = (told.st_size, told.st_mtime_ns)
        if self._stamps.setdefault(name, stamp) != stamp:
            raise DataError([Problem(name, "changed since it was read")], fix="Read it again.")


def _parquet_group(name: str, at: int) -> tuple[int, list[Row]]:
    """Return the row group that holds row `at`, counted from 0, and the number of its first row."""
    import pyarrow.parquet as pq

    file, first = pq.ParquetFile(name), 0
    for group in range(file.num_row_groups):
        held = file.metadata.row_group(group).num_rows
        if at < first + held:
            values = file.read_row_group(group).to_pylist()
            shown = Path(name).name
            return first, [Row(value, f"{shown}:{row}", name, row) for row, value in enumerate(values, start=first + 1)]
        first += held
    return first, []
