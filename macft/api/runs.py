"""Runs: started, stopped, resumed, followed and put away.

Training happens in a process of its own, and everybody who watches it reads the run folder.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from macft.api.planning import check_fit, check_inputs
from macft.disk import PRIVATE_FILE, write_atomic
from macft.errors import RunError
from macft.events import Event, RunEnded
from macft.keeper import crashed
from macft.launcher import Launched, read_launch
from macft.machine import home, runs_folder
from macft.recipe import Recipe, dump_recipe
from macft.run import Run, find_adapter, find_run, list_runs, make_run_path
from macft.state import RunState

if TYPE_CHECKING:
    pass


INTERRUPT, TERMINATE = int(signal.SIGINT), int(signal.SIGTERM)
QUIT, HANG_UP = int(signal.SIGQUIT), int(signal.SIGHUP)
POLL_SECONDS, START_SECONDS = 0.1, 30.0
_CHILDREN: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes started here, kept so that they can be reaped when they end."""


class RunSummary(NamedTuple):
    """One line of `macft runs`."""

    run: Run
    state: RunState
    status: str


def launch(recipe: Recipe, *, out: Path | None = None, force: bool = False) -> Run:
    """Make a run folder and start training in a process of its own.

    Args:
        recipe: What to do.
        out: The run's folder; left out, a new one below `runs_folder()`.
        force: Train even if the plan does not fit.

    Raises:
        DoesNotFit: The plan needs more memory or disk than there is.
        MacftError: The model is not here, data files are missing, or the folder is not empty.
    """
    check_inputs(recipe)
    if not force:
        check_fit(recipe, out or runs_folder())
    if recipe.start_from:  # found now: later the name could mean the new run as well
        recipe = recipe.model_copy(update={"start_from": str(find_adapter(recipe.start_from, runs_folder()))})
    path = out or make_run_path(runs_folder(), method=recipe.method, model=recipe.model)
    run = Run.create(path.expanduser().resolve(), dump_recipe(recipe))
    start_process(run)
    return run


def resume(name: str, *, accept_new_data: bool = False) -> Run:
    """Start a stopped, crashed or failed run again from its last checkpoint.

    Args:
        name: The run.
        accept_new_data: Go on although the rows have changed; what was best on the old ones no longer counts.

    Raises:
        RunError: It is running, done, or trains nothing.
    """
    run = find_run(name, runs_folder())
    if run.is_live:
        raise RunError(f"{run.name} is running", fix=f"`macft attach {run.name}` follows it.")
    if run.is_job:
        raise RunError(f"{run.name} trains nothing: it left nothing to go on from", fix="Start the command again.")
    if run.state().status == "done":
        raise RunError(f"{run.name} is done", fix="To train longer, start a new run with start_from set to it.")
    start_process(run, *(["--accept-new-data"] if accept_new_data else []))
    return run


def start(path: Path, *, accept_new_data: bool = False, lock: int | None = None, asked: int | None = None) -> int:
    """Train a run, or do a job, in this process (`macft _run`); returns the exit code.

    Args:
        path: The run's folder.
        accept_new_data: Go on although the rows have changed.
        lock: The descriptor of the run's lock, when the keeper has taken it.
        asked: Where requests to this life begin in the control file.
    """
    run = Run.open(path)
    if run.is_job:
        from macft.jobs.process import run_job

        return run_job(run, lock=lock, asked=asked)
    from macft.training.process import run_to_end

    return run_to_end(run, accept_new_data=accept_new_data, lock=lock, asked=asked)


def other_rank() -> Launched | None:
    """Return what `mlx.launch` said when this process shall compute for a run that rank 0 leads, else None."""
    launched = read_launch()
    return None if launched is None or launched.leads else launched


