"""A run goes on only in the world in which it was started; what changed is named, with the way on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macft.errors import RunError
from macft.events import StepDone
from macft.models.tensors import load_tensors, save_tensors
from macft.recipe import dump_recipe, load_recipe, make_recipe
from macft.run import Run
from macft.training.process import run_to_end
from macft.training.session import Session
from tests.faults.sessions import Patient
from tests.faults.worlds import LLAMA, make_run, recipe_values, write_rows

SMALL = {"steps": 2, "compile": False, "checkpoint": {"every": 1}, "evaluate": {"every": 9, "samples": 0}}


class World:
    """A run that has made two of four updates, with a model and rows of its own."""

    def __init__(self, folder: Path) -> None:
        self.model, self.rows = folder / "model", write_rows(folder)
        shutil.copytree(LLAMA, self.model)
        self.values = recipe_values(self.rows, model=str(self.model), **SMALL)
        self.run = make_run(folder / "run", self.rows, model=str(self.model), **SMALL)
        self.go_on(recipe=self.values)
        self.values["steps"] = 2  # all it needs to be asked about; going on is another test's

    def go_on(self, *, recipe: dict[str, Any] | None = None, **options: bool) -> list[Any]:
        told: list[Any] = []
        wanted = make_recipe(recipe or self.values)
        Session(wanted, self.run, emit=told.append, requests=Patient(), **options).run()
        return told


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(started: World, tmp_path: Path) -> World:
    """A copy that may be changed, in the same place so that no path differs."""
    folder = started.run.path.parent
    shutil.copytree(folder, tmp_path / "kept")
    yield started
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)


def set_key(dotted: str, value: Any) -> Callable[[World], dict[str, Any]]:
    def change(world: World) -> dict[str, Any]:
        table, _, key = dotted.rpartition(".")
        if not table:
            return world.values | {key: value}
        return world.values | {table: world.values.get(table, {}) | {key: value}}

    return change


def other_weights(world: World) -> dict[str, Any]:
    path = world.model / "model.safetensors"
    tensors = {name: value * 1.01 for name, value in load_tensors(path).items()}
    mx.eval(tensors)
    save_tensors(path, tensors)
    return world.values


def other_tokenizer(world: World) -> dict[str, Any]:
    path = world.model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_up_tokenization_spaces": True}))
    return world.values


def other_template(world: World) -> dict[str, Any]:
    for path in world.model.glob("*"):
        if path.suffix in {".json", ".jinja"} and "<|im_start|>" in path.read_text():
            path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|> ", 1))
    return world.values


def other_rows(world: World) -> dict[str, Any]:
    world.rows.write_text(world.rows.read_text().replace("ask again", "ask me"))
    return world.values


CHANGES: dict[str, tuple[Callable[[World], dict[str, Any]], str]] = {
    "base": (other_weights, "base model"),
    "tokenizer": (other_tokenizer, "tokenizer"),
    "template": (other_template, "chat template"),
    "data": (other_rows, "training rows"),
    "rank": (set_key("lora.rank", 8), "lora.rank (4 → 8)"),
    "scale": (set_key("lora.alpha", 99.0), "lora.alpha (16.0 → 99.0)"),
    "targets": (set_key("lora.targets", "attention"), "lora.targets (all → attention)"),
    "dtype": (set_key("compute_dtype", "bfloat16"), "compute_dtype (auto → bfloat16)"),
    "seed": (set_key("seed", 1), "seed (0 → 1)"),
    "adapter": (set_key("adapter", "dora"), "adapter (lora → dora)"),
    "quantize": (set_key("quantize", 4), "quantize (None → 4)"),
    "learning rate": (set_key("learning_rate", 0.5), "learning_rate (0.01 → 0.5)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_world_is_refused_and_named(name: str, world: World) -> None:
    change, named = CHANGES[name]
    recipe = change(world)
    if name == "quantize":
        recipe |= {"quantize_group_size": 32}
    with pytest.raises(RunError) as caught:
        world.go_on(recipe=recipe)
    assert named in caught.value.message.removeprefix("since the run was started, this changed: ")
    assert "start_from" in caught.value.fix
    assert ("`macft resume --accept-new-data`" in caught.value.fix) == (name == "data")


def test_new_rows_are_accepted_on_request_and_what_was_best_is_forgotten(world: World) -> None:
    recipe = other_rows(world) | {"steps": 2, "evaluate": {"every": 1, "samples": 0}}
    Session(make_recipe(recipe), world.run, emit=lambda _: None, requests=Patient(), accept_new_data=True).run()
    state = json.loads((world.run.checkpoints / "step-000002" / "state.json").read_text())
    assert state["progress"]["best_step"] in {0, 2}
    world.go_on(recipe=recipe)  # what was accepted is the run's world now


def test_the_way_on_is_a_command_with_the_name_of_the_run(world: World) -> None:
    other_rows(world)
    run_to_end(world.run)
    ended = world.run.state().ended
    assert ended is not None
    assert f"`macft resume {world.run.name} --accept-new-data`" in ended.fix


def test_a_run_of_an_older_macft_goes_on(world: World) -> None:
    """It wrote tables as one value, and did not know the keys and fingerprints that came later."""
    path = world.run.checkpoints / "step-000002" / "state.json"
    state = json.loads(path.read_text())
    recipe = make_recipe(world.values).model_dump(mode="json")
    tables = {name: str(recipe[name]) for name in ("lora", "optimizer", "schedule")}
    known = {name: value for name, value in state["world"].items() if "." not in name and name != "neftune_alpha"}
    known.pop("tokenizer")
    state["world"] = known | tables | {"evaluate.metric": "eval_loss"}
    path.write_text(json.dumps(state))
    assert not [event for event in world.go_on() if isinstance(event, StepDone)]
    with pytest.raises(RunError, match=r"lora.rank \(4 → 8\)"):
        world.go_on(recipe=set_key("lora.rank", 8)(world))
    with pytest.raises(RunError, match=r"neftune_alpha \(0.0 → 5.0\)"):
        world.go_on(recipe=world.values | {"neftune_alpha": 5.0})


def test_a_recipe_as_it_was_written_is_the_same_world(world: World) -> None:
    path = world.run.path / "recipe.toml"
    assert dump_recipe(load_recipe(path)) == path.read_text()
    assert Run.open(world.run.path).state().step in {0, 2}
