"""Models as a person uses them: a copy with fewer bits, planned first."""

import json
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.shelf import Shelf
from tests.tui.stage import LARGE, SMALL, check_snapshot, perform, screen_text, until
from tui.app import Studio
from tui.draft import Draft
from tui.screens.models import ModelsScreen
from tui.screens.plan_job import PlanJobScreen


def models(pilot: "Pilot[None]") -> ModelsScreen:
    screen = pilot.app.screen
    assert isinstance(screen, ModelsScreen)
    return screen


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_machine_without_models_says_how_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("2")
        await until(pilot, lambda: "No model is here yet" in screen_text(pilot))
        await check_snapshot(pilot, "models-empty")

    perform(tmp_path / "runs", act, size)


def test_a_model_is_quantized_into_a_copy(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    rows = shelf.home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"p {n}", "completion": f"c {n}"}) + "\n" for n in range(8)))

    async def act(pilot: "Pilot[None]") -> None:
        assert isinstance(pilot.app, Studio)
        pilot.app.draft = Draft("quickstart").change("data.train", str(rows))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen) and bool(models(pilot).models))
        await until(pilot, lambda: models(pilot).current is not None)
        await pilot.press("q")
        await until(pilot, lambda: isinstance(pilot.app.screen, PlanJobScreen))
        await pilot.pause()
        assert "a whole model of 4 bits" in screen_text(pilot)
        await pilot.press("q")
        assert "a whole model of 8 bits" in screen_text(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen) and models(pilot).job is not None)
        await until(pilot, lambda: "tiny-8bit" in [known.facts.name for known in models(pilot).models])
        assert "of greedy tokens as the original's" in " ".join(screen_text(pilot).split())
        await pilot.press("down", "q")
        await until(pilot, lambda: any("quantized already" in one.message for one in pilot.app._notifications))

    perform(shelf.runs, act)
