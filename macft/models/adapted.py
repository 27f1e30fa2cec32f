"""How an adapted layer computes: its dropout, and where its update is added.

The rule: a layer is mlx-lm's with another class, so that whatever knows mlx-lm's knows it; its numbers stay the same.
"""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class KeyedDropout(nn.Module):
    """Dropout that draws its mask from an explicit key.

    With mlx-lm's own dropout a layer that is recomputed in the backward pass draws another mask, and its gradients are
    wrong (FACTS.md: relative error 0.72 at 0.1). The same key gives the same mask.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.probability = probability
        self._key = mx.random.key(0)  # leading underscore: state, but not a parameter

    def __call__(self, x: mx.array) -> mx.array:
        """Zero a share of the inputs and scale the rest up, in training only."""
        if not self.training or self.probability == 0.0:
            return x
        kept = mx.random.bernoulli(1.0 - self.probability, x.shape, key=self._key)
        return mx.where(kept, x / (1.0 - self.probability), 0.0).astype(x.dtype)


def find_dropouts(model: nn.Module) -> list[KeyedDropout]:
    """Return a model's dropouts, unless none of them ever drops anything."""
    dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    return dropouts if any(module.probability for module in dropouts) else []


def set_dropout_keys(dropouts: Sequence[KeyedDropout], key: mx.array) -> None:
    """Give every dropout its own key, derived from one."""
    for module, own in zip(dropouts, mx.random.split(key, max(1, len(dropouts))), strict=False):
        module._key = own


@functools.cache
def add_in_product(kind: Any) -> type[nn.Module]:
    """Return LoRA whose update is added in the product that makes it, and scaled at the side of the rank.

    mlx-lm scales and adds in passes over [T, out], which cost more than the low-rank products themselves.
    """

    def call(self: Any, x: mx.array) -> mx.array:
        if isinstance(self.scale, mx.array) or self.lora_a.dtype != x.dtype:
            product: mx.array = kind.__call__(self, x)
            return product
        return mx.addmm(self.linear(x), self.dropout(x) @ self.lora_a, self.lora_b, alpha=self.scale)

    return type(kind.__name__, (kind,), {"__call__": call})
