"""A copy of a data set without the rows a person dropped and with those they wrote anew, split or whole.

The rule: the files that were read stay as they are. A row's side of the split is the one that training would give it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from macft.data.examples import RowProblem
from macft.data.mix import hash_place, is_held_out
from macft.data.sources import Row, parse_line
from macft.data.survey import Survey
from macft.errors import DataError, MacftError, Problem

TRAIN, VALID = "train.jsonl", "valid.jsonl"


class Written(NamedTuple):
    """What became of the rows so far."""

    train: int = 0
    valid: int = 0
    dropped: int = 0
    unusable: int = 0


class Rewrite:
    """Writes `train.jsonl`, and `valid.jsonl` when rows are held out, into a new folder.

    Args:
        survey: Whose rows; all of them, seen yet or not.
        folder: The new folder.
        dropped: Numbers of rows to leave out. Rows that cannot be used are left out as well, and counted.
        edited: Number of a row to what it shall be instead, as JSON.
        valid_fraction: Share of the rows to hold out.

    Raises:
        MacftError: There is something at `folder`, or it cannot be made.
    """

    def __init__(
        self,
        survey: Survey,
        folder: Path,
        *,
        dropped: Collection[int] = (),
        edited: Mapping[int, str] | None = None,
        valid_fraction: float = 0.0,
    ) -> None:
        self.survey, self.folder, self.fraction = survey, folder.expanduser().resolve(), valid_fraction
        self.dropped, self.edited = frozenset(dropped), dict(edited or {})
        self.written, self.is_done = Written(), False
        names = [TRAIN, *([VALID] if valid_fraction else [])]
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise MacftError(f"{self.folder} is there already", fix="Name another folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (self.folder / f".{name}.part").open("w", encoding="utf-8") for name in names}
        except OSError as error:
            raise MacftError(f"{self.folder} cannot be written ({error.strerror})", fix="Name another.") from None
        self._rows = enumerate(survey.read(), start=1)

    def close(self) -> None:
        """Put the files in their place; before the end of the rows nothing is left behind."""
        for name, file in self._files.items():
            file.close()
            part = self.folder / f".{name}.part"
            if self.is_done:
                part.replace(self.folder / name)
            else:
                part.unlink(missing_ok=True)
        if not self.is_done:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def go_on(self, seconds: float, *, now: Callable[[], float] = time.monotonic) -> Written:
        """Write rows for about this long.

        Raises:
            DataError: A row that was written anew is no row.
        """
        deadline = now() + seconds
        while now() < deadline and not self.is_done:
            number, (_, row) = next(self._rows, (0, (None, None)))
            if not number:
                self.is_done = True
            elif number in self.dropped:
                self._count(dropped=1)
            elif isinstance(row, Row):
                self._write(read_edited(self.edited[number], row) if number in self.edited else row)
            else:
                self._count(unusable=1)
        return self.written

    def _write(self, row: Row) -> None:
        try:
            examples = self.survey.reader.parse(row)
        except RowProblem:
            self._count(unusable=1)
            return
        held_out = bool(self.fraction) and is_held_out(hash_place(examples[0]), self.fraction)
        text = json.dumps(row.value, ensure_ascii=False, default=str)
        self._files[VALID if held_out else TRAIN].write(text + "\n")
        self._count(**{"valid" if held_out else "train": 1})

    def _count(self, **more: int) -> None:
        counts = self.written._asdict()
        self.written = Written(**{name: count + more.get(name, 0) for name, count in counts.items()})


def read_edited(text: str, row: Row) -> Row:
    """Return what a person made of a row.

    Raises:
        DataError: It is no JSON object.
    """
    problems: list[Problem] = []
    line = " ".join(text.splitlines())
    found = next(parse_line(line, row.where, row.file, row.line, problems), None)
    if found is None:
        raise DataError(problems or [Problem(row.where, "is empty (expected an object)")])
    return found
