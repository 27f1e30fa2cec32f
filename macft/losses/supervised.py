"""Supervised fine-tuning and continual pre-training: cross-entropy on the supervised tokens.

The rule: a loss returns a sum, never a mean, so that micro-batches of any size add up to the same update.
"""

import mlx.core as mx


def cross_entropy(logprobs: mx.array, weight: mx.array) -> mx.array:
    """Sum −log p over the supervised tokens.

    Masked with `where`: 0 · NaN is NaN, so a filler must not be multiplied away.

    Args:
        logprobs: Log-probabilities of the targets [R], nats.
        weight: 1 for a supervised token, 0 for a filler [R].

    Returns:
        The sum, nats, scalar. Three supervised tokens at p = 1/2 give 3·ln 2 = 2.0794.
    """
    return mx.where(weight > 0, -logprobs * weight, 0.0).sum()
