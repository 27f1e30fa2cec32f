"""Score the whole validation set: fixed rows, fixed order, no noise."""

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macft.data.batches import Batch, Rows, make_batch, shard_rows, split_micro_batches
from macft.training.distributed import ALONE, Ranks
from macft.training.objectives import Objective


def evaluate(
    model: nn.Module,
    objective: Objective,
    rows: Rows,
    *,
    tokens: int,
    wants_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> tuple[float, float] | None:
    """Return the mean loss over all rows and the weight it is a mean over.

    Args:
        model: Left in the mode it was in.
        objective: What is summed.
        rows: The validation rows.
        tokens: Most tokens a forward pass; the result does not depend on it beyond rounding.
        wants_stop: Asked before each pass, as often on every rank.
        ranks: Share the rows.

    Returns:
        Loss (nats a unit of weight, NaN without rows) and weight (supervised tokens); None when it was stopped.
    """
    was_training = model.training
    model.eval()
    own = shard_rows(np.arange(len(rows)), rows.lengths, ranks.size)[ranks.rank]
    parts = split_micro_batches(own, rows.lengths, tokens=tokens, rows=max(1, len(own)))
    try:
        total = weight = 0.0
        for number in range(max(ranks.gather(len(parts)))):
            if wants_stop():
                return None
            if number < len(parts):
                batch = make_batch(rows, parts[number])
                summed = objective.total(model, Batch(*(mx.array(part) for part in batch)), mx.random.key(0))
                total += cast(float, summed.item())
                weight += objective.weight(batch)
    finally:
        model.train(was_training)
    total, weight = (sum(part) for part in zip(*ranks.gather((total, weight)), strict=True))
    return (total / weight if weight else math.nan), weight
