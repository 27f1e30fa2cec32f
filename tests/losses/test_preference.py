"""Preference losses: values worked by hand, invariances, and gradients by finite differences."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macft.losses import preference
from macft.losses.preference import Pair, PreferenceLoss, log1mexp, log_sigmoid

BETA = 0.5
POLICY = Pair(mx.array([-10.0, -30.0, -7.0]), mx.array([-14.0, -26.0, -7.5]))
REFERENCE = Pair(mx.array([-12.0, -28.0, -7.2]), mx.array([-13.0, -29.0, -6.5]))
LENGTHS = Pair(mx.array([5.0, 10.0, 3.0]), mx.array([4.0, 8.0, 2.0]))
"""Log-ratios: chosen +2, −2, +0.2; rejected −1, +3, −1. The first pair is worked by hand below."""

Loss = Callable[[Pair, Pair], PreferenceLoss]
WITH_REFERENCE: dict[str, Loss] = {
    "sigmoid": partial(preference.sigmoid, beta=BETA),
    "cdpo": partial(preference.sigmoid, beta=BETA, label_smoothing=0.1),
    "robust": partial(preference.robust, beta=BETA, label_smoothing=0.1),
    "hinge": partial(preference.hinge, beta=BETA),
    "ipo": lambda policy, reference: preference.ipo(policy, reference, LENGTHS, beta=BETA),
    "apo_zero": partial(preference.apo_zero, beta=BETA),
    "apo_down": partial(preference.apo_down, beta=BETA),
    "sigmoid_norm": lambda policy, reference: preference.sigmoid_norm(policy, reference, LENGTHS, beta=BETA),
}
WITHOUT: dict[str, Loss] = {
    "simpo": lambda policy, _: preference.simpo(policy, LENGTHS, beta=BETA, gamma=0.3),
    "orpo": lambda policy, _: preference.orpo(policy, LENGTHS, beta=BETA),
    "cpo": lambda policy, _: preference.cpo(policy, beta=BETA, label_smoothing=0.1),
}
ALL = WITH_REFERENCE | WITHOUT


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


P_CHOSEN, P_REJECTED = math.exp(-10 / 5), math.exp(-14 / 4)
WORKED = {
    "sigmoid": -math.log(sigma(1.5)),
    "cdpo": -0.9 * math.log(sigma(1.5)) - 0.1 * math.log(sigma(-1.5)),
    "robust": (-0.9 * math.log(sigma(1.5)) + 0.1 * math.log(sigma(-1.5))) / 0.8,
    "hinge": 0.0,
    "ipo": (2 / 5 + 1 / 4 - 1) ** 2,
    "apo_zero": 1 - sigma(1.0) + sigma(-0.5),
    "apo_down": sigma(1.0) + 1 - sigma(1.5),
    "sigmoid_norm": -math.log(sigma(0.5 * (2 / 5 + 1 / 4))),
    "simpo": -math.log(sigma(0.5 * (-2 + 3.5) - 0.3)),
    "orpo": -0.5 * math.log(sigma(math.log(P_CHOSEN / (1 - P_CHOSEN) / (P_REJECTED / (1 - P_REJECTED))))),
    "cpo": -0.9 * math.log(sigma(2.0)) - 0.1 * math.log(sigma(-2.0)),
}


@pytest.mark.parametrize("name", ALL)
def test_a_worked_pair(name: str) -> None:
    """At beta 1/2 log-ratios of +2 and −1 make a scaled margin of 1.5, and one a token of (2/5 + 1/4) / 2."""
    assert ALL[name](POLICY, REFERENCE).loss[0].item() == pytest.approx(WORKED[name], rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_rewards_are_beta_times_the_log_ratio_whatever_the_loss(name: str) -> None:
    found = WITH_REFERENCE[name](POLICY, REFERENCE)
    assert np.allclose(found.chosen_rewards, [1.0, -1.0, 0.1], atol=1e-6)
    assert np.allclose(found.rejected_rewards, [-0.5, 1.5, -0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"),
    [("simpo", -2.0 / 2, -3.5 / 2), ("orpo", -2.0 / 2, -3.5 / 2), ("cpo", -10.0 / 2, -14.0 / 2)],
)
def test_without_a_reference_rewards_are_beta_times_the_log_probability(
    name: str, chosen: float, rejected: float
) -> None:
    found = WITHOUT[name](POLICY, REFERENCE)
    assert (found.chosen_rewards[0].item(), found.rejected_rewards[0].item()) == (chosen, rejected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("cdpo", math.log(2)),
        ("robust", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 1 / (4 * BETA**2)),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("sigmoid_norm", math.log(2)),
    ],
)
def test_where_policy_equals_reference(name: str, expected: float) -> None:
    assert np.allclose(WITH_REFERENCE[name](POLICY, POLICY).loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_by_finite_differences(name: str) -> None:
    """And none flows into the reference, nor through the rewards."""

    def total(policy: Pair, reference: Pair) -> mx.array:
        return ALL[name](policy, reference).loss.sum()

    gradients = mx.grad(total, argnums=(0, 1))(POLICY, REFERENCE)
    assert all(not mx.any(side).item() for side in gradients[1])
    step = 0.05
    for side in (0, 1):
        for pair in range(3):
            nudge = mx.where(mx.arange(3) == pair, step, 0.0)
            up, down = (
                total(POLICY._replace(**{Pair._fields[side]: POLICY[side] + sign * nudge}), REFERENCE).item()
                for sign in (1, -1)
            )
            assert gradients[0][side][pair].item() == pytest.approx((up - down) / (2 * step), rel=2e-3, abs=2e-4)

    def rewards(policy: Pair) -> mx.array:
        found = ALL[name](policy, REFERENCE)
        return (found.chosen_rewards + 2 * found.rejected_rewards).sum()

    assert all(not mx.any(side).item() for side in mx.grad(rewards)(POLICY))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("far", [4e4, -4e4])
def test_far_from_the_reference_nothing_overflows(name: str, far: float) -> None:
    policy = Pair(mx.array([min(far, 0.0), -1.0, -1.0]), mx.array([-max(far, 1.0), -1.0, -1.0]))

    def total(policy: Pair) -> mx.array:
        return ALL[name](policy, REFERENCE).loss.sum()

    loss, gradients = mx.value_and_grad(total)(policy)
    assert mx.isfinite(loss).item()
    assert all(mx.isfinite(side).all().item() for side in gradients)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_inputs_are_scored_in_float32(name: str) -> None:
    half = Pair(*(side.astype(mx.bfloat16) for side in POLICY))
    found = ALL[name](half, Pair(*(side.astype(mx.bfloat16) for side in REFERENCE)))
    assert {part.dtype for part in found} == {mx.float32}


def test_log_sigmoid_and_log1mexp_keep_their_digits() -> None:
    """Values and slopes against float64; beyond ±60 only that they are finite is asked for."""
    x = np.concatenate([np.linspace(-60, 60, 481), [-1e-3, 1e-6]]).astype(np.float32)
    value, slope = -np.logaddexp(0.0, -x.astype(np.float64)), 1 / (1 + np.exp(x.astype(np.float64)))
    assert np.allclose(log_sigmoid(mx.array(x)), value, rtol=5e-6, atol=0)
    assert np.allclose(mx.grad(lambda x: log_sigmoid(x).sum())(mx.array(x)), slope, rtol=5e-6, atol=0)

    x = -np.logspace(-6, 1.2, 200).astype(np.float32)
    value, slope = np.log(-np.expm1(x.astype(np.float64))), 1 / -np.expm1(-x.astype(np.float64))
    assert np.allclose(log1mexp(mx.array(x)), value, rtol=5e-6, atol=0)
    assert np.allclose(mx.grad(lambda x: log1mexp(x).sum())(mx.array(x)), slope, rtol=5e-6, atol=0)


def test_a_response_that_is_certain_has_finite_odds() -> None:
    def total(chosen: mx.array) -> mx.array:
        pair = Pair(chosen, mx.array([-3.0]))
        return preference.orpo(pair, Pair(mx.array([2.0]), mx.array([2.0])), beta=BETA).loss.sum()

    loss, gradient = mx.value_and_grad(total)(mx.array([0.0]))
    assert mx.isfinite(loss).item()
    assert mx.isfinite(gradient).item()


POLICY_LOGPS, REFERENCE_LOGPS = mx.array([-10.0, -20.0]), mx.array([-12.0, -19.0])


def test_kto_by_hand() -> None:
    """A good response at +2 and a bad one at −1, with a divergence of 0.5, at beta 1/2 and weights 1 and 2."""
    found = preference.kto(
        POLICY_LOGPS,
        REFERENCE_LOGPS,
        mx.array([True, False]),
        mx.array(0.5),
        beta=BETA,
        undesirable_weight=2.0,
    )
    assert np.allclose(found.loss, [1 - sigma(0.5 * 1.5), 2 * (1 - sigma(0.5 * 1.5))], rtol=1e-6)
    assert np.allclose(found.rewards, [1.0, -0.5])


def test_kto_where_policy_equals_reference_and_its_gradient() -> None:
    def total(policy: mx.array, kl: mx.array) -> mx.array:
        return preference.kto(policy, REFERENCE_LOGPS, mx.array([True, False]), kl, beta=BETA).loss.sum()

    assert total(REFERENCE_LOGPS, mx.array(0.0)).item() == 1.0
    policy_gradient, kl_gradient = mx.grad(total, argnums=(0, 1))(POLICY_LOGPS, mx.array(0.5))
    slope = BETA * sigma(0.75) * (1 - sigma(0.75))
    assert np.allclose(policy_gradient, [-slope, slope], rtol=1e-5)
    assert kl_gradient.item() == 0.0


def test_the_divergence_is_a_mean_and_never_negative() -> None:
    assert preference.mismatched_kl(POLICY_LOGPS, REFERENCE_LOGPS).item() == 0.5
    assert preference.mismatched_kl(REFERENCE_LOGPS, POLICY_LOGPS).item() == 0.0
    gradient: Any = mx.grad(preference.mismatched_kl)(POLICY_LOGPS, REFERENCE_LOGPS)
    assert not mx.any(gradient).item()
