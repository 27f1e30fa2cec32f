"""Preference losses: DPO and its family, from log-probabilities of whole responses.

The rule: one loss a pair (a response in KTO), never a mean, so that micro-batches of any size add up to the same
update. Formulas and rewards are TRL's (1.10), named by what the papers call them. Nothing is less than float32, and
nothing here overflows: a sigmoid's logarithm is never taken of the sigmoid.

An SFT term on the chosen responses (DPO's `sft_weight`, the nll of ORPO, CPO's `alpha`) is a mean over tokens and so
not a loss a pair: it is `supervised.cross_entropy`, divided by the tokens of the whole update.
"""

import math
from typing import NamedTuple

import mlx.core as mx

from macft.losses.precision import at_least_float32

CERTAIN = -1e-7
"""A mean log-probability, nats, that float32 can tell from 0: a response surer than this has no finite odds."""


class Pair(NamedTuple):
    """One number a response of each pair, two arrays [P]."""

    chosen: mx.array
    rejected: mx.array


class PreferenceLoss(NamedTuple):
    """What a loss says of each pair, three arrays [P].

    Attributes:
        loss: To be minimized.
        chosen_rewards: The implicit reward of the chosen response, beta times its log-ratio (or log-probability, where
            there is no reference); no gradient flows through it.
        rejected_rewards: The same of the rejected response.
    """

    loss: mx.array
    chosen_rewards: mx.array
    rejected_rewards: mx.array


class UnpairedLoss(NamedTuple):
    """What a loss says of each response, two arrays [N]: `loss` and the implicit `rewards` (no gradient)."""

    loss: mx.array
    rewards: mx.array


def log_sigmoid(x: mx.array) -> mx.array:
    """Return ln σ(x) = −ln(1 + e^−x) without overflow; −ln 2 at 0."""
    return -mx.logaddexp(-x, mx.zeros_like(x))


def log1mexp(x: mx.array) -> mx.array:
    """Return ln(1 − e^x) for x < 0 without cancellation; x is held below `CERTAIN`.

    Each branch sees only what it is good for, or the gradient of the one not taken would be 0 · ∞.

    Source: Mächler 2012, Accurately Computing log(1 − exp(−|a|)), eq. 7.
    """
    x = mx.minimum(x, CERTAIN)
    small, large = mx.maximum(x, -math.log(2)), mx.minimum(x, -math.log(2))
    return mx.where(x > -math.log(2), mx.log(-mx.expm1(small)), mx.log1p(-mx.exp(large)))


