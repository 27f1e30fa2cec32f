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

from macft.bench.flops import Shape
from macft.machine import home
from macft.models.catalog import resolve
from tests.benchmarks.counters import count_epoch
from tests.benchmarks.curves import curves_recipe, measure_curves
from tests.benchmarks.kept import FOLDER, find, keep
from tests.benchmarks.memory import Memory, compare_memory
from tests.benchmarks.rows import find_rows, write_wide_model
from tests.benchmarks.sides import BENCH, install_peer, start_ours, start_peer
from tests.benchmarks.speed import PAIRS, compare_speed
from tests.benchmarks.table import Machine, result_lines
from tests.benchmarks.worker import Worker

RESULTS = Path(__file__).with_name("RESULTS.md")
DATA = "MACFT_BENCH_DATA"
BATCH_SIZES = (1, 4, 8)
PARTS = ("counters", "speed", "memory", "curves")
NO_DATA = f"""The rows of the comparison are not in this repository: name their folder with --data-dir or {DATA}.
Going on with the addresses that macft comes with; RESULTS.md is left as it is."""


def main() -> None:
    """Measure what is asked for, print the page of all that was measured so far, and keep it beside this file."""
    arguments = parse_arguments()
    BENCH.mkdir(exist_ok=True)
    if arguments.data_dir is None:
        print(NO_DATA, file=sys.stderr)
    python, model = install_peer(), resolve(arguments.model, home())
    folder = Path(tempfile.mkdtemp(dir=BENCH)) if arguments.quick or not arguments.data_dir else FOLDER
    with tempfile.TemporaryDirectory(dir=BENCH) as scratch:
        files = find_rows(arguments.data_dir, Path(scratch))
        cases = [(data, size) for size in BATCH_SIZES for data in files]
        with start_ours(model) as ours, start_peer(python, model) as peer:
            machine = Machine.read(ours.facts, peer.facts)
            chosen = [case for case in cases if case[0] in (arguments.rows or files) and case[1] in arguments.sizes]
            for data, size in chosen if "counters" in arguments.parts else []:
                counted = count_epoch(ours, peer, data=data, file=files[data], batch_size=size)
                keep(f"counters {data} {size}", counted, folder)
            if "speed" in arguments.parts:
                run_speed(ours, peer, files, chosen, arguments, folder)
        if "memory" in arguments.parts:
            keep("memory", run_memory(python, model, files, Path(scratch)), folder)
        if "curves" in arguments.parts:
            short = next(iter(files.values()))
            keep("curves", measure_curves(model, curves_recipe(model, short), short), folder)
    counted, speeds = (
        [found for data, size in cases if (found := find(f"{part} {data} {size}", folder))]
        for part in ("counters", "speed")
    )
    lines = result_lines(machine, counted, speeds, find("memory", folder) or [], find("curves", folder))
    print("\n".join(lines))
    if folder is FOLDER and len(speeds) == len(cases):
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
    parser.add_argument("--batches", type=int, default=PAIRS, help="most pairs of batches a case")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all speed cases together")
    parser.add_argument("--no-repaired", action="store_true", help="leave mlx-lm with a repaired sort out")
    parser.add_argument(
        "--quick", action="store_true", help="few batches, nothing but counters and speed; RESULTS.md stays"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.minutes, arguments.parts = 4, 1.0, ("counters", "speed")
    return arguments


def run_speed(
    ours: Worker,
    peer: Worker,
    files: dict[str, Path],
    cases: list[tuple[str, int]],
    arguments: argparse.Namespace,
    folder: Path,
) -> None:
    """Run cases, light ones first; what one leaves of its time goes to the others."""
    shape, ends_at = Shape(*ours.facts["shape"]), time.monotonic() + arguments.minutes * 60
    for place, (data, size) in enumerate(cases):
        left = (ends_at - time.monotonic()) * share_of(cases[place:])
        what = {"data": data, "file": files[data], "batch_size": size, "batches": arguments.batches, "seconds": left}
        with_repaired = size > 1 and not arguments.no_repaired
        keep(f"speed {data} {size}", compare_speed(ours, peer, shape, **what, with_repaired=with_repaired), folder)


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
