from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from macft.errors import RecipeError
from macft.recipe import Table, load_recipe
from tests.tui.stage import LARGE, SMALL, perform, screen_text, until
from tui.app import Studio
from tui.draft import Draft
from tui.fields import ESSENTIAL, fields_of, methods
from tui.screens.train import TrainScreen


def test_every_key_of_every_method_is_a_field() -> None:
    for method, kind in methods().items():
        keys = {field.key for field in fields_of(method)}
        assert {"model", "data.train", "lora.rank", "optimizer.betas"} <= keys
        tables = {name for name, info in kind.model_fields.items() if isinstance(info.get_default(), Table)}
        assert {key.split(".")[0] for key in keys} == set(kind.model_fields) - {"version", "method"} | tables


def test_fields_say_choices_bounds_and_defaults() -> None:
    fields = {field.key: field for field in fields_of("sft")}
    assert fields["adapter"].choices == ('"lora"', '"dora"', '"full"')
    assert fields["quantize"].choices == ("", "4", "8")
    assert fields["lora.rank"].bounds == "≥ 1 and ≤ 1024"
    assert fields["lora.rank"].default == "8"
    assert next(iter(fields)) == ESSENTIAL[0]


def test_a_draft_says_what_it_does(tmp_path: Path) -> None:
    draft = Draft("quickstart").change("lora.rank", "16").change("data.train", str(tmp_path / "my rows.jsonl"))
    assert draft.recipe().lora.rank == 16
    assert "--set lora.rank=16" in draft.command()
    assert draft.shown("lora.rank") == "16"
    assert draft.change("lora.rank", "").shown("lora.rank") == Draft("quickstart").written("lora.rank")
    with pytest.raises(RecipeError, match=r"lora\.rank"):
        draft.change("lora.rank", "many").recipe()


def test_a_saved_draft_keeps_comments_and_trains_alike(tmp_path: Path) -> None:
    draft = Draft("quickstart").change("lora.rank", "16").change("data.train", str(tmp_path / "rows.jsonl"))
    draft.save(tmp_path / "mine.toml")
    assert (tmp_path / "mine.toml").read_text().startswith("# Teach")
    assert load_recipe(tmp_path / "mine.toml").lora == draft.recipe().lora
    assert load_recipe(tmp_path / "mine.toml").data.train == draft.recipe().data.train


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_wrong_stands_below_its_field_and_in_the_way_of_start(tmp_path: Path, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("4")
        await until(pilot, lambda: isinstance(pilot.app.screen, TrainScreen) and "learning_rate" in screen_text(pilot))
        screen = pilot.app.screen
        assert isinstance(screen, TrainScreen)
        next(field for field in screen.query(Input) if field.value == "8").value = "0"
        await until(pilot, lambda: "✘ input should be greater" in screen_text(pilot))
        await pilot.press("ctrl+r")
        assert isinstance(pilot.app, Studio)
        assert pilot.app.screen is screen
        assert not list(tmp_path.iterdir())

    perform(tmp_path, act, size)
