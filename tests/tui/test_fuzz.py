"""Random keys, sizes and text on every screen: whatever a person does, the studio goes on.

A failing run is played again by its seed: `MACFT_FUZZ_SEED=7 python -m pytest tests/tui/test_fuzz.py`.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from tests.cli.recorded import training, write_run
from tests.tui.stage import perform, stage_result, stage_runs
from tui.actions import ACTIONS, SCREENS

SEED = int(os.environ.get("MACFT_FUZZ_SEED", "1"))
STARTS_SOMETHING = {"train.start", "home.resume", "live.resume", "models.pull"}
"""Actions that begin a process that outlives the test, or go online."""
SMALLEST, USUAL, LARGEST = (20, 5), (140, 45), (300, 100)
PIECES = (
    "Ünïcödé ",
    "日本語",
    "\u202e",
    "[bold red]",
    "\x1b[2J",
    "-1e309",
    "0",
    '"',
    "\\",
    "${HOME}",
    "/",
    "~",
    " ",
    "nan",
)
MOST_CPU_SECONDS = 45.0
"""That the events in CI may take."""
BURST = 5
"""Most keys that are pressed before the screen is waited for."""


def keys() -> list[str]:
    """Return every key of the studio that starts nothing, and those of fields, lists and terminals."""
    keys = [
        key
        for scope, actions in ACTIONS.items()
        for action in actions
        if f"{scope}.{action.name}" not in STARTS_SOMETHING and not action.call.startswith("app.quit")
        for key in action.key.split(",")
    ]
    started = {
        key
        for scope, actions in ACTIONS.items()
        for action in actions
        if f"{scope}.{action.name}" in STARTS_SOMETHING
        for key in action.key.split(",")
    }
    common = ["tab", "shift+tab", "up", "down", "left", "right", "pageup", "pagedown", "home", "end", "backspace"]
    common += ["enter", "escape", "space", "delete", "ctrl+p", "a", "Z", "ctrl+u", "ctrl+s", "f1"]
    return sorted({key for key in (*keys, *common) if key not in started and key != "ctrl+q"})


async def some_events(pilot: "Pilot[None]", chance: random.Random, known: Sequence[str]) -> list[str]:
    """Do something at random; returns what it was."""
    match chance.choices(["keys", "size", "text", "click", "screen"], [40, 10, 20, 10, 20])[0]:
        case "keys":
            pressed = chance.choices(known, k=chance.randint(1, BURST))
            await pilot.app._press_keys(pressed)
            await pilot.pause()
            return pressed
        case "size":
            highest = LARGEST if chance.random() < 0.2 else USUAL
            width, height = (chance.randint(low, high) for low, high in zip(SMALLEST, highest, strict=True))
            await pilot.resize_terminal(width, height)
            return [f"size {width}x{height}"]
        case "text":
            return [write(pilot, "".join(chance.choices(PIECES, k=chance.randint(0, 6))), chance)]
        case "click":
            place = tuple(chance.randrange(cells) for cells in pilot.app.size)
            await pilot.click(offset=place, times=chance.choice([1, 1, 2]))
            return [f"click {place}"]
        case _:
            digit = chance.choice([str(digit) for digit in SCREENS.values()])
            await pilot.press("escape", digit)
            return ["escape", digit]


def write(pilot: "Pilot[None]", text: str, chance: random.Random) -> str:
    """Put a text into one of the fields that are on the screen."""
    fields = [*pilot.app.screen.query(Input), *pilot.app.screen.query(TextArea)]
    if not fields:
        return "text nowhere"
    field = chance.choice(fields)
    if isinstance(field, Input):
        field.value = text
    else:
        field.text = text
    return f"text {text!r} into {field.id}"


def stage(tmp_path: Path) -> Path:
    runs = stage_runs(tmp_path / "runs")
    stage_result(runs)
    write_run(runs / "[red]odd \x1b name", training()[:9])
    return runs


def play(runs: Path, events: int, seed: int, cpu_seconds: float = float("inf")) -> int:
    """Do so many events, or as many as the time allows, and open the studio again when it was closed."""
    chance, known, done = random.Random(seed), keys(), list[str]()
    deadline = time.process_time() + cpu_seconds

    def goes_on() -> bool:
        return len(done) < events and time.process_time() < deadline

    async def act(pilot: "Pilot[None]") -> None:
        while goes_on() and pilot.app.is_running and pilot.app._exit is False:
            done.extend(await some_events(pilot, chance, known))

    try:
        while goes_on():
            perform(runs, act, (80, 24))
    except BaseException as error:
        error.add_note(f"seed {seed}, event {len(done)}; before it: {done[-12:]}")
        raise
    return len(done)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write nothing outside of the test's folder, whatever is typed into a field."""
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_five_hundred_events_break_nothing(tmp_path: Path) -> None:
    assert play(stage(tmp_path), 500, SEED, MOST_CPU_SECONDS) > 100


@pytest.mark.long
def test_ten_thousand_events_break_nothing(tmp_path: Path) -> None:
    done = 0
    for round_ in range(20):
        done += play(stage(tmp_path / str(round_)), 500, SEED + round_)
    assert done >= 10_000
