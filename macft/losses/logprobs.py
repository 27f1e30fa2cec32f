"""Log-probabilities of given tokens: what every loss is made of.

The rule: float32 at least from the logits on, and nothing of size positions × vocabulary outlives its chunk.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import mlx.core as mx

from macft.losses.backward import custom_function
from macft.losses.exponential import exp
from macft.losses.precision import at_least_float32

CHUNK_ROWS = 256
"""Positions whose logits exist at once."""


class Projection(NamedTuple):
    """A frozen head as functions of arrays: logits = cap · tanh(scale · h Wᵀ / cap), without the cap when it is 0.

    Attributes:
        forward: Hidden states [R, D] to h Wᵀ [R, V].
        backward: Weights over the vocabulary [R, V] to their mix of the head's rows, p W [R, D].
        rows: Token ids [R] to the head's rows W[y] [R, D].
    """

    forward: Callable[[mx.array], mx.array]
    backward: Callable[[mx.array], mx.array]
    rows: Callable[[mx.array], mx.array]
    scale: float = 1.0
    cap: float = 0.0

    def logits(self, hidden: mx.array) -> mx.array:
        """Return the logits [R, V], float32."""
        logits = self.forward(hidden).astype(mx.float32)
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * mx.tanh(logits / self.cap) if self.cap else logits


def token_logprobs(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the log-probability of each target.

    Args:
        logits: Scores before softmax [R, V].
        targets: Token ids [R].

    Returns:
        Natural-log probabilities [R], at least float32, nats.
    """
    return _normalized(at_least_float32(logits), targets)[0]


def head_logprobs(hidden: mx.array, targets: mx.array, head: Projection, *, with_gradient: bool) -> mx.array:
    """Return the log-probability of each target from hidden states, a chunk of positions at a time.

    The gradient is made in the forward pass: d log p / d h = W[y] − softmax(logits) W, so the backward pass is one
    product of a scalar and a row. No gradient flows into the head.

    Args:
        hidden: States after the last norm [R, D].
        targets: Token ids [R].
        head: Frozen.
        with_gradient: False skips the gradient's work, for evaluation.

    Returns:
        Natural-log probabilities [R], float32, nats.
    """
    parts: list[mx.array] = []
    for start in range(0, hidden.shape[0], CHUNK_ROWS):
        chunk, wanted = hidden[start : start + CHUNK_ROWS], targets[start : start + CHUNK_ROWS]
        if parts:  # or MLX would run ahead and hold the logits of all chunks; it still holds those of three
            chunk = mx.depends(chunk, parts[-1])
        parts.append(
            _chunk_with_gradient(head)(chunk, wanted)[0]
            if with_gradient
            else _normalized(head.logits(chunk), wanted)[0]
        )
    return mx.concatenate(parts)


def _chunk_with_gradient(head: Projection) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
    @custom_function
    def chunk(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        logits = head.logits(hidden)
        logprobs, raised, total = _normalized(logits, targets)
        of_target = head.rows(targets).astype(mx.float32)
        if head.cap:
            slope = 1.0 - mx.square(logits / head.cap)
            of_target = of_target * mx.take_along_axis(slope, targets[:, None], axis=-1)
            raised = raised * slope
        mixed = head.backward(raised / total if hidden.dtype != mx.float32 else raised).astype(mx.float32)
        gradient = of_target - (mixed if hidden.dtype != mx.float32 else mixed / total)
        return logprobs, gradient * head.scale

    @chunk.vjp
    def chunk_vjp(
        inputs: tuple[mx.array, mx.array], cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
    ) -> tuple[mx.array, mx.array]:
        hidden, targets = inputs
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype), mx.zeros_like(targets)

    return cast(Callable[[mx.array, mx.array], tuple[mx.array, mx.array]], chunk)


def _normalized(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return log p of the targets [R], exp(logits − max) [R, V], and its sum [R, 1]."""
    highest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    raised = exp(logits - highest)
    total = raised.sum(axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    return (chosen - highest - mx.log(total)).squeeze(-1), raised, total
