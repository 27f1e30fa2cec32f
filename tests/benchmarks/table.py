"""The comparison as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macft.bench.clock import Peak
from macft.bench.sample import Estimate
from macft.machine import read_machine
from tests.benchmarks.memory import MIB, Memory
from tests.benchmarks.speed import Speed

SPEED_DEMANDS = {
    ("bench_mix", 1): 1.3,
    ("bench_mix", 4): 2.3,
    ("bench_mix", 8): 2.8,
    ("short_mix", 1): 1.35,
    ("short_mix", 4): 1.85,
    ("short_mix", 8): 2.1,
}
SHARE_DEMAND = 0.40
NOTHING = "–"
FEW_PAIRS = 8
"""Below this many pairs of batches a ratio is not shown: its interval would mean nothing."""

HEAD = """# macft against stock mlx-lm

Made by `make bench`. {versions}; {on}; float32, OpenBLAS.
CPU ratios show the algorithm. Nothing here was measured on Metal: `macft bench` prints what can be on a Mac.

## Speed

"""
HOW = """The same model folder, rows, batch size, BLAS and adapters (rank 8 on all linear layers).
mlx-lm runs `tuner.trainer.train` unmodified, with `mask_prompt`; the first step of each shape, which compiles, is not
timed. Both sides take turns batch by batch, each over batches of its own epoch that are spread evenly from the lightest
to the heaviest; seconds are carried over to the epoch by the work in it. FLOPs allow: mlx-lm's operations a real token
÷ macft's. Demands are held against CPU seconds, since other work shared the machine. Intervals: 95%, bootstrap over
pairs of batches; a demand is met or missed where the whole interval says so, and open otherwise. Part of the ratio is
that MLX's `exp` is slow on this backend and macft goes round it; that part says nothing of Metal."""


@dataclass(frozen=True)
class Machine:
    """What it ran on; no names of machines or folders."""

    chip: str
    cores: int
    system: str
    versions: Mapping[str, str]

    @classmethod
    def read(cls, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> "Machine":
        """Read this machine, and the versions that both sides told."""
        facts = read_machine()
        versions = {"macft": ours["macft"], "mlx": theirs["mlx"], "mlx-lm": theirs["mlx_lm"]}
        return cls(facts.chip, facts.cores, facts.system, versions)


def result_lines(machine: Machine, speeds: Sequence[Speed], peak: Peak, memories: Sequence[Memory]) -> list[str]:
    """Return the whole page."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    on = f"{machine.chip}, {machine.cores} cores, {machine.system}"
    lines = [*HEAD.format(versions=versions, on=on).splitlines(), *speed_lines(speeds, peak), "", *HOW.splitlines()]
    if memories:
        lines += ["", "## Peak memory above the weights", "", *memory_lines(memories)]
    return lines


def speed_lines(speeds: Sequence[Speed], peak: Peak) -> list[str]:
    """Return the table of speeds, and the limit."""
    head = [
        "rows, batch",
        "batches timed",
        "macft, tokens/s",
        "mlx-lm, tokens/s",
        "ratio",
        "in CPU seconds",
        "FLOPs allow",
        "demand",
        "against a repaired sort",
        "mlx-lm's padding",
        "macft ÷ matmul peak",
    ]
    body = [
        [
            f"{speed.data}, {speed.batch_size}",
            f"{speed.batches} of {speed.all_batches:,}",
            f"{speed.rate:.0f}",
            f"{speed.their_rate:.0f}",
            interval(speed.ratio, speed.batches),
            interval(speed.cpu_ratio, speed.batches),
            f"{speed.flops_allow:.2f}",
            speed_demand(speed),
            interval(speed.repaired, speed.batches) if speed.repaired else NOTHING,
            f"{speed.padded:.0%}",
            f"{speed.useful_per_cpu_second / peak.per_cpu_second:.0%}" if peak.per_cpu_second else NOTHING,
        ]
        for speed in speeds
    ]
    on_cpu, on_clock = peak.per_cpu_second / 1e9, peak.per_second / 1e9
    limit = f"Fastest matrix product of the run: {on_cpu:.0f} GFLOP a CPU second, {on_clock:.0f} GFLOP/s on the clock; "
    limit += f"the last column is in CPU seconds (demand: ≥ {SHARE_DEMAND:.0%})."
    return [*markdown([head, *body]), "", limit]


def memory_lines(memories: Sequence[Memory]) -> list[str]:
    """Return the table of peaks."""
    head = ["model, rows, batch", "recomputed", "macft", "macft, MiB", "mlx-lm, MiB", "times less", "demand"]
    body = [
        [
            f"{memory.model}, {memory.data}, {memory.batch_size}",
            "every layer" if memory.recompute else "nothing",
            "in micro-batches of 512 tokens" if memory.split else "in one pass",
            f"{memory.bytes / MIB:,.0f}",
            f"{memory.their_bytes / MIB:,.0f}",
            f"{memory.ratio:.1f}",
            demand(memory.ratio, memory_demand(memory)),
        ]
        for memory in memories
    ]
    return markdown([head, *body])


def memory_demand(memory: Memory) -> float:
    """Return how many times less is asked for."""
    return 8.0 if "152k" in memory.model else 3.0 if memory.recompute else 1.6


def demand(value: float, least: float | None) -> str:
    """Write a demand and whether it is met."""
    return NOTHING if least is None else f"≥ {least:g} {'✔' if value >= least else '✘'}"


def speed_demand(speed: Speed) -> str:
    """Write a demand on speed; it is met or missed where the whole interval says so, else open."""
    least = SPEED_DEMANDS.get((speed.data, speed.batch_size))
    if least is None:
        return NOTHING
    estimate = speed.cpu_ratio
    if speed.batches < FEW_PAIRS or estimate.low < least <= estimate.high:
        return f"≥ {least:g} open"
    return demand(estimate.value, least)


def interval(estimate: Estimate, pairs: int) -> str:
    """Write a value with its interval, or that there were too few pairs for one."""
    if pairs < FEW_PAIRS:
        return "too few"
    return f"{estimate.value:.2f} ({estimate.low:.2f} … {estimate.high:.2f})"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as a Markdown table; the first is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
