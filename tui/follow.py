"""Follow all run folders from a thread: read what was appended, fold it, post what changed.

The rule: a run is read from where the last look ended, so a long run costs as much as a short one. The watcher only
reads; whether a run lives is its lock's to say.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from macft.errors import MacftError
from macft.run import NOTE, Run, list_runs
from macft.state import RunState, fold
from tui.messages import LIVE, RunRow

LOOK_SECONDS = 0.25
"""Between two looks at live runs: four redraws a second are as many as a chart can use."""
LIST_EVERY = 4
"""Looks between two listings of the folder, which also notice runs that ended or were copied in."""

Post = Callable[[tuple[RunRow, ...]], None]


@dataclass(slots=True)
class _Followed:
    """One run, and how far it was read."""

    row: RunRow
    offset: int = 0
    stamp: tuple[int, int] = field(default=(0, 0))


class RunsWatcher:
    """Keeps the rows of all runs in a folder up to date.

    Args:
        folder: Where the runs are; it may not exist yet.
        post: Told the rows, whenever any of them changed.
    """

    def __init__(self, folder: Path, post: Post) -> None:
        self.folder, self.post = folder, post
        self._runs: dict[Path, _Followed] = {}
        self._posted: tuple[RunRow, ...] | None = None

    def watch(self, is_cancelled: Callable[[], bool]) -> None:
        """Look until cancelled."""
        looks = 0
        while not is_cancelled():
            self.look(everything=looks % LIST_EVERY == 0)
            looks += 1
            time.sleep(LOOK_SECONDS)

    def look(self, *, everything: bool) -> None:
        """Read what is new; `everything` also lists the folder and looks at runs that had ended."""
        if everything:
            found = list_runs(self.folder)
            known = {
                run.path: self._runs.get(run.path) or _Followed(RunRow(run, RunState(), "waiting")) for run in found
            }
            self._runs = known
        for followed in self._runs.values():
            if everything or followed.row.status in LIVE:
                _read(followed)
        rows = tuple(sorted((followed.row for followed in self._runs.values()), key=lambda row: not row.is_live))
        if rows != self._posted:
            self._posted = rows
            self.post(rows)


def _read(followed: _Followed) -> None:
    run = followed.row.run
    try:
        events, followed.offset = run.read(followed.offset)
        state = fold(events, followed.row.state) if events else followed.row.state
        status, error = run.status(state), ""
    except (OSError, MacftError, ValueError) as problem:
        state, status, error = followed.row.state, "unreadable", str(problem)
    stamp = _stamp(run)
    row = replace(followed.row, state=state, status=status, error=error)
    if stamp != followed.stamp:
        followed.stamp = stamp
        row = replace(row, size_bytes=_size(run.adapter), note=run.note)
    if events_or_status_changed(followed.row, row):
        followed.row = row


def events_or_status_changed(before: RunRow, after: RunRow) -> bool:
    """Return whether there is anything new to show; states are compared by identity, since their lists are long."""
    if before.state is not after.state:
        return True
    return (before.status, before.size_bytes, before.note, before.error) != (
        after.status,
        after.size_bytes,
        after.note,
        after.error,
    )


def _stamp(run: Run) -> tuple[int, int]:
    return _mtime(run.path), _mtime(run.path / NOTE)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except OSError:
        return 0
