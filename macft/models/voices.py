"""Several adapters over one copy of the weights, each row of a batch with its own.

The rule: a batch may mix rows of Base and of any adapters, and the base's weights are read once for all of them. In
each layer the A and B matrices of all adapters stand side by side, as those of one adapter of the summed rank. A row
counts the columns of its own adapter with that adapter's scale and all others with 0, so ranks, layers and targets may
differ.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from macft.models.adapters import ADAPTED

TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2
"""Largest difference, relative to the largest logit, between a row of the batch and its adapter alone."""
_PROBE = (
    [1, 7, 3, 5],
    [2, 9, 4, 8],
    [6, 1, 2, 3],
    [5, 5, 8, 1],
    [3, 2, 1, 9],
    [8, 6, 4, 2],
    [7, 7, 1, 6],
    [9, 1, 5, 4],
)

_Value = TypeVar("_Value")


class Columns(NamedTuple):
    """A run of columns of a layer's stacked matrices: whose they are, how many, and the scale they count with."""

    voice: int
    rank: int
    scale: float


class Rows:
    """Which voice each row of the batch is; every stacked layer of a model asks the same object."""

    def __init__(self) -> None:
        self._voices: tuple[int, ...] = ()
        self._scales: dict[tuple[Columns, ...], mx.array | None] = {}

    def choose(self, voices: Sequence[int]) -> None:
        """Say which voice each row of the next pass is [B]."""
        if tuple(voices) != self._voices:
            self._voices = tuple(voices)
            self._scales.clear()

    def scales(self, columns: tuple[Columns, ...]) -> mx.array | None:
        """Return what each row counts each column with [B, 1, R]; None when no row counts any."""
        if columns not in self._scales:
            table = [
                [part.scale * (part.voice == voice) for part in columns for _ in range(part.rank)]
                for voice in self._voices
            ]
            self._scales[columns] = mx.array(np.array(table, np.float32)[:, None]) if np.any(table) else None
        return self._scales[columns]


class StackedLoRALinear(nn.Module):
    """A linear layer with the adapters of several voices.

    Args:
        linear: The base's layer.
        adapters: By voice, each a layer with its adapter on.
        rows: Says which row of the batch is whose.
    """

    def __init__(self, linear: nn.Module, adapters: Mapping[int, LoRALinear], rows: Rows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.lora_a = mx.concatenate([layer.lora_a for layer in adapters.values()], axis=1)
        self.lora_b = mx.concatenate([layer.lora_b for layer in adapters.values()], axis=0)
        self._columns = tuple(
            Columns(voice, layer.lora_a.shape[1], float(layer.scale)) for voice, layer in adapters.items()
        )
        self._rows = rows

    def __call__(self, x: mx.array) -> mx.array:
        """Run the layer on rows [B, T, in]."""
        y: mx.array = self.linear(x)
        scales = self._rows.scales(self._columns)
        if scales is None:
            return y
        return y + (((x @ self.lora_a) * scales) @ self.lora_b).astype(x.dtype)


def share_weights(model: nn.Module) -> nn.Module:
    """Return a second tree of modules over the same arrays: what is put on one does not show on the other."""
    return _twin(model)


def _twin(value: _Value) -> _Value:
    if isinstance(value, nn.Module):
        module: Any = copy.copy(value)
        for name, item in value.items():
            module[name] = _twin(item)
        return cast(_Value, module)
    if isinstance(value, dict):
        return cast(_Value, {name: _twin(item) for name, item in value.items()})
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return cast(_Value, type(value)(_twin(item) for item in value))
    return value


def can_stack(adapted: nn.Module) -> bool:
    """Tell whether all that an adapter changes are plain linear layers, by LoRA."""
    return all(isinstance(module, LoRALinear) for module in adapted.modules() if isinstance(module, ADAPTED))


def stack_adapters(base: nn.Module, adapted: Mapping[int, nn.Module]) -> tuple[nn.Module, Rows]:
    """Put several adapters on one model, for batches whose rows choose among them.

    Args:
        base: The model without adapters; it stays so.
        adapted: By voice, the same model with one adapter on (see `can_stack`). Other numbers are Base.

    Returns:
        The model, on the weights of `base`, and the object that says which row of a batch is whose.
    """
    rows, model = Rows(), share_weights(base)
    layers: dict[str, dict[int, LoRALinear]] = {}
    for voice, other in adapted.items():
        for name, module in other.named_modules():
            if isinstance(module, LoRALinear):
                layers.setdefault(name, {})[voice] = module
    stacked = [
        (name, StackedLoRALinear(next(iter(parts.values())).linear, parts, rows)) for name, parts in layers.items()
    ]
    model.update_modules(tree_unflatten(stacked))
    mx.eval(model.parameters())
    return model.eval(), rows


def agrees(model: nn.Module, rows: Rows, alone: Sequence[nn.Module]) -> bool:
    """Tell whether the rows of a batch get what each voice computes alone; `alone` holds all voices in their order."""
    voices = range(len(alone))
    probe = mx.array([_PROBE[voice % len(_PROBE)] for voice in voices])
    rows.choose(voices)
    try:
        together = model(probe)
        apart = mx.concatenate([alone[voice](probe[voice : voice + 1]) for voice in voices])
    except ValueError:  # the family gives its layers other shapes than [B, T, D]
        return False
    tolerance = TOLERANCE if together.dtype == mx.float32 else HALF_TOLERANCE
    return bool((mx.abs(together - apart).max() <= tolerance * mx.abs(apart).max()).item())
