"""Real tokens a second, both sides alternating batch by batch.

The rule: a pair is made of both sides' batches at the same quantile of their own epochs, so the same share of light and
heavy batches is timed on both.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macft.bench.clock import Cost, Peak
from macft.bench.flops import Shape, padded_flops
from macft.bench.sample import Epoch, Estimate, Timed, compare_rates, spread, tokens_per_second
from tests.benchmarks.worker import Worker

PAIRS = 8
"""Pairs of batches of a case; with fewer no ratio is shown, since its interval would mean nothing."""
WARM_BELOW = 8.0
"""CPU seconds of a step below which it is made once before it is timed, where it is compiled for its shape; of a longer
one the median of what compiling took is taken off instead."""


class Side:
    """One side's epoch and what was timed of it."""

    def __init__(self, worker: Worker, name: str, work: list[int], tokens: list[int]) -> None:
        self.worker, self.name, self.work = worker, name, work
        self.epoch = Epoch(sum(tokens), sum(work))
        self.seconds: list[Timed] = []
        self.cpu_seconds: list[Timed] = []
        self._warm: set[int] = set()
        self._compiling: list[Cost] = []

    @property
    def flops_a_token(self) -> float:
        """Operations that this side spends on one real token."""
        return self.epoch.work / self.epoch.tokens

    def step(self, batch: int, *, compiles: bool = False) -> None:
        """Time one batch; where a step is compiled for its shape, without what that takes."""
        took = self._step(batch)
        if compiles and self.work[batch] not in self._warm:
            self._warm.add(self.work[batch])
            if took.cpu_seconds < WARM_BELOW or not self._compiling:
                first, took = took, self._step(batch)
                self._compiling.append(Cost(*np.subtract(first, took)))
            else:
                took = Cost(*np.subtract(took, np.median(self._compiling, axis=0)))
        self.seconds.append(Timed(self.work[batch], took.seconds))
        self.cpu_seconds.append(Timed(self.work[batch], took.cpu_seconds))

    def warm_up(self, *, compiles: bool = False) -> None:
        """Make the lightest batch's update; where steps are compiled, see with another one what that takes."""
        _, places = np.unique(self.work, return_index=True)
        self._step(int(places[0]))
        if compiles:
            first, second = (self._step(int(places[1])) for _ in range(2))
            self._compiling.append(Cost(*np.subtract(first, second)))

    def _step(self, batch: int) -> Cost:
        took = self.worker.step(self.name, batch)
        return Cost(took["seconds"], took["cpu_seconds"])


class Speed(NamedTuple):
    """What one case showed; rates in real tokens a second."""

    data: str
    batch_size: int
    batches: int
    all_batches: int
    rate: float
    their_rate: float
    ratio: Estimate
    cpu_ratio: Estimate
    flops_allow: float
    repaired: Estimate | None
    """In CPU seconds, against mlx-lm with its length sort repaired."""
    useful_per_cpu_second: float
    peak: Peak
    """The fastest product, measured before and after the batches."""


def compare_speed(
    ours: Worker,
    peer: Worker,
    shape: Shape,
    *,
    data: str,
    file: Path,
    batch_size: int,
    batches: int,
    ends_at: float,
    with_repaired: bool,
) -> Speed | None:
    """Time batches of both sides' own epochs, from the lightest to the heaviest.

    Args:
        ours: macft.
        peer: mlx-lm.
        shape: Of the model.
        data: What the rows are called.
        file: The rows.
        batch_size: Rows an update.
        batches: How many are timed of each side.
        ends_at: On the monotonic clock; then no further pair begins.
        with_repaired: Time mlx-lm with its length sort repaired as well.

    Returns:
        None when time was over before the fewest pairs that say something.
    """
    our = _our_side(ours, data, file, batch_size)
    their = _their_side(peer, shape, data, file, batch_size, sort=False)
    repaired = [_their_side(peer, shape, data, file, batch_size, sort=True)] if with_repaired else []
    sides = [our, their, *repaired]
    peak = best_peak(ours, Peak())
    for side in sides:
        side.warm_up(compiles=side is not our)
    places = list(zip(*(spread(side.work, batches) for side in sides), strict=True))
    for done, same_quantile in enumerate(places):
        if time.monotonic() > ends_at:
            if done < PAIRS:
                return None
            break
        for side, batch in zip(sides, same_quantile, strict=True):
            side.step(batch, compiles=side is not our)
        print(f"\r{data} batch {batch_size}: {done + 1} of {len(places)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    peak, epochs = best_peak(ours, peak), (our.epoch, their.epoch)
    work, cpu_seconds = map(sum, zip(*our.cpu_seconds, strict=True))
    return Speed(
        data=data,
        batch_size=batch_size,
        batches=len(our.seconds),
        all_batches=len(our.work),
        rate=tokens_per_second(our.seconds, our.epoch),
        their_rate=tokens_per_second(their.seconds, their.epoch),
        ratio=compare_rates(our.seconds, their.seconds, epochs, seed=0),
        cpu_ratio=compare_rates(our.cpu_seconds, their.cpu_seconds, epochs, seed=0),
        flops_allow=their.flops_a_token / our.flops_a_token,
        repaired=_against(our, repaired[0]) if repaired else None,
        useful_per_cpu_second=work / cpu_seconds,
        peak=peak,
    )


def _against(our: Side, other: Side) -> Estimate:
    return compare_rates(our.cpu_seconds, other.cpu_seconds, (our.epoch, other.epoch), seed=0)


def _our_side(worker: Worker, data: str, file: Path, batch_size: int) -> Side:
    name = f"{data} {batch_size}"
    plan = worker.plan(name, file=str(file), batch_size=batch_size)
    return Side(worker, name, plan["work"], plan["tokens"])


def _their_side(worker: Worker, shape: Shape, data: str, file: Path, batch_size: int, *, sort: bool) -> Side:
    name = f"{data} {batch_size} {'sorted' if sort else 'as shipped'}"
    plan = worker.plan(name, file=str(file), batch_size=batch_size, sort=sort)
    # The model sees one column less than a batch has: the last is only a target.
    work = [padded_flops(shape, rows=rows, length=columns - 1) for rows, columns in plan["shapes"]]
    return Side(worker, name, work, plan["tokens"])


def best_peak(worker: Worker, so_far: Peak) -> Peak:
    """Measure the fastest product once more."""
    answer: dict[str, Any] = worker.peak()
    return so_far.or_better(Peak(**answer))
