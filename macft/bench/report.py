"""`macft bench`: one table of what training costs on this machine.

The rule: counters come first, since they are the same on every machine; then times, as medians with their spread; then
both held against the fastest matrix product, measured between the batches.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from macft.bench.clock import Peak, measure_peak
from macft.bench.engine import Engine, Progress, layout_of, plan_rows, read_rows
from macft.bench.sample import Estimate, median, spread
from macft.data.batches import Batch
from macft.recipe import Recipe

WARM_UPS = 2
PEAK_EVERY = 4
"""Batches between two looks at the fastest product."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What an epoch consists of, known without timing it.

    Attributes:
        padded_on_stream: Share of a flat stream's tokens that are fillers.
        padded_in_rows: Share that would be padding if the same micro-batches were padded rows.
        shapes: Different shapes of micro-batches, each compiled once where the recipe says `compile = true`.
        flops_a_token: Useful operations, forward and backward.
        peak_bytes: Beside weights, adapter and optimizer, of the heaviest batch that was timed.
    """

    rows: int
    updates: int
    tokens: int
    supervised_tokens: int
    padded_on_stream: float
    padded_in_rows: float
    shapes: int
    flops_a_token: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over the timed batches; on a GPU there are no CPU seconds to hold against it.

    Attributes:
        seconds: Of an update.
        tokens_per_second: Real tokens on the clock.
        tokens_per_cpu_second: Real tokens a second of one CPU core.
        peak: The fastest product.
        share_of_peak: Useful operations a second ÷ the peak's, on the clock (MFU).
        share_of_cpu_peak: The same in CPU seconds.
    """

    batches: int
    seconds: Estimate
    cpu_seconds: Estimate
    tokens_per_second: Estimate
    tokens_per_cpu_second: Estimate | None
    peak: Peak
    share_of_peak: Estimate
    share_of_cpu_peak: Estimate | None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What `macft bench` found."""

    model: str
    device: str
    dtype: str
    path: str
    batch_size: int
    micro_batch_tokens: int
    counters: Counters
    times: Times


def bench(recipe: Recipe, folder: Path, *, batches: int, progress: Progress | None = None) -> BenchReport:
    """Train on batches that are spread over an epoch, and count and time them.

    Args:
        recipe: What to train; the model is changed only in memory.
        folder: The model.
        batches: How many are timed.
        progress: Called with batches done and in all.
    """
    prepared = read_rows(recipe, folder)
    engine = Engine(recipe, folder, longest=int(prepared.longest.max()))
    with TemporaryDirectory() as nowhere:
        rows = engine.refer(prepared, Path(nowhere))
    plan = plan_rows(rows, batch_size=recipe.batch_size, seed=recipe.seed)
    work = [engine.work(rows, indices) for indices in plan]
    chosen = spread(work, batches)
    for place in chosen[:WARM_UPS]:
        engine.update(rows, plan[place])
    costs, peak = [], Peak()
    for done, place in enumerate(chosen):
        if done % PEAK_EVERY == 0:
            peak = peak.or_better(measure_peak(engine.dtype))
        costs.append(engine.update(rows, plan[place]))
        if progress:
            progress(done + 1, len(chosen))
    peak = peak.or_better(measure_peak(engine.dtype))
    laid_out = [layout_of(batch) for indices in plan for batch in engine.split(rows, indices)]
    tokens = np.array([rows.lengths[plan[place]].sum() for place in chosen])
    useful = np.array([work[place] for place in chosen])
    seconds, cpu_seconds = np.array(costs).T
    return BenchReport(
        model=engine.facts.name,
        device="cpu" if engine.on_cpu else "gpu",
        dtype=str(engine.dtype).rpartition(".")[2],
        path="stream" if engine.objective.stream.layers else f"padded rows: {engine.objective.stream.why_not}",
        batch_size=recipe.batch_size,
        micro_batch_tokens=engine.micro_batch_tokens,
        counters=Counters(
            rows=len(rows),
            updates=len(plan),
            tokens=int(rows.lengths.sum()),
            supervised_tokens=int(rows.supervised.sum()),
            padded_on_stream=padded_share(laid_out, on_stream=True),
            padded_in_rows=padded_share(laid_out, on_stream=False),
            shapes=len({tuple(part.shape for part in batch) for batch in laid_out}),
            flops_a_token=sum(work) / int(rows.lengths.sum()),
            peak_bytes=engine.peak_bytes(rows, plan[max(chosen, key=work.__getitem__)]),
        ),
        times=Times(
            batches=len(chosen),
            seconds=median(seconds),
            cpu_seconds=median(cpu_seconds),
            tokens_per_second=median(tokens / seconds),
            tokens_per_cpu_second=median(tokens / cpu_seconds) if engine.on_cpu else None,
            peak=peak,
            share_of_peak=median(useful / seconds / peak.per_second),
            share_of_cpu_peak=median(useful / cpu_seconds / peak.per_cpu_second) if engine.on_cpu else None,
        ),
    )


def padded_share(batches: list[Batch], *, on_stream: bool) -> float:
    """Return the share of tokens that are not real, in the stream or in rows padded to the longest of a micro-batch."""
    real = sum(int((batch.taken if on_stream else batch.lengths).sum()) for batch in batches)
    laid = sum(batch.tokens.size if on_stream else batch.gather.size for batch in batches)
    return 1.0 - real / int(laid)
