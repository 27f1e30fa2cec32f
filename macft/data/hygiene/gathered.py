"""What is kept of every row while files are read: places, hashes and counts, and the normalized text on disk.

The rule: memory grows by a few dozen bytes a row, whatever the rows say. Texts are spooled, so that they can be
compared without reading the files, or standard input, again.
"""

import mmap
import tempfile
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.hygiene.norms import count_words, find_ending
from macft.data.hygiene.texts import Texts, hash_text, normalize
from macft.data.sources import Row

_LONGEST_LABEL, _MOST_LABELS = 100, 10_000
_NO_ANSWER = 2**31


class Source(NamedTuple):
    """A file of rows.

    Attributes:
        path: As it was given.
        shown: As it stands before a line number.
    """

    path: str
    shown: str
    is_held_out: bool


class Gathered:
    """The rows of all files, in the order they were read; a context that removes what was spooled.

    Attributes:
        labels: The first short answers, as they are written, by their hash.
    """

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._source, self._line, self._number = array("H"), array("Q"), array("Q")
        self._hashes = {name: array("Q") for name in ("row", "prompt", "answer")}
        self._words, self._endings = array("I"), array("B")
        self.labels: dict[int, str] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 — closed by __exit__
        self._bounds = array("Q", [0])

    def __enter__(self) -> "Gathered":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._source)

    def add(self, row: Row, texts: Texts, *, number: int, is_held_out: bool) -> None:
        """Keep what later checks need of a row; `number` is its place in its file."""
        source = Source(row.file, row.where.rpartition(":")[0], is_held_out)
        if not self.sources or self.sources[-1] != source:
            self.sources.append(source)
        prompt, answer = normalize(texts.prompt), normalize(texts.answer)
        self._source.append(len(self.sources) - 1)
        self._line.append(row.line)
        self._number.append(number)
        self._hashes["row"].append(hash_text(f"{prompt}\n{answer}"))
        self._hashes["prompt"].append(hash_text(prompt or answer))
        self._hashes["answer"].append(hash_text(answer))
        last = texts.answers[-1] if texts.answers else ""
        words = count_words(last)
        self._words.append(words if texts.answers else _NO_ANSWER)
        self._endings.append(find_ending(last, words))
        if len(last) <= _LONGEST_LABEL and len(self.labels) < _MOST_LABELS:
            self.labels.setdefault(self._hashes["answer"][-1], last.strip())
        for text in (prompt, answer):
            self._bounds.append(self._bounds[-1] + self._file.write(text.encode("utf-8", "surrogatepass")))

    @property
    def source(self) -> npt.NDArray[np.uint16]:
        """The place of each row's file in `sources` [N]."""
        return np.frombuffer(self._source, np.uint16) if len(self) else np.empty(0, np.uint16)

    def hashes(self, what: str) -> npt.NDArray[np.uint64]:
        """Return a hash of each `row`, `prompt` (of a document, its text) or `answer` [N]."""
        return np.frombuffer(self._hashes[what], np.uint64) if len(self) else np.empty(0, np.uint64)

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Whether each row is held out [N]."""
        return np.array([source.is_held_out for source in self.sources], bool)[self.source]

    @property
    def has_answer(self) -> npt.NDArray[np.bool_]:
        """Whether each row holds an answer; a document does not [N]."""
        return np.frombuffer(self._words, np.uint32) < _NO_ANSWER if len(self) else np.empty(0, bool)

    def list_answers(self) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]]:
        """Yield, file by file, its rows that have answers, their words and how they end."""
        if not len(self):
            return
        words, endings = np.frombuffer(self._words, np.uint32), np.frombuffer(self._endings, np.uint8)
        source, has_answer = self.source, self.has_answer
        for place in range(len(self.sources)):
            rows = np.flatnonzero((source == place) & has_answer)
            yield rows, words[rows], endings[rows]

    def where(self, row: int) -> tuple[str, str, int, int]:
        """Return a row's place as it is shown, its file as it was given, its line and its number."""
        source = self.sources[self._source[row]]
        return f"{source.shown}:{self._line[row]}", source.path, self._line[row], self._number[row]

    def open_texts(self) -> "SpooledTexts":
        """Return the normalized texts."""
        self._file.flush()
        return SpooledTexts(self._file.fileno(), np.frombuffer(self._bounds, np.uint64).astype(np.int64))


class SpooledTexts:
    """Normalized prompts and answers by row, read from disk as they are needed."""

    def __init__(self, descriptor: int, bounds: npt.NDArray[np.int64]) -> None:
        self._map = mmap.mmap(descriptor, int(bounds[-1]), access=mmap.ACCESS_READ) if bounds[-1] else b""
        self.bounds = bounds

    def whole(self, row: int) -> bytes:
        """Return a row's prompt and answer, UTF-8."""
        return self.prompt(row) + b"\n" + self.answer(row)

    def prompt(self, row: int) -> bytes:
        """Return a row's prompt, UTF-8."""
        return self._map[self.bounds[2 * row] : self.bounds[2 * row + 1]]

    def answer(self, row: int) -> bytes:
        """Return a row's answer, UTF-8."""
        return self._map[self.bounds[2 * row + 1] : self.bounds[2 * row + 2]]
