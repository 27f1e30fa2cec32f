"""The first ten minutes, by the keyboard alone at 80×24: from nothing to a preference run on one's own picks.

Everything is real but the size of the model: the run, the child that answers, the files.
"""

import json
import shutil
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from macft import api
from macft.run import Run, list_runs
from tests.shelf import Shelf
from tests.tui.stage import SMALL, perform, screen_text, until
from tui.app import Studio
from tui.screens.compare import CompareScreen
from tui.screens.live import LiveScreen
from tui.screens.train import TrainScreen
from tui.widgets.form import FieldRow
from tui.widgets.verdict import VerdictBar

RUN_SECONDS = 300.0
"""For a run of some steps on a loaded machine."""
PICKS = 20


async def wait(pilot: "Pilot[None]", text: str) -> None:
    """Wait for words on the screen; runs take longer than keys."""
    deadline = time.monotonic() + RUN_SECONDS
    while text not in screen_text(pilot):
        assert time.monotonic() < deadline, f"{text!r} does not come; the screen says:\n{screen_text(pilot)}"
        await pilot.pause(0.1)


async def set_field(pilot: "Pilot[None]", key: str, value: str) -> None:
    """Go to a field of the form with tab, and write into it."""
    for _ in range(60):
        field = pilot.app.focused
        if isinstance(field, Input) and isinstance(row := field.parent.parent, FieldRow) and row.field.key == key:  # type: ignore[union-attr]
            break
        await pilot.press("tab")
    assert isinstance(field, Input)
    await pilot.press("end", "ctrl+u", *value)
    assert field.value == value


async def start_run(pilot: "Pilot[None]", steps: int) -> None:
    """Start what Train shows, with fewer steps, and follow it to its end."""
    studio = pilot.app
    assert isinstance(studio, Studio)
    before = len(studio.rows)
    await set_field(pilot, "steps", str(steps))
    await set_field(pilot, "evaluate.every", str(steps))
    await wait(pilot, "fits")
    await until(pilot, lambda: isinstance(pilot.app.screen, TrainScreen) and pilot.app.screen.recipe is not None)
    await pilot.press("escape", "ctrl+r")
    deadline = time.monotonic() + RUN_SECONDS
    while not (isinstance(studio.screen, LiveScreen) and len(studio.rows) > before and _all_done(studio)):
        assert time.monotonic() < deadline, screen_text(pilot)
        await pilot.pause(0.1)
    await wait(pilot, "✔ DONE")


def _all_done(studio: Studio) -> bool:
    return all(row.status == "done" for row in studio.rows)


async def pick(pilot: "Pilot[None]", question: str) -> None:
    """Ask, and prefer whatever stands in pane B; what both answer alike is asked again."""
    screen = pilot.app.screen
    assert isinstance(screen, CompareScreen)
    judged = len(screen.judged)
    await pilot.press("ctrl+n", *question, "enter")
    deadline = time.monotonic() + RUN_SECONDS
    while not isinstance(pilot.app.focused, VerdictBar):
        assert time.monotonic() < deadline, screen_text(pilot)
        if "Both say the same" in screen_text(pilot):
            await pilot.press("ctrl+g")
        await pilot.pause(0.05)
    await pilot.press("2")
    await until(pilot, lambda: len(screen.judged) == judged + 1)


def test_from_nothing_to_a_preference_run(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    shutil.copytree(shelf.tiny, shelf.home / "models" / "smollm2-135m")
    shelf.runs.mkdir()

    async def act(pilot: "Pilot[None]") -> None:
        await wait(pilot, "4   the quickstart")
        await pilot.press("4")
        await wait(pilot, "quickstart")
        await start_run(pilot, 6)
        await pilot.press("c")
        await wait(pilot, "Ask something")
        await pilot.press("ctrl+o")
        await wait(pilot, "How answers are made")
        await pilot.press("tab", "end", "ctrl+u", *"2")
        await pilot.press(*["tab"] * 6, "end", "ctrl+u", *"8", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, CompareScreen))
        screen = pilot.app.screen
        assert isinstance(screen, CompareScreen)
        assert (screen.comparison.sampling.temperature, screen.comparison.sampling.max_tokens) == (2, 8)
        for number in range(PICKS):
            await pick(pilot, f"Address {number}?")
        await wait(pilot, f"{PICKS} of ≥ 50 pairs")
        await pilot.press("escape", "t")
        await wait(pilot, "dpo-lora-devils")
        await start_run(pilot, 3)

    perform(shelf.runs, act, SMALL, worker=api.worker_command())
    preference, first = list_runs(shelf.runs)
    assert [run.state().status for run in (first, preference)] == ["done", "done"]
    assert preference.state().started.method == "dpo"  # type: ignore[union-attr]
    assert learned_from(preference) == first.name
    (picks,) = (shelf.home / "picks").glob("*.jsonl")
    rows = [json.loads(line) for line in picks.read_text().splitlines()]
    assert len(rows) == PICKS
    assert {row["voices"]["chosen"] for row in rows} == {"Base", first.name}


def learned_from(run: Run) -> str:
    """Return the run that another started from."""
    recipe = api.read_recipe(str(run.path / "recipe.toml"))
    assert recipe.start_from is not None
    return (
        Path(recipe.start_from).parent.name
        if Path(recipe.start_from).name == "adapter"
        else Path(recipe.start_from).name
    )
