"""Real tokens a second, both sides alternating batch by batch."""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from macft.bench.clock import Peak
from macft.bench.flops import Shape, padded_flops
from macft.bench.sample import Epoch, Estimate, Timed, compare_rates, spread, tokens_per_second
from tests.benchmarks.worker import Worker

FEWEST = 3
"""Batches of a case, whatever the time."""
REPAIRED_EVERY = 3
"""Rounds between two looks at mlx-lm with its sort repaired."""
THEIR_SHAPES = 6
"""Different shapes that mlx-lm is timed on, in turns: a shape compiles when it first comes, and is not timed then."""


class Side:
    """One side's epoch and what was timed of it."""

    def __init__(self, worker: Worker, name: str, work: list[int], tokens: list[int]) -> None:
        self.worker, self.name, self.work = worker, name, work
        self.epoch = Epoch(sum(tokens), sum(work))
        self.warm: set[int] = set()
        self.padded = 0.0
        self.seconds: list[Timed] = []
        self.cpu_seconds: list[Timed] = []

    @property
    def flops_a_token(self) -> float:
        """Operations that this side spends on one real token."""
        return self.epoch.work / self.epoch.tokens

    def step(self, batch: int, *, compiles: bool = False) -> None:
        """Time one batch; where a step is compiled for its shape, after it was made once."""
        if compiles and self.work[batch] not in self.warm:
            self.warm.add(self.work[batch])
            self.worker.step(self.name, batch)
        took = self.worker.step(self.name, batch)
        self.seconds.append(Timed(self.work[batch], took["seconds"]))
        self.cpu_seconds.append(Timed(self.work[batch], took["cpu_seconds"]))


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
    padded: float
    """Share of mlx-lm's tokens that are padding."""


def compare_speed(
    ours: Worker, peer: Worker, shape: Shape, *, data: str, file: Path, batch_size: int, batches: int, seconds: float
) -> Speed:
    """Time batches of both sides' own epochs, from the lightest to the heaviest.

    Args:
        ours: macft.
        peer: mlx-lm.
        shape: Of the model.
        data: What the rows are called.
        file: The rows.
        batch_size: Rows an update.
        batches: Most that are timed of each side.
        seconds: After so many no further round begins.
    """
    sides = [_our_side(ours, data, file, batch_size), _their_side(peer, shape, data, file, batch_size, sort=False)]
    repaired = _their_side(peer, shape, data, file, batch_size, sort=True) if batch_size > 1 else None
    our_batches, their_batches = spread(sides[0].work, batches), spread(sides[1].work, THEIR_SHAPES)
    repaired_batches = spread(repaired.work, THEIR_SHAPES // 2) if repaired else []
    lightest = min(range(len(sides[0].work)), key=sides[0].work.__getitem__)
    ours.step(sides[0].name, lightest)
    with_repaired: list[int] = []
    started = time.monotonic()
    for done, batch in enumerate(our_batches):
        if done >= FEWEST and time.monotonic() - started > seconds:
            break
        sides[0].step(batch)
        sides[1].step(their_batches[done % len(their_batches)], compiles=True)
        if repaired and done % REPAIRED_EVERY == 0:
            repaired.step(repaired_batches[done // REPAIRED_EVERY % len(repaired_batches)], compiles=True)
            with_repaired.append(done)
        print(f"\r{data} batch {batch_size}: {done + 1} of {len(our_batches)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return _speed(data, batch_size, sides, repaired, with_repaired)


def _speed(data: str, batch_size: int, sides: list[Side], repaired: Side | None, rounds: list[int]) -> Speed:
    our, their = sides
    epochs = our.epoch, their.epoch
    work, cpu_seconds = map(sum, zip(*our.cpu_seconds, strict=True))
    against = None
    if repaired:
        same_rounds = [our.cpu_seconds[place] for place in rounds]
        against = compare_rates(same_rounds, repaired.cpu_seconds, (our.epoch, repaired.epoch), seed=0)
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
        repaired=against,
        useful_per_cpu_second=work / cpu_seconds,
        padded=their.padded,
    )


def _our_side(worker: Worker, data: str, file: Path, batch_size: int) -> Side:
    name = f"{data} {batch_size}"
    plan = worker.plan(name, file=str(file), batch_size=batch_size)
    return Side(worker, name, plan["work"], plan["tokens"])


def _their_side(worker: Worker, shape: Shape, data: str, file: Path, batch_size: int, *, sort: bool) -> Side:
    name = f"{data} {batch_size} {'sorted' if sort else 'as shipped'}"
    plan = worker.plan(name, file=str(file), batch_size=batch_size, sort=sort)
    # The model sees one column less than a batch has: the last is only a target.
    work = [padded_flops(shape, rows=rows, length=columns - 1) for rows, columns in plan["shapes"]]
    side = Side(worker, name, work, plan["tokens"])
    side.padded = 1.0 - sum(plan["tokens"]) / sum(rows * columns for rows, columns in plan["shapes"])
    return side


def best_peak(worker: Worker, so_far: Peak) -> Peak:
    """Measure the fastest product once more."""
    answer: dict[str, Any] = worker.peak()
    return so_far.or_better(Peak(**answer))
