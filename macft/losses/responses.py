"""Log-probabilities of whole responses, from those of their tokens.

The rule: summed in float32 at least, in one fixed order, whatever the model computes in: near −1000 nats bfloat16 has
steps of 4 to 8, and a scatter that adds in any order would move the reference between two runs.
"""

import mlx.core as mx

from macft.losses.precision import at_least_float32


def response_logprobs(logprobs: mx.array, weight: mx.array, segment: mx.array, count: int) -> mx.array:
    """Sum each response's token log-probabilities.

    Masked with `where`: 0 · NaN is NaN, so a filler must not be multiplied away.

    Args:
        logprobs: Log-probabilities of the targets [R], nats.
        weight: What a token counts, 0 for a filler [R]; LD-DPO's weights go in here.
        segment: Which response a token belongs to, 0 to count − 1; any number for a filler [R].
        count: Responses, N.

    Returns:
        The sums [N], at least float32, nats. Tokens of −1, −2 and −4 in responses 0, 1, 0 give [−5, −2].
    """
    weighted = mx.where(weight > 0, at_least_float32(logprobs) * weight, 0.0)
    belongs = segment[None] == mx.arange(count, dtype=segment.dtype)[:, None]
    return mx.where(belongs, weighted[None], 0.0).sum(axis=1)
