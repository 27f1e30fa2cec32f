"""The comparison as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macft.bench.sample import Estimate
from macft.machine import read_machine
from macft.plan import CPU_TOKENS
from tests.benchmarks.counters import MOST_COMPILATIONS, Counters
from tests.benchmarks.curves import Curves
from tests.benchmarks.memory import MIB, Memory
from tests.benchmarks.speed import PAIRS, Speed

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

HEAD = """# macft against stock mlx-lm

Made by `make bench`. {versions}; {on}; float32, OpenBLAS.
CPU ratios show the algorithm. Nothing here was measured on Metal: `macft bench` prints what can be on a Mac.

"""
HOW = """The same model folder, rows, batch size, BLAS and adapters (rank 8 on all linear layers).
mlx-lm runs `tuner.trainer.train` unmodified, with `mask_prompt`; what compiling a shape takes is not counted. Both
sides take turns, each with the batch at the same quantile of the work in its own epoch; seconds are carried over to the
epoch by the work in it. FLOPs allow: mlx-lm's operations a real token ÷ macft's, by one formula, which does not know
what macft's last layer leaves out. Demands are held against CPU seconds, since other work shared the machine.
Intervals: 95%, bootstrap over pairs of batches; a demand is met or missed where the whole interval says so, and open
otherwise. Part of the ratio is that MLX's `exp` is slow on this backend and macft goes round it; that part says nothing
of Metal."""
COUNTED = f"""An update's rows are cut into passes of at most {CPU_TOKENS} tokens. Demands on bench_mix: padding ≤ 2%
on the flat stream and ≤ 8% in padded rows, at most {MOST_COMPILATIONS} compilations an epoch. By default macft compiles
nothing, and a new shape costs nothing (see Growth); with `compile = true` every shape is compiled once. The last column
is why filling up to a few lengths is no way: the least padding with which {MOST_COMPILATIONS} would do."""


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


def result_lines(
    machine: Machine,
    counted: Sequence[Counters],
    speeds: Sequence[Speed],
    memories: Sequence[Memory],
    curves: Curves | None,
) -> list[str]:
    """Return the whole page: what is counted first, then what is timed."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    on = f"{machine.chip}, {machine.cores} cores, {machine.system}"
    lines = HEAD.format(versions=versions, on=on).splitlines()
    sections = [
        ("Counters", counter_lines(counted) if counted else [], COUNTED.splitlines()),
        ("Speed", speed_lines(speeds) if speeds else [], HOW.splitlines()),
        ("Growth", curve_lines(curves) if curves else [], []),
        ("Peak memory above the weights", memory_lines(memories) if memories else [], []),
    ]
    for title, table, text in sections:
        if table:
            lines += [f"## {title}", "", *table, "", *text, *([""] if text else [])]
    return lines[:-1]


def counter_lines(counted: Sequence[Counters]) -> list[str]:
    """Return the table of what was counted."""
    head = [
        "rows, batch",
        "updates",
        "passes",
        "padding, flat stream",
        "padding, padded rows",
        "padding, mlx-lm",
        "compilations",
        "shapes",
        f"padding with {MOST_COMPILATIONS} lengths",
    ]
    body = [
        [
            f"{epoch.data}, {epoch.batch_size}",
            f"{epoch.updates:,}",
            f"{epoch.passes:,}",
            f"{epoch.padded_on_stream:.1%}",
            f"{epoch.padded_in_rows:.1%}",
            f"{epoch.theirs_padded:.0%}",
            "0",
            f"{epoch.shapes:,}",
            f"{epoch.least_padding:.1%}",
        ]
        for epoch in counted
    ]
    return markdown([head, *body])


def speed_lines(speeds: Sequence[Speed]) -> list[str]:
    """Return the table of speeds."""
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
        "GFLOP a CPU second",
        "matmul peak",
        f"MFU (≥ {SHARE_DEMAND:.0%})",
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
            f"{speed.useful_per_cpu_second / 1e9:.1f}",
            f"{speed.peak.per_cpu_second / 1e9:.1f}",
            f"{share:.0%} {'✔' if share >= SHARE_DEMAND else '✘'}",
        ]
        for speed in speeds
        for share in [speed.useful_per_cpu_second / speed.peak.per_cpu_second]
    ]
    return markdown([head, *body])


def curve_lines(curves: Curves) -> list[str]:
    """Return how cost grows: with a sequence against its operations, and with the rows of a set."""
    first, set_ = curves.sequences[0], curves.sets[0]
    tokens = [
        [
            f"{point.size:,} tokens",
            f"{point.cpu_seconds / point.size * 1e3:.1f} ms",
            f"{point.cpu_seconds / point.size / (first.cpu_seconds / first.size):.2f}",
            f"{point.work / point.size / (first.work / first.size):.2f}",
            f"{point.work / point.cpu_seconds / curves.peak.per_cpu_second:.0%}",
        ]
        for point in curves.sequences
    ]
    rows = [
        [
            f"{point.size:,} rows",
            f"{point.cpu_seconds / point.size * 1e3:.2f} ms",
            f"{point.cpu_seconds / point.size / (set_.cpu_seconds / set_.size):.2f}",
        ]
        for point in curves.sets
    ]
    new, seen = curves.new_shapes
    return [
        *markdown([["one row of", "CPU time a token", "times the first", "FLOPs say", "MFU"], *tokens]),
        "",
        *markdown([["a set of", "CPU time a row, from file to an epoch's batches", "times the first"], *rows]),
        "",
        f"Twelve lengths, each updated twice: {new:.1f} CPU seconds at first sight, {seen:.1f} at second.",
    ]


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
    if speed.batches < PAIRS or estimate.low < least <= estimate.high:
        return f"≥ {least:g} open"
    return demand(estimate.value, least)


def interval(estimate: Estimate, pairs: int) -> str:
    """Write a value with its interval, or that there were too few pairs for one."""
    if pairs < PAIRS:
        return "too few"
    return f"{estimate.value:.2f} ({estimate.low:.2f} … {estimate.high:.2f})"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as a Markdown table; the first is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
