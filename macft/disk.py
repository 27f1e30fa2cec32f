"""The calls on a file system that a run's survival depends on.

The rule: what must survive a crash is written through a `Disk`, one method a call, so that a test can let any of them
fail. Nothing has its name before it is whole and on the disk; what took another's place can be put back.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""On a Mac fsync leaves data in the drive's own cache; this does not."""
_NEW = os.O_CREAT | os.O_WRONLY | os.O_TRUNC

Bytes = bytes | memoryview


class Disk:
    """This machine's file system. Each method may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file and return its descriptor; a new one is its owner's alone."""
        return os.open(path, flags, PRIVATE_FILE)

    def write(self, descriptor: int, content: Bytes) -> int:
        """Write some of the bytes and return how many."""
        return os.write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        """Wait until a file or folder is on the disk itself."""
        if _FULL_SYNC is None:
            os.fsync(descriptor)
            return
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        except OSError:  # drives on a network have no such call
            os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make a folder that is its owner's alone."""
        path.mkdir(mode=PRIVATE_FOLDER)

    def list(self, folder: Path) -> list[Path]:
        """Return what is in a folder."""
        return list(folder.iterdir())

    def read(self, path: Path) -> bytes:
        """Return what is in a file."""
        return path.read_bytes()

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or folder another name, in one moment; a file takes the place of one that is there."""
        path.rename(target)

    def remove(self, path: Path) -> None:
        """Delete a file, or a folder with all that is in it."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


DISK = Disk()


def write_file(path: Path, chunks: Iterable[Bytes], disk: Disk = DISK) -> None:
    """Write a file and wait until it is on the disk."""
    descriptor = disk.open(path, _NEW)
    try:
        for chunk in chunks:
            write_all(descriptor, chunk, disk)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def write_all(descriptor: int, content: Bytes, disk: Disk = DISK) -> None:
    """Write every byte: a file system may take fewer than it is given."""
    rest = memoryview(content)
    while rest:
        rest = rest[disk.write(descriptor, rest) :]


def write_atomic(path: Path, content: bytes, disk: Disk = DISK) -> None:
    """Write a file aside, flush it to the disk and rename it over `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_file(aside, [content], disk)
        disk.rename(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(aside)
        raise


def flush(path: Path, disk: Disk = DISK) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = disk.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def replace_folder(aside: Path, folder: Path, disk: Disk = DISK) -> None:
    """Give a folder that is whole and flushed its name; what had it is kept until then (see `restore_folder`)."""
    old = _old(folder)
    if folder.exists():
        if old.exists():
            disk.remove(old)
        disk.rename(folder, old)
    disk.rename(aside, folder)
    flush(folder.parent, disk)
    with contextlib.suppress(OSError):  # the new one stands, whatever becomes of the old
        if old.exists():
            disk.remove(old)


def restore_folder(folder: Path, disk: Disk = DISK) -> None:
    """Put back what `replace_folder` had moved away when it was ended amid its work."""
    if not folder.exists() and _old(folder).exists():
        disk.rename(_old(folder), folder)


def old_folders(folder: Path, disk: Disk = DISK) -> list[Path]:
    """Return the names, in a folder, of folders that `replace_folder` has moved away."""
    names = [path.name for path in disk.list(folder) if path.name.startswith(".") and path.name.endswith(".old")]
    return [folder / name[1:].removesuffix(".old") for name in sorted(names)]


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
