"""`make bench`: macft's engine against stock mlx-lm on this machine, as one table.

The rule: both sides get the same model folder, rows, adapters, batch size, precision, BLAS and clock, and take turns
batch by batch; each keeps its own order, padding and loss, since those are what is compared.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from macft.bench.clock import Peak
from macft.bench.flops import Shape
from macft.machine import home
from macft.models.catalog import resolve
from tests.benchmarks.memory import Memory, compare_memory
from tests.benchmarks.rows import find_rows, write_wide_model
from tests.benchmarks.sides import BENCH, install_peer, start_ours, start_peer
from tests.benchmarks.speed import Speed, best_peak, compare_speed
from tests.benchmarks.table import Machine, result_lines
from tests.benchmarks.worker import Worker

RESULTS = Path(__file__).with_name("RESULTS.md")
DATA = "MACFT_BENCH_DATA"
BATCH_SIZES = (1, 4, 8)
NO_DATA = f"""The rows of the comparison are not in this repository: name their folder with --data-dir or {DATA}.
Going on with the addresses that macft comes with; RESULTS.md is left as it is."""


def main() -> None:
    """Compare, print the table, and keep it beside this file."""
    arguments = parse_arguments()
    BENCH.mkdir(exist_ok=True)
    if arguments.data_dir is None:
        print(NO_DATA, file=sys.stderr)
    python, model = install_peer(), resolve(arguments.model, home())
    with tempfile.TemporaryDirectory(dir=BENCH) as scratch:
        files = find_rows(arguments.data_dir, Path(scratch))
        with start_ours(model) as ours, start_peer(python, model) as peer:
            machine = Machine.read(ours.facts, peer.facts)
            speeds, peak = run_speed(ours, peer, files, arguments)
        memories = [] if arguments.no_memory else run_memory(python, model, files, Path(scratch))
    lines = result_lines(machine, speeds, peak, memories)
    print("\n".join(lines))
    if arguments.data_dir and not arguments.quick and set(arguments.batch_sizes) == set(BATCH_SIZES):
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare macft with stock mlx-lm on this machine.")
    given = os.environ.get(DATA)
    parser.add_argument("--data-dir", type=Path, default=Path(given) if given else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batches", type=int, default=30, help="most batches a case and side")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all speed cases together")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, help="RESULTS.md wants them all")
    parser.add_argument("--quick", action="store_true", help="few batches, no memory; RESULTS.md stays")
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.minutes, arguments.no_memory = 4, 1.0, True
    return arguments


def run_speed(
    ours: Worker, peer: Worker, files: dict[str, Path], arguments: argparse.Namespace
) -> tuple[list[Speed], Peak]:
    """Run all cases, light ones first; what one leaves of its time goes to the others."""
    cases = [(data, size) for size in arguments.batch_sizes for data in files]
    shape, ends_at = Shape(*ours.facts["shape"]), time.monotonic() + arguments.minutes * 60
    peak, speeds = best_peak(ours, Peak()), []
    for place, (data, size) in enumerate(cases):
        left = (ends_at - time.monotonic()) * share_of(cases[place:])
        what = {"data": data, "file": files[data], "batch_size": size, "batches": arguments.batches, "seconds": left}
        speeds.append(compare_speed(ours, peer, shape, **what))
        peak = best_peak(ours, peak)
    return speeds, peak


def share_of(cases: list[tuple[str, int]]) -> float:
    """Return the first case's share of the time: larger batches take longer, and need not be as many."""
    weights = [math.sqrt(size) for _, size in cases]
    return weights[0] / sum(weights)


def run_memory(python: Path, model: Path, files: dict[str, Path], scratch: Path) -> list[Memory]:
    """Measure peaks: a wide vocabulary, then the model itself, with nothing recomputed and with every layer."""
    wide = write_wide_model(scratch / "llama with V = 152k", model)
    short, mix = next(iter(files)), list(files)[-1]
    cases = [
        (wide, short, False, False),
        (model, mix, False, False),
        (model, mix, False, True),
        (model, mix, True, False),
    ]
    return [
        compare_memory(python, folder, data=data, file=files[data], batch_size=4, recompute=recompute, split=split)
        for folder, data, recompute, split in cases
    ]


if __name__ == "__main__":
    main()
