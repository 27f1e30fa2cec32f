"""Score the whole validation set: fixed rows, fixed order, no noise."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macft.data.batches import Rows, shard_rows, split_micro_batches
from macft.errors import Stopped
from macft.events import Metrics
from macft.training.distributed import ALONE, Ranks
from macft.training.objectives import Objective, evaluating, to_device


class Evaluation(NamedTuple):
    """What a set of rows says of a model.

    Attributes:
        loss: Mean over the weight, nats; NaN without rows.
        weight: Supervised tokens, pairs or answers.
        metrics: What else the objective watches.
    """

    loss: float
    weight: float
    metrics: Metrics


def evaluate(
    model: nn.Module,
    objective: Objective,
    rows: Rows,
    *,
    tokens: int,
    wants_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """Return the mean loss over all rows, and the other metrics.

    Args:
        model: Left in the mode it was in.
        objective: What is summed.
        rows: The validation rows.
        tokens: Most tokens a forward pass; the result does not depend on it beyond rounding.
        wants_stop: Asked before each pass, as often on every rank.
        ranks: Share the rows.

    Returns:
        None when it was stopped.
    """
    own = shard_rows(np.arange(len(rows)), rows.lengths, ranks.size)[ranks.rank]
    parts = split_micro_batches(own, rows.lengths, tokens=tokens, rows=max(1, len(own)))
    passes = max(ranks.gather(len(parts)))

    def batches() -> Iterator[Any]:
        for number in range(passes):
            if wants_stop():
                raise Stopped("stopped in an evaluation")
            if number < len(parts):
                yield rows.batch(parts[number])

    if not passes:
        return Evaluation(math.nan, 0.0, {})
    try:
        with evaluating(model):
            survey = ranks.add([objective.survey(model, batch) for batch in batches()])
            whole, loss, sums = mx.array(survey.astype(np.float32)), 0.0, dict[str, float]()
            for batch in batches():
                found = objective.sums(model, to_device(batch), whole, mx.random.key(0))
                mx.eval(found)
                loss += float(found.loss)
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.metrics.items()}
    except Stopped:
        return None
    loss, sums = float(ranks.add([[loss]])[0]), ranks.add_named(sums)
    return Evaluation(loss / survey[0], float(survey[0]), objective.metrics(sums, survey.tolist()))
