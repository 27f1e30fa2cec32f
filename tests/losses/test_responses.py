"""Sums of a response: a worked value, fillers that change nothing, and weights."""

import mlx.core as mx
import numpy as np

from macft.losses.responses import response_logprobs

LOGPROBS = mx.array([-1.0, -2.0, -4.0])
SEGMENT = mx.array([0, 1, 0], dtype=mx.int32)


def test_a_worked_sum_a_response() -> None:
    assert response_logprobs(LOGPROBS, mx.ones(3), SEGMENT, 2).tolist() == [-5.0, -2.0]


def test_fillers_change_nothing_even_when_they_are_not_numbers() -> None:
    """Value and gradient; a filler's segment may name a real response."""
    logprobs = mx.concatenate([LOGPROBS, mx.array([float("nan"), -mx.inf])])
    segment = mx.concatenate([SEGMENT, mx.array([0, 7], dtype=mx.int32)])
    weight = mx.array([1.0, 1.0, 1.0, 0.0, 0.0])

    def total(logprobs: mx.array) -> mx.array:
        return (response_logprobs(logprobs, weight, segment, 2) * mx.array([1.0, 3.0])).sum()

    value, gradient = mx.value_and_grad(total)(logprobs)
    assert value.item() == -11.0
    assert gradient.tolist() == [1.0, 3.0, 1.0, 0.0, 0.0]


def test_half_precision_is_summed_in_float32() -> None:
    """4,000 tokens of −0.25 are −1000, where bfloat16 has steps of 4."""
    count = 4_000
    found = response_logprobs(mx.full((count,), -0.25, mx.bfloat16), mx.ones(count), mx.zeros(count, mx.int32), 1)
    assert found.dtype == mx.float32
    assert found.item() == -1000.0


def test_the_order_of_tokens_and_neighbours_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    logprobs, segment = -rng.random(500).astype(np.float32), rng.integers(0, 9, 500).astype(np.int32)
    found = response_logprobs(mx.array(logprobs), mx.ones(500), mx.array(segment), 9)
    expected = [logprobs[segment == one].astype(np.float64).sum() for one in range(9)]
    assert np.allclose(found, expected, rtol=1e-6)


def test_a_token_counts_as_much_as_its_weight() -> None:
    """LD-DPO weighs what the longer response says beyond the shorter: −1 − 4/4 = −2."""
    assert response_logprobs(LOGPROBS, mx.array([1.0, 1.0, 0.25]), SEGMENT, 2).tolist() == [-2.0, -2.0]
    assert response_logprobs(LOGPROBS, mx.array([1.0, 1.0, 0.0]), SEGMENT, 2).tolist() == [-1.0, -2.0]
