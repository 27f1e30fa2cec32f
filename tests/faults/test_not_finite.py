"""NaN and infinity, in the loss or its gradient, change no weight and reach no file."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from macft.errors import RunError
from macft.events import CheckpointSaved, Event, StepDone, StepSkipped, Warned
from macft.models.tensors import load_tensors
from macft.training.checkpoint import Checkpoints, Progress, are_finite
from tests.faults.sessions import WatchedSession
from tests.faults.test_checkpoint_calls import model_at
from tests.faults.worlds import make_run, write_rows

INJECTED = 50
MICRO_BATCHES = 3


def _first_weight(model: nn.Module) -> mx.array:
    return next(value for name, value in tree_flatten(model.trainable_parameters()) if name.endswith("lora_b"))[0, 0]


POISONS = {
    "loss is NaN": lambda _, loss: loss * float("nan"),
    "loss is infinite": lambda _, loss: loss + float("inf"),
    "gradient is NaN": lambda model, loss: loss + mx.sqrt(0.0 * _first_weight(model)),
    "gradient is infinite": lambda model, loss: (
        loss + mx.sqrt(_first_weight(model) - mx.stop_gradient(_first_weight(model)))
    ),
}


class Injection:
    """Every other update is poisoned, in another way and another micro-batch each time."""

    def __init__(self, folder: Path) -> None:
        self.run = make_run(
            folder / "run",
            write_rows(folder),
            steps=2 * INJECTED,
            compile=False,
            lora={"rank": 4, "dropout": 0.1, "layers": 1},
            checkpoint={"every": 10},
            data={"valid_fraction": 0.0},
        )
        self.session = WatchedSession(self.run, emit=self.hear, spoil=self.spoil)
        self.calls, self.step, self.unchanged = 0, 1, 0
        self.before: dict[str, bytes] = {}
        self.poisoned: list[int] = []

    def spoil(self, model: nn.Module, loss: mx.array) -> mx.array:
        if not model.training:  # an evaluation
            return loss
        self.calls += 1
        if self.calls == 1:
            self.before = self.session.values()
        if self.step % 2 or self.calls != 1 + (self.step // 2) % MICRO_BATCHES:
            return loss
        self.poisoned.append(self.step)
        return list(POISONS.values())[(self.step // 2) % len(POISONS)](model, loss)

    def hear(self, event: Event) -> None:
        if isinstance(event, StepDone | StepSkipped):
            assert (event.step % 2 == 0) == isinstance(event, StepSkipped), f"step {event.step}"
            same = self.session.values() == self.before
            assert same == isinstance(event, StepSkipped), f"step {event.step}"
            self.unchanged += same
            self.step, self.calls = event.step + 1, 0
        if isinstance(event, StepSkipped):
            assert all(row.startswith("sft.jsonl:") for row in event.rows)
        if isinstance(event, CheckpointSaved):
            folder = self.run.checkpoints / event.name
            assert all(are_finite(load_tensors(path)) for path in folder.glob("*.safetensors"))


def test_what_is_not_finite_changes_no_weight_and_reaches_no_file(tmp_path: Path) -> None:
    injection = Injection(tmp_path)
    ending = injection.session.run()
    assert ending.status == "done"
    assert injection.unchanged == len(injection.poisoned) == INJECTED
    assert are_finite(load_tensors(injection.run.adapter / "adapters.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["weight", "moment"])
def test_weights_or_moments_that_are_not_finite_are_never_saved(value: float, place: str, tmp_path: Path) -> None:
    model, optimizer = model_at(1)
    saved = Checkpoints(tmp_path, keep=2, world={})
    saved.save(model, optimizer, Progress(step=1))
    if place == "weight":
        model.update({"bias": mx.array([0.0, value])})
    else:
        optimizer.state["bias"]["v"] = mx.array([0.0, value])
    with pytest.raises(RunError, match="step-000002 is not written: its weights or moments hold NaN or infinity"):
        saved.save(model, optimizer, Progress(step=2))
    assert saved.newest_whole() == "step-000001"
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-000001"]


def test_a_result_is_never_made_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    """A learning rate beyond float32 makes infinite weights of finite gradients: the last good ones are kept."""
    rate = {"schedule": {"name": "constant", "warmup_steps": 0}, "optimizer": {"name": "sgd"}}
    changes = rate | {"compile": False, "checkpoint": {"every": 1}, "evaluate": {"every": 100, "samples": 0}}
    run = make_run(tmp_path / "run", write_rows(tmp_path), steps=20, learning_rate=1e38, **changes)
    session = WatchedSession(run)
    ending = session.run()
    assert ending.status == "failed"
    assert not are_finite(session.job.model.trainable_parameters()) or run.adapter.is_dir()
    told = [event.message for event in session.told if isinstance(event, Warned)]
    assert run.adapter.is_dir(), told
    assert are_finite(load_tensors(run.adapter / "adapters.safetensors"))
    for folder in run.checkpoints.glob("step-*"):
        assert all(are_finite(load_tensors(path)) for path in folder.glob("*.safetensors"))
