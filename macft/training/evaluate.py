"""Score the whole validation set: fixed rows, fixed order, no noise."""

import math
from collections.abc import Iterator
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macft.data.batches import Batch, Rows, make_batch
from macft.training.objectives import Objective


def evaluate(model: nn.Module, objective: Objective, rows: Rows, *, batch_size: int) -> tuple[float, float]:
    """Return the mean loss over all rows and the weight it is a mean over.

    Args:
        model: Left in the mode it was in.
        objective: What is summed.
        rows: The validation rows.
        batch_size: Rows a forward pass; the result does not depend on it beyond rounding.

    Returns:
        Loss (nats a unit of weight, NaN without rows) and weight (supervised tokens).
    """
    was_training = model.training
    model.eval()
    try:
        total = weight = 0.0
        for batch in _batches(rows, batch_size):
            summed = objective.total(model, Batch(*(mx.array(part) for part in batch)), mx.random.key(0))
            total += cast(float, summed.item())
            weight += objective.weight(batch)
    finally:
        model.train(was_training)
    return (total / weight if weight else math.nan), weight


def _batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    order = np.argsort(-rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield make_batch(rows, order[start : start + batch_size])
