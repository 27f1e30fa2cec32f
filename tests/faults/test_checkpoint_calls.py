"""Every call on the file system that saving a checkpoint makes fails in turn, and a good checkpoint still loads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.optimizers import AdamW, Optimizer
from mlx.utils import tree_flatten

from macft.errors import RunError
from macft.training.checkpoint import Checkpoints, Progress
from tests.faults.disks import BROKEN, FULL, FaultyDisk, Killed, failing_once, killed_at, whole

WAYS: dict[str, Callable[[int], FaultyDisk]] = {
    "EIO": lambda at: failing_once(at, BROKEN),
    "ENOSPC": lambda at: failing_once(at, FULL),
    "kill": killed_at,
}
STEPS = (1, 2, 3, 4)
"""Checkpoints before the one that fails; two of them are kept, and the best of them besides."""


def model_at(step: int) -> tuple[nn.Module, Optimizer]:
    """A model whose weights and moments say which step they are of."""
    model, optimizer = nn.Linear(3, 2), AdamW(1e-3)
    model.update({"weight": mx.full((2, 3), float(step)), "bias": mx.full((2,), float(step))})
    optimizer.init(model.trainable_parameters())
    optimizer.state["weight"]["m"] = mx.full((2, 3), float(step))
    optimizer.state["step"] = mx.array(step, mx.uint64)
    return model, optimizer


def progress_at(step: int, *, best: int = 2) -> Progress:
    return Progress(step=step, best_value=1.0 if step >= best else None, best_step=min(best, step))


def checkpoints(folder: Path, disk: Any = None) -> Checkpoints:
    return Checkpoints(folder, keep=2, world={"seed": "0"}, **({"disk": disk} if disk else {}))


def save(folder: Path, step: int, disk: Any = None, **best: int) -> None:
    checkpoints(folder, disk).save(*model_at(step), progress_at(step, **best))


def loaded_step(folder: Path) -> int:
    """Load what training would go on from; everything in it must be of one step."""
    model, optimizer = model_at(0)
    found = checkpoints(folder)
    name = found.newest_whole()
    assert name is not None
    step = found.load(name, model, optimizer).step
    values = [value for _, value in tree_flatten({"w": model.parameters(), "m": optimizer.state["weight"]["m"]})]
    assert all(mx.all(value == step).item() for value in values)
    assert optimizer.state["step"].item() == step
    best = found.best_of(found.progress_of(name))
    assert best == "step-000002" or step == 5 == found.progress_of(name).best_step
    return step


def count_calls(folder: Path, step: int, **best: int) -> list[str]:
    disk = whole()
    save(folder, step, disk, **best)
    return disk.calls


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that has come to step 4."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in STEPS:
        save(folder, step)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("step", "best"), [(5, 2), (5, 5), (4, 2)], ids=["next", "best", "again"])
def test_whatever_call_fails_the_last_or_the_checkpoint_before_loads(
    way: str, step: int, best: int, before: Path, tmp_path: Path
) -> None:
    """A step is saved again when an evaluation was cut short and is made up for after resuming."""
    calls = count_calls(shutil.copytree(before, tmp_path / "counted"), step, best=best)
    assert {call.split()[0] for call in calls} >= {"open", "write", "sync", "close", "make_folder", "list", "rename"}
    for at in range(1, len(calls) + 1):
        folder = shutil.copytree(before, tmp_path / str(at))
        try:
            save(folder, step, WAYS[way](at), best=best)
            saved = True
        except (RunError, Killed):
            saved = False
        assert loaded_step(folder) in ({step} if saved else {step, 4}), f"{way} at {calls[at - 1]}"
        save(folder, step, best=best)  # and it goes on as ever
        assert loaded_step(folder) == step
        assert not list(folder.glob(".*")), f"{way} at {calls[at - 1]}"
        shutil.rmtree(folder)


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_them_all(before: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(before, tmp_path / "run")
    save(folder, 5, whole(short=True))
    assert loaded_step(folder) == 5


def test_everything_is_synced_before_it_gets_its_name(before: Path, tmp_path: Path) -> None:
    calls = count_calls(shutil.copytree(before, tmp_path / "run"), 5)
    named = calls.index("rename step-000005")
    for file in ("weights.safetensors", "optimizer.safetensors", "state.json", ".step-000005.tmp"):
        synced = [at for at, call in enumerate(calls) if call == f"sync {file}"]
        written = [at for at, call in enumerate(calls) if call == f"write {file}"]
        assert synced
        assert max(synced) < named
        assert max(written, default=0) < max(synced)
    assert calls.index("sync " + "run", named) < calls.index("rename latest")


def test_a_single_checkpoint_survives_being_saved_again(tmp_path: Path) -> None:
    """With one kept there is no other to fall back to."""
    calls = []
    (tmp_path / "one").mkdir()
    save(tmp_path / "one", 2)
    for at in range(1, 60):
        folder = shutil.copytree(tmp_path / "one", tmp_path / str(at))
        disk = killed_at(at)
        try:
            save(folder, 2, disk)
        except Killed:
            calls.append(disk.calls[-1])
        assert loaded_step(folder) == 2
    assert len(calls) >= 25