def sigmoid(policy: Pair, reference: Pair, *, beta: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """Score preference pairs by how far the policy moved from the reference: DPO.

    Args:
        policy: Summed log-probabilities of the responses under the model in training, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        beta: Strength of the pull to the reference, > 0.
        label_smoothing: Share of pairs whose label is thought to be wrong, 0 to 0.5: conservative DPO.

    Returns:
        Loss a pair, ln 2 where policy equals reference, and the implicit rewards.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, A note on DPO with noisy preferences (cDPO).
    """
    ratio = _log_ratio(policy, reference)
    return _rewarded(_logistic(beta * (ratio.chosen - ratio.rejected), label_smoothing), ratio, beta)


def robust(policy: Pair, reference: Pair, *, beta: float, label_smoothing: float) -> PreferenceLoss:
    """Score pairs so that labels flipped at a known rate leave the expected loss as it is: robust DPO.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        beta: Strength of the pull to the reference, > 0.
        label_smoothing: Rate of flipped labels, 0 to below 0.5.

    Returns:
        Loss a pair, ln 2 where policy equals reference, and the implicit rewards. It has no lower bound.

    Source: Chowdhury et al. 2024, arXiv:2403.00409, section 3 (the unbiased loss under flips).
    """
    ratio = _log_ratio(policy, reference)
    scaled = beta * (ratio.chosen - ratio.rejected)
    clean = (1.0 - label_smoothing) * log_sigmoid(scaled)
    flipped = label_smoothing * log_sigmoid(-scaled)
    return _rewarded((flipped - clean) / (1.0 - 2.0 * label_smoothing), ratio, beta)


def hinge(policy: Pair, reference: Pair, *, beta: float) -> PreferenceLoss:
    """Score pairs until their margin is 1, and no further: SLiC's loss on DPO's rewards.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        beta: The reciprocal of the margin, nats, that is enough, > 0.

    Returns:
        Loss a pair, 1 where policy equals reference, and the implicit rewards.

    Source: Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657 (hinge-norm).
    """
    ratio = _log_ratio(policy, reference)
    return _rewarded(mx.maximum(1.0 - beta * (ratio.chosen - ratio.rejected), 0.0), ratio, beta)


def ipo(policy: Pair, reference: Pair, lengths: Pair, *, beta: float) -> PreferenceLoss:
    """Score pairs by how far their margin a token is from 1 / (2 beta).

    Log-ratios are divided by the responses' lengths, which the paper does not say and its authors confirmed to TRL.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        lengths: Tokens of the responses, two arrays [P].
        beta: The paper's tau, > 0.

    Returns:
        Loss a pair, 1 / (4 beta²) where policy equals reference, and the implicit rewards (of the sums, as in DPO).

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    ratio = _log_ratio(policy, reference)
    mean = _per_token(ratio, lengths)
    return _rewarded(mx.square(mean.chosen - mean.rejected - 1.0 / (2.0 * beta)), ratio, beta)


def apo_zero(policy: Pair, reference: Pair, *, beta: float) -> PreferenceLoss:
    """Raise chosen and lower rejected responses, each by itself: for chosen ones better than what the model says.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        beta: Strength of the pull to the reference, > 0.

    Returns:
        Loss a pair, 1 where policy equals reference, and the implicit rewards.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.
    """
    ratio = _log_ratio(policy, reference)
    return _rewarded(mx.sigmoid(-beta * ratio.chosen) + mx.sigmoid(beta * ratio.rejected), ratio, beta)


def apo_down(policy: Pair, reference: Pair, *, beta: float) -> PreferenceLoss:
    """Lower both responses, the rejected one further: for chosen ones worse than what the model says.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        beta: Strength of the pull to the reference, > 0.

    Returns:
        Loss a pair, 1 where policy equals reference, and the implicit rewards.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8.
    """
    ratio = _log_ratio(policy, reference)
    margin = beta * (ratio.chosen - ratio.rejected)
    return _rewarded(mx.sigmoid(beta * ratio.chosen) + mx.sigmoid(-margin), ratio, beta)


def sigmoid_norm(
    policy: Pair, reference: Pair, lengths: Pair, *, beta: float, label_smoothing: float = 0.0
) -> PreferenceLoss:
    """Score pairs as DPO does, by log-ratios a token: length-normalized DPO.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        lengths: Tokens of the responses, two arrays [P].
        beta: Strength of the pull to the reference, > 0; about a response's length times larger than DPO's.
        label_smoothing: Share of pairs whose label is thought to be wrong, 0 to 0.5.

    Returns:
        Loss a pair, ln 2 where policy equals reference, and the implicit rewards (of the sums, as in DPO).

    Source: Lambert et al. 2024, arXiv:2411.15124, section 5 (length-normalized DPO).
    """
    ratio = _log_ratio(policy, reference)
    mean = _per_token(ratio, lengths)
    return _rewarded(_logistic(beta * (mean.chosen - mean.rejected), label_smoothing), ratio, beta)


def simpo(policy: Pair, lengths: Pair, *, beta: float, gamma: float) -> PreferenceLoss:
    """Score pairs by their mean log-probabilities, which must differ by a margin; no reference.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        lengths: Tokens of the responses, two arrays [P].
        beta: Factor of the rewards, > 0.
        gamma: The margin between the rewards, nats.

    Returns:
        Loss a pair and the rewards, beta times the mean log-probabilities.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    mean = _per_token(_precise(policy), lengths)
    return _rewarded(-log_sigmoid(beta * (mean.chosen - mean.rejected) - gamma), mean, beta)


def log_odds_ratio(policy: Pair, lengths: Pair) -> mx.array:
    """Return the log of how much better the odds of chosen than of rejected are [P], odds = p / (1 − p).

    p is a response's geometric mean probability a token.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 4 and 7.
    """
    mean = _per_token(_precise(policy), lengths)
    return (mean.chosen - mean.rejected) - (log1mexp(mean.chosen) - log1mexp(mean.rejected))


def orpo(policy: Pair, lengths: Pair, *, beta: float) -> PreferenceLoss:
    """Score pairs by the ratio of their odds; no reference. The whole loss adds the cross-entropy on chosen.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        lengths: Tokens of the responses, two arrays [P].
        beta: Weight beside the cross-entropy, the paper's lambda.

    Returns:
        Loss a pair, beta ln 2 where both are equally likely, and the rewards, beta times the mean log-probabilities.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """
    loss = -beta * log_sigmoid(log_odds_ratio(policy, lengths))
    return _rewarded(loss, _per_token(_precise(policy), lengths), beta)


def cpo(policy: Pair, *, beta: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """Score pairs as DPO does against a uniform reference. The whole loss adds the cross-entropy on chosen.

    Args:
        policy: Summed log-probabilities of the responses, two arrays [P], nats.
        beta: Factor of the rewards, > 0.
        label_smoothing: Share of pairs whose label is thought to be wrong, 0 to 0.5.

    Returns:
        Loss a pair, ln 2 where both are equally likely, and the rewards, beta times the summed log-probabilities.

    Source: Xu et al. 2024, arXiv:2401.08417, eq. 3.
    """
    policy = _precise(policy)
    return _rewarded(_logistic(beta * (policy.chosen - policy.rejected), label_smoothing), policy, beta)


def mismatched_kl(policy: mx.array, reference: mx.array) -> mx.array:
    """Estimate how far the policy is from the reference, for KTO: the mean log-ratio, at least 0.

    Args:
        policy: Summed log-probabilities of responses that answer another prompt of the batch [N], nats.
        reference: The same for the frozen reference [N].

    Returns:
        A scalar, nats; no gradient flows through it.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
    """
    ratio = at_least_float32(policy) - at_least_float32(reference)
    return mx.stop_gradient(mx.maximum(ratio.mean(), 0.0))


def kto(
    policy: mx.array,
    reference: mx.array,
    is_desirable: mx.array,
    kl: mx.array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """Score single responses, good or bad, by how their log-ratio compares with the batch's divergence.

    Args:
        policy: Summed log-probabilities of the responses [N], nats.
        reference: The same for the frozen reference; no gradient flows into it.
        is_desirable: Whether a response is a good one [N].
        kl: Where a response is worth nothing, ≥ 0, nats (`mismatched_kl`); no gradient flows into it.
        beta: Strength of the pull to the reference, > 0.
        desirable_weight: Factor of the good responses' losses.
        undesirable_weight: Factor of the bad ones'.

    Returns:
        Loss a response, half its weight where policy equals reference, and the implicit rewards.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8.
    """
    ratio = at_least_float32(policy) - mx.stop_gradient(at_least_float32(reference))
    short_of = mx.stop_gradient(kl) - ratio
    loss = mx.where(
        is_desirable,
        desirable_weight * mx.sigmoid(beta * short_of),
        undesirable_weight * mx.sigmoid(-beta * short_of),
    )
    return UnpairedLoss(loss, mx.stop_gradient(beta * ratio))


def _precise(pair: Pair) -> Pair:
    return Pair(*map(at_least_float32, pair))


def _log_ratio(policy: Pair, reference: Pair) -> Pair:
    """Return log π − log π_ref of both responses, two arrays [P], nats."""
    policy, reference = _precise(policy), _precise(reference)
    return Pair(
        policy.chosen - mx.stop_gradient(reference.chosen), policy.rejected - mx.stop_gradient(reference.rejected)
    )


def _per_token(pair: Pair, lengths: Pair) -> Pair:
    return Pair(pair.chosen / lengths.chosen, pair.rejected / lengths.rejected)


def _logistic(margin: mx.array, label_smoothing: float) -> mx.array:
    loss = -(1.0 - label_smoothing) * log_sigmoid(margin)
    return loss - label_smoothing * log_sigmoid(-margin) if label_smoothing else loss


def _rewarded(loss: mx.array, score: Pair, beta: float) -> PreferenceLoss:
    return PreferenceLoss(loss, mx.stop_gradient(beta * score.chosen), mx.stop_gradient(beta * score.rejected))
