"""A run is a folder: the single source of truth about one training.

    recipe.toml  events.jsonl  control.jsonl  run.lock  train.log  adapter/ (or model/)  checkpoints/

The rule: `events.jsonl` is only appended to, everything else is written aside and renamed. A run lives while somebody
holds the lock on `run.lock`; no end and a free lock means that it crashed.
"""

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from macft.disk import DISK, PRIVATE_FILE, PRIVATE_FOLDER, Disk, write_all, write_atomic, write_file
from macft.errors import RunError, RunLocked
from macft.events import Event, decode_event, encode_event
from macft.state import RunState, fold

JOB = "job.json"
"""Makes a run folder one of fusing or exporting, and says what it does."""
LOCK_TRIES, LOCK_PAUSE_SECONDS = 20, 0.025
NOTE = "note.txt"
DISCARDED = ".discarded"
"""Beside the runs: those that were removed a moment ago and can still be brought back."""
RESERVE, RESERVE_BYTES = ".reserve", 2**16
"""A file that is deleted to make room for a run's last words when the disk is full."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder. Making the object reads nothing; `create` and `open` check the folder.

    Attributes:
        disk: What its training is written through.
    """

    path: Path
    disk: Disk = field(default=DISK, repr=False, compare=False)

    @classmethod
    def create(cls, path: Path, recipe_toml: str) -> "Run":
        """Make a new run folder that holds the recipe.

        Raises:
            RunError: The folder is not empty, or cannot be written.
        """
        try:
            if path.exists() and any(path.iterdir()):
                raise RunError(f"{path} is not empty", fix="Name another folder with --out, or remove it.")
            path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
            path.chmod(PRIVATE_FOLDER)
            (path / "checkpoints").mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            write_atomic(path / "recipe.toml", recipe_toml.encode())
            for name in ("events.jsonl", "control.jsonl", "run.lock"):
                os.close(os.open(path / name, os.O_CREAT | os.O_WRONLY, PRIVATE_FILE))
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror})", fix="Name another folder with --out."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing run folder.

        Raises:
            RunError: There is no run in it.
        """
        if not (path / "events.jsonl").is_file() or not (path / "recipe.toml").is_file():
            raise RunError(f"{path} is not a run folder", fix="`macft runs` lists the runs.")
        return cls(path)

    @property
    def name(self) -> str:
        """The folder's name, which is the run's."""
        return self.path.name

    @property
    def adapter(self) -> Path:
        """Where the result is: the adapter, or the model after full fine-tuning."""
        model = self.path / "model"
        return model if model.is_dir() else self.path / "adapter"

    @property
    def is_job(self) -> bool:
        """Whether it fuses or exports, and trains nothing."""
        return (self.path / JOB).is_file()

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """What the training process printed."""
        return self.path / "train.log"

    @contextmanager
    def lock(self, shared: int | None = None) -> Iterator[int]:
        """Hold the run for writing; the kernel lets go when the process ends, however it ends.

        Args:
            shared: The descriptor of a lock that the process before this one holds and shares.

        Yields:
            The lock's descriptor, to be shared.

        Raises:
            RunLocked: Another process holds it.
        """
        try:
            file = (self.path / "run.lock").open("r+b") if shared is None else os.fdopen(shared, "r+b")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror})") from None
        with file:
            if shared is None and not _take(file.fileno()):
                raise RunLocked(
                    f"{self.name} is being trained by another process",
                    fix=f"`macft attach {self.name}` follows it, `macft stop {self.name}` stops it.",
                )
            try:
                file.truncate(0)
                file.seek(0)  # a lock that is shared shares its position, too
                file.write(str(os.getpid()).encode())
                file.flush()
                self._end_torn_line()
                for leftover in [*self.path.glob(".plan.json.*.tmp"), *self.path.glob(".adapter.tmp")]:
                    self.disk.remove(leftover)
                write_file(self.path / RESERVE, [bytes(RESERVE_BYTES)], self.disk)
            except OSError as error:
                fix = "Free disk space, or put the disk back."
                raise RunError(f"{self.path} cannot be written ({error.strerror})", fix=fix) from None
            yield file.fileno()

    def forget_process(self) -> None:
        """Take away the number of a process that has ended, before the system gives it to another."""
        with suppress(OSError):
            (self.path / "run.lock").write_bytes(b"")

    @property
    def is_live(self) -> bool:
        """Whether a process holds the lock."""
        try:
            with (self.path / "run.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def process_id(self) -> int:
        """Return the process that holds, or last held, the lock; 0 when none ever did."""
        try:
            return int((self.path / "run.lock").read_text() or 0)
        except (OSError, ValueError):
            return 0

    def append(self, event: Event) -> None:
        """Add an event as one line, with one write."""
        _append(self.path / "events.jsonl", encode_event(event), self.disk)

    def read(self, offset: int = 0) -> tuple[list[Event], int]:
        """Read the events from a byte offset.

        Returns:
            The events of whole lines only, and the offset to go on from; a half-written last line is not an event yet.
        """
        lines, offset = read_lines(self.path / "events.jsonl", offset)
        return [event for line in lines if (event := decode_event(line))], offset

    def last_event(self) -> Event | None:
        """Return the newest event, None before the first."""
        return next(reversed(self.read()[0]), None)

    def state(self) -> RunState:
        """Return the fold of all events so far."""
        return fold(self.read()[0])

    def status(self, state: RunState) -> str:
        """Return the state's status, or `crashed` when it has no end and nobody holds the lock."""
        if state.status in {"done", "stopped", "failed"}:
            return state.status
        return state.status if self.is_live else "crashed" if state.started else "waiting"

    def request(self, action: str) -> None:
        """Ask the training process for something: pause, go_on, sample, stop."""
        line = json.dumps({"action": action, "time": datetime.now().timestamp()})
        _append(self.path / "control.jsonl", line, self.disk)

    def read_requests(self, offset: int) -> tuple[list[str], int]:
        """Return the actions asked for since a byte offset, and the next offset."""
        lines, offset = read_lines(self.path / "control.jsonl", offset)
        actions = []
        for line in lines:
            try:
                actions.append(str(json.loads(line)["action"]))
            except (ValueError, KeyError, TypeError):
                continue
        return actions, offset

    @property
    def note(self) -> str:
        """A person's own words on the run, empty when there are none."""
        try:
            return (self.path / NOTE).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def write_note(self, text: str) -> None:
        """Keep a note with the run; an empty text takes it away."""
        if text.strip():
            write_atomic(self.path / NOTE, text.strip().encode())
        else:
            (self.path / NOTE).unlink(missing_ok=True)

    def discard(self) -> Path:
        """Move the folder out of the list, from where it can be moved back, and return the new place.

        Raises:
            RunLocked: It is being trained.
        """
        with self.lock():
            waiting = self.path.parent / DISCARDED
            waiting.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            place, number = waiting / self.name, 2
            while place.exists():
                place, number = waiting / f"{self.name}-{number}", number + 1
            return self.path.rename(place)

    def move_to(self, path: Path) -> "Run":
        """Move the folder to a place that is free.

        Raises:
            RunError: Something is there already.
        """
        if path.exists():
            raise RunError(f"{path} exists already", fix="Move it out of the way first.")
        return Run(self.path.rename(path))

    def remove(self) -> None:
        """Delete the folder.

        Raises:
            RunLocked: It is being trained.
        """
        with self.lock():
            self.disk.remove(self.path)

    def _end_torn_line(self) -> None:
        # A crash may have left half a line; the next event must not be glued to it.
        with (self.path / "events.jsonl").open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")


