"""`make bench-dpo`: macft's DPO against other libraries' on this machine, as one table.

The rule: all sides get the same model folder, token ids, adapters, batch size, precision, BLAS and clock, and take
turns batch by batch; each keeps its own order, padding, reference and loss, since those are what is compared.

What was measured is kept below `.bench`, a file a case and library, and the page is written of all that is kept: a run
may be stopped, or be one of several that each take a part.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from macft.bench.clock import Cost
from macft.bench.flops import Shape, useful_flops
from macft.bench.sample import Timed, compare_rates, spread
from macft.machine import home
from macft.models.catalog import resolve
from tests.benchmarks.compare import DATA
from tests.benchmarks.kept import find, keep
from tests.benchmarks.memory import UNSPLIT
from tests.benchmarks.preference_page import (
    OURS,
    SPEED_DEMANDS,
    Against,
    Peaks,
    result_lines,
    speed_lines,
)
from tests.benchmarks.preference_rows import read_ids, write_pairs
from tests.benchmarks.rows import write_wide_model
from tests.benchmarks.sides import BENCH, install_peer, start_ours, start_peer
from tests.benchmarks.speed import PAIRS, Side
from tests.benchmarks.table import Machine
from tests.benchmarks.worker import Worker

RESULTS = Path(__file__).with_name("RESULTS-DPO.md")
PEERS = {"mlx-lm-lora": "5.10.2", "troy-cli": "0.5.0", "mlx-tune": "0.6.0"}
"""Distributions and the versions that the demands were made for."""
BATCH_SIZES = (1, 4)
BETA = 0.1
KEPT = BENCH / "preferences"
IN_ONE_PASS = "macft, in one pass"


@dataclass(frozen=True)
class Bench:
    """What is compared, and for how long."""

    model: Path
    files: dict[str, Path]
    pythons: dict[str, Path]
    batches: int
    seconds: float


def main() -> None:
    """Compare, print the tables, and write the page beside this file."""
    arguments = parse_arguments()
    if arguments.data_dir is None:
        sys.exit(
            f"The pairs are made of rows that are not in this repository: name their folder with --data-dir or {DATA}."
        )
    BENCH.mkdir(exist_ok=True)
    pythons = {name: install_peer(name, f"{name}=={PEERS[name]}") for name in arguments.peers}
    model = resolve(arguments.model, home())
    with tempfile.TemporaryDirectory(dir=BENCH) as scratch:
        files = write_pairs(arguments.data_dir, model, Path(scratch))
        cases = [(data, size) for size in arguments.batch_sizes for data in arguments.pairs]
        bench = Bench(model, files, pythons, arguments.batches, arguments.minutes * 60 / max(1, len(cases)))
        for data, size in cases:
            found, machine = compare_case(bench, data, size)
            print("\n".join(speed_lines(found)))
            if not arguments.quick:
                keep("machine", asdict(machine), KEPT)
                for one in found:
                    keep(case_name(*one[:3]), one, KEPT)
        if not arguments.no_memory:
            for peaks in compare_memory(bench, write_wide_model(Path(scratch) / "wide", model)):
                keep(memory_name(peaks.side), peaks, KEPT)
    if not arguments.quick:
        RESULTS.write_text("\n".join(kept_lines()) + "\n", encoding="utf-8")


def case_name(data: str, batch_size: int, peer: str) -> str:
    """Return what a case is kept under."""
    return f"{data}, {batch_size}, {peer}"


def memory_name(side: str) -> str:
    """Return what a side's memory is kept under."""
    return f"memory of {side}"


def kept_lines() -> list[str]:
    """Return the page of all that is kept."""
    cases = [case_name(data, size, peer) for size in BATCH_SIZES for data in SPEED_DEMANDS for peer in PEERS]
    sides = [memory_name(side) for side in (IN_ONE_PASS, OURS, *PEERS)]
    kept = {name: value for name in (*cases, *sides) if (value := find(name, KEPT))}
    found, peaks = ([kept[name] for name in names if name in kept] for names in (cases, sides))
    missing = [name for name in (*cases, *sides) if name not in kept]
    return result_lines(Machine(**find("machine", KEPT)), found, peaks, missing)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare macft's DPO with other libraries' on this machine.")
    given = os.environ.get(DATA)
    parser.add_argument("--data-dir", type=Path, default=Path(given) if given else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batches", type=int, default=16, help="most batches a case and side")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all speed cases together")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument(
        "--pairs", nargs="*", choices=SPEED_DEMANDS, default=list(SPEED_DEMANDS), help="none: only memory"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="few batches, no memory; nothing is kept")
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.minutes, arguments.no_memory = 2, 1.0, True
    return arguments


def compare_case(bench: Bench, data: str, batch_size: int) -> tuple[list[Against], Machine]:
    """Time batches of all sides' own epochs in turns, from the lightest to the heaviest."""
    name, file = f"{data} {batch_size}", bench.files[data]
    options = {"batch_size": batch_size, "beta": BETA}
    with ExitStack() as stack:
        ours = stack.enter_context(start_ours(bench.model, module="preference_ours", **options))
        shape = Shape(*ours.facts["shape"])
        side = PairSide(ours, name, file, batch_size)
        theirs: dict[str, PairSide] = {}
        for peer, python in bench.pythons.items():
            more = {"script": "preference_peer.py", "peer": peer, **options}
            worker = stack.enter_context(start_peer(python, bench.model, **more))
            theirs[peer] = PairSide(worker, name, file, batch_size, shape)
        references = take_turns(bench, side, theirs, name)
        versions = {key: value for worker in theirs.values() for key, value in worker.worker.facts.items()}
        machine = Machine.read(ours.facts, versions)
    found = [against(data, batch_size, peer, side, other, references) for peer, other in theirs.items()]
    return found, replace(machine, versions={**machine.versions, **PEERS})


