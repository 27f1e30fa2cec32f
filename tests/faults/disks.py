"""File systems that fail: at a call that is chosen, once or from then on, or as if the power had gone."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macft.disk import Bytes, Disk


class Killed(BaseException):
    """The process is dead: nobody may catch this and do more."""


class FaultyDisk(Disk):
    """A disk that counts its calls and lets them fail.

    Args:
        fails: Told the number of a call (from 1), its name and what it is about; returns what to raise, if anything.
        short: Whether writes take only a part of what they are given.
        torn: Whether a write that fails leaves half of its bytes behind, and a removal half of a folder.
    """

    def __init__(self, fails: Callable[[int, str, Path], BaseException | None], *, short: bool = False) -> None:
        self.fails, self.short = fails, short
        self.calls: list[str] = []
        self.is_dead = False
        self.unsynced: dict[int, Path] = {}

    def open(self, path: Path, flags: int) -> int:
        self._call("open", path)
        descriptor = super().open(path, flags)
        self.unsynced[descriptor] = path
        return descriptor

    def write(self, descriptor: int, content: Bytes) -> int:
        half = content[: max(1, len(content) // 2)]
        try:
            self._call("write", self.unsynced[descriptor])
        except BaseException:
            if not self.is_dead or len(self.calls) == self.died_at:
                os.write(descriptor, half)
            raise
        return super().write(descriptor, half if self.short else content)

    def sync(self, descriptor: int) -> None:
        self._call("sync", self.unsynced[descriptor])

    def close(self, descriptor: int) -> None:
        super().close(descriptor)  # a process that dies closes its files, too
        path = self.unsynced.pop(descriptor)
        self._call("close", path)

    def make_folder(self, path: Path) -> None:
        self._call("make_folder", path)
        super().make_folder(path)

    def list(self, folder: Path) -> list[Path]:
        self._call("list", folder)
        return super().list(folder)

    def read(self, path: Path) -> bytes:
        self._call("read", path)
        return super().read(path)

    def rename(self, path: Path, target: Path) -> None:
        self._call("rename", target)
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        try:
            self._call("remove", path)
        except BaseException:
            if path.is_dir() and (files := sorted(path.iterdir())) and len(self.calls) == self.died_at:
                files[0].unlink()
            raise
        super().remove(path)

    died_at = 0

    def _call(self, name: str, path: Path) -> None:
        if self.is_dead:
            raise Killed
        self.calls.append(f"{name} {path.name}")
        if error := self.fails(len(self.calls), name, path):
            self.died_at = len(self.calls)
            self.is_dead = isinstance(error, Killed)
            raise error


def failing_once(at: int, number: int) -> FaultyDisk:
    """Return a disk whose call `at` fails with an error number."""
    return FaultyDisk(lambda call, _, __: _error(number) if call == at else None)


def killed_at(at: int) -> FaultyDisk:
    """Return a disk of a process that is killed at its call `at`, half done."""
    return FaultyDisk(lambda call, _, __: Killed() if call == at else None)


def failing_from(at: int, number: int, *, only: Callable[[str, Path], bool] = lambda *_: True) -> FaultyDisk:
    """Return a disk that is full, or gone, from its call `at` on."""
    return FaultyDisk(lambda call, name, path: _error(number) if call >= at and only(name, path) else None)


def whole(**options: Any) -> FaultyDisk:
    """Return a disk on which nothing fails."""
    return FaultyDisk(lambda *_: None, **options)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


FULL, QUOTA, READ_ONLY, BROKEN, GONE = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO
