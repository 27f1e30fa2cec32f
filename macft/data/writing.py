"""Rows to disk.

The rule: a file is there as a whole or not at all. It is written aside, flushed, and renamed.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from macft.run import PRIVATE_FILE


def write_rows(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines to a file, which takes its place when the last of them is on the disk; return their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, written = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
    try:
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, PRIVATE_FILE), "wb") as file:
            for line in lines:
                file.write(line)
                written += 1
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return written
