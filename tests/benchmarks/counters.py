"""What an epoch consists of on both sides, counted and not timed: the same on every machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from macft.bench.report import padded_share
from macft.data.batches import Batch
from tests.benchmarks.worker import Worker

MOST_COMPILATIONS = 12


class Counters(NamedTuple):
    """An epoch of macft's, and how much of mlx-lm's is padding.

    Attributes:
        data: What the rows are called.
        updates: Optimizer updates.
        passes: Micro-batches, each one forward and backward pass.
        padded_on_stream: Share of the flat stream's tokens that are fillers.
        padded_in_rows: Share that is padding where a family takes padded rows.
        shapes: Different shapes of micro-batches: `compile = true` compiles once for each, the default never.
        least_padding: Smallest share of padding that lets all micro-batches be one of 12 lengths.
    """

    data: str
    batch_size: int
    updates: int
    passes: int
    padded_on_stream: float
    padded_in_rows: float
    shapes: int
    least_padding: float
    theirs_padded: float


def count_epoch(ours: Worker, peer: Worker, *, data: str, file: Path, batch_size: int) -> Counters:
    """Have both sides lay out an epoch, and count."""
    what = {"file": str(file), "batch_size": batch_size}
    counted, theirs = ours.plan("count", **what)["counters"], peer.plan("count", **what)
    laid = sum(rows * columns for rows, columns in theirs["shapes"])
    return Counters(data, batch_size, **counted, theirs_padded=1.0 - sum(theirs["tokens"]) / laid)


def count(updates: int, batches: list[Batch]) -> dict[str, float]:
    """Count an epoch's micro-batches, as `Counters` names it."""
    return {
        "updates": updates,
        "passes": len(batches),
        "padded_on_stream": padded_share(batches, on_stream=True),
        "padded_in_rows": padded_share(batches, on_stream=False),
        "shapes": len({tuple(part.shape for part in batch) for batch in batches}),
        "least_padding": least_padding([batch.tokens.size for batch in batches], MOST_COMPILATIONS),
    }


def least_padding(sizes: Sequence[int], lengths: int) -> float:
    """Return the smallest share of padding when every size is filled up to one of so many lengths.

    Exact, by dynamic programming: the best lengths are sizes that occur, and the largest is one of them. Sizes 2, 3 and
    10 with two lengths become 3, 3 and 10: one of 16 is padding, 0.0625.
    """
    values, counts = np.unique(sizes, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    laid = np.full(len(values) + 1, np.inf)
    laid[0] = 0.0
    for _ in range(lengths):
        laid = np.minimum(laid, [0.0, *(_cheapest(laid, before, values, end) for end in range(1, len(laid)))])
    return float(1.0 - (values * counts).sum() / laid[-1])


def _cheapest(laid: np.ndarray, before: np.ndarray, values: np.ndarray, end: int) -> float:
    """Return the tokens laid for the smallest `end` sizes when the last of them is a length."""
    return float((laid[:end] + values[end - 1] * (before[end] - before[:end])).min())
