"""How the studio feels: its start, its memory, an attach to a long run, and the time from a key to its paint.

    python -m tests.benchmarks.studio [--keys N]

The studio runs as a process of its own on a pseudo-terminal of 120×36, as a person has it; times are those at which
bytes leave it. For keys, a run writes 20 events a second, and a worker without a model streams two replies of 40 tokens
a second.
"""

import argparse
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

from macft.events import encode_event
from macft.run import Run
from tests.cli.recorded import STARTED, done, step, training, write_run
from tests.tui.stage import FAKE_WORKER, stage_result
from tui.app import Studio
from tui.follow import RunsWatcher

SIZE = (36, 120)
EVENTS_A_SECOND, PART_SECONDS = 20, 0.025
LONG_RUN = 100_000
KEYS = "αβγδεζηθικλμνξοπρστυφχψω"
"""Typed characters that no reply has, so that their paint is told from that of the replies."""
STARTS = 5


class Terminal:
    """A studio on a pseudo-terminal."""

    def __init__(self, runs: Path) -> None:
        self.started = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "MACFT_RUNS": str(runs)}
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
            os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.studio", "--studio", str(runs)])

    def wait_for(self, text: str, seconds: float = 60.0) -> float:
        """Read until the studio has painted a text; returns the seconds that took."""
        since, seen = time.perf_counter(), b""
        while text.encode() not in seen:
            if not select.select([self._fd], [], [], max(0.0, since + seconds - time.perf_counter()))[0]:
                raise TimeoutError(f"{text!r} was not painted; the last bytes are {seen[-500:]!r}")
            seen = seen[-10_000:] + os.read(self._fd, 65_536)
        return time.perf_counter() - since

    def press(self, text: str) -> None:
        """Type."""
        os.write(self._fd, text.encode())

    def drain(self, seconds: float) -> None:
        """Read what is painted for a while."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                os.read(self._fd, 65_536)

    def memory_bytes(self) -> int:
        """Return the resident memory of the studio alone."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """Return what the studio has computed so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End the studio."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


def measure_start(runs: Path) -> dict[str, float]:
    """Return seconds to the first paint, and the memory two seconds later; the medians of several starts."""
    paints, cpu, memory = [], [], []
    for _ in range(STARTS):
        terminal = Terminal(runs)
        terminal.wait_for("1 Home")
        paints.append(time.perf_counter() - terminal.started)
        cpu.append(terminal.cpu_seconds())
        terminal.drain(2.0)
        memory.append(terminal.memory_bytes())
        terminal.close()
    return {
        "first_paint_seconds": statistics.median(paints),
        "first_paint_cpu_seconds": statistics.median(cpu),
        "memory_mb": statistics.median(memory) / 2**20,
    }


def measure_attach(folder: Path) -> dict[str, float]:
    """Return the seconds, and those of CPU, from a folder to the state of a run of 100,000 events."""
    run = write_run(folder / "long", training()[:5])
    with (run.path / "events.jsonl").open("a", encoding="utf-8") as file:
        for number in range(1, LONG_RUN + 1):
            file.write(encode_event(replace(step(1 + number % 19), step=number)).rstrip("\n") + "\n")
    posted: list[object] = []
    wall, cpu = time.perf_counter(), time.process_time()
    RunsWatcher(folder, posted.append).look(everything=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    (rows,) = posted
    assert rows[0].state.step == LONG_RUN  # type: ignore[index]
    return {"attach_seconds": wall, "attach_cpu_seconds": cpu}


def measure_keys(runs: Path, count: int) -> dict[str, float]:
    """Return percentiles of the time from a key to its paint while a run writes and two replies stream."""
    stage_result(runs)
    run = write_run(runs / "going-on", training()[:5])
    ending = threading.Event()
    with run.lock():
        writer = threading.Thread(target=_write_events, args=(run, ending))
        writer.start()
        try:
            return _time_keys(runs, count)
        finally:
            ending.set()
            writer.join()


def _time_keys(runs: Path, count: int) -> dict[str, float]:
    terminal = Terminal(runs)
    try:
        terminal.wait_for("1 Home")
        terminal.drain(2.0)
        terminal.press("6")
        terminal.wait_for("Ask something")
        terminal.press("long\r")
        terminal.wait_for("Sorry")
        terminal.drain(2.0)
        taken = []
        for number in range(count):
            terminal.press(KEYS[number % len(KEYS)])
            taken.append(terminal.wait_for(KEYS[number % len(KEYS)]) * 1000)
            terminal.drain(0.1 + 0.05 * (number % 3))
        return {
            "key_to_paint_p50_ms": statistics.median(taken),
            "key_to_paint_p95_ms": statistics.quantiles(taken, n=20)[18],
            "key_to_paint_most_ms": max(taken),
            "keys": len(taken),
            "memory_comparing_mb": terminal.memory_bytes() / 2**20,
        }
    finally:
        terminal.close()


def _write_events(run: Run, ending: threading.Event) -> None:
    number = 0
    while not ending.wait(1 / EVENTS_A_SECOND):
        number += 1
        run.append(replace(step(1 + number % 19), step=number, time=time.time()))


def main() -> None:
    """Measure everything, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--studio", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.studio:
        Studio(asked.studio, now=lambda: STARTED + 3600, worker=(*FAKE_WORKER, str(PART_SECONDS))).run()
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MACFT_HOME"] = f"{folder}/home"
        for name in ("start", "attach", "keys"):
            (Path(folder) / name).mkdir()
        write_run(Path(folder) / "start" / "addresses", done())
        figures = measure_start(Path(folder) / "start")
        figures |= measure_attach(Path(folder) / "attach")
        figures |= measure_keys(Path(folder) / "keys", asked.keys)
        load = os.getloadavg()[0]
    print(json.dumps({**{name: round(value, 3) for name, value in figures.items()}, "load": round(load, 1)}, indent=2))


if __name__ == "__main__":
    main()