def take_part(launched: Launched, recipe: Recipe | None = None, *, force: bool = False) -> None:
    """Train in this process as a rank other than 0, which tells what happens.

    Args:
        launched: From `other_rank`.
        recipe: What to do; None to go on with the run that rank 0 resumes.
        force: Train even if the plan does not fit here.

    Raises:
        MacftError: Rank 0 is gone or was never met.
    """
    from macft.training.process import take_part as compute

    def check(wanted: Recipe) -> None:
        check_inputs(wanted)
        if not force and recipe:
            check_fit(wanted, home())

    compute(launched, recipe, check)


def follow(run: Run, offset: int = 0) -> Iterator[Event]:
    """Yield a run's events from a byte offset until it ends.

    Raises:
        RunCrashed: Its process died without an end.
    """
    last = run.last_event() if offset else None
    while True:
        is_live = run.is_live
        events, offset = run.read(offset)
        yield from events
        last = events[-1] if events else last
        if events:
            continue
        if not is_live:
            break
        time.sleep(POLL_SECONDS)
    code = child.wait() if (child := _CHILDREN.pop(run.path, None)) else None
    if not isinstance(last, RunEnded):
        raise crashed(run, code)


def stop(name: str) -> Run:
    """Ask a run to finish its step, save and end; `latest` is the last started of those that are running."""
    running = [run for run in list_runs(runs_folder()) if run.is_live] if name == "latest" else []
    run = running[0] if running else find_run(name, runs_folder())
    if not run.is_live:
        raise RunError(f"{run.name} is not running")
    run.request("stop")
    return run


def send_signal(run: Run, number: int) -> None:
    """Send a signal to a run's process, if it lives."""
    if run.is_live and (process := run.process_id()):
        os.kill(process, number)


def summarize_runs() -> list[RunSummary]:
    """Return all runs, live ones first, then the newest."""
    rows = [RunSummary(run, state := run.state(), run.status(state)) for run in list_runs(runs_folder())]
    return sorted(rows, key=lambda row: row.status not in {"preparing", "running", "paused"})


def report(names: Sequence[str], out: Path | None = None) -> Path:
    """Write a page of one run, or of two over each other, and return where it is: into the first run's folder.

    Raises:
        RunError: There is no such run, or it only fuses or exports; or the page cannot be written.
    """
    from macft.measure.run_report import Reported, write_report

    runs = [find_run(name, runs_folder()) for name in names]
    for run in runs:
        if run.is_job:
            raise RunError(f"{run.name} trained nothing", fix="`macft runs` lists the runs.")
    page = out or runs[0].path / "report.html"
    try:
        write_atomic(page, write_report([Reported.read(run) for run in runs]).encode())
    except OSError as error:
        raise RunError(f"{page} cannot be written ({error.strerror})", fix="Name another file with --out.") from None
    return page


def remove_run(name: str) -> Run:
    """Delete a run's folder; a live run is refused."""
    run = find_run(name, runs_folder())
    run.remove()
    return run


def write_note(name: str, text: str) -> None:
    """Keep a person's note with a run; an empty text takes it away."""
    find_run(name, runs_folder()).write_note(text)


def discard_run(name: str) -> Path:
    """Take a run out of the list without deleting it yet, and return where it waits; a live run is refused."""
    return find_run(name, runs_folder()).discard()


def restore_run(discarded: Path, path: Path) -> Run:
    """Put a discarded run back to where it was."""
    return Run(discarded).move_to(path)


def forget_run(discarded: Path) -> None:
    """Delete a discarded run for good."""
    Run(discarded).remove()


def start_process(run: Run, *options: str) -> None:
    """Let a process of its own train a run, and wait until it holds the run.

    Raises:
        RunCrashed: It died before.
    """
    before = run.last_event()
    with os.fdopen(os.open(run.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, PRIVATE_FILE), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "macft.keeper", str(run.path), *options],  # -P: no code of this folder
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not run.is_live and process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
    if process.poll() is not None and run.last_event() == before:
        raise crashed(run, process.returncode)
    _CHILDREN[run.path] = process
