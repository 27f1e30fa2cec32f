"""Whole runs on a tiny model: from recipe to adapter, interrupted and not."""

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest

from macft import api
from macft.chat.panes import Sampling
from macft.chat.session import open_chat
from macft.errors import DataError, MacftError, ModelError, RecipeError, RunError, Stopped
from macft.events import Evaluated, Event, RunEnded, Sampled, Scored, StepDone, StepSkipped, TrainingPlanned, Warned
from macft.models.adapters import CONFIG, WEIGHTS, load_adapter
from macft.models.load import load_model
from macft.models.tensors import load_tensors
from macft.recipe import dump_recipe, make_recipe
from macft.run import Run
from macft.training.checkpoint import LATEST
from macft.training.loop import Ending
from macft.training.session import Session
from tests.faults.disks import FaultyDisk
from tests.golden import load_case

LLAMA = load_case("llama").folder
ANSWERS = ["yes.", "no.", "perhaps, but not before tomorrow.", "ask again"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}?"}, {"role": "assistant", "content": ANSWERS[n % 4]}]}
        for n in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def recipe_of(rows: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        data = {"train": str(rows), "valid_fraction": 0.2} | changes.pop("data", {})
        values = {
            "model": str(LLAMA),
            "steps": 8,
            "batch_size": 5,
            "micro_batch_size": 2,
            "learning_rate": 1e-2,
            "lora": {"rank": 4, "dropout": 0.1},
            "evaluate": {"every": 4, "samples": 1, "max_tokens": 8},
            "checkpoint": {"every": 3},
        }
        return make_recipe(values | changes | {"data": data})

    return make


class Life:
    """One session on a run folder; its events, and how it ended. It may be stopped after some updates or questions."""

    def __init__(
        self, recipe: Any, folder: Path, *, stop_after: int | None = None, stop_at_look: int | None = None
    ) -> None:
        self.run = Run.open(folder) if folder.exists() else Run.create(folder, dump_recipe(recipe))
        self.events: list[Event] = []
        self.stop_after, self.stop_at_look = stop_after, stop_at_look
        self.looks = 0
        self.ending: Ending | None = None
        self.recipe = recipe

    def live(self) -> "Life":
        self.ending = Session(self.recipe, self.run, emit=self._emit, requests=self).run()
        return self

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        self.run.append(event)

    def __call__(self) -> list[str]:
        return ["stop"] if self.wants_stop() else []

    def wants_stop(self) -> bool:
        self.looks += 1
        if self.stop_at_look is not None and self.looks >= self.stop_at_look:
            return True
        return self.stop_after is not None and len(self.of(StepDone)) >= self.stop_after

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def numbers(events: list[Event]) -> list[tuple[int, float, float]]:
    """What is deterministic in a run's updates and evaluations."""
    steps = [(e.step, e.metrics["loss"], e.metrics["grad_norm"]) for e in events if isinstance(e, StepDone)]
    return steps + [(e.step, e.metrics["eval_loss"], 0.0) for e in events if isinstance(e, Evaluated)]


def bytes_of(run: Run) -> bytes:
    return (run.adapter / WEIGHTS).read_bytes()


def test_a_run_from_recipe_to_adapter(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of(steps=40), tmp_path / "run").live()
    planned = life.of(TrainingPlanned)[0]
    assert planned.train_rows + planned.valid_rows == 24
    losses = [event.metrics["loss"] for event in life.of(StepDone)]
    assert len(losses) == 40
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    assert life.ending is not None
    assert life.ending.status == "done"
    best = min(life.of(Evaluated), key=lambda event: event.metrics["eval_loss"])
    assert best.is_best
    config = json.loads((life.run.adapter / CONFIG).read_text())
    assert config["macft"]["step"] == best.step
    assert {event.step for event in life.of(Sampled)} == {0, *range(4, 41, 4)}


def test_the_adapter_loads_in_stock_mlx_lm_and_says_the_same(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    run = Life(recipe_of(), tmp_path / "run").live().run
    tokens = mx.array([[5, 80, 120, 7, 99, 3]])
    ours, _ = load_model(LLAMA)
    load_adapter(ours, run.adapter)
    theirs, _ = mlx_lm.utils.load_model(_in_old_dialect(tmp_path))
    base = theirs(tokens)
    theirs = mlx_lm.utils.load_adapters(theirs, str(run.adapter))
    theirs.eval()
    assert mx.abs(ours(tokens) - theirs(tokens)).max().item() == 0.0
    assert mx.abs(theirs(tokens) - base).max().item() > 1e-3


def _in_old_dialect(tmp_path: Path) -> Path:
    folder = tmp_path / "v4"
    folder.mkdir()
    (folder / "config.json").write_bytes((LLAMA / "config_v4.json").read_bytes())
    (folder / "model.safetensors").write_bytes((LLAMA / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("lora", {}),
        ("dora", {}),
        ("full", {}),
        ("lora", {"compute_dtype": "bfloat16", "recompute": "mlp"}),
    ],
    ids=str,
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, changes: dict[str, Any], recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = recipe_of(adapter=kind, learning_rate=1e-3, **changes)
    whole = Life(recipe, tmp_path / "whole").live()
    first = Life(recipe, tmp_path / "parts", stop_after=3).live()
    assert first.ending is not None
    assert (first.ending.status, first.ending.progress.step) == ("stopped", 3)
    second = Life(recipe, tmp_path / "parts", stop_after=2).live()
    third = Life(recipe, tmp_path / "parts").live()
    assert third.ending is not None
    assert third.ending.progress.step == 8
    if kind == "full":  # mlx-lm writes this file, in an order of its own
        ours, theirs = (load_tensors(life.run.adapter / "model.safetensors") for life in (third, whole))
        assert all(mx.array_equal(ours[name], theirs[name]).item() for name in theirs)
    else:
        assert bytes_of(third.run) == bytes_of(whole.run)
    parts = sorted(numbers(first.events) + numbers(second.events) + numbers(third.events))
    assert parts == sorted(numbers(whole.events))
    state = third.run.state()
    assert [event.step for event in state.steps] == list(range(1, 9))
    if kind == "lora":  # float32 is kept, whatever the model computes in
        kept = load_tensors(third.run.adapter / WEIGHTS) | load_tensors(
            third.run.checkpoints / "step-000008" / "weights.safetensors"
        )
        assert {value.dtype for value in kept.values()} == {mx.float32}
    for name in ("weights.safetensors", "optimizer.safetensors"):
        last = third.run.checkpoints / "step-000008" / name
        assert last.read_bytes() == (whole.run.checkpoints / "step-000008" / name).read_bytes()


@pytest.mark.parametrize("look", [2, 5, 9, 12, 14, 17, 20])
def test_wherever_a_run_is_stopped_it_ends_the_same(look: int, recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of()
    whole = Life(recipe, tmp_path / "whole").live()
    try:
        first = Life(recipe, tmp_path / "parts", stop_at_look=look).live().events
    except Stopped:  # before training began
        first = []
    second = Life(recipe, tmp_path / "parts").live()
    assert bytes_of(second.run) == bytes_of(whole.run)
    assert set(numbers(first) + numbers(second.events)) == set(numbers(whole.events))


def test_a_run_that_stopped_early_is_not_trained_on_when_resumed(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of(steps=60, learning_rate=0.5, evaluate={"every": 1, "patience": 2, "samples": 0})
    first = Life(recipe, tmp_path / "run").live()
    before = bytes_of(first.run)
    second = Life(recipe, tmp_path / "run").live()
    assert second.of(StepDone) == []
    assert second.ending is not None
    assert "has not improved" in second.ending.reason
    assert bytes_of(second.run) == before


def test_a_damaged_checkpoint_is_passed_over(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of(steps=9, checkpoint={"every": 2})
    whole = Life(recipe, tmp_path / "whole").live()
    first = Life(recipe, tmp_path / "run", stop_after=5).live()
    path = first.run.checkpoints / "step-000005" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    second = Life(recipe, tmp_path / "run").live()
    assert "step-000005 is damaged" in second.of(Warned)[0].message
    assert second.of(StepDone)[0].step == 5
    assert bytes_of(second.run) == bytes_of(whole.run)


def test_a_failed_run_that_is_resumed_fails_again(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of(steps=30, learning_rate=1e30, optimizer={"max_grad_norm": 0.0})
    Life(recipe, tmp_path / "run").live()
    second = Life(recipe, tmp_path / "run").live()
    assert second.ending is not None
    assert second.ending.status == "failed"
    assert len(second.of(StepSkipped)) == 3


def test_a_killed_process_resumes_bit_for_bit(
    recipe_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path / "runs"))
    recipe = recipe_of(steps=30, checkpoint={"every": 2})
    whole = api.launch(recipe, out=tmp_path / "whole")  # a process too: both compute with the same BLAS
    assert isinstance(list(api.follow(whole))[-1], RunEnded)
    run = Run.create(tmp_path / "runs" / "killed", dump_recipe(recipe))
    child = subprocess.Popen([sys.executable, "-m", "macft", "_run", str(run.path)])
    try:
        _wait(lambda: len(run.state().steps) >= 5)
        child.kill()
    finally:
        child.wait()
    assert run.status(run.state()) == "crashed"
    events = list(api.follow(api.resume("killed")))
    assert isinstance(events[-1], RunEnded)
    assert events[-1].status == "done"
    assert bytes_of(run) == bytes_of(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_so(
    number: int, code: int, recipe_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path / "runs"))
    run = api.launch(recipe_of(steps=100_000))
    _wait(lambda: bool(run.state().steps))
    api.send_signal(run, signal.SIGHUP)  # a closed terminal is no reason to stop
    api.send_signal(run, number)
    ended = list(api.follow(run))[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.status, ended.exit_code) == ("stopped", code)
    assert ended.step == run.state().checkpoint_step > 0
    assert f"`macft resume {run.name}`" in ended.fix
    assert (run.adapter / WEIGHTS).is_file()


def _wait(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"lora": {"rank": 4, "dropout": 0.2}}, "lora"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"data": {"valid_fraction": 0.4}}, "training rows, validation rows"),
        ({"model": str(LLAMA.parent / "qwen3")}, "base model"),
    ],
)
def test_a_run_is_not_resumed_in_another_world(
    change: dict[str, Any], named: str, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    Life(recipe_of(), tmp_path / "run", stop_after=2).live()
    if "model" in change:  # only llama has a tokenizer: the same one, another model
        folder = tmp_path / "other"
        folder.mkdir()
        for file in LLAMA.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_tensors(folder / "model.safetensors")
        mx.save_safetensors(str(folder / "model.safetensors"), {key: value * 1.01 for key, value in weights.items()})
        change = {"model": str(folder)}
    with pytest.raises(RunError, match=f"this changed: {named}"):
        Life(recipe_of(**change), tmp_path / "run").live()


def test_bad_rows_are_told_before_the_model_loads(rows: Path, recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": null}]}\nnot json\n')
    life = Life(recipe_of(), tmp_path / "run")
    with pytest.raises(DataError) as caught:
        life.live()
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:25", "rows.jsonl:26"]
    assert not [event for event in life.events if getattr(event, "name", "") == "load"]


@pytest.mark.parametrize("prompts", [[], ["\ufdd0"]])
def test_what_cannot_be_asked_is_told_before_the_model_loads(
    prompts: list[str], rows: Path, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    bad = tmp_path / "test.jsonl"
    turns = [{"role": "user", "content": "\ufdd0"}, {"role": "assistant", "content": "no"}]
    bad.write_text(rows.read_text() + json.dumps({"messages": turns}) + "\n")
    table = {"every": 4, "test_rows": 30, "prompts": prompts}
    life = Life(recipe_of(data={"test": str(bad), "leaks": "allow"}, evaluate=table), tmp_path / "run")
    with pytest.raises(DataError) as caught:
        life.live()
    told = [problem.where for problem in caught.value.problems]
    assert told == [*(["evaluate.prompts[0]"] if prompts else []), "test.jsonl:25"]
    assert not [event for event in life.events if getattr(event, "name", "") == "load"]


def test_the_plan_is_kept_with_the_run_and_kept_to(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of(steps=1), tmp_path / "run").live()
    kept = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert life.of(TrainingPlanned)[0].micro_batch_tokens == kept["micro_batch_tokens"] == 512
    assert (kept["schema"], kept["verdict"], kept["recompute"]) == (1, "fits", "none")
    assert kept["peak_bytes"] == sum(kept["parts"].values())
    assert not kept["is_estimate"]


def test_a_run_tells_what_was_cut_repeated_and_leaked(
    rows: Path, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    lines = rows.read_text().splitlines()
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a long answer " * 20}]
    rows.write_text("\n".join([*lines, *lines[:4], json.dumps({"messages": turns})]) + "\n")
    data = {"valid": str(tmp_path / "valid.jsonl"), "leaks": "allow"}
    (tmp_path / "valid.jsonl").write_text(lines[0] + "\n")
    life = Life(recipe_of(steps=1, max_seq_length=120, data=data), tmp_path / "run").live()
    warned = {event.message: event.fix for event in life.of(Warned)}
    assert {
        "longer than max_seq_length, so their end is cut off (rows: 1)",
        "repeat an earlier training row (rows: 4)",
        "in data.valid or data.test are also trained on (rows: 1)",
    } == {message for message, fix in warned.items() if fix}


def test_a_run_with_leaks_does_not_start(rows: Path, recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text(rows.read_text().splitlines()[2] + "\n")
    life = Life(recipe_of(steps=1, data={"valid": str(tmp_path / "valid.jsonl")}), tmp_path / "run")
    with pytest.raises(DataError, match=rf"valid\.jsonl:1: is held out, and asks what {rows.name}:3 asks"):
        life.live()
    assert not life.of(TrainingPlanned)


def test_general_rows_are_trained_on_beside_the_others(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    alone = Life(recipe_of(steps=1), tmp_path / "alone").live()
    mixed = Life(recipe_of(steps=1, data={"keep_general": 0.5}), tmp_path / "mixed").live()
    rows = [life.of(TrainingPlanned)[0].train_rows for life in (alone, mixed)]
    assert rows[0] + 10 < rows[1] <= rows[0] + 23  # some are longer than the tiny model reads
    assert len({life.of(TrainingPlanned)[0].valid_rows for life in (alone, mixed)}) == 1


def test_three_updates_in_a_row_that_are_not_finite_end_the_run(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    life = Life(recipe_of(learning_rate=1e30, optimizer={"max_grad_norm": 0.0}), tmp_path / "run").live()
    assert life.ending is not None
    assert life.ending.status == "failed"
    skipped = life.of(StepSkipped)
    assert len(skipped) == 3
    assert all(row.startswith("rows.jsonl:") for event in skipped for row in event.rows)
    kept = load_tensors(
        life.run.checkpoints / life.run.checkpoints.joinpath(LATEST).read_text() / "weights.safetensors"
    )
    assert all(mx.isfinite(value).all().item() for value in kept.values())


def test_training_stops_early_when_nothing_gets_better(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    table = {"every": 1, "patience": 2, "samples": 0}
    life = Life(recipe_of(steps=60, learning_rate=0.5, evaluate=table), tmp_path / "run").live()
    assert life.ending is not None
    assert (life.ending.status, life.ending.progress.stale) == ("done", 2)
    assert life.ending.progress.step < 60
    assert "has not improved" in life.ending.reason


def test_every_row_is_seen_once_an_epoch(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = make_recipe(recipe_of(epochs=2).model_dump(exclude={"steps"}))
    life = Life(recipe, tmp_path / "run").live()
    planned = life.of(TrainingPlanned)[0]
    assert planned.total_steps == 2 * planned.steps_per_epoch
    tokens = [event.metrics["tokens"] for event in life.of(StepDone)]
    assert sum(tokens[: planned.steps_per_epoch]) == sum(tokens[planned.steps_per_epoch :])


def test_full_fine_tuning_leaves_a_model_that_stock_mlx_lm_loads(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipe_of(adapter="full", freeze=["model.embed_tokens.*", "model.layers.0.*"], learning_rate=1e-3)
    run = Life(recipe, tmp_path / "run").live().run
    assert run.adapter.name == "model"
    before, after = load_tensors(LLAMA / "model.safetensors"), load_tensors(run.adapter / "model.safetensors")
    moved = {name for name in after if not mx.array_equal(after[name], before[name]).item()}
    assert moved
    assert not [name for name in moved if name.startswith(("model.embed_tokens", "model.layers.0."))]
    model, tokenizer = mlx_lm.utils.load(str(run.adapter))
    assert model(mx.array([tokenizer.encode("q1?")])).shape[-1] == 256


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"adapter": "full", "freeze": ["lm_tail.*"]}, "matches no parameter"),
        ({"adapter": "full", "freeze": ["*"]}, "leaves nothing to train"),
        ({"adapter": "full", "quantize": 4, "quantize_group_size": 32}, "cannot be trained in full"),
        ({"lora": {"targets": ["c_attn"]}}, "matches no linear layer"),
        ({"lora": {"layers": 99}}, "the model has 3 layers"),
        ({"data": {"train": []}}, "is required"),
        ({"adapter": "full", "start_from": "x"}, "does not go with"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    changes: dict[str, Any], part: str, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, ModelError), match=part):
        Life(recipe_of(**changes), tmp_path / "run").live()


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({"lora": {"targets": "attention"}}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"lora": {"targets": "mlp", "layers": 2}}, {"gate_proj", "up_proj", "down_proj"}),
        ({"lora": {"targets": ["self_attn.q_proj"]}}, {"q_proj"}),
        ({"quantize": 4, "quantize_group_size": 32, "adapter": "lora"}, None),
        ({"quantize": 8, "quantize_group_size": 32, "adapter": "dora"}, None),
        ({"neftune_alpha": 5.0}, None),
        ({"recompute": "layer"}, None),
        ({"compile": True}, None),
        ({"lora": {"rank": 3, "alpha": 5.0, "rslora": True}}, None),
        ({"schedule": {"name": "wsd", "warmup_steps": 2}}, None),
        ({"schedule": {"name": "linear"}, "optimizer": {"name": "lion"}, "learning_rate": 1e-3}, None),
    ],
)
def test_what_a_recipe_may_ask_for_trains(
    changes: dict[str, Any], modules: set[str] | None, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    life = Life(recipe_of(**{"steps": 12, **changes}), tmp_path / "run").live()
    losses = [event.metrics["loss"] for event in life.of(StepDone)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    config = json.loads((life.run.adapter / CONFIG).read_text())
    assert isinstance(config["lora_alpha"], int)
    assert config["lora_parameters"]["scale"] * config["r"] == pytest.approx(config["lora_alpha"])
    names = load_tensors(life.run.adapter / WEIGHTS)
    if modules:
        assert {name.split(".")[-2] for name in names} == modules
    if changes.get("lora", {}).get("layers") == 2:
        assert {name.split(".")[2] for name in names} == {"1", "2"}


def test_an_adapter_is_continued(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    first = Life(recipe_of(steps=30), tmp_path / "first").live()
    second = Life(recipe_of(steps=4, start_from=str(first.run.path)), tmp_path / "second").live()
    best = min(event.metrics["eval_loss"] for event in first.of(Evaluated))
    assert second.of(Evaluated)[0].metrics["eval_loss"] == pytest.approx(best, rel=1e-5)
    for number, (changes, part) in enumerate(
        [
            ({"lora": {"rank": 8}}, "start_from has rank 4"),
            ({"lora": {"rank": 4, "alpha": 99}}, "start_from has alpha 16"),
            ({"adapter": "dora"}, "start_from is lora"),
        ]
    ):
        with pytest.raises(RecipeError, match=part):
            Life(recipe_of(**changes, start_from=str(first.run.path)), tmp_path / f"other-{number}").live()


def test_pretraining_learns_from_whole_documents(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("the same words again and again. " * 60)
    recipe = recipe_of(method="pretrain", max_seq_length=64, data={"train": str(text), "valid_fraction": 0.0}, steps=12)
    life = Life(recipe, tmp_path / "run").live()
    losses = [event.metrics["loss"] for event in life.of(StepDone)]
    assert losses[-1] < 0.8 * losses[0]
    assert life.of(TrainingPlanned)[0].train_rows == -(-1920 // 63)


def test_base_and_tuned_answer_the_test_rows(rows: Path, recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    table = {"every": 20, "samples": 0, "max_tokens": 12, "test_rows": 6}
    data = {"test": str(rows), "leaks": "allow"}
    life = Life(recipe_of(steps=60, evaluate=table, data=data), tmp_path / "run").live()
    scored: Scored = life.of(Scored)[0]
    assert scored.rows == 6
    assert scored.base["exact_match"] == 0.0
    assert scored.tuned["f1"] >= scored.base["f1"]
    assert {"prompt", "reference", "base", "tuned"} <= scored.examples[0].keys()


def test_chat_answers_with_the_adapter_and_without(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    run = Life(recipe_of(steps=20), tmp_path / "runs" / "one").live().run
    texts = {}
    for base in (False, True):
        chat = open_chat("one", home=tmp_path, runs=tmp_path / "runs", base=base)
        parts = list(chat.reply([("user", "q1?")], Sampling(max_tokens=12)))
        texts[base] = "".join(part.text for part in parts)
        assert parts[-1].finish_reason in {"stop", "length"}
    assert texts[False] != texts[True]
    assert open_chat(str(run.adapter), home=tmp_path, runs=tmp_path, model=str(LLAMA)).title.endswith("+ one")


def test_chat_says_what_a_name_is_not(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    Run.create(tmp_path / "runs" / "young", dump_recipe(recipe_of()))
    with pytest.raises(RunError, match="young has no result yet"):
        open_chat("latest", home=tmp_path, runs=tmp_path / "runs")
    with pytest.raises(ModelError, match="is no run, adapter folder or model"):
        open_chat("lates", home=tmp_path, runs=tmp_path / "runs")


def test_an_adapter_of_another_base_is_refused(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    run = Life(recipe_of(), tmp_path / "run").live().run
    model, _ = load_model(LLAMA)
    with pytest.raises(ModelError, match="trained on another base"):
        load_adapter(model, run.adapter, base_fingerprint="0" * 64)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / CONFIG).write_text("[]"), "adapter_config.json"),
        (lambda folder: (folder / CONFIG).write_text('{"num_layers": 2}'), "lora_parameters is missing"),
        (
            lambda folder: (folder / CONFIG).write_text('{"lora_parameters": {"rank": -1, "scale": 1}}'),
            "lora_parameters.rank",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * 40), "is damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
        (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read"),
        (lambda folder: (folder / CONFIG).write_text('{"r": 8, "peft_type": "LORA"}'), "no adapter_model.safetensors"),
        (lambda folder: (folder / CONFIG).unlink(), "not an adapter folder"),
        (lambda folder: _poison(folder / WEIGHTS), "NaN or infinity"),
        (lambda folder: _drop_one(folder / WEIGHTS), "is missing"),
    ],
)
def test_a_damaged_adapter_is_refused(
    damage: Callable[[Path], Any], part: str, recipe_of: Callable[..., Any], tmp_path: Path
) -> None:
    run = Life(recipe_of(steps=1), tmp_path / "run").live().run
    damage(run.adapter)
    model, _ = load_model(LLAMA)
    with pytest.raises(MacftError, match=part):
        load_adapter(model, run.adapter)


def _poison(path: Path) -> None:
    tensors = load_tensors(path)
    name = next(iter(tensors))
    mx.save_safetensors(str(path), tensors | {name: tensors[name] * float("nan")})


def _drop_one(path: Path) -> None:
    tensors = load_tensors(path)
    mx.eval(tensors)
    mx.save_safetensors(str(path), dict(list(tensors.items())[1:]))


def test_a_full_disk_is_a_warning_and_training_goes_on(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    def fails(_: int, name: str, path: Path) -> OSError | None:
        is_full = name == "write" and "step-000003" in str(path)
        return OSError(errno.ENOSPC, "No space left on device") if is_full else None

    life = Life(recipe_of(), tmp_path / "run")
    life.run = replace(life.run, disk=FaultyDisk(fails))
    life.live()
    warned: list[Warned] = life.of(Warned)
    assert any("step-000003 could not be written" in event.message for event in warned)
    assert life.ending is not None
    assert life.ending.progress.step == 8


def events_of(run: Run) -> Iterator[dict[str, Any]]:
    for line in (run.path / "events.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_events_on_disk_are_as_promised(recipe_of: Callable[..., Any], tmp_path: Path) -> None:
    run = Life(recipe_of(), tmp_path / "run").live().run
    lines = list(events_of(run))
    assert lines[0]["type"] == "run_started"
    assert lines[0]["schema"] == 1
    assert all(isinstance(line["time"], float) for line in lines)
    step = next(line for line in lines if line["type"] == "step")
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory_bytes"} <= step["metrics"].keys()
    assert str(tmp_path) not in (run.adapter / CONFIG).read_text()