class PairSide(Side):
    """One side's epoch of pairs; its work is what its passes multiply, padding and all.

    Args:
        worker: The side.
        name: Of its plan.
        file: The pairs.
        batch_size: Pairs a step.
        shape: Of the model, where the side tells its passes and not their work.
    """

    def __init__(self, worker: Worker, name: str, file: Path, batch_size: int, shape: Shape | None = None) -> None:
        plan = worker.plan(name, file=str(file), batch_size=batch_size)
        work = plan["work"] if shape is None else [flops_of(passes, shape) for passes in plan["passes"]]
        super().__init__(worker, name, work, tokens_of(plan["rows"], file))
        self.compiles = plan.get("compiles", False)
        self.reference_flops_a_token = plan.get("reference", 0) / self.epoch.tokens
        self.reference_seconds = 0.0
        """Of the last step's pairs, where the side asks the reference before training."""

    def _step(self, batch: int) -> Cost:
        took = self.worker.step(self.name, batch)
        self.reference_seconds = took.get("reference", {}).get("seconds", 0.0)
        return Cost(took["seconds"], took["cpu_seconds"])


def flops_of(passes: Sequence[dict[str, Any]], shape: Shape) -> int:
    """Return the operations of a step that runs these passes."""
    return sum(useful_flops(shape, **each) for each in passes)


def tokens_of(batches: Sequence[Sequence[int]], file: Path) -> list[int]:
    """Return the tokens of each batch, a prompt counted once: the unit that all sides share."""
    lengths = read_ids(file).lengths
    return [int(lengths[list(indices)].sum()) for indices in batches]


def take_turns(bench: Bench, ours: PairSide, theirs: dict[str, PairSide], name: str) -> list[float]:
    """Step all sides in turns until the time is up; returns the seconds of our reference pass on each batch."""
    sides = (ours, *theirs.values())
    for side in sides:
        side.warm_up(compiles=side.compiles)
    places = list(zip(*(spread(side.work, bench.batches) for side in sides), strict=True))
    references, started = [], time.monotonic()
    for done, same_quantile in enumerate(places):
        if done >= PAIRS and time.monotonic() - started > bench.seconds:
            break
        for side, batch in zip(sides, same_quantile, strict=True):
            side.step(batch, compiles=side.compiles)
        references.append(ours.reference_seconds)
        print(f"\r{name}: {done + 1} of {len(places)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return references


def against(
    data: str, batch_size: int, peer: str, ours: PairSide, theirs: PairSide, references: Sequence[float]
) -> Against:
    """Compare what was timed of macft with what was timed of one library."""
    epochs = ours.epoch, theirs.epoch
    with_reference = [
        Timed(step.work, step.seconds + seconds) for step, seconds in zip(ours.seconds, references, strict=True)
    ]
    epoch = with_reference if peer != "mlx-tune" else ours.seconds  # mlx-tune makes such a pass itself
    return Against(
        data=data,
        batch_size=batch_size,
        peer=peer,
        batches=len(ours.seconds),
        flops_a_token=ours.flops_a_token,
        reference_flops_a_token=ours.reference_flops_a_token,
        their_flops_a_token=theirs.flops_a_token,
        cpu_seconds=statistics.median(step.seconds for step in ours.cpu_seconds),
        their_cpu_seconds=statistics.median(step.seconds for step in theirs.cpu_seconds),
        cpu_ratio=compare_rates(ours.cpu_seconds, theirs.cpu_seconds, epochs, seed=0),
        epoch_ratio=compare_rates(epoch, theirs.seconds, epochs, seed=0),
    )


def compare_memory(bench: Bench, wide: Path) -> Iterator[Peaks]:
    """Measure peaks with a wide vocabulary: macft in one pass and as it splits, and every library."""
    options = {"batch_size": 4, "beta": BETA}
    for side, more in ((IN_ONE_PASS, {"micro_batch_tokens": UNSPLIT}), (OURS, {})):
        with start_ours(wide, module="preference_ours", **options, **more) as worker:
            yield peak_of(worker, side, bench)
    for peer, python in bench.pythons.items():
        with start_peer(python, wide, script="preference_peer.py", peer=peer, **options) as worker:
            yield peak_of(worker, peer, bench)


def peak_of(worker: Worker, side: str, bench: Bench) -> Peaks:
    """Measure the batch of middling size, after a small one."""
    file = bench.files["long prompts"]
    plan = worker.plan("memory", file=str(file), batch_size=4)
    tokens = tokens_of(plan["rows"], file)
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    worker.step("memory", order[0])
    answer: dict[str, Any] = worker.step("memory", order[len(order) // 2], peak=True)
    return Peaks(side, answer["peak"], answer["held"])


if __name__ == "__main__":
    main()