class Journal:
    """Writes down what happens in a run while it is trained.

    The rule: training never ends because an event cannot be written. What the disk refuses waits in memory, and goes
    before the next.

    Args:
        run: Locked by this process.
    """

    def __init__(self, run: Run) -> None:
        self.run, self._waiting, self._is_torn = run, deque[bytes](), False

    @property
    def is_behind(self) -> bool:
        """Whether events wait for the disk."""
        return bool(self._waiting)

    def __call__(self, event: Event) -> None:
        """Write an event, after those that wait."""
        self._waiting.append(encode_event(event).encode() + b"\n")
        with suppress(OSError):
            self._write()

    def end(self, event: Event) -> None:
        """Write the last event of this life, without those that wait if there is no room for all."""
        with suppress(OSError):
            self.run.disk.remove(self.run.path / RESERVE)
        self(event)
        if self.is_behind:
            self._waiting.clear()
            self(event)

    def _write(self) -> None:
        if self._waiting:
            descriptor = self.run.disk.open(self.run.path / "events.jsonl", os.O_APPEND | os.O_WRONLY)
            try:
                while self._waiting:
                    # What was refused may have left a part of itself behind: the line is ended and written anew.
                    line, self._is_torn = b"\n" * self._is_torn + self._waiting[0], True
                    write_all(descriptor, line, self.run.disk)
                    self._is_torn = False
                    self._waiting.popleft()
            finally:
                self.run.disk.close(descriptor)


