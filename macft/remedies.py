"""Changes to a recipe that need less memory, each with its price.

The rule: the cheapest first, by what is lost: time, then exactness, then rows, then what can be learned.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from macft.effort import recompute_time
from macft.facts import DataFacts, Model
from macft.memory import LEVELS
from macft.recipe import Recipe

AGAIN = {"pointwise": "norms and activations", "mlp": "the MLP and norms", "layer": "whole layers"}
"""What each level of recomputation computes again, for people."""


class Change(NamedTuple):
    """A change of one key of a recipe.

    Attributes:
        key: Dotted.
        text: What it does.
        price: What it costs.
    """

    key: str
    value: Any
    text: str
    price: str


def list_changes(recipe: Recipe, model: Model, data: DataFacts) -> Iterator[Change]:
    """Yield changes that may need less memory, the cheapest first."""
    yield from _lose_time(recipe, model, data)
    if recipe.adapter_dtype == "float32" and recipe.adapter == "lora":
        yield Change("adapter_dtype", "auto", "make LoRA's products in the base's own precision", "less exact")
    if recipe.compute_dtype == "float32" and recipe.adapter != "full":
        yield Change("compute_dtype", "auto", "compute in the model's own precision", "less exact")
    longest = min(data.longest, recipe.max_seq_length)
    if data.p99 < longest:
        cut = f"{'about ' * data.is_estimate}{math.ceil(data.rows / 100):,} rows cut"
        yield Change("max_seq_length", max(8, data.p99), "cut the longest rows", cut)
    if recipe.adapter == "full" and recipe.optimizer.name != "adafactor":
        yield Change("optimizer.name", "adafactor", "keep no moments of every weight", "another optimizer")
    if recipe.adapter != "full" and not model.is_quantized:
        if recipe.quantize is None:
            yield Change("quantize", 8, "quantize the base to 8 bits", "hardly less accurate")
        if recipe.quantize != 4:
            yield Change("quantize", 4, "quantize the base to 4 bits", "somewhat less accurate")
    yield from _learn_less(recipe, model)
    if longest > 64:
        yield Change("max_seq_length", longest // 2, "halve the longest row", "long rows lose their end")


def change(recipe: Recipe, key: str, value: Any) -> Recipe:
    """Return a recipe with one dotted key changed."""
    table, _, name = key.rpartition(".")
    if not table:
        return recipe.model_copy(update={name: value})
    return recipe.model_copy(update={table: getattr(recipe, table).model_copy(update={name: value})})


def _lose_time(recipe: Recipe, model: Model, data: DataFacts) -> Iterator[Change]:
    if recipe.recompute == "auto":
        return  # the plan has gone as far as it must
    before = recompute_time(recipe, model, data, recipe.recompute)
    for level in LEVELS[LEVELS.index(recipe.recompute) + 1 :]:
        more = recompute_time(recipe, model, data, level) / before - 1
        yield Change("recompute", level, f"compute {AGAIN[level]} again", f"about {more:.0%} more time")


def _learn_less(recipe: Recipe, model: Model) -> Iterator[Change]:
    if recipe.adapter == "full":
        yield Change("adapter", "lora", "train an adapter instead of all weights", "learns less")
        return
    layers = model.layers if recipe.lora.layers == "all" else min(recipe.lora.layers, model.layers)
    if layers > 1:
        yield Change("lora.layers", max(1, layers // 2), f"adapt the last half of {layers} layers", "learns less")
    if recipe.lora.rank > 1:
        yield Change("lora.rank", max(1, recipe.lora.rank // 2), "halve the rank", "learns less")
