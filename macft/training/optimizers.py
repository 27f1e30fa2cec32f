"""Optimizers and learning-rate schedules.

The rule: the learning rate is a pure function of the step, so resuming needs no schedule state.
"""

import math
from typing import TypeVar, cast

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map

from macft.recipe import BaseRecipe, OptimizerTable, ScheduleTable
from macft.training.packed import VECTOR_VALUES, PackedOptimizer

Tree = TypeVar("Tree")


def make_optimizer(table: OptimizerTable, learning_rate: float) -> PackedOptimizer:
    """Build the recipe's optimizer; the rate is set anew before each update."""
    by_element = table.name in {"adamw", "lion", "sgd"}
    return PackedOptimizer(_make_inner(table, learning_rate), VECTOR_VALUES if by_element else 0)


def _make_inner(table: OptimizerTable, learning_rate: float) -> optimizers.Optimizer:
    decay, first = table.weight_decay, table.betas[0]
    match table.name:
        case "adamw":
            # MLX leaves the bias correction off by default: the first step is then 3.16 times too large.
            return optimizers.AdamW(
                learning_rate, betas=list(table.betas), eps=table.eps, weight_decay=decay, bias_correction=True
            )
        case "adafactor":
            return optimizers.Adafactor(
                learning_rate, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False
            )
        case "lion":
            return optimizers.Lion(learning_rate, betas=list(table.betas), weight_decay=decay)
        case "muon":
            return optimizers.Muon(learning_rate, momentum=first, weight_decay=decay)
        case "sgd":
            return optimizers.SGD(learning_rate, momentum=first, weight_decay=decay)


def learning_rate_at(step: int, *, total_steps: int, peak: float, schedule: ScheduleTable) -> float:
    """Return the learning rate of an update.

    Args:
        step: 1 for the first update.
        total_steps: Updates in the run.
        peak: The rate after the warm-up.
        schedule: Name, warm-up and end.

    Returns:
        The rate. With warm-up w it is `peak · step / (w + 1)` up to step w, so the first update is
        never 0; `final_fraction` is where the decay arrives one step after the last, so that one is not 0 either.
    """
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = round(schedule.warmup_fraction * total_steps)
    if step <= warmup:
        return peak * step / (warmup + 1)
    done = (step - warmup - 1) / (total_steps - warmup)
    end = schedule.final_fraction
    match schedule.name:
        case "cosine":
            share = end + (1 - end) * (1 + math.cos(math.pi * done)) / 2
        case "linear":
            share = 1 - (1 - end) * done
        case "wsd":
            share = 1 - (1 - end) * max(0.0, 1 - (1 - done) / schedule.decay_fraction)
        case "constant":
            share = 1.0
    return peak * share


def count_steps(recipe: BaseRecipe, rows: int) -> int:
    """Return the updates in a run over this many training rows."""
    return recipe.steps or max(1, math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size)))


def global_norm(gradients: object) -> mx.array:
    """Return the Euclidean norm over all gradients, a float32 scalar."""
    leaves = cast(list[tuple[str, mx.array]], tree_flatten(gradients))
    return mx.sqrt(mx.stack([mx.square(leaf.astype(mx.float32)).sum() for _, leaf in leaves]).sum())


def clip(gradients: Tree, norm: mx.array, max_norm: float) -> Tree:
    """Scale gradients down to `max_norm`; 0 leaves them as they are."""
    if not max_norm:
        return gradients
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return cast(Tree, tree_map(lambda leaf: leaf * factor.astype(leaf.dtype), gradients))
