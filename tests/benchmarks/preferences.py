"""`make bench-dpo`: macft's DPO against other libraries' on this machine, as one table.

The rule: all sides get the same model folder, token ids, adapters, batch size, precision, BLAS and clock, and take
turns batch by batch; each keeps its own order, padding, reference and loss, since those are what is compared.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from macft.bench.flops import Shape, useful_flops
from macft.bench.sample import Estimate, Timed, compare_rates, spread
from macft.machine import home
from macft.models.catalog import resolve
from tests.benchmarks.compare import DATA
from tests.benchmarks.memory import MIB, UNSPLIT
from tests.benchmarks.preference_rows import read_ids, write_pairs
from tests.benchmarks.rows import write_wide_model
from tests.benchmarks.sides import BENCH, install_peer, start_ours, start_peer
from tests.benchmarks.speed import FEWEST, THEIR_SHAPES, Side
from tests.benchmarks.table import FEW_PAIRS, NOTHING, Machine, demand, interval, markdown
from tests.benchmarks.worker import Worker

RESULTS = Path(__file__).with_name("RESULTS-DPO.md")
PEERS = {"mlx-lm-lora": "5.10.2", "troy-cli": "0.5.0", "mlx-tune": "0.6.0"}
"""Distributions and the versions that the demands were made for."""
SPEED_DEMANDS = {
    "long prompts": {"mlx-lm-lora": 2.6, "troy-cli": 1.5, "mlx-tune": 1.2},
    "tone": {"mlx-lm-lora": 2.0, "troy-cli": 1.3, "mlx-tune": 1.1},
}
SHARE_DEMANDS = {"tone": 0.95}
"""Share of what FLOPs allow, in CPU seconds."""
EPOCH_DEMANDS = {"mlx-lm-lora": 1.7}
MEMORY_DEMAND = 15.0
BATCH_SIZES = (1, 4)
BETA = 0.1

HEAD = """# macft's DPO against other libraries'

Made by `make bench-dpo`. {versions}; {on}; float32, OpenBLAS.
CPU ratios show the algorithm. Nothing here was measured on Metal.

## Speed

"""
HOW = """The same model folder, token ids, batch size, BLAS and adapters (rank 8 on all linear layers), beta 0.1,
sigmoid. Each library's own training loop runs, called directly where its command refuses Linux; only its batches are
handed over. mlx-lm-lora asks a second model for the reference in every step; troy the same model with adapters off, in
every step; mlx-tune and macft have it from before, which is not part of a step. mlx-tune shares the prompt between the
responses where a step has one pair; with more it repeats it, and its sums then run over the prompt too, which cancels
in the loss but not in the work. The first step of a shape that compiles is not timed. Sides take turns batch by batch,
over batches of their own epochs spread evenly from the lightest to the heaviest. FLOPs allow: the peer's operations a
pair ÷ macft's. Epoch: seconds on the clock with the reference pass, where a side makes one before training. Intervals:
95%, bootstrap over pairs of batches; a demand is met or missed where the whole interval says so, and open otherwise."""
MEMORY_HOW = """Peak of the middle batch of 4 pairs of long prompts, above what lay there before it; held: what lay
there, weights of the reference included. Processes of their own, nothing recomputed."""


class Against(NamedTuple):
    """What one case showed against one library."""

    data: str
    batch_size: int
    peer: str
    batches: int
    cpu_ratio: Estimate
    flops_allow: float
    epoch_ratio: Estimate
    pairs_per_cpu_second: float


class Peaks(NamedTuple):
    """Bytes of one side, beside the weights and in all before the step."""

    side: str
    peak: int
    held: int


@dataclass(frozen=True)
class Bench:
    """What is compared, and for how long."""

    model: Path
    files: dict[str, Path]
    pythons: dict[str, Path]
    batches: int
    seconds: float


def main() -> None:
    """Compare, print the table, and keep it beside this file."""
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
        bench = Bench(model, files, pythons, arguments.batches, arguments.minutes * 60 / len(cases))
        found, machine = [], None
        for data, size in cases:
            more, machine = compare_case(bench, data, size)
            found += more
        wide = write_wide_model(Path(scratch) / "wide", model)
        peaks = [] if arguments.no_memory else compare_memory(bench, wide)
    lines = result_lines(machine, found, peaks)
    print("\n".join(lines))
    if arguments.is_whole:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare macft's DPO with other libraries' on this machine.")
    given = os.environ.get(DATA)
    parser.add_argument("--data-dir", type=Path, default=Path(given) if given else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batches", type=int, default=16, help="most batches a case and side")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all speed cases together")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--pairs", nargs="+", choices=SPEED_DEMANDS, default=list(SPEED_DEMANDS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="few batches, no memory; RESULTS-DPO.md stays")
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    narrowed = {*arguments.batch_sizes} != {*BATCH_SIZES} or len(arguments.pairs) + len(arguments.peers) < 5
    arguments.is_whole = not (arguments.quick or arguments.no_memory or narrowed)
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
        side = our_side(ours, name, file, batch_size)
        theirs = {}
        for peer, python in bench.pythons.items():
            more = {"script": "preference_peer.py", "peer": peer, **options}
            worker = stack.enter_context(start_peer(python, bench.model, **more))
            theirs[peer] = their_side(worker, shape, name, file, batch_size)
        references = take_turns(bench, side, theirs, name)
        versions = {key: value for worker in theirs.values() for key, value in worker.worker.facts.items()}
        machine = Machine.read(ours.facts, versions)
    machine.versions.update({peer: versions[peer] for peer in bench.pythons})  # type: ignore[attr-defined]
    return [against(data, batch_size, peer, side, other, references) for peer, other in theirs.items()], machine


def our_side(worker: Worker, name: str, file: Path, batch_size: int) -> Side:
    """Plan macft's epoch."""
    plan = worker.plan(name, file=str(file), batch_size=batch_size)
    return Side(worker, name, plan["work"], tokens_of(plan["rows"], file))


