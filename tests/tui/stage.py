"""A studio on a stage: recorded runs, a still clock, and what is on its screen as text."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot

from macft import api
from macft.events import Event, RunEnded, RunStarted, StepDone
from tests.cli.recorded import STARTED, done, failed, training, write_run
from tui.app import Studio
from tui.rows import RowsChild

SNAPSHOTS = Path(__file__).with_name("snapshots")
UPDATE = "MACFT_UPDATE_SNAPSHOTS"
SMALL, LARGE = (80, 24), (120, 36)
LOOK_SECONDS = 60.0
SEED = 0
"""In blind comparisons, the second voice sits in pane A of the first talk."""
FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
Act = Callable[["Pilot[None]"], Awaitable[None]]


def perform(
    runs: Path,
    act: Act,
    size: tuple[int, int] = LARGE,
    *,
    worker: Sequence[str] = FAKE_WORKER,
    start_rows: Callable[[], RowsChild] = api.start_rows,
) -> None:
    """Open a studio on a folder of runs and let `act` use it."""
    os.environ["TZ"] = "UTC"
    time.tzset()

    async def play() -> None:
        studio = Studio(runs, now=lambda: STARTED + 3600, worker=worker, seed=SEED, start_rows=start_rows)
        async with studio.run_test(size=size) as pilot:
            await until(pilot, lambda: studio.rows != () or not any(runs.glob("*/recipe.toml")))
            await pilot.pause()
            await act(pilot)

    asyncio.run(play())


async def until(pilot: "Pilot[None]", is_so: Callable[[], bool]) -> None:
    """Wait for something that a thread or a process does."""
    deadline = time.monotonic() + LOOK_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen; the screen says:\n" + screen_text(pilot)
        await pilot.pause(0.02)


def screen_text(pilot: "Pilot[None]") -> str:
    """Return what is on the screen, a line a row."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def notices(pilot: "Pilot[None]") -> str:
    """Return what was notified and not yet taken away, a line each; tests show no toasts."""
    return "\n".join(f"{notice.title}: {notice.message}" for notice in pilot.app._notifications)


async def check_snapshot(pilot: "Pilot[None]", name: str) -> None:
    """Wait for the screen to be as the text kept under a name; MACFT_UPDATE_SNAPSHOTS=1 writes that anew."""
    path = SNAPSHOTS / f"{name}-{pilot.app.size.width}x{pilot.app.size.height}.txt"
    if os.environ.get(UPDATE):
        await pilot.pause(2.0)
        path.write_text(screen_text(pilot), encoding="utf-8")
    wanted, deadline = path.read_text(encoding="utf-8"), time.monotonic() + LOOK_SECONDS
    while screen_text(pilot) != wanted and time.monotonic() < deadline:
        await pilot.pause(0.05)
    assert screen_text(pilot) == wanted, f"{path.name} differs; {UPDATE}=1 writes it anew"


def preferences() -> list[Event]:
    """Return a preference run's events: margins that grow."""
    events = [replace(event, method="dpo") if isinstance(event, RunStarted) else event for event in training()[:5]]
    for number in range(1, 21):
        share = number / 20
        metrics = {
            "loss": 0.693 - 0.4 * share,
            "rewards/margins": 2 * share,
            "rewards/accuracies": min(1.0, 0.5 + share / 2),
            "tokens_per_second": 300.0,
            "step_seconds": 1.0,
            "peak_memory_bytes": 2**30,
        }
        events.append(StepDone(time=STARTED + 10 + number, step=number, epoch=number / 10, metrics=metrics))
    return [*events, RunEnded(time=STARTED + 40, status="done", step=20)]


def stage_result(runs: Path) -> Path:
    """Write one run with a result, which can be compared."""
    run = write_run(runs / "support", done())
    run.adapter.mkdir()
    return run.path


def stage_runs(runs: Path) -> Path:
    """Write one run of each kind that has ended."""
    runs.mkdir(parents=True, exist_ok=True)
    for place, (name, events) in enumerate(
        {"addresses": done(), "bad-rows": failed(), "killed": training(), "tone": preferences()}.items()
    ):
        run = write_run(runs / name, events)
        os.utime(run.path / "recipe.toml", (STARTED + place, STARTED + place))
    return runs
