"""What a run and its terminal do when a signal comes, whenever it comes."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from macft import api
from macft.events import CheckpointSaved, Evaluated, PhaseProgress, StepDone
from macft.recipe import dump_recipe, make_recipe
from macft.run import Run
from macft.training.checkpoint import Checkpoints
from tests.faults.worlds import recipe_values, write_rows

PIPE = 0
"""Not a signal: whoever reads the output goes away."""
NAMES = {signal.SIGINT: "INT", signal.SIGTERM: "TERM", signal.SIGHUP: "HUP", signal.SIGQUIT: "QUIT", PIPE: "pipe"}
WAIT_SECONDS = 120.0


def _seen(kind: type, count: int = 1, **values: Any) -> Callable[[Run], bool]:
    def happened(run: Run) -> bool:
        if not (run.path / "events.jsonl").is_file():
            return False
        found = [event for event in run.read()[0] if isinstance(event, kind)]
        return sum(all(getattr(event, k) == v for k, v in values.items()) for event in found) >= count

    return happened


MOMENTS: dict[str, Callable[[Run], bool]] = {
    "started": lambda _: True,
    "folder": lambda run: run.path.is_dir(),
    "lock": lambda run: run.path.is_dir() and run.is_live,
    "first event": lambda run: (run.path / "events.jsonl").is_file() and bool(run.read()[0]),
    "model loads": _seen(PhaseProgress, name="load"),
    "step 1": _seen(StepDone),
    "checkpoint": _seen(CheckpointSaved),
    "step 7": _seen(StepDone, 7),
    "evaluation": _seen(Evaluated, 2),
    "step 20": _seen(StepDone, 20),
}
EARLY = {"started", "folder", "lock", "first event", "model loads"}
QUICK = [
    (signal.SIGINT, "step 7"),
    (signal.SIGINT, "started"),
    (signal.SIGTERM, "evaluation"),
    (signal.SIGTERM, "folder"),
    (signal.SIGQUIT, "checkpoint"),
    (signal.SIGQUIT, "first event"),
    (signal.SIGHUP, "step 1"),
    (signal.SIGHUP, "lock"),
    (PIPE, "step 7"),
    (PIPE, "model loads"),
]
ALL = [(number, moment) for number in NAMES for moment in MOMENTS]


class Terminal:
    """A person's terminal with `macft train` in the foreground."""

    def __init__(self, folder: Path, *, piped: bool) -> None:
        recipe = recipe_values(write_rows(folder), steps=100_000, compile=False, checkpoint={"every": 5})
        (folder / "recipe.toml").write_text(dump_recipe(make_recipe(recipe)))
        self.run = Run(folder / "run")
        self.master, self.slave = pty.openpty()
        self.settings = termios.tcgetattr(self.slave)
        self.shown = bytearray()
        command = [sys.executable, "-m", "macft", "train", str(folder / "recipe.toml"), "--out", str(self.run.path)]
        self.process = subprocess.Popen(
            [*command, *(["--json"] if piped else [])],
            stdin=self.slave,
            stdout=subprocess.PIPE if piped else self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self.master, 4096):
                self.shown += chunk
        except OSError:  # the terminal was closed
            return

    def press(self, number: int) -> None:
        """Do what a person does: a key where there is one, else the signal."""
        keys = {signal.SIGINT: b"\x03", signal.SIGQUIT: b"\x1c"}
        if number == PIPE:
            assert self.process.stdout
            self.process.stdout.close()
        elif number in keys:
            os.write(self.master, keys[signal.Signals(number)])
        else:
            self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout and not self.process.stdout.closed:
            self.process.stdout.close()
        os.close(self.slave)
        self._reader.join(10)
        os.close(self.master)
        if self.run.path.is_dir() and self.run.is_live:
            self.run.request("stop")
            wait_for(lambda: not self.run.is_live)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[bool], Terminal]]:
    opened = []

    def start(piped: bool) -> Terminal:
        opened.append(Terminal(tmp_path, piped=piped))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("number", "moment"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.long) for case in ALL if case not in QUICK)],
    ids=[f"{NAMES[number]} at {moment}" for number, moment in [*QUICK, *(case for case in ALL if case not in QUICK)]],
)
def test_a_signal_does_what_it_should_whenever_it_comes(
    number: int, moment: str, terminal: Callable[[bool], Terminal]
) -> None:
    at = terminal(number == PIPE)
    wait_for(lambda: MOMENTS[moment](at.run) or at.process.poll() is not None)
    at.press(number)
    code = at.wait()
    shown = at.shown.decode(errors="replace")
    assert termios.tcgetattr(at.slave) == at.settings
    assert shown.count("\x1b[?25l") <= shown.count("\x1b[?25h"), "the cursor stays hidden"
    assert moment == "started" or "Traceback" not in shown  # Python itself may not be up yet
    run = at.run
    if not (run.path / "events.jsonl").is_file():
        assert moment in EARLY
        assert code in {128 + number, -number, 141 if number == PIPE else None}
        return
    if number in {signal.SIGHUP, PIPE}:
        assert code in ({129, -1} if number else {141})
        _goes_on(run, launched=moment not in {"started", "folder"})
        return
    assert code in {128 + number, -number if moment in EARLY else None}, shown
    wait_for(lambda: not run.is_live)
    state = run.state()
    if moment in EARLY:
        assert state.status in {"stopped", "waiting"}, shown
        return
    assert state.ended is not None
    assert (state.status, state.ended.exit_code) == ("stopped", 128 + number)
    newest = Checkpoints(run.checkpoints, keep=9, world={}).newest_whole()
    if number == signal.SIGQUIT:  # it may have come between a checkpoint and the event that tells of it
        assert int((newest or "step-0").removeprefix("step-")) >= state.checkpoint_step
        assert not run.adapter.is_dir()
    else:
        assert newest == f"step-{state.step:06d}" == f"step-{state.ended.step:06d}"
        assert run.adapter.is_dir()
        assert f"`macft resume {run.name}`" in state.ended.fix


def _goes_on(run: Run, *, launched: bool) -> None:
    """The terminal is gone, and the run makes updates as before."""
    if not launched and not run.is_live:
        return  # `macft` went before it could start one
    step = run.state().step
    wait_for(lambda: run.state().step > step + 2)
    assert run.is_live
    api.send_signal(run, signal.SIGHUP)  # and the run itself does not mind either
    step = run.state().step
    wait_for(lambda: run.state().step > step + 2)
