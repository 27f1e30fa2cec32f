"""How far a figure can be trusted: intervals by bootstrap, and a paired test between two models.

The rule: rows are drawn, never tokens or words, since what stands in one row hangs together. A fixed seed makes the
same rows give the same interval.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES, LEVEL = 2_000, 0.95
_CHUNK = 2**22

Floats = npt.NDArray[np.float64]


class Figure(NamedTuple):
    """A figure of a set of rows.

    Attributes:
        counts: What each row adds [N, K].
        of_sums: Makes figures [...] of sums over rows [..., K].
    """

    counts: Floats
    of_sums: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The figure of all rows."""
        return float(self.of_sums(self.counts.sum(axis=0)))


class Interval(NamedTuple):
    """Where the figure would lie for other rows of the same kind, 19 times of 20."""

    low: float
    high: float


def ratio(top: npt.ArrayLike, bottom: npt.ArrayLike) -> Figure:
    """Return a sum over rows divided by another: a loss a token, a micro-averaged F1; NaN where there is nothing."""
    return Figure(np.stack([np.asarray(top, np.float64), np.asarray(bottom, np.float64)], axis=1), _divide)


def mean(values: npt.ArrayLike) -> Figure:
    """Return the mean over rows."""
    return ratio(values, np.ones(np.shape(values)))


def find_interval(figure: Figure, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Draw rows with replacement, as many as there are, and return the middle 95% of what the figure becomes.

    Source: Efron & Tibshirani 1993, An introduction to the bootstrap, ch. 13 (percentile intervals).
    """
    rng, count = np.random.default_rng(seed), len(figure.counts)
    found = [
        figure.of_sums(rng.multinomial(count, np.full(count, 1 / count), size=size) @ figure.counts)
        for size in _chunks(resamples, count)
    ]
    low, high = np.nanquantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def compare_paired(before: Figure, after: Figure, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return how likely a difference as large is when a coin says, row by row, which model gave which answer.

    Two-sided; 1 when nothing differs, and never below 1 / (resamples + 1).

    Source: Riezler & Maxwell 2005, On some pitfalls in automatic evaluation, sec. 3 (approximate randomization).
    """
    rng, change = np.random.default_rng(seed), after.counts - before.counts
    one, other = before.counts.sum(axis=0), after.counts.sum(axis=0)
    observed = abs(after.value - before.value)
    beyond = 0
    for size in _chunks(resamples, len(change)):
        moved = (rng.random((size, len(change))) < 0.5).astype(np.float64) @ change
        difference = after.of_sums(other - moved) - before.of_sums(one + moved)
        beyond += int((np.abs(difference) >= observed * (1 - 1e-9)).sum())
    return (beyond + 1) / (resamples + 1)


def _divide(sums: Floats) -> Floats:
    top, bottom = sums[..., 0], sums[..., 1]
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
    return quotient


def _chunks(resamples: int, count: int) -> Iterator[int]:
    """Cut the resamples so that an array of them holds a bounded number of rows."""
    size = max(1, min(resamples, _CHUNK // max(1, count)))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
