"""One optimizer update: gradients over micro-batches, clipped, applied, or refused.

The rule: sums are added up over the micro-batches and divided once by the update's whole weight, so the split changes
nothing but rounding. A loss or gradient that is not finite changes no weight.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_map

from macft.data.batches import Batch
from macft.models.adapters import set_dropout_keys
from macft.training.distributed import ALONE, Ranks
from macft.training.objectives import Objective
from macft.training.optimizers import clip, global_norm


class Outcome(NamedTuple):
    """What an update did.

    Attributes:
        loss: Mean over the update's weight, nats.
        grad_norm: Global norm before clipping.
        is_finite: Whether both are finite; if not, no weight was changed.
    """

    loss: float
    grad_norm: float
    is_finite: bool


class Updater:
    """Makes updates on one model with one optimizer.

    Args:
        model: Trainable parameters are updated in place.
        objective: What is minimized.
        optimizer: Its learning rate is set before each update.
        max_grad_norm: Global norm that gradients are clipped to; 0 for no clipping.
        seed: With the step, fixes all noise of the update.
        compiled: Whether to compile both halves with `mx.compile`.
        ranks: Each makes the same update, from the sums of all.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        *,
        max_grad_norm: float,
        seed: int,
        compiled: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.objective, self.optimizer, self.seed, self.ranks = model, objective, optimizer, seed, ranks
        optimizer.init(model.trainable_parameters())
        value_and_grad = nn.value_and_grad(model, partial(objective.total, model))

        def accumulate(batch: Batch, key: mx.array, sums: Any) -> Any:
            total, gradients = value_and_grad(batch, key)
            if sums is None:
                return total, gradients
            # Gradients of a bfloat16 model would lose their small parts if they were added up in bfloat16.
            return tree_map(lambda summed, leaf: summed.astype(mx.float32) + leaf, sums, (total, gradients))

        def measure(sums: Any, weight: mx.array) -> Any:
            total, gradients = tree_map(lambda leaf: leaf / weight.astype(leaf.dtype), sums)
            norm = global_norm(gradients)
            clipped = clip(gradients, norm, max_grad_norm)
            return (
                total,
                norm,
                tree_map(lambda leaf, own: leaf.astype(own.dtype), clipped, model.trainable_parameters()),
            )

        def apply(gradients: Any) -> None:
            optimizer.update(model, gradients)

        state = [model.state, optimizer.state]
        wrap: Callable[..., Any] = mx.compile if compiled else lambda function, **_: function
        self._accumulate = wrap(accumulate, inputs=state[:1], outputs=state[:1])
        self._measure = wrap(measure)
        self._apply = wrap(apply, inputs=state, outputs=state)

    def __call__(self, step: int, batches: Sequence[Batch], learning_rate: float) -> Outcome:
        """Make the update of a step, or leave every weight as it is when something is not finite.

        Args:
            step: 1 for the first.
            batches: This rank's part of the update's rows; none when the update has fewer rows than there are ranks.
            learning_rate: Of this update.
        """
        keys = mx.random.split(self.ranks.key(mx.random.key((self.seed << 32) | step)), 2 * max(1, len(batches)))
        weight = sum(self.objective.weight(batch) for batch in batches)
        sums: Any = None
        for number, batch in enumerate(batches):
            set_dropout_keys(self.model, keys[2 * number])
            sums = self._accumulate(Batch(*(mx.array(part) for part in batch)), keys[2 * number + 1], sums)
            mx.eval(sums)
        if sums is None:
            sums = mx.array(0.0), tree_map(mx.zeros_like, self.model.trainable_parameters())
        sums, weights = self.ranks.all_sum((sums, mx.array(weight, mx.float32)))
        loss, norm, gradients = self._measure(sums, weights)
        mx.eval(loss, norm, gradients)
        seen, norm_seen = self.ranks.from_leader((loss.item(), norm.item()))
        outcome = Outcome(seen, norm_seen, math.isfinite(seen) and math.isfinite(norm_seen))
        if outcome.is_finite:
            self.optimizer.learning_rate = learning_rate
            self._apply(gradients)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return outcome
