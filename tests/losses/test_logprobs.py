"""Log-probabilities and their gradients against a worked value and the naive form."""

import math

import mlx.core as mx
import numpy as np
import pytest

from macft.losses.exponential import exp, softmax, swiglu
from macft.losses.logprobs import CHUNK_ROWS, Projection, head_logprobs, token_logprobs
from macft.losses.supervised import cross_entropy


def close(found: mx.array, expected: mx.array, tolerance: float = 1e-5) -> bool:
    return bool((mx.abs(found - expected).max() <= tolerance * mx.maximum(mx.abs(expected).max(), 1e-3)).item())


def test_a_worked_log_probability() -> None:
    """Logits ln 1, ln 2, ln 5 are shares 1/8, 2/8, 5/8; so log p of the second is ln 1/4 = −1.3863."""
    logits = mx.log(mx.array([[1.0, 2.0, 5.0]]))
    assert token_logprobs(logits, mx.array([1])).item() == pytest.approx(math.log(1 / 4), rel=1e-6)


def test_fillers_are_masked_and_not_multiplied_away() -> None:
    """Three tokens at p = 1/2 give 3 · ln 2; a filler may be NaN."""
    logprobs = mx.array([math.log(0.5)] * 3 + [float("nan")])
    assert cross_entropy(logprobs, mx.array([1.0, 1, 1, 0])).item() == pytest.approx(3 * math.log(2), rel=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = mx.array([[1e4, 0.0, -1e4]])
    assert token_logprobs(logits, mx.array([0])).item() == 0.0
    assert token_logprobs(logits, mx.array([2])).item() == -2e4


def projection(weight: mx.array, *, scale: float = 1.0, cap: float = 0.0) -> Projection:
    return Projection(
        forward=lambda hidden: hidden @ weight.T,
        backward=lambda mix: mix.astype(weight.dtype) @ weight,
        rows=lambda ids: weight[ids],
        scale=scale,
        cap=cap,
    )


@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.25, 0.0), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("rows", [1, 7, CHUNK_ROWS + 3])
def test_the_gradient_made_in_the_forward_pass_equals_autodiff(rows: int, scale: float, cap: float) -> None:
    mx.random.seed(rows)
    weight, hidden = mx.random.normal((97, 16)), mx.random.normal((rows, 16))
    targets, coefficient = mx.random.randint(0, 97, (rows,)), mx.random.normal((rows,))
    head = projection(weight, scale=scale, cap=cap)

    def naive(hidden: mx.array) -> mx.array:
        logits = scale * (hidden @ weight.T)
        logits = cap * mx.tanh(logits / cap) if cap else logits
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
        return ((chosen - mx.logsumexp(logits, axis=-1)) * coefficient).sum()

    def ours(hidden: mx.array) -> mx.array:
        return (head_logprobs(hidden, targets, head, with_gradient=True) * coefficient).sum()

    (expected, slope), (found, gradient) = mx.value_and_grad(naive)(hidden), mx.value_and_grad(ours)(hidden)
    assert close(found, expected)
    assert close(gradient, slope)
    plain = head_logprobs(hidden, targets, head, with_gradient=False)
    assert close((plain * coefficient).sum(), expected)


def test_a_half_precision_head_keeps_float32_from_the_logits_on() -> None:
    mx.random.seed(0)
    weight, hidden = mx.random.normal((97, 16)).astype(mx.bfloat16), mx.random.normal((9, 16)).astype(mx.bfloat16)
    targets = mx.random.randint(0, 97, (9,))

    def summed(hidden: mx.array) -> mx.array:
        return head_logprobs(hidden, targets, projection(weight), with_gradient=True).sum()

    found, gradient = mx.value_and_grad(summed)(hidden)
    logits = (hidden @ weight.T).astype(mx.float32)
    assert found.dtype == mx.float32
    assert gradient.dtype == mx.bfloat16
    assert close(found, token_logprobs(logits, targets).sum(), 1e-6)


def test_exponentials_equal_numpy() -> None:
    x = mx.linspace(-80.0, 20.0, 4001)
    relative = np.abs(np.array(exp(x)) / np.exp(np.array(x).astype(np.float64)) - 1)
    assert relative.max() < 6e-6
    assert exp(mx.array([-mx.inf])).item() == 0.0


def test_softmax_and_swiglu_have_the_values_and_gradients_of_mlx() -> None:
    mx.random.seed(1)
    scores, gate, up = (mx.random.normal((5, 33)) * 4 for _ in range(3))
    scores = mx.where(mx.arange(33) > 20, -mx.inf, scores)
    pull = mx.random.normal((5, 33))
    for ours, theirs in (
        (lambda x: softmax(x), lambda x: mx.softmax(x, axis=-1)),
        (lambda x: swiglu(x, up), lambda x: x * mx.sigmoid(x) * up),
        (lambda x: swiglu(gate, x), lambda x: gate * mx.sigmoid(gate) * x),
    ):
        point = scores if theirs(scores)[0, -1].item() == 0.0 else gate
        found = mx.value_and_grad(lambda x, f=ours: (f(x) * pull).sum())(point)
        expected = mx.value_and_grad(lambda x, f=theirs: (f(x) * pull).sum())(point)
        assert close(found[0], expected[0])
        assert close(found[1], expected[1])
