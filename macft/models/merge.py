"""Several adapters of one base become one.

The rule: `concat` is exact, whatever the ranks, layers and targets are: the ranks add up, and the update is the
weighted sum of the updates. `linear` keeps the rank and only resembles that sum.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from macft.errors import ModelError, Problem, RecipeError
from macft.models.adapters import read_adapter, write_adapter_files

Way = Literal["concat", "linear"]


class Part(NamedTuple):
    """An adapter folder and the strength it is merged with."""

    folder: Path
    strength: float


class _Loaded(NamedTuple):
    config: dict[str, Any]
    weights: dict[str, mx.array]
    strength: float

    @property
    def rank(self) -> int:
        return int(self.config["lora_parameters"]["rank"])

    @property
    def factor(self) -> float:
        """What the product A·B counts with in the sum."""
        return float(self.config["lora_parameters"]["scale"]) * self.strength


def merge_adapters(parts: Sequence[Part], folder: Path, *, way: Way) -> dict[str, Any]:
    """Write the weighted sum of adapters as an adapter of its own.

    Args:
        parts: At least two, of the same base.
        folder: Where to; it exists.
        way: `concat` or `linear`.

    Returns:
        The configuration that was written.

    Raises:
        ModelError: They have different bases, are no LoRA, or do not fit together.
        RecipeError: `linear` for adapters of different ranks or targets.
    """
    loaded = [_Loaded(*read_adapter(part.folder), part.strength) for part in parts]
    _refuse_strangers(parts, loaded)
    modules = sorted({name.rpartition(".")[0] for part in loaded for name in part.weights})
    if way == "linear":
        _refuse_other_shapes(parts, loaded, modules)
    weights, join = {}, _add if way == "linear" else _stack
    for module in modules:
        weights[f"{module}.lora_a"], weights[f"{module}.lora_b"] = join(loaded, module)
    config = _config(loaded, loaded[0].rank if way == "linear" else sum(part.rank for part in loaded))
    origin = loaded[0].config.get("macft", {})
    named = [{"adapter": _name(part.folder), "strength": part.strength} for part in parts]
    kept = {key: origin[key] for key in _KEPT if key in origin}
    provenance = {**kept, "base_model": _base(loaded[0]), "merged": named, "merge": way}
    write_adapter_files(folder, weights, config, provenance)
    return config


_KEPT = ("version", "base_fingerprint", "template_hash", "quantize", "quantize_group_size", "enable_thinking")


def _stack(parts: Sequence[_Loaded], module: str) -> tuple[mx.array, mx.array]:
    """Put the A and B of all adapters side by side; where one has no update, its columns are zeros."""
    known = next(part.weights for part in parts if f"{module}.lora_a" in part.weights)
    inputs, outputs = known[f"{module}.lora_a"].shape[0], known[f"{module}.lora_b"].shape[1]
    a, b = [], []
    for part in parts:
        own = f"{module}.lora_a" in part.weights
        a.append(part.weights[f"{module}.lora_a"] if own else mx.zeros((inputs, part.rank)))
        b.append(part.weights[f"{module}.lora_b"] * part.factor if own else mx.zeros((part.rank, outputs)))
    return mx.concatenate(a, axis=1), mx.concatenate(b, axis=0)


def _add(parts: Sequence[_Loaded], module: str) -> tuple[mx.array, mx.array]:
    """Add A and B, each with the root of its factor, as PEFT's `linear` does."""
    a = sum(part.weights[f"{module}.lora_a"] * math.sqrt(abs(part.factor)) for part in parts)
    b = sum(
        part.weights[f"{module}.lora_b"] * math.copysign(math.sqrt(abs(part.factor)), part.factor) for part in parts
    )
    return mx.array(a), mx.array(b)


def _config(parts: Sequence[_Loaded], rank: int) -> dict[str, Any]:
    keys = {key for part in parts for key in part.config["lora_parameters"].get("keys") or []}
    counts = [part.config["num_layers"] for part in parts]
    return {
        "fine_tune_type": "lora",
        "num_layers": -1 if min(counts) < 1 else max(counts),
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
    }


def _refuse_strangers(parts: Sequence[Part], loaded: Sequence[_Loaded]) -> None:
    for part, own in zip(parts, loaded, strict=True):
        if own.config["fine_tune_type"] != "lora":
            raise ModelError(
                f"{_name(part.folder)} is a {own.config['fine_tune_type']} adapter, whose update is no sum",
                fix="Fuse one, and train or merge on the fused model.",
            )
    bases = {own.config.get("macft", {}).get("base_fingerprint") or _base(own) for own in loaded}
    if len(bases - {""}) > 1:
        names = ", ".join(f"{_name(part.folder)} on {_base(own)}" for part, own in zip(parts, loaded, strict=True))
        raise ModelError(f"the adapters have different bases ({names})")


def _refuse_other_shapes(parts: Sequence[Part], loaded: Sequence[_Loaded], modules: Sequence[str]) -> None:
    ranks = sorted({own.rank for own in loaded})
    problems = [Problem("--way linear", f"needs one rank, and there are {', '.join(map(str, ranks))}")]
    problems = problems if len(ranks) > 1 else []
    for part, own in zip(parts, loaded, strict=True):
        if missing := [module for module in modules if f"{module}.lora_a" not in own.weights]:
            problems.append(Problem(_name(part.folder), f"has no update of {missing[0]}"))
    if problems:
        raise RecipeError(problems, fix="`--way concat` takes any ranks and targets, and is exact.")


def _base(loaded: _Loaded) -> str:
    return str(loaded.config.get("macft", {}).get("base_model") or loaded.config.get("base_model_name_or_path") or "")


def _name(folder: Path) -> str:
    return folder.parent.name if folder.name == "adapter" else folder.name
