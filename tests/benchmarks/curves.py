"""How the cost of a token grows with the sequence, and the cost of a row with the set.

The rule: lengths take turns, so that a busy moment hits all of them; a curve is told beside what the FLOPs allow it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from macft.bench.clock import Cost, Peak, measure_peak, timed
from macft.bench.engine import Engine, plan_rows, read_rows
from macft.data.batches import Ints, MicroBatch, make_batch
from macft.recipe import Recipe, make_recipe

LENGTHS = (256, 512, 1024, 2048, 4096)
ROUNDS = (3, 2, 1, 1, 1)
"""Updates timed of each length; a long one says as much as several short ones."""
SUPERVISED = 0.4
ROWS = (1_000, 10_000, 100_000)


class Point(NamedTuple):
    """One size on a curve: work is operations, or rows."""

    size: int
    work: float
    cpu_seconds: float
    seconds: float


class Curves(NamedTuple):
    """What was measured.

    Attributes:
        sequences: One row a length; an update each, the median.
        sets: One set a number of rows, from a file to an epoch's batches.
        new_shapes: CPU seconds of the first update of a shape, and of the second, both summed over shapes.
        peak: The fastest product.
    """

    sequences: list[Point]
    sets: list[Point]
    new_shapes: list[float]
    peak: Peak


class DrawnRows:
    """One row of random tokens for each length, its end supervised."""

    def __init__(self, lengths: Sequence[int], vocabulary: int) -> None:
        generator = np.random.default_rng(0)
        self.lengths = np.array(lengths)
        self.ids = [generator.integers(0, vocabulary, length) for length in lengths]

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> tuple[Ints, np.ndarray]:
        """Return the ids and the loss mask of a row."""
        length = len(self.ids[index])
        return self.ids[index], np.arange(length) >= round(length * (1 - SUPERVISED))

    def batch(self, indices: Ints) -> MicroBatch:
        """Lay rows out."""
        return make_batch(self, indices)


def measure_curves(model: Path, recipe: Recipe, file: Path) -> Curves:
    """Measure all three on one model.

    Args:
        model: Its folder.
        recipe: What is trained.
        file: Rows, repeated under new numbers for the larger sets.
    """
    peak = measure_peak_now()
    engine = Engine(recipe, model, longest=max(LENGTHS))
    sequences = _sequences(engine)
    new_shapes = _new_shapes(engine)
    peak = peak.or_better(measure_peak_now())
    return Curves(sequences, [_set(model, recipe, file, count) for count in ROWS], new_shapes, peak)


def measure_peak_now() -> Peak:
    """Measure the fastest product in float32."""
    import mlx.core as mx

    return measure_peak(mx.float32)


def _sequences(engine: Engine) -> list[Point]:
    rows, took = DrawnRows(LENGTHS, engine.facts.vocab_size), [list[Cost]() for _ in LENGTHS]
    engine.update(rows, np.array([0]))
    for number in range(max(ROUNDS)):
        for place, rounds in enumerate(ROUNDS):
            if number < rounds:
                took[place].append(engine.update(rows, np.array([place])))
                print(f"{LENGTHS[place]} tokens: {took[place][-1].cpu_seconds:.1f} CPU s", file=sys.stderr)
    middle = [np.median(np.array(costs), axis=0) for costs in took]
    return [
        Point(length, engine.work(rows, np.array([place])), float(cost[1]), float(cost[0]))
        for place, (length, cost) in enumerate(zip(LENGTHS, middle, strict=True))
    ]


def _new_shapes(engine: Engine) -> list[float]:
    lengths = range(61, 85, 2)
    rows, sums = DrawnRows(lengths, engine.facts.vocab_size), np.zeros(2)
    for place in range(len(lengths)):
        sums += [engine.update(rows, np.array([place])).cpu_seconds for _ in range(2)]
    return sums.tolist()


def _set(model: Path, recipe: Recipe, file: Path, count: int) -> Point:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as written:
            for number in range(count):
                first, *others = lines[number % len(lines)]["messages"]
                numbered = {**first, "content": f"{number}. {first['content']}"}
                written.write(json.dumps({"messages": [numbered, *others]}) + "\n")
        data = recipe.data.model_copy(update={"train": [str(path)]})
        started = time.perf_counter()
        found: list[int] = []

        def prepare() -> None:
            rows = read_rows(recipe.model_copy(update={"data": data}), model)
            found.append(len(rows))
            plan_rows(rows, batch_size=8, seed=0)

        cost = timed(prepare)
    print(f"{count} rows: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return Point(found[0], float(found[0]), cost.cpu_seconds, cost.seconds)


def curves_recipe(model: Path, file: Path) -> Recipe:
    """Return the recipe whose cost is measured: that of the comparison, for longer rows."""
    values = {"model": str(model), "max_seq_length": max(LENGTHS), "compute_dtype": "float32", "recompute": "none"}
    return make_recipe({**values, "data": {"train": [str(file)], "valid_fraction": 0.0}})
