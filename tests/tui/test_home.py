from pathlib import Path

import pytest
from textual.pilot import Pilot

from macft.run import Run
from tests.tui.stage import LARGE, SMALL, check_snapshot, perform, screen_text, stage_runs, until
from tui.app import Studio
from tui.screens.home import HomeScreen
from tui.screens.live import LiveScreen


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_empty_home_says_how_to_begin(tmp_path: Path, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await check_snapshot(pilot, "home-empty")

    perform(tmp_path, act, size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_runs_are_listed_with_what_became_of_them(tmp_path: Path, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await check_snapshot(pilot, "home-runs")

    perform(stage_runs(tmp_path), act, size)


def test_enter_opens_the_run_under_the_cursor(tmp_path: Path) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("j", "j", "j", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, LiveScreen))
        screen = pilot.app.screen
        assert isinstance(screen, LiveScreen)
        assert screen.row is not None
        assert screen.row.name == "addresses"

    perform(stage_runs(tmp_path), act)


def test_a_removed_run_comes_back(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path)

    async def act(pilot: "Pilot[None]") -> None:
        before = sorted(path.name for path in runs.glob("[!.]*"))
        await pilot.press("x")
        await until(pilot, lambda: len(names(pilot)) == len(before) - 1)
        assert sorted(path.name for path in runs.glob("[!.]*")) != before
        await pilot.press("u")
        await until(pilot, lambda: len(names(pilot)) == len(before))
        assert sorted(path.name for path in runs.glob("[!.]*")) == before

    perform(runs, act)


def test_a_note_is_kept_with_the_run(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path)

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("n", *"rank 8", "enter")
        await until(pilot, lambda: "rank 8" in screen_text(pilot))

    perform(runs, act)
    assert [run.note for run in map(Run, sorted(runs.glob("[!.]*"))) if run.note] == ["rank 8"]


def test_the_filter_keeps_what_fits(tmp_path: Path) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("slash", *"tone", "enter")
        assert shown(pilot) == ["tone"]
        await pilot.press("escape")
        assert len(shown(pilot)) == 4

    perform(stage_runs(tmp_path), act)


def test_two_runs_can_be_marked_and_no_more(tmp_path: Path) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("space", "j", "space", "j", "space")
        screen = pilot.app.screen
        assert isinstance(screen, HomeScreen)
        assert [path.name for path in screen.marked] == ["killed", "bad-rows"]

    perform(stage_runs(tmp_path), act)


def test_two_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path)
    recipe = runs / "tone" / "recipe.toml"
    recipe.write_text(recipe.read_text() + "[lora]\nrank = 16\n")

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("space", "j", "equals_sign")
        await until(pilot, lambda: "What differs" in screen_text(pilot))
        await pilot.pause(0.2)
        assert "lora.rank" in screen_text(pilot)

    perform(runs, act)


def test_names_that_look_like_markup_are_text(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path)
    (runs / "tone").rename(runs / "[bold red]x \x1b[2J")

    async def act(pilot: "Pilot[None]") -> None:
        assert "[bold red]x ␛[2J" in screen_text(pilot)

    perform(runs, act)


def test_a_damaged_run_is_listed_and_breaks_nothing(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path)
    (runs / "tone" / "events.jsonl").unlink()

    async def act(pilot: "Pilot[None]") -> None:
        assert len(shown(pilot)) == 4
        assert "unreadable" in screen_text(pilot)

    perform(runs, act)


def names(pilot: "Pilot[None]") -> list[str]:
    assert isinstance(pilot.app, Studio)
    return [row.name for row in pilot.app.rows]


def shown(pilot: "Pilot[None]") -> list[str]:
    screen = pilot.app.screen
    assert isinstance(screen, HomeScreen)
    return [Path(str(key.value)).name for key in screen.table.rows]


def test_no_screen_loads_mlx(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom tui.app import Studio\n"
        "async def play():\n"
        f"    app = Studio(Path({str(stage_runs(tmp_path))!r}))\n"
        "    async with app.run_test() as pilot:\n"
        "        for key in '1234567':\n"
        "            await pilot.press(key)\n"
        "            await pilot.pause(0.5)\n"
        "asyncio.run(play())\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers') if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
