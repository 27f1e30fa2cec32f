from pathlib import Path

import pytest
from textual.pilot import Pilot

from macft.run import Run
from tests.cli.recorded import training, write_run
from tests.tui.stage import LARGE, SMALL, check_snapshot, perform, screen_text, stage_runs, until
from tui.app import Studio
from tui.screens.live import LiveScreen


def open_run(name: str):  # type: ignore[no-untyped-def]
    async def act(pilot: "Pilot[None]") -> None:
        studio = pilot.app
        assert isinstance(studio, Studio)
        studio.open_run(next(row.path for row in studio.rows if row.name == name))
        await until(pilot, lambda: isinstance(pilot.app.screen, LiveScreen))
        await pilot.pause(0.2)

    return act


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["addresses", "bad-rows", "killed", "tone"])
def test_a_run_as_it_ended(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await open_run(name)(pilot)
        await check_snapshot(pilot, f"live-{name}")

    perform(stage_runs(tmp_path), act, size)


def test_a_run_is_followed_and_asked(tmp_path: Path) -> None:
    events = training()
    run = write_run(tmp_path / "going-on", events[:12])

    async def act(pilot: "Pilot[None]") -> None:
        await open_run("going-on")(pilot)
        assert "RUNNING" in screen_text(pilot)
        for event in events[12:20]:
            run.append(event)
        await until(pilot, lambda: "step 11/20" in screen_text(pilot))
        await pilot.press("p", "m")
        assert run.read_requests(0)[0] == ["pause", "sample"]
        await pilot.press("space")
        for event in events[20:]:
            run.append(event)
        await pilot.pause(0.8)
        assert "step 11/20" in screen_text(pilot)
        await pilot.press("space")
        await until(pilot, lambda: "step 20/20" in screen_text(pilot))
        await pilot.press("2")
        await until(pilot, lambda: "● going-on" in screen_text(pilot))

    with run.lock():
        perform(tmp_path, act)


def test_a_run_that_dies_is_said_and_can_be_resumed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "going-on", training()[:12])

    async def act(pilot: "Pilot[None]") -> None:
        await open_run("going-on")(pilot)
        assert "RUNNING" in screen_text(pilot)
        lock.__exit__(None, None, None)
        await until(pilot, lambda: "CRASHED" in screen_text(pilot))
        assert "r goes on from step" in screen_text(pilot)

    lock = run.lock()
    lock.__enter__()
    perform(tmp_path, act)
    assert Run.open(run.path).state().status == "running"


def test_the_chart_takes_the_room_and_gives_it_back(tmp_path: Path) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await open_run("addresses")(pilot)
        await pilot.press("z")
        await until(pilot, lambda: "Gradient" not in screen_text(pilot) and "Speed" not in screen_text(pilot))
        await pilot.press("l")
        await until(pilot, lambda: "· log" in screen_text(pilot))
        await pilot.press("z")
        await until(pilot, lambda: "Speed" in screen_text(pilot))

    perform(stage_runs(tmp_path), act)
