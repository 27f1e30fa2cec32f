"""What background threads tell the screens: frozen snapshots, the newest of which is enough."""

from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from macft.run import Run
from macft.state import RunState

LIVE = frozenset({"waiting", "preparing", "running", "paused"})
"""Statuses of a run that may still change by itself."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it is now.

    Attributes:
        status: As `Run.status` says it.
        size_bytes: Of the result, 0 while there is none.
        note: The person's own words on it.
        error: Why its folder cannot be read; empty most of the time.
    """

    run: Run
    state: RunState
    status: str
    size_bytes: int = 0
    note: str = ""
    error: str = ""

    @property
    def path(self) -> Path:
        """The run's folder, by which it is known."""
        return self.run.path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def is_live(self) -> bool:
        """Whether a process is at work on it."""
        return self.status in LIVE


class RunsChanged(Message):
    """The runs as they are now, live ones first; an older snapshot still in the queue is dropped."""

    def __init__(self, rows: tuple[RunRow, ...]) -> None:
        super().__init__()
        self.rows = rows

    def can_replace(self, message: Message) -> bool:
        """Return whether this one makes an earlier message needless."""
        return isinstance(message, RunsChanged)
