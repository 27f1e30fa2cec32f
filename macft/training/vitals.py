"""How the machine is while a run goes on: sleep, battery, heat, memory.

The rule: what it finds is told as an event, once for each change, and nothing of it stops a run. The system is asked
through one command runner and two clocks, so that a test can be any Mac at any time.
"""

import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from macft.events import StepDone, Warned
from macft.format import duration, gigabytes
from macft.machine import MIB, CommandRunner, run_command

LOOK_SECONDS, GAP_SECONDS = 60.0, 30.0
LOW_BATTERY_PERCENT = 20
SETTLED_STEPS, GROWTH_SHARE, GROWTH_BYTES = 50, 0.25, 64 * MIB
"""MLX's memory has settled after so many updates; what is held beyond both of these is growth."""

Spawn = Callable[[Sequence[str]], object]


def keep_awake(process: int, *, system: str = "", spawn: Spawn | None = None) -> bool:
    """Keep a Mac awake while a process lives; returns whether that is being done."""
    if (system or platform.system()) != "Darwin":
        return False
    with suppress(OSError):
        (spawn or _spawn)(["/usr/bin/caffeinate", "-i", "-w", str(process)])
        return True
    return False


def _spawn(command: Sequence[str]) -> object:
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)


class Vitals:
    """Looks at the machine between updates.

    Args:
        run: Runs a command and returns its output; only a Mac is asked anything.
        system: `Darwin` or another; left out: this one's.
        monotonic: A clock that stands still while the machine sleeps, seconds.
        wall: One that goes on.
    """

    def __init__(
        self,
        run: CommandRunner = run_command,
        *,
        system: str = "",
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.system = run, system or platform.system()
        self.monotonic, self.wall = monotonic, wall
        self.times = monotonic(), wall()
        self.looked_at = -LOOK_SECONDS
        self.told = {"battery": "", "heat": ""}
        self.settled_bytes, self.updates = 0, 0
        self.has_grown = False

    def start(self) -> Iterator[Warned]:
        """Say what whoever leaves this machine alone should know."""
        if self.system == "Darwin" and "InternalBattery" in self.run(["/usr/bin/pmset", "-g", "batt"]):
            message = "keep the lid open: with a closed lid a MacBook sleeps, and the run waits until it is opened"
            yield Warned(message=message, fix="The display may be off.")

    def look(self, done: StepDone) -> Iterator[Warned]:
        """Yield what has changed since the update before."""
        yield from self._gap(done.step)
        yield from self._growth(done)
        if self.system == "Darwin" and self.times[0] - self.looked_at >= LOOK_SECONDS:
            self.looked_at = self.times[0]
            yield from self._changed("battery", *self._battery(), done.step)
            yield from self._changed("heat", *self._heat(), done.step)

    def _gap(self, step: int) -> Iterator[Warned]:
        before, self.times = self.times, (self.monotonic(), self.wall())
        gap = (self.times[1] - before[1]) - (self.times[0] - before[0])
        if gap > GAP_SECONDS:
            message = f"the machine slept for {duration(gap)} before step {step} ended, or its clock was set"
            yield Warned(message=message, step=step)

    def _growth(self, done: StepDone) -> Iterator[Warned]:
        held = int(done.metrics.get("active_memory_bytes", 0))
        self.updates += 1
        if self.updates <= SETTLED_STEPS:
            self.settled_bytes = max(self.settled_bytes, held)
            return
        if not self.has_grown and held > self.settled_bytes * (1 + GROWTH_SHARE) + GROWTH_BYTES:
            self.has_grown = True
            more = f"{gigabytes(held)} instead of {gigabytes(self.settled_bytes)}"
            fix = "If it goes on growing, stop and resume; and please report it."
            yield Warned(message=f"memory grows: MLX holds {more} at step {done.step}", fix=fix, step=done.step)

    def _battery(self) -> tuple[str, str]:
        said = self.run(["/usr/bin/pmset", "-g", "batt"])
        percent = re.search(r"\t(\d+)%", said)
        if "'Battery Power'" not in said or not percent:
            return "", ""
        if int(percent[1]) <= LOW_BATTERY_PERCENT:
            return "low", f"the battery is low, at {percent[1]}%; when it is empty, the last checkpoint stands"
        return "on", f"on battery, at {percent[1]}%"

    def _heat(self) -> tuple[str, str]:
        limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", self.run(["/usr/bin/pmset", "-g", "therm"]))
        if not limit or int(limit[1]) >= 100:
            return "", ""
        return "hot", f"macOS slows this Mac down to {limit[1]}% of its speed to cool it"

    def _changed(self, what: str, state: str, message: str, step: int) -> Iterator[Warned]:
        before, self.told[what] = self.told[what], state
        if state and state != before:
            fix = "Plug in the power adapter." if what == "battery" else "Give it air; the run goes on."
            yield Warned(message=message, fix=fix, step=step)
