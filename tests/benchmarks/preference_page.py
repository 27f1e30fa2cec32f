"""The page of `make bench-dpo`: what was measured against which library, and whether the demands are met.

The rule: a demand is met or missed where the whole interval says so, and what was not measured is named.
"""

from collections.abc import Sequence
from typing import NamedTuple

from macft.bench.sample import Estimate
from tests.benchmarks.memory import MIB
from tests.benchmarks.rows import WIDE_BYTES
from tests.benchmarks.speed import PAIRS
from tests.benchmarks.table import NOTHING, Machine, demand, interval, markdown

SPEED_DEMANDS = {
    "long prompts": {"mlx-lm-lora": 2.6, "troy-cli": 1.5, "mlx-tune": 1.2},
    "tone": {"mlx-lm-lora": 2.0, "troy-cli": 1.3, "mlx-tune": 1.1},
}
SHARE_DEMANDS = {"tone": 0.95}
"""Share of what FLOPs allow, in CPU seconds."""
EPOCH_DEMANDS = {"mlx-lm-lora": 1.7}
MEMORY_DEMAND = 15.0
OURS = "macft, as it splits"
"""The side that the others' memory is held against."""

HEAD = """# macft's DPO against other libraries'

Made by `make bench-dpo`. {versions}; {on}; float32, OpenBLAS.
CPU ratios show the algorithm. Nothing here was measured on Metal.

## Counters

"""
HOW = """The same model folder, token ids, batch size, BLAS and adapters (rank 8 on all linear layers), beta 0.1,
sigmoid. Each library's own training loop runs, called directly where its command refuses Linux; only its batches are
handed over. mlx-lm-lora asks a second model for the reference in every step; troy the same model with adapters off, in
every step; mlx-tune and macft have it from before, which is not part of a step. mlx-tune shares the prompt between the
responses where a step has one pair; with more it repeats it, and its sums then run over the prompt too, which cancels
in the loss but not in the work. What compiling a shape takes is not counted. Sides take turns, each with the batch at
the same quantile of the work in its own epoch; medians are of those. FLOPs allow: the other's operations ÷ macft's, on
the same tokens, by one formula, which does not know what macft's last layer leaves out. Epoch: seconds on the clock
with the reference pass, where a side makes one before training. Intervals: 95%, bootstrap over pairs of batches; a
demand is met or missed where the whole interval says so, and open otherwise."""
MEMORY_HOW = f"""Peak of the middle batch of 4 pairs of long prompts, above what lay there before it; held: what lay
there, the reference's weights included: one copy of the weights is {WIDE_BYTES / MIB:.0f} MiB. A small random llama,
processes of their own, nothing recomputed."""


class Against(NamedTuple):
    """What one case showed against one library."""

    data: str
    batch_size: int
    peer: str
    batches: int
    flops_a_token: float
    """Of macft's steps; a prompt counts once for both of its responses, on every side."""
    reference_flops_a_token: float
    """Of macft's pass before training."""
    their_flops_a_token: float
    cpu_seconds: float
    """The median of macft's steps; the library's of its own."""
    their_cpu_seconds: float
    cpu_ratio: Estimate
    epoch_ratio: Estimate

    @property
    def flops_allow(self) -> float:
        """How many times fewer operations a step takes."""
        return self.their_flops_a_token / self.flops_a_token

    @property
    def epoch_flops_allow(self) -> float:
        """The same of a whole epoch with the reference pass."""
        return self.their_flops_a_token / (self.flops_a_token + self.reference_flops_a_token)


class Peaks(NamedTuple):
    """Bytes of one side, beside the weights and in all before the step."""

    side: str
    peak: int
    held: int


def result_lines(
    machine: Machine, found: Sequence[Against], peaks: Sequence[Peaks], missing: Sequence[str]
) -> list[str]:
    """Return the whole page, with what is missing on it."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    on = f"{machine.chip}, {machine.cores} cores, {machine.system}"
    lines = [*HEAD.format(versions=versions, on=on).splitlines(), *counter_lines(found)]
    lines += ["", "## Speed", "", *speed_lines(found), "", *HOW.splitlines()]
    if any(one.side == OURS for one in peaks):
        lines += ["", "## Peak memory, V = 152k", "", *memory_lines(peaks), "", *MEMORY_HOW.splitlines()]
    return [*lines, "", f"Not measured yet: {'; '.join(missing)}."] if missing else lines


def counter_lines(found: Sequence[Against]) -> list[str]:
    """Return the table of what is counted."""
    head = ["pairs, batch", "against", "macft, MFLOP a token", "its reference pass", "the other", "FLOPs allow"]
    head += ["with the reference pass"]
    body = [
        [
            f"{one.data}, {one.batch_size}",
            one.peer,
            *(
                f"{flops / 1e6:,.0f}"
                for flops in (one.flops_a_token, one.reference_flops_a_token, one.their_flops_a_token)
            ),
            f"{one.flops_allow:.2f}",
            f"{one.epoch_flops_allow:.2f}" if one.peer != "mlx-tune" else NOTHING,
        ]
        for one in found
    ]
    return markdown([head, *body])


def speed_lines(found: Sequence[Against]) -> list[str]:
    """Return the table of speeds."""
    head = ["pairs, batch", "against", "batches timed", "CPU seconds a step, median", "the other's"]
    head += ["times fewer CPU seconds", "demand", "FLOPs allow", "share of it", "demand"]
    head += ["epoch with reference", "demand"]
    body = [
        [
            f"{one.data}, {one.batch_size}",
            one.peer,
            str(one.batches),
            f"{one.cpu_seconds:.2f}",
            f"{one.their_cpu_seconds:.2f}",
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
    if batches < PAIRS or estimate.low < least <= estimate.high:
        return f"≥ {least:g} open"
    return demand(estimate.value, least)


def memory_lines(peaks: Sequence[Peaks]) -> list[str]:
    """Return the table of peaks; macft as it splits is what the others are held against."""
    own = next(one for one in peaks if one.side == OURS)
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
