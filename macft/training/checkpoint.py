"""Checkpoints: everything that exact resume needs, in one folder a step.

    checkpoints/step-000200/{weights.safetensors, optimizer.safetensors, state.json}   checkpoints/{latest, best}

The rule: a checkpoint is written aside, flushed and renamed, so a folder that has its name is whole, and the newest
whole one is where training goes on. `latest` and `best` are small files replaced the same way, for those who only look.
`state.json` holds the hashes of the rest. What is not finite is never written.
"""

import ast
import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from macft.disk import DISK, Disk, flush, old_folders, replace_folder, restore_folder, write_atomic, write_file
from macft.errors import CheckpointDamaged, ModelError, RunError
from macft.events import share_preferred
from macft.models.tensors import check_tensors, load_tensors, save_tensors

LATEST, BEST = "latest", "best"
ROWS = ("training rows", "validation rows")
"""What of a world may be changed on request."""
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
        world: What the run stands on, by name: fingerprints, and the keys of its recipe.
        defaults: What a recipe's keys meant before they were known; a checkpoint of then does not tell them.
        disk: What they are written through.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        world: dict[str, str],
        defaults: Mapping[str, str] | None = None,
        disk: Disk = DISK,
    ) -> None:
        self.folder, self.keep, self.world, self.defaults, self.disk = folder, keep, world, defaults or {}, disk

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> str:
        """Write a checkpoint and move the pointers; returns its name.

        Raises:
            RunError: The disk is full or cannot be written, or a value is not finite; the checkpoints before stand.
        """
        name = name_of_step(progress.step)
        aside = self.folder / f".{name}.tmp"
        parts = {_WEIGHTS: _flat(model.trainable_parameters()), _OPTIMIZER: _flat(optimizer.state)}
        if not are_finite(parts):
            what = f"checkpoint {name} is not written: its weights or moments hold NaN or infinity"
            raise RunError(what, fix="The last checkpoint stands; lower learning_rate.")
        try:
            self._remove_leftovers()
            self.disk.make_folder(aside)
            files = {part: save_tensors(aside / part, tensors, self.disk) for part, tensors in parts.items()}
            state = {"schema": 1, "progress": asdict(progress), "world": self.world, "files": files}
            write_file(aside / _STATE, [json.dumps(state, indent=2).encode()], self.disk)
            flush(aside, self.disk)
            replace_folder(aside, self.folder / name, self.disk)
            # `best` first: a crash between the two must not leave a later checkpoint that knows of no better best.
            if progress.best_step == progress.step and progress.best_value is not None:
                write_atomic(self.folder / BEST, name.encode(), self.disk)
            write_atomic(self.folder / LATEST, name.encode(), self.disk)
            with contextlib.suppress(OSError):
                self._prune(progress)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                self.disk.remove(aside)
            raise RunError(
                f"checkpoint {name} could not be written ({error})", fix="Free disk space; the last checkpoint stands."
            ) from None
        return name

    def names(self) -> list[str]:
        """Return the names of all checkpoints, the newest first."""
        with contextlib.suppress(OSError):
            for folder in old_folders(self.folder, self.disk):
                restore_folder(folder, self.disk)
        found = [path.name for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
        return sorted(found, key=lambda name: int(name.removeprefix("step-")), reverse=True)

    def newest_whole(self) -> str | None:
        """Return the newest checkpoint whose files verify, None when there is none."""
        return next((name for name in self.names() if self.is_whole(name)), None)

    def best_of(self, progress: Progress) -> str | None:
        """Return the checkpoint of the best evaluation, None when it was not after an update or is not whole."""
        name = name_of_step(progress.best_step)
        return name if progress.best_step > 0 and self.is_whole(name) else None

    def is_whole(self, name: str) -> bool:
        """Return whether a checkpoint is there and its files verify."""
        try:
            self._verify(name)
        except CheckpointDamaged:
            return False
        return True

    def load(self, name: str, model: nn.Module, optimizer: Optimizer | None = None) -> Progress:
        """Put a checkpoint into the model, and into the optimizer when one is given.

        Args:
            name: Of the checkpoint.
            model: Its trainable parameters are replaced.
            optimizer: Has a state for these parameters already, which is replaced.

        Raises:
            CheckpointDamaged: A file is missing, was changed, or does not fit the model.
        """
        state, folder = self._verify(name), self.folder / name
        weights = self._read(folder / _WEIGHTS, _flat(model.trainable_parameters()))
        if optimizer is not None:
            kept = self._read(folder / _OPTIMIZER, _flat(optimizer.state))
            optimizer.state = tree_unflatten(list(kept.items()))
        model.load_weights(list(weights.items()), strict=False)
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
            files = {part: str(state["files"][part]) for part in (_WEIGHTS, _OPTIMIZER)}
            return {**state, "files": files, "world": _by_key(dict(state["world"]))}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointDamaged(f"{path} is damaged ({error})", fix=_START_AGAIN) from None

    def progress_of(self, name: str) -> Progress:
        """Return where training stood at a checkpoint."""
        return Progress(**self.read_state(name)["progress"])

    def check_world(self, name: str, *, accepted: Collection[str] = ()) -> list[str]:
        """Refuse to go on from a checkpoint that stands on something else.

        Args:
            name: Of the checkpoint.
            accepted: What may differ.

        Returns:
            What was accepted and differs.

        Raises:
            RunError: Naming each thing that differs.
        """
        then = {**self.defaults, **self.read_state(name)["world"]}
        changed = [key for key, value in self.world.items() if then.get(key, value) != value]
        if refused := [key for key in changed if key not in accepted]:
            told = [_difference(key, then[key], self.world[key]) for key in refused]
            fix = "Put it back, or start a new run with start_from set to this run's adapter."
            if set(refused) <= set(ROWS):
                fix = f"`macft resume --accept-new-data` goes on with the new rows. Or p{fix[1:]}"
            raise RunError(f"since the run was started, this changed: {', '.join(told)}", fix=fix)
        return changed

    def _verify(self, name: str) -> dict[str, Any]:
        state = self.read_state(name)
        for part, digest in state["files"].items():
            path = self.folder / name / part
            if not path.is_file() or _hash(path) != digest:
                raise CheckpointDamaged(f"{path} is damaged", fix=_START_AGAIN)
        return state

    def _read(self, path: Path, expected: dict[str, mx.array]) -> dict[str, mx.array]:
        try:
            found = load_tensors(path)
            check_tensors(found, expected, where=path, same_dtype=True)
        except ModelError as error:
            raise CheckpointDamaged(error.message, fix=_START_AGAIN) from None
        return found

    def _remove_leftovers(self) -> None:
        for path in self.disk.list(self.folder):
            if path.name.startswith(".") and path.name.endswith(".tmp"):
                self.disk.remove(path)

    def _prune(self, progress: Progress) -> None:
        for name in self.names()[self.keep :]:
            if name != name_of_step(progress.best_step):
                doomed = self.folder / f".{name}.tmp"  # without its name first: half of it must not seem to be one
                self.disk.rename(self.folder / name, doomed)
                self.disk.remove(doomed)


_START_AGAIN = "Start a new run with this recipe."


def name_of_step(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:06d}"


def _difference(key: str, then: str, now: str) -> str:
    is_told = len(then) <= 20 and len(now) <= 20 and key not in ROWS
    return f"{key} ({then} → {now})" if is_told else key


def _by_key(world: dict[str, Any]) -> dict[str, str]:
    """Return a world by dotted key; until 0.1 a table of the recipe was one value."""
    flat: dict[str, str] = {}
    for name, value in world.items():
        table = ast.literal_eval(value) if isinstance(value, str) and value.startswith("{") else None
        flat |= {f"{name}.{key}": str(part) for key, part in table.items()} if table else {name: str(value)}
    return flat


def _flat(tree: Any) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def are_finite(tree: Any) -> bool:
    """Return whether a tree of arrays holds neither NaN nor infinity."""
    return all(bool(mx.isfinite(value).all().item()) for value in _flat(tree).values())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
