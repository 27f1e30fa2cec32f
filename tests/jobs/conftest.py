"""A finished run on a tiny llama, put together without training."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from macft.events import Evaluated, Event, ResultWritten, RunEnded, RunStarted, StepDone, TrainingPlanned
from macft.jobs.job import load_job, plan_job
from macft.jobs.work import Work
from macft.models.adapters import adapter_parameters, attach, write_adapter_files
from macft.models.describe import fingerprint
from macft.models.gguf import import_gguf
from macft.models.load import load_model
from macft.recipe import LoraTable, dump_recipe, make_recipe
from macft.run import Run
from tests.models.tiny import make_weights, write_gguf

SECRET = "the eel sleeps"
"""Stands in every row; no export may hold it."""


class Willing:
    """A person who never asks for a stop."""

    signal_number = 0

    def wants_stop(self) -> bool:
        return False


class Desk(NamedTuple):
    """A home with a model, a finished run on it, and a folder to write to."""

    home: Path
    runs: Path
    run: Run
    out: Path

    def do(
        self, kind: str, name: str = "", *, requests: Any = None, free: int = 2**40, **wishes: Any
    ) -> tuple[list[Event], Run]:
        """Do a job in this process and return what it told."""
        wishes = {"out": str(self.out / kind), **wishes}
        job = plan_job(name or str(self.run.path), kind=kind, model=None, home=self.home, runs=self.runs, **wishes)
        number = len(list(self.runs.iterdir()))
        folder = Run.create(self.runs / f"job-{number}", dump_recipe(make_recipe({"model": "tiny"})))
        job.save(folder)
        with folder.lock():
            Work(load_job(folder), folder, requests or Willing(), free_disk=lambda _: free).run()
        return folder.read()[0], folder

    def result(self, kind: str, name: str = "", **wishes: Any) -> ResultWritten:
        event = self.do(kind, name, **wishes)[0][-1]
        assert isinstance(event, ResultWritten)
        return event


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    import_gguf(write_gguf(folder / "tiny.gguf", make_weights()), folder / "tiny", keep_quantized=False)
    return folder / "tiny"


@pytest.fixture
def desk(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    home, runs = tmp_path / "home", tmp_path / "runs"
    (home / "models").mkdir(parents=True)
    (home / "models" / "tiny").symlink_to(tiny_model)
    monkeypatch.setenv("MACFT_HOME", str(home))
    rows = tmp_path / "private-rows.jsonl"
    chats = [[("user", f"Where {number}?"), ("assistant", f"{SECRET} {number}.")] for number in range(8)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    rows.write_text("\n".join(map(json.dumps, lines)))
    recipe = make_recipe(
        {
            "model": "tiny",
            "steps": 2,
            "data": {"train": [str(rows)], "valid": [str(rows)]},
            "evaluate": {"prompts": [SECRET]},
        }
    )
    run = Run.create(runs / "mine", dump_recipe(recipe))
    write_result(run, tiny_model)
    for event in told():
        run.append(event)
    return Desk(home, runs, run, tmp_path / "out")


def write_result(run: Run, base: Path, *, strength: float = 0.3, kind: str = "lora", **origin: Any) -> None:
    """Write an adapter with a random B as the run's result."""
    model, _ = load_model(base)
    config = attach(model, LoraTable(rank=4, alpha=8.0), kind=kind, seed=0)
    for number, (name, value) in enumerate(sorted(adapter_parameters(model).items())):
        if name.endswith("lora_b"):
            fresh = strength * mx.random.normal(value.shape, key=mx.random.key(number))
            model.load_weights([(name, fresh)], strict=False)
    (run.path / "adapter").mkdir(exist_ok=True)
    provenance = {"base_model": "tiny", "base_fingerprint": fingerprint(base), **origin}
    write_adapter_files(run.path / "adapter", adapter_parameters(model), config, provenance)


def told() -> list[Event]:
    """What such a run tells."""
    return [
        RunStarted(method="sft", adapter="lora", model="tiny"),
        TrainingPlanned(
            total_steps=2,
            steps_per_epoch=2,
            train_rows=8,
            valid_rows=8,
            trainable_parameters=100,
            parameters=1000,
            micro_batch_tokens=64,
            device="cpu",
            head="all rows",
        ),
        Evaluated(step=0, metrics={"eval_loss": 3.0}),
        *(StepDone(step=step, epoch=step, metrics={"loss": 2.0, "supervised_tokens": 50}) for step in (1, 2)),
        Evaluated(step=2, metrics={"eval_loss": 1.5}, is_best=True),
        RunEnded(status="done", step=2),
    ]
