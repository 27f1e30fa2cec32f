"""Rows of data as the studio knows them: a child that reads and tokenizes, and a table of what it said.

The rule: the studio asks and the child answers, one thing at a time, so that what a person looks at never waits for
what is read meanwhile. A million rows are a few arrays here; their texts stay with the child.
"""

import contextlib
import json
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, Protocol

Answer = dict[str, Any]
Hear = Callable[[str, Answer], object]
URGENT = ("open", "show", "save", "find", "more")
"""Kinds of questions, those that a person waits for first."""
DIED = "the process that reads rows died"


class RowsChild(Protocol):
    """What is used of a child process."""

    @property
    def stdin(self) -> IO[str] | None:
        """Takes questions."""

    @property
    def stdout(self) -> IO[str] | None:
        """Gives answers."""

    def poll(self) -> int | None:
        """Return how it ended, None while it lives."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end."""


class Reader(threading.Thread):
    """Asks a child about rows; of each kind only the newest question waits.

    Args:
        hear: Told the kind of each question and its answer, in this thread.
        start: Starts a child.
    """

    def __init__(self, hear: Hear, start: Callable[[], RowsChild]) -> None:
        super().__init__(name="rows", daemon=True)
        self.hear, self._start = hear, start
        self._wanted: dict[str, Answer] = {}
        self._news = threading.Condition()
        self._is_over = False
        self.process: RowsChild | None = None

    def ask(self, kind: str, **more: Any) -> None:
        """Ask something; an earlier question of the kind that was not asked yet is forgotten."""
        with self._news:
            if kind == "open":
                self._wanted.clear()
            self._wanted[kind] = {"type": kind, **more}
            self._news.notify()

    def forget(self, kind: str) -> None:
        """Take a question back that was not asked yet."""
        with self._news:
            self._wanted.pop(kind, None)

    def end(self) -> None:
        """End the thread and the child."""
        with self._news:
            self._is_over = True
            self._news.notify()
        if self.process:
            self.process.kill()

    def run(self) -> None:
        """Ask what is wanted until the end."""
        while (question := self._next()) is not None:
            answer = self._exchange(question)
            if not self._is_over:
                self.hear(question["type"], answer)
        if self.process:
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _next(self) -> Answer | None:
        with self._news:
            while not self._wanted and not self._is_over:
                self._news.wait()
            if self._is_over:
                return None
            kind = min(self._wanted, key=URGENT.index)
            return self._wanted.pop(kind)

    def _exchange(self, question: Answer) -> Answer:
        try:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            return dict(json.loads(line)) if line else {"message": DIED, "fix": "r reads the rows again."}
        except (OSError, ValueError):
            return {"message": DIED, "fix": "r reads the rows again."}


class Row(NamedTuple):
    """A row in short; the keys are those of `macft.data.survey.Seen`."""

    file: int
    line: int
    turns: int
    tokens: int
    supervised: int
    flags: int
    same_as: int

    @property
    def share(self) -> float:
        """The share of its tokens that is trained on."""
        return self.supervised / max(1, self.tokens)


@dataclass(slots=True)
class RowTable:
    """All rows that were read so far; they count from 1.

    Attributes:
        names: Of the flags, bit by bit.
        said: Number of a row to why it cannot be used or teaches nothing; of the first thousand.
        dropped: Rows that the person took out.
        edited: Number of a row to what the person made of it, as JSON.
    """

    names: tuple[str, ...] = ()
    said: dict[int, str] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    edited: dict[int, str] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0
    _changes: list[Callable[[], str]] = field(default_factory=list)
    _columns: tuple["array[int]", ...] = field(default_factory=lambda: tuple(array("I") for _ in Row._fields))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, number: int) -> Row:
        return Row(*(column[number - 1] for column in self._columns))

    def add(self, rows: list[list[int]], said: dict[str, str]) -> None:
        """Append rows as the child tells them."""
        for values in rows:
            for column, value in zip(self._columns, values, strict=True):
                column.append(value)
            self._count(Row(*values), 1)
        self.said |= {int(number): text for number, text in said.items()}

    def drop(self, numbers: Iterable[int]) -> None:
        """Take rows out; `undo` brings them back."""
        new = set(numbers) - self.dropped
        self.dropped |= new
        self._changes.append(lambda: self._restore(new))

    def edit(self, number: int, row: Row, text: str, why: str) -> None:
        """Put what a person wrote in a row's place; `undo` brings back what stood there.

        Args:
            number: The row's.
            row: The new one in short.
            text: As JSON.
            why: It cannot be used; empty when it can.
        """
        before, written, said = self[number], self.edited.get(number), self.said.get(number)
        self._changes.append(lambda: self._put(number, before, written, said))
        self._put(number, row._replace(file=before.file, line=before.line), text, why or None)

    def undo(self) -> str:
        """Take the last change back, and say what it was; empty when there is none."""
        return self._changes.pop()() if self._changes else ""

    def _restore(self, numbers: set[int]) -> str:
        self.dropped -= numbers
        return f"{len(numbers):,} rows are back"

    def _put(self, number: int, row: Row, text: str | None, why: str | None) -> str:
        self._count(self[number], -1)
        for column, value in zip(self._columns, row, strict=True):
            column[number - 1] = value
        self._count(row, 1)
        for kept, said in ((self.edited, text), (self.said, why)):
            kept.pop(number, None)
            if said is not None:
                kept[number] = said
        return f"Row {number:,} is as it was"

    def _count(self, row: Row, by: int) -> None:
        self.tokens += by * row.tokens
        self.supervised += by * row.supervised
        if row.tokens:
            self.lengths[row.tokens] += by
            if not self.lengths[row.tokens]:
                del self.lengths[row.tokens]
        self.counts.update(dict.fromkeys(self.flags_of(row), by))

    def flags_of(self, row: Row) -> list[str]:
        """Name a row's flags."""
        return [name for bit, name in enumerate(self.names) if row.flags >> bit & 1]

    def flagged(self, after: int) -> list[int]:
        """Return the numbers of rows from `after` on that something is the matter with."""
        flags = self._columns[Row._fields.index("flags")]
        return [at + 1 for at in range(after, len(flags)) if flags[at]]

    def having(self, name: str) -> list[int]:
        """Return the numbers of the rows with a flag, those the person dropped left out."""
        bit, flags = 1 << self.names.index(name), self._columns[Row._fields.index("flags")]
        return [at for at, value in enumerate(flags, start=1) if value & bit and at not in self.dropped]

    def percentile(self, share: float) -> int:
        """Return the length that a share of the rows does not exceed, in tokens."""
        rank, seen = share * sum(self.lengths.values()), 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= rank:
                return length
        return 0

    def histogram(self, bars: int) -> list[float]:
        """Return how many rows fall into each of equal spans of length, from the shortest to the longest."""
        shortest, longest = min(self.lengths, default=0), max(self.lengths, default=0)
        found = [0.0] * min(bars, longest - shortest + 1)
        for length, count in self.lengths.items():
            found[(length - shortest) * len(found) // (longest - shortest + 1)] += count
        return found