def make_run_path(runs: Path, *, method: str, model: str) -> Path:
    """Make an empty folder that nobody else takes, like `2026-11-22-1530-sft-smollm2-135m`."""
    stem = f"{datetime.now():%Y-%m-%d-%H%M}-{method}-{Path(model).name.lower()}"
    path, number = runs / stem, 2
    while True:
        try:
            path.mkdir(parents=True, mode=PRIVATE_FOLDER)
            return path
        except FileExistsError:
            path, number = runs / f"{stem}-{number}", number + 1


def find_run(name: str, runs: Path) -> Run:
    """Return the run with this name, path or unambiguous part of a name; `latest` is the training started last.

    Raises:
        RunError: No run matches, or several do.
    """
    if "/" in name or Path(name).is_dir():
        return Run.open(Path(name).expanduser().resolve())
    known = list_runs(runs)
    exact = [run for run in known if run.name == name]
    trained = [run for run in known if not run.is_job] if name == "latest" else []
    matches = exact or (trained[:1] if name == "latest" else [run for run in known if name in run.name])
    if not matches:
        raise RunError(f"no run is called {name!r} in {runs}", fix="`macft runs` lists the runs.")
    if len(matches) > 1:
        raise RunError(f"{name!r} could be {', '.join(run.name for run in matches)}", fix="Write more of the name.")
    return matches[0]


def find_adapter(name: str, runs: Path) -> Path:
    """Return the result folder that a name means: an adapter folder, a run's path, or a run's name.

    Raises:
        RunError: There is none.
    """
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return path.resolve()
    run = find_run(name, runs)
    if not run.adapter.is_dir():
        raise RunError(f"{run.name} has no result yet", fix=f"`macft resume {run.name}` goes on with it.")
    return run.adapter


def list_runs(runs: Path) -> list[Run]:
    """List the runs in a folder, the one that was started last first."""
    found = [Run(path.parent) for path in runs.glob("*/recipe.toml")] if runs.is_dir() else []
    return sorted(found, key=lambda run: ((run.path / "recipe.toml").stat().st_mtime, run.name), reverse=True)


def read_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Return the whole lines of a file from a byte offset on, and the next offset."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    # Not splitlines(): it also breaks at U+2028 and others, which JSON strings may hold.
    return whole.decode("utf-8", "replace").split("\n")[:-1], offset + len(whole)


def _take(descriptor: int) -> bool:
    # Others probe the lock for an instant (`is_live`), so one refusal is not yet a holder.
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


def _append(path: Path, line: str, disk: Disk) -> None:
    descriptor = disk.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        write_all(descriptor, line.encode() + b"\n", disk)
    finally:
        disk.close(descriptor)
