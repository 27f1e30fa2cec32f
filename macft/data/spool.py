"""What grows with the rows, without growing in memory: tokens in a file without a name, places as two numbers a row.

The rule: a row costs a few dozen bytes of memory, however long it is and wherever it came from.
"""

import mmap
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

HELD_BYTES = 2**22
"""Up to so many bytes stay in memory; more goes to the disk."""


class Spool:
    """Bytes that are appended, then read as an array."""

    def __init__(self) -> None:
        self._held, self._file = bytearray(), -1
        self.size = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Append an array's bytes."""
        self._held += values.tobytes()
        self.size += values.nbytes
        if len(self._held) >= HELD_BYTES:
            self._write()

    def array(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return all that was added; the array maps the file, if there is one."""
        if self._file < 0:
            return np.frombuffer(self._held, dtype)
        self._write()
        return np.frombuffer(mmap.mmap(self._file, self.size, access=mmap.ACCESS_READ), dtype)

    def _write(self) -> None:
        if self._file < 0:
            self._file, path = tempfile.mkstemp(prefix="macft-")
            os.unlink(path)  # the file lives as long as it is open or mapped, whatever ends this process
            weakref.finalize(self, os.close, self._file)
        left = memoryview(self._held)
        while left:
            left = left[os.write(self._file, left) :]
        left.release()
        self._held = bytearray()


class Origins(Sequence[str]):
    """File and line of each row, `file.jsonl:37`, as numbers.

    Args:
        names: What comes before the line.
        numbers: For each row which name, and the line; 0 where there is none: bytes of int64 [2 · N].
    """

    def __init__(self, names: Iterable[str] = (), numbers: bytes = b"") -> None:
        self.names, self.numbers = list(names), array("q", numbers)
        self._known = {name: index for index, name in enumerate(self.names)}

    @classmethod
    def of(cls, places: Iterable[str]) -> "Origins":
        """Return origins that are given as text."""
        made = cls()
        for where in places:
            made.append(where)
        return made

    def append(self, where: str) -> None:
        """Add one."""
        name, _, line = where.rpartition(":")
        is_line = name != "" and line.isascii() and line.isdigit() and not line.startswith("0") and len(line) < 18
        name = name if is_line else where
        index = self._known.setdefault(name, len(self._known))
        if index == len(self.names):
            self.names.append(name)
        self.numbers.extend((index, int(line) if is_line else 0))

    def __len__(self) -> int:
        return len(self.numbers) // 2

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        name, line = self.names[self.numbers[2 * at]], self.numbers[2 * at + 1]
        return f"{name}:{line}" if line else name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
