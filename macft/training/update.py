"""One optimizer update: gradients over micro-batches, clipped, applied, or refused.

The rule: sums are added up over the micro-batches and divided once by the update's whole weight, so the split changes
nothing but rounding. A loss or gradient that is not finite changes no weight.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from macft.data.batches import MicroBatch
from macft.events import Metrics
from macft.models.adapted import find_dropouts, set_dropout_keys
from macft.training.distributed import ALONE, Ranks
from macft.training.objectives import Objective, Sums, to_device
from macft.training.optimizers import clip, global_norm
from macft.training.packed import PackedOptimizer, Places


class Outcome(NamedTuple):
    """What an update did.

    Attributes:
        loss: Mean over the update's weight, nats.
        grad_norm: Global norm before clipping.
        is_finite: Whether both are finite; if not, no weight was changed.
        metrics: What else the objective watches.
    """

    loss: float
    grad_norm: float
    is_finite: bool
    metrics: Metrics


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
        optimizer: PackedOptimizer,
        *,
        max_grad_norm: float,
        seed: int,
        compiled: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.objective, self.optimizer, self.seed, self.ranks = model, objective, optimizer, seed, ranks
        self._is_compiled = compiled
        optimizer.init(model.trainable_parameters())
        self.places, self._dropouts = Places(model), find_dropouts(model)

        def sums_of(parameters: dict[str, mx.array], *inputs: Any) -> Sums:
            self.places.put(parameters)
            return objective.sums(model, *inputs)

        def accumulate(batch: MicroBatch, whole: mx.array, key: mx.array, sums: Any) -> Any:
            parameters = self.places.take()
            total, gradients = mx.value_and_grad(sums_of)(parameters, batch, whole, key)
            self.places.put(parameters)
            found = total, optimizer.pack(gradients)
            if sums is None:
                return found
            # Gradients of a bfloat16 model would lose their small parts if they were added up in bfloat16.
            return tree_map(lambda summed, leaf: summed.astype(mx.float32) + leaf, sums, found)

        def measure(total: mx.array, gradients: list[mx.array], weight: mx.array) -> Any:
            gradients = [vector / weight.astype(vector.dtype) for vector in gradients]
            norm = global_norm(gradients)
            return total / weight, norm, optimizer.cast(clip(gradients, norm, max_grad_norm))

        def apply(gradients: list[mx.array]) -> None:
            optimizer.update_packed(self.places, gradients)

        state = [model.state, optimizer.inner.state]
        wrap: Callable[..., Any] = mx.compile if compiled else lambda function, **_: function
        self._accumulate = wrap(accumulate, inputs=state[:1], outputs=state[:1])
        self._measure = wrap(measure)
        self._apply = wrap(apply, inputs=state, outputs=state)

    def __call__(self, step: int, batches: Sequence[MicroBatch], learning_rate: float) -> Outcome:
        """Make the update of a step, or leave every weight as it is when something is not finite.

        Args:
            step: 1 for the first.
            batches: This rank's part of the update's rows; none when the update has fewer rows than there are ranks.
            learning_rate: Of this update.
        """
        if self._is_compiled:
            batches = [batch.filled() for batch in batches]
        keys = mx.random.split(self.ranks.key(mx.random.key((self.seed << 32) | step)), 2 * max(1, len(batches)))
        survey = self.ranks.add([self.objective.survey(self.model, batch) for batch in batches])
        whole = mx.array(survey.astype(np.float32))
        sums: Any = None
        for number, batch in enumerate(batches):
            set_dropout_keys(self._dropouts, keys[2 * number])
            sums = self._accumulate(to_device(batch), whole, keys[2 * number + 1], sums)
            mx.eval(sums)
        if sums is None:
            nothing = map(mx.zeros_like, self.optimizer.pack(self.places.take()))
            sums = Sums(mx.array(0.0), {}), list(nothing)
        summed, gradients = sums
        total, gradients = self.ranks.all_sum((summed.loss, gradients))
        total, norm, gradients = self._measure(total, gradients, whole[0])
        mx.eval(total, norm, gradients)
        loss, grad_norm = self.ranks.from_leader((total.item(), norm.item()))
        watched = self.ranks.add_named({name: float(value) for name, value in summed.metrics.items()})
        outcome = Outcome(
            loss,
            grad_norm,
            math.isfinite(loss) and math.isfinite(grad_norm),
            self.objective.metrics(watched, survey.tolist()),
        )
        if outcome.is_finite:
            self.optimizer.learning_rate = learning_rate
            self._apply(gradients)
            mx.eval(self.places.take(), self.optimizer.inner.state)
        return outcome
