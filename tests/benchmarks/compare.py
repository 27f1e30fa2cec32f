"""`make bench`: macft's engine against stock mlx-lm on this machine, as one table.

The rule: both sides get the same model folder, rows, adapters, batch size, precision, BLAS and clock, and take turns
batch by batch; each keeps its own order, padding and loss, since those are what is compared.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from macft.bench.flops import Shape
from macft.machine import home
from macft.models.catalog import resolve
from tests.benchmarks.counters import Counters, count_epoch
from tests.benchmarks.curves import Curves, curves_recipe, measure_curves
from tests.benchmarks.kept import FOLDER, find, keep
from tests.benchmarks.memory import Memory, compare_memory
from tests.benchmarks.rows import find_rows, write_wide_model
from tests.benchmarks.sides import BENCH, install_peer, start_ours, start_peer
from tests.benchmarks.speed import PAIRS, Speed, compare_speed
from tests.benchmarks.table import Machine, result_lines
from tests.benchmarks.worker import Worker

RESULTS = Path(__file__).with_name("RESULTS.md")
DATA = "MACFT_BENCH_DATA"
BATCH_SIZES = (1, 4, 8)
PARTS = ("counters", "speed", "memory", "curves")
NO_DATA = f"""The rows of the comparison are not in this repository: name their folder with --data-dir or {DATA}.
Going on with the addresses that macft comes with; RESULTS.md is left as it is."""


class Bench(NamedTuple):
    """Both sides, and what they are given."""

    ours: Worker
    peer: Worker
    python: Path
    model: Path
    files: dict[str, Path]
    scratch: Path
    ends_at: float

    def tasks(self, arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield what is asked for under the name it is kept by, light things first."""
        chosen = [
            (data, size)
            for size in BATCH_SIZES
            for data in self.files
            if data in (arguments.rows or self.files) and size in arguments.sizes
        ]
        for data, size in chosen if "counters" in arguments.parts else []:
            yield f"counters {data} {size}", partial(self._count, data, size)
        if "memory" in arguments.parts:
            yield "memory", self._memory
        for data, size in chosen if "speed" in arguments.parts else []:
            with_repaired = size > 1 and not arguments.no_repaired
            yield f"speed {data} {size}", partial(self._speed, data, size, arguments.batches, with_repaired)
        if "curves" in arguments.parts:
            yield "curves", self._curves

    def _count(self, data: str, size: int) -> Counters:
        return count_epoch(self.ours, self.peer, data=data, file=self.files[data], batch_size=size)

    def _speed(self, data: str, size: int, batches: int, with_repaired: bool) -> Speed | None:
        return compare_speed(
            self.ours,
            self.peer,
            Shape(*self.ours.facts["shape"]),
            data=data,
            file=self.files[data],
            batch_size=size,
            batches=batches,
            ends_at=self.ends_at,
            with_repaired=with_repaired,
        )

    def _memory(self) -> list[Memory]:
        """Measure peaks: a wide vocabulary, then the model itself, with nothing recomputed and with every layer."""
        wide = write_wide_model(self.scratch / "llama with V = 152k", self.model)
        short, mix = next(iter(self.files)), list(self.files)[-1]
        cases = [
            (wide, short, False, False),
            (self.model, mix, False, False),
            (self.model, mix, False, True),
            (self.model, mix, True, False),
        ]
        return [
            compare_memory(
                self.python, folder, data=data, file=self.files[data], batch_size=4, recompute=recompute, split=split
            )
            for folder, data, recompute, split in cases
        ]

    def _curves(self) -> Curves:
        short = next(iter(self.files.values()))
        return measure_curves(self.model, curves_recipe(self.model, short), short)


def main() -> None:
    """Measure what is asked for, print the page of all that was measured so far, and keep it beside this file."""
    arguments = parse_arguments()
    ends_at = time.monotonic() + arguments.limit * 60
    BENCH.mkdir(exist_ok=True)
    if arguments.data_dir is None:
        print(NO_DATA, file=sys.stderr)
    python, model = install_peer(), resolve(arguments.model, home())
    folder = Path(tempfile.mkdtemp(dir=BENCH)) if arguments.quick or not arguments.data_dir else FOLDER
    left: list[str] = []
    with tempfile.TemporaryDirectory(dir=BENCH) as scratch:
        files = find_rows(arguments.data_dir, Path(scratch))
        with start_ours(model) as ours, start_peer(python, model) as peer:
            machine = Machine.read(ours.facts, peer.facts)
            bench = Bench(ours, peer, python, model, files, Path(scratch), ends_at)
            for name, measure in bench.tasks(arguments):
                if arguments.go_on and find(name, folder) is not None:
                    continue
                found = measure() if time.monotonic() < ends_at else None
                if found is None:
                    left.append(name)
                else:
                    keep(name, found, folder)
    cases = [f"{data} {size}" for size in BATCH_SIZES for data in files]
    counted, speeds = (
        [found for case in cases if (found := find(f"{part} {case}", folder))] for part in ("counters", "speed")
    )
    lines = result_lines(machine, counted, speeds, find("memory", folder) or [], find("curves", folder))
    print("\n".join(lines))
    if folder is FOLDER and len(speeds) == len(cases):
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if left:
        print(
            f"{arguments.limit:g} minutes are over; not measured: {', '.join(left)}.\n"
            "BENCH=--go-on keeps what was measured and goes on; a slow machine may need --limit as well.",
            file=sys.stderr,
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare macft with stock mlx-lm on this machine. What is measured is kept, so it can be done in "
        "pieces; RESULTS.md is written when all cases of speed are there."
    )
    given = os.environ.get(DATA)
    parser.add_argument("--data-dir", type=Path, default=Path(given) if given else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="+", help="only counters and speed of these, as the table names them")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=BATCH_SIZES, help="only counters and speed of these batches"
    )
    parser.add_argument("--batches", type=int, default=PAIRS, help="pairs of batches a case")
    parser.add_argument("--limit", type=float, default=30.0, help="minutes after which nothing more is measured")
    parser.add_argument("--go-on", action="store_true", help="measure only what an earlier run did not come to")
    parser.add_argument("--no-repaired", action="store_true", help="leave mlx-lm with a repaired sort out")
    parser.add_argument(
        "--quick", action="store_true", help="few batches, nothing but counters and speed; RESULTS.md stays"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.limit, arguments.parts = 4, 10.0, ("counters", "speed")
    return arguments


if __name__ == "__main__":
    main()
