"""Whole preference runs: the reference phase, exact resume, refusals, early stopping, chains."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macft.errors import RunError, Stopped
from macft.events import Evaluated, PhaseProgress, Sampled, Scored, StepDone, TrainingPlanned, Warned
from macft.machine import home
from macft.recipe import make_recipe
from macft.run import Run
from tests.training.test_session import LLAMA, Life, bytes_of, numbers

GOOD = ["yes, and gladly.", "no, never.", "perhaps, but not before tomorrow."]
BAD = ["I cannot say.", "hm.", "ask somebody else about it."]
CACHE = "cache/reference"


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Any]:
    pairs, labeled = tmp_path / "pairs.jsonl", tmp_path / "labeled.jsonl"
    rows = [{"prompt": f"q{n}?", "chosen": GOOD[n % 3], "rejected": BAD[n % 3]} for n in range(24)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    thumbs = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in rows
        for kind in ("chosen", "rejected")
    ]
    labeled.write_text("".join(json.dumps(row) + "\n" for row in thumbs))

    def make(method: str = "dpo", **changes: Any) -> Any:
        data = {"train": str(labeled if method == "kto" else pairs), "valid_fraction": 0.2}
        values = {
            "model": str(LLAMA),
            "method": method,
            "steps": 8,
            "batch_size": 5,
            "micro_batch_size": 2,
            "learning_rate": 5e-3,
            "lora": {"rank": 4},
            "evaluate": {"every": 4, "samples": 0},
            "checkpoint": {"every": 3},
        }
        return make_recipe(values | changes | {"data": data | changes.pop("data", {})})

    return make


def phases(life: Life, name: str = "reference") -> list[tuple[int, int]]:
    return [(event.done, event.total) for event in life.of(PhaseProgress) if event.name == name]


def test_a_run_learns_to_prefer_and_says_how_well(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of(steps=28, evaluate={"every": 7, "samples": 1, "max_tokens": 4}), tmp_path / "run").live()
    planned = life.of(TrainingPlanned)[0]
    assert planned.train_rows + planned.valid_rows == 24
    first, last = life.of(StepDone)[0].metrics, life.of(StepDone)[-1].metrics
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert last["loss"] < 0.1
    assert {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"} < last.keys()
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], rel=1e-4)
    before, after = life.of(Evaluated)[0].metrics, life.of(Evaluated)[-1].metrics
    assert before["eval_loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert abs(before["eval_rewards/margins"]) < 1e-4
    assert after["eval_rewards/accuracies"] == 1.0
    assert {event.step for event in life.of(Sampled)} == {0, 7, 14, 21, 28}
    total = planned.train_rows + planned.valid_rows
    assert phases(life)[0] == (0, total)
    assert phases(life)[-1] == (total, total)


def test_a_method_without_a_reference_asks_none(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of("orpo"), tmp_path / "run").live()
    assert phases(life) == []
    assert not (home() / CACHE).exists()
    assert life.of(StepDone)[-1].metrics["loss"] < life.of(StepDone)[0].metrics["loss"]


def test_kto_learns_from_thumbs(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of("kto", steps=16), tmp_path / "run").live()
    first, last = life.of(StepDone)[0].metrics, life.of(Evaluated)[-1].metrics
    assert first["loss"] == pytest.approx(0.5, rel=1e-4)
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert last["eval_rewards/margins"] > 0.5
    assert "eval_kl" in last
    assert len(list((home() / CACHE).glob("*.npy"))) == 4  # own and mismatched, of training and validation rows


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    method: str, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = recipe_of(method)
    whole = Life(recipe, tmp_path / "whole").live()
    first = Life(recipe, tmp_path / "parts", stop_after=3).live()
    for file in (home() / CACHE).glob("*.npy"):
        file.unlink()  # the second life computes its reference anew, from the start and not from the checkpoint
    second = Life(recipe, tmp_path / "parts").live()
    assert bytes_of(second.run) == bytes_of(whole.run)
    assert sorted(numbers(first.events) + numbers(second.events)) == sorted(numbers(whole.events))
    parts, steps = second.run.state(), whole.run.state()
    kept = [name for name in steps.steps[0].metrics if name.startswith(("rewards", "logps", "kl"))]
    assert [[event.metrics.get(name) for name in kept] for event in parts.steps] == [
        [event.metrics.get(name) for name in kept] for event in steps.steps
    ]


def test_the_reference_is_computed_once(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    first = Life(recipe_of(), tmp_path / "first").live()
    assert phases(first)[0][0] == 0
    again = Life(recipe_of(beta=0.5, seed=3), tmp_path / "again").live()
    assert phases(again) == []
    other = Life(recipe_of(ld_alpha=0.5), tmp_path / "other").live()
    assert phases(other)[0][0] == 0


def test_a_run_stopped_in_the_reference_phase_goes_on_with_it(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of()
    whole = Life(recipe, tmp_path / "whole").live()
    for file in (home() / CACHE).glob("*.npy"):
        file.unlink()
    first = Life(recipe, tmp_path / "parts", stop_at_look=5)
    with pytest.raises(Stopped, match="reference"):
        first.live()
    second = Life(recipe, tmp_path / "parts").live()
    assert bytes_of(second.run) == bytes_of(whole.run)


def test_a_run_is_not_resumed_in_another_world(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    Life(recipe_of(), tmp_path / "run", stop_after=2).live()
    for change, named in (
        ({"beta": 0.2}, "beta"),
        ({"loss": "ipo"}, "loss"),
        ({"evaluate": {"metric": "eval_rewards/margins"}}, "evaluate.metric"),
    ):
        with pytest.raises(RunError, match=f"this changed: {named}"):
            Life(recipe_of(**change), tmp_path / "run").live()


def test_training_stops_early_on_held_out_accuracy_and_keeps_the_best(
    recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    table = {"every": 2, "patience": 2, "samples": 0, "metric": "eval_rewards/accuracies"}
    life = Life(recipe_of(steps=60, evaluate=table), tmp_path / "run").live()
    assert life.ending is not None
    assert "eval_rewards/accuracies has not improved since step" in life.ending.reason
    looks = life.of(Evaluated)[1:]  # at the start there is no margin, and so no accuracy
    accuracies = [event.metrics["eval_rewards/accuracies"] for event in looks]
    first = accuracies.index(max(accuracies))
    assert [event.step for event in looks if event.is_best][-1] == looks[first].step
    assert len(accuracies) == first + 3
    config = json.loads((life.run.adapter / "adapter_config.json").read_text())
    assert config["macft"]["step"] == looks[first].step


def test_test_rows_are_answered_by_base_and_tuned(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    table = {"every": 4, "samples": 0, "max_tokens": 8, "test_rows": 3}
    data = {"test": str(tmp_path / "pairs.jsonl"), "leaks": "allow"}
    scored = Life(recipe_of(evaluate=table, data=data), tmp_path / "run").live().of(Scored)
    assert scored[0].rows == 3


def test_the_reference_of_a_chain_is_the_adapter_it_starts_from(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    first = Life(recipe_of("orpo", steps=6), tmp_path / "runs" / "first").live()
    start = str(first.run.adapter)
    on_top = Life(recipe_of(start_from=start), tmp_path / "top").live()
    assert on_top.of(StepDone)[0].metrics["loss"] == pytest.approx(math.log(2), rel=1e-4)
    on_base = Life(recipe_of(start_from=start, reference="base"), tmp_path / "base").live()
    assert abs(on_base.of(StepDone)[0].metrics["loss"] - math.log(2)) > 1e-2
    assert not [event for event in (*on_top.of(Warned), *on_base.of(Warned)) if "first loss" in event.message]


def test_a_second_adapter_learns_over_a_frozen_first(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    first = Life(recipe_of("orpo", steps=6), tmp_path / "runs" / "first").live()
    start, before = str(first.run.adapter), bytes_of(first.run)
    recipe = recipe_of(start_from=start, stack=True, lora={"rank": 2})
    whole = Life(recipe, tmp_path / "whole").live()
    assert whole.of(StepDone)[0].metrics["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert whole.of(StepDone)[-1].metrics["loss"] < 0.6
    assert bytes_of(first.run) == before
    config = json.loads((whole.run.adapter / "adapter_config.json").read_text())
    assert config["r"] == 4 + 2
    Life(recipe, tmp_path / "again", stop_after=5).live()
    again = Life(recipe, tmp_path / "again").live()
    assert bytes_of(again.run) == bytes_of(whole.run)


def test_a_start_that_changed_is_not_resumed(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    first = Life(recipe_of("orpo", steps=6), tmp_path / "runs" / "first").live()
    recipe = recipe_of(start_from=str(first.run.adapter))
    Life(recipe, tmp_path / "run", stop_after=2).live()
    other = Life(recipe_of("orpo", steps=7), tmp_path / "runs" / "other").live()
    weights = other.run.adapter / "adapters.safetensors"
    (first.run.adapter / weights.name).write_bytes(weights.read_bytes())
    with pytest.raises(RunError, match="this changed: start adapter"):
        Life(recipe, tmp_path / "run").live()


def test_a_reference_of_another_model_is_told(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    Life(recipe_of(steps=1), tmp_path / "first").live()
    for file in (home() / CACHE).glob("*.npy"):
        values = np.load(file)
        np.save(file, values + np.array([3.0, -3.0], np.float32))
    warned = Life(recipe_of(steps=1), tmp_path / "second").live().of(Warned)
    assert [event for event in warned if "the first loss is" in event.message]


def test_full_fine_tuning_refers_to_itself_at_the_start(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of(adapter="full", learning_rate=1e-4, steps=4)
    first = Life(recipe, tmp_path / "run", stop_after=2).live()
    assert first.of(StepDone)[0].metrics["loss"] == pytest.approx(math.log(2), rel=1e-4)
    second = Life(recipe, tmp_path / "run").live()
    assert second.ending is not None
    assert second.ending.status == "done"
    assert Run.open(tmp_path / "run").adapter.name == "model"
