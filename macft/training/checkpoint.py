"""Checkpoints: everything that exact resume needs, in one folder a step.

    checkpoints/step-000200/{weights.safetensors, optimizer.safetensors, state.json}   checkpoints/{latest, best}

The rule: a checkpoint is written aside, flushed and renamed, so a folder that has its name is whole; `latest` and
`best` are small files replaced the same way. `state.json` holds the sizes and hashes of the rest.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from macft.errors import CheckpointDamaged, ModelError, RunError
from macft.events import share_preferred
from macft.models.adapters import check_tensors, load_tensors, save_tensors
from macft.run import PRIVATE_FOLDER, flush, write_atomic

LATEST, BEST = "latest", "best"
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands; with the weights and the optimizer's state it determines all that follows.

    Attributes:
        step: Updates made; the position in the data follows from it.
        best_value: Best value so far of the recipe's `evaluate.metric`; None before the first evaluation.
        best_step: Step of that evaluation.
        stale: Evaluations since then, for early stopping.
        looked_step: Step of the last evaluation, -1 before the first.
        skipped_in_a_row: Updates refused one after the other because they were not finite.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    stale: int = 0
    looked_step: int = -1
    skipped_in_a_row: int = 0

    def evaluated(self, metrics: Mapping[str, float], metric: str) -> "Progress":
        """Return the progress after an evaluation; of the metric, more is better unless it is a loss."""
        value, best = metrics.get(metric, float("nan")), self.best_value
        if metric == "eval_rewards/accuracies":  # where all rewards are the same, rounding tells which is higher
            value = share_preferred(metrics, "eval_") or 0.0
        sign = -1.0 if metric == "eval_loss" else 1.0
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            return replace(self, best_value=value, best_step=self.step, stale=0, looked_step=self.step)
        return replace(self, stale=self.stale + 1, looked_step=self.step)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's `checkpoints/`.
        keep: How many of the newest stay, besides the best.
        world: Fingerprints of what the run stands on: base, tokenizer, template, data, recipe.
    """

    def __init__(self, folder: Path, *, keep: int, world: dict[str, str]) -> None:
        self.folder, self.keep, self.world = folder, keep, world

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> str:
        """Write a checkpoint and move the pointers; returns its name.

        Raises:
            RunError: The disk is full or cannot be written; the checkpoints before stand.
        """
        name = f"step-{progress.step:06d}"
        aside = self.folder / f".{name}.tmp"
        try:
            for leftover in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            aside.mkdir(mode=PRIVATE_FOLDER)
            save_tensors(aside / _WEIGHTS, dict(tree_flatten(model.trainable_parameters())))
            save_tensors(aside / _OPTIMIZER, dict(tree_flatten(optimizer.state)))
            files = {part: _hash(aside / part) for part in (_WEIGHTS, _OPTIMIZER)}
            state = {"schema": 1, "progress": asdict(progress), "world": self.world, "files": files}
            write_atomic(aside / _STATE, json.dumps(state, indent=2).encode())
            for path in (aside / _WEIGHTS, aside / _OPTIMIZER, aside):
                flush(path)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            aside.rename(self.folder / name)
            flush(self.folder)
            # `best` first: a crash between the two must not leave a later checkpoint that knows of no better best.
            if progress.best_step == progress.step and progress.best_value is not None:
                write_atomic(self.folder / BEST, name.encode())
            write_atomic(self.folder / LATEST, name.encode())
        except (OSError, RuntimeError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise RunError(
                f"checkpoint {name} could not be written ({error})", fix="Free disk space; the last checkpoint stands."
            ) from None
        self._prune()
        return name

    def name_of(self, pointer: str) -> str | None:
        """Return the checkpoint that `latest` or `best` points to, None when there is none."""
        try:
            name = (self.folder / pointer).read_text().strip()
        except OSError:
            return None
        return name if (self.folder / name / _STATE).is_file() else None

    def newest_whole(self) -> str | None:
        """Return the newest checkpoint whose files verify, None when there is none."""
        latest = self.name_of(LATEST)
        names = sorted((path.name for path in self.folder.glob("step-*") if path.name <= (latest or "")), reverse=True)
        for name in names:
            with contextlib.suppress(CheckpointDamaged):
                self._verify(name)
                return name
        return None

    def load(self, name: str, model: nn.Module, optimizer: Optimizer | None = None) -> Progress:
        """Put a checkpoint into the model, and into the optimizer when one is given.

        Raises:
            CheckpointDamaged: A file is missing, was changed, or does not fit the model.
        """
        folder = self.folder / name
        state = self._verify(name)
        try:
            weights = load_tensors(folder / _WEIGHTS)
            check_tensors(weights, dict(tree_flatten(model.trainable_parameters())), where=folder / _WEIGHTS)
        except ModelError as error:
            raise CheckpointDamaged(error.message, fix="Start a new run with this recipe.") from None
        model.load_weights(list(weights.items()), strict=False)
        if optimizer is not None:
            optimizer.state = tree_unflatten(list(load_tensors(folder / _OPTIMIZER).items()))
        return Progress(**state["progress"])

    def read_state(self, name: str) -> dict[str, Any]:
        """Read a checkpoint's `state.json`.

        Raises:
            CheckpointDamaged: It is missing or not what was written.
        """
        path = self.folder / name / _STATE
        try:
            state: dict[str, Any] = json.loads(path.read_text())
            Progress(**state["progress"])
            return {**state, "files": dict(state["files"]), "world": dict(state["world"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointDamaged(f"{path} is damaged ({error})", fix="Start a new run with this recipe.") from None

    def _verify(self, name: str) -> dict[str, Any]:
        state = self.read_state(name)
        for part, digest in state["files"].items():
            path = self.folder / name / part
            if not path.is_file() or _hash(path) != digest:
                raise CheckpointDamaged(f"{path} is damaged", fix="Start a new run with this recipe.")
        return state

    def progress_of(self, name: str) -> Progress:
        """Return where training stood at a checkpoint."""
        return Progress(**self.read_state(name)["progress"])

    def check_world(self, name: str) -> None:
        """Refuse to go on from a checkpoint that stands on something else.

        Raises:
            RunError: Naming each fingerprint that differs.
        """
        then = self.read_state(name)["world"]
        changed = [key for key, value in self.world.items() if then.get(key) != value]
        if changed:
            raise RunError(
                f"since the run was started, this changed: {', '.join(changed)}",
                fix="Put it back, or start a new run with start_from set to this run's adapter.",
            )

    def _prune(self) -> None:
        kept = {self.name_of(BEST), self.name_of(LATEST)}
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