def their_side(worker: Worker, shape: Shape, name: str, file: Path, batch_size: int) -> Side:
    """Plan a library's epoch; its work is what its passes multiply, padding and all."""
    plan = worker.plan(name, file=str(file), batch_size=batch_size)
    work = [sum(useful_flops(shape, **each) for each in passes) for passes in plan["passes"]]
    return Side(worker, name, work, tokens_of(plan["rows"], file))


def tokens_of(batches: Sequence[Sequence[int]], file: Path) -> list[int]:
    """Return the tokens of each batch, a prompt counted once: the unit that all sides share."""
    lengths = read_ids(file).lengths
    return [int(lengths[list(indices)].sum()) for indices in batches]


def take_turns(bench: Bench, ours: Side, theirs: dict[str, Side], name: str) -> list[float]:
    """Step all sides in turns until the time is up; returns the seconds of our reference pass on each batch."""
    our_batches = spread(ours.work, bench.batches)
    their_batches = {peer: spread(side.work, THEIR_SHAPES) for peer, side in theirs.items()}
    references, started = [], time.monotonic()
    ours.worker.step(ours.name, our_batches[0])
    for done, batch in enumerate(our_batches):
        if done >= FEWEST and time.monotonic() - started > bench.seconds:
            break
        references.append(ours.worker.step(ours.name, batch)["reference"]["seconds"])
        ours.step(batch)
        for peer, side in theirs.items():
            side.step(their_batches[peer][done % len(their_batches[peer])], compiles=True)
        print(f"\r{name}: {done + 1} of {len(our_batches)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return references


def against(data: str, batch_size: int, peer: str, ours: Side, theirs: Side, references: Sequence[float]) -> Against:
    """Compare what was timed of macft with what was timed of one library."""
    epochs = ours.epoch, theirs.epoch
    with_reference = [
        Timed(step.work, step.seconds + seconds) for step, seconds in zip(ours.seconds, references, strict=True)
    ]
    epoch = with_reference if peer != "mlx-tune" else ours.seconds  # mlx-tune makes such a pass itself
    work, cpu_seconds = (sum(column) for column in zip(*ours.cpu_seconds, strict=True))
    return Against(
        data=data,
        batch_size=batch_size,
        peer=peer,
        batches=len(ours.seconds),
        cpu_ratio=compare_rates(ours.cpu_seconds, theirs.cpu_seconds, epochs, seed=0),
        flops_allow=theirs.flops_a_token / ours.flops_a_token,
        epoch_ratio=compare_rates(epoch, theirs.seconds, epochs, seed=0),
        pairs_per_cpu_second=work / cpu_seconds / ours.epoch.work * len(ours.work) * batch_size,
    )


def compare_memory(bench: Bench, wide: Path) -> list[Peaks]:
    """Measure peaks with a wide vocabulary: macft in one pass and as it splits, and every library."""
    options = {"batch_size": 4, "beta": BETA}
    found = []
    for side, more in (("macft, in one pass", {"micro_batch_tokens": UNSPLIT}), ("macft, as it splits", {})):
        with start_ours(wide, module="preference_ours", **options, **more) as worker:
            found.append(peak_of(worker, side, bench))
    for peer, python in bench.pythons.items():
        with start_peer(python, wide, script="preference_peer.py", peer=peer, **options) as worker:
            found.append(peak_of(worker, peer, bench))
    return found


def peak_of(worker: Worker, side: str, bench: Bench) -> Peaks:
    """Measure the batch of middling size, after a small one."""
    file = bench.files["long prompts"]
    plan = worker.plan("memory", file=str(file), batch_size=4)
    tokens = tokens_of(plan["rows"], file)
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    worker.step("memory", order[0])
    answer: dict[str, Any] = worker.step("memory", order[len(order) // 2], peak=True)
    return Peaks(side, answer["peak"], answer["held"])


def result_lines(machine: Machine, found: Sequence[Against], peaks: Sequence[Peaks]) -> list[str]:
    """Return the whole page."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    on = f"{machine.chip}, {machine.cores} cores, {machine.system}"
    lines = [*HEAD.format(versions=versions, on=on).splitlines(), *speed_lines(found), "", *HOW.splitlines()]
    if peaks:
        lines += ["", "## Peak memory, V = 152k", "", *memory_lines(peaks), "", *MEMORY_HOW.splitlines()]
    return lines


def speed_lines(found: Sequence[Against]) -> list[str]:
    """Return the table of speeds."""
    head = ["pairs, batch", "against", "batches timed", "macft, pairs a CPU second", "CPU seconds a step, times fewer"]
    head += ["demand", "FLOPs allow", "share of it", "demand", "epoch with reference", "demand"]
    body = [
        [
            f"{one.data}, {one.batch_size}",
            one.peer,
            str(one.batches),
            f"{one.pairs_per_cpu_second:.2f}",
            interval(one.cpu_ratio, one.batches),
            judged(one.cpu_ratio, SPEED_DEMANDS[one.data].get(one.peer), one.batches),
            f"{one.flops_allow:.2f}",
            f"{one.cpu_ratio.value / one.flops_allow:.0%}",
            judged(scaled(one.cpu_ratio, 1 / one.flops_allow), SHARE_DEMANDS.get(one.data), one.batches),
            interval(one.epoch_ratio, one.batches),
            judged(one.epoch_ratio, EPOCH_DEMANDS.get(one.peer), one.batches),
        ]
        for one in found
    ]
    return markdown([head, *body])


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Return an estimate in another unit."""
    return Estimate(*(value * factor for value in estimate))


def judged(estimate: Estimate, least: float | None, batches: int) -> str:
    """Write a demand; it is met or missed where the whole interval says so, else open."""
    if least is None:
        return NOTHING
    if batches < FEW_PAIRS or estimate.low < least <= estimate.high:
        return f"≥ {least:g} open"
    return demand(estimate.value, least)


def memory_lines(peaks: Sequence[Peaks]) -> list[str]:
    """Return the table of peaks; macft as it splits is what the others are held against."""
    own = next(one for one in peaks if one.side == "macft, as it splits")
    head = ["side", "peak, MiB", "held, MiB", "times more than macft", "held more than macft, MiB", "demand"]
    body = [
        [
            one.side,
            f"{one.peak / MIB:,.0f}",
            f"{one.held / MIB:,.0f}",
            f"{one.peak / own.peak:.1f}",
            f"{(one.held - own.held) / MIB:,.0f}",
            demand(one.peak / own.peak, MEMORY_DEMAND) if one.side == "mlx-lm-lora" else NOTHING,
        ]
        for one in peaks
    ]
    return markdown([head, *body])


if __name__ == "__main__":
    main()
