"""Which batches of an epoch to time, and what their times say about the whole.

The rule: what can be counted is not sampled. Every batch's work is known exactly; only seconds for that work are
measured, and carried over to the epoch in proportion to its work.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
"""Draws of a bootstrap interval."""


class Estimate(NamedTuple):
    """A measured value and its 95% interval."""

    value: float
    low: float
    high: float


class Timed(NamedTuple):
    """Seconds that one batch took, and the work in it, in any unit that all batches share."""

    work: float
    seconds: float


class Epoch(NamedTuple):
    """What is known of an epoch without timing it: its real tokens, and the work of all its batches."""

    tokens: int
    work: float


def spread(work: Sequence[float], count: int) -> list[int]:
    """Return the indices of batches that stand for all, from the lightest to the heaviest.

    They lie at evenly spaced quantiles of the work, in an order that is spread evenly wherever it is cut off.
    """
    order = np.argsort(work, kind="stable")
    count = min(count, len(order))
    places = [int((place + 0.5) / count * len(order)) for place in range(count)]
    return [int(order[places[place]]) for place in sorted(range(count), key=lambda place: _reversed_bits(place + 1))]


def tokens_per_second(timed: Sequence[Timed], epoch: Epoch) -> float:
    """Return the real tokens a second of a whole epoch."""
    work, seconds = np.sum(np.array(timed), axis=0)
    return float(epoch.tokens / epoch.work * work / seconds)


def compare_rates(
    ours: Sequence[Timed], theirs: Sequence[Timed], epochs: tuple[Epoch, Epoch], *, seed: int
) -> Estimate:
    """Return how many times more tokens a second the first side makes.

    Args:
        ours: Timed batches of the first side.
        theirs: Those of the second, each timed right after the first side's at the same place.
        epochs: Of both sides.
        seed: Fixes the draws; pairs are drawn together, since a loaded machine slows both of a pair.
    """
    if len(ours) != len(theirs):
        raise ValueError("every batch of one side needs its partner")
    value = tokens_per_second(ours, epochs[0]) / tokens_per_second(theirs, epochs[1])
    pairs = np.array([[*first, *second] for first, second in zip(ours, theirs, strict=True)])
    draws = _draws(len(pairs), seed)
    work, seconds, their_work, their_seconds = pairs[draws].sum(axis=1).T
    tokens = (epochs[0].tokens / epochs[0].work) / (epochs[1].tokens / epochs[1].work)
    return Estimate(value, *_middle(tokens * work / seconds / (their_work / their_seconds)))


def median(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Return the median of values and its interval."""
    array = np.array(values, np.float64)
    return Estimate(float(np.median(array)), *_middle(np.median(array[_draws(len(array), seed)], axis=1)))


def _draws(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _middle(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _reversed_bits(number: int) -> float:
    """Return van der Corput's radical inverse, which goes 1/2, 1/4, 3/4, 1/8 and so on."""
    inverse, digit = 0.0, 0.5
    while number:
        inverse, number, digit = inverse + digit * (number & 1), number >> 1, digit / 2
    return inverse
