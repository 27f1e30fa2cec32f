"""`macft bench`: what it costs to train on this machine, as one table.

The rule: as in `main`, a command is one call of `macft.api`, and its answer shown.
"""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from macft import api
from macft.cli.arguments import AsJson, Files, Positive, read_recipe
from macft.cli.prepare import show_progress
from macft.cli.tables import print_json, print_lines
from macft.format import columns, count, gigabytes, one_line

if TYPE_CHECKING:
    from macft.bench.report import BenchReport
    from macft.bench.sample import Estimate

RECIPE = "quickstart"


def bench(
    recipe: str = RECIPE,
    /,
    *,
    model: str | None = None,
    data: Files | None = None,
    batches: Positive = 12,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Count and time what training costs on this machine, against its fastest matrix product.

    Args:
        recipe: What is trained; quickstart when left out. Nothing is saved.
        model: Instead of the recipe's model.
        data: Files or folders of rows, instead of the recipe's.
        batches: How many are timed, spread over an epoch; 12 when left out.
        set_: Set a key of the recipe, like batch_size=4; may be repeated.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    wanted = read_recipe(recipe, model=model, data=data or [], settings=set_ or [])
    with show_progress(plain=plain) as tell_progress:
        report = api.bench(wanted, batches=batches, progress=partial(tell_progress, "time batches"))
    if json:
        print_json(report_values(report))
    else:
        print_lines(report_lines(report))


def report_values(report: "BenchReport") -> dict[str, Any]:
    """Return the report as JSON values, every number under its name."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(part) for key, part in value.items()}
        return value._asdict() if hasattr(value, "_asdict") else value

    return {key: named(value) for key, value in asdict(report).items()}


def report_lines(report: "BenchReport") -> list[str]:
    """Return the table: counters, then times with their 95% intervals."""
    counters, times = report.counters, report.times
    padded = f"{counters.padded_on_stream:.1%} on a flat stream, {counters.padded_in_rows:.1%} in padded rows"
    peak = times.peak.per_second / 1e9
    rows = [
        [
            report.model,
            f"{report.dtype} on the {report.device}, {one_line(report.path)}, batches of {report.batch_size}",
        ],
        [
            "rows",
            f"{counters.rows:,} in {counters.updates:,} updates of at most {report.micro_batch_tokens:,} tokens a pass",
        ],
        ["tokens", f"{counters.tokens:,}, of which {counters.supervised_tokens:,} are trained on"],
        ["padding", padded],
        ["shapes", f"{counters.shapes:,} different ones in an epoch"],
        ["work a token", f"{count(round(counters.flops_a_token))}FLOP, useful ones only"],
        ["peak memory", f"{gigabytes(counters.peak_bytes)} beside the weights"],
        ["an update", f"{_interval(times.seconds, 2)} s, in CPU seconds {_interval(times.cpu_seconds, 2)}"],
        ["tokens/s", _interval(times.tokens_per_second, 0)],
        ["matrix products", f"{peak:,.0f} GFLOP/s at best, in {report.dtype}"],
        ["MFU", f"{_percent(times.share_of_peak)} of that"],
    ]
    if times.share_of_cpu_peak and times.tokens_per_cpu_second:
        rows += [
            ["tokens a CPU second", _interval(times.tokens_per_cpu_second, 0)],
            [
                "MFU, CPU seconds",
                f"{_percent(times.share_of_cpu_peak)} of {times.peak.per_cpu_second / 1e9:,.0f} GFLOP",
            ],
        ]
    note = f"Medians of {times.batches} batches spread over an epoch, with their 95% intervals."
    return [*columns(rows), note]


def _interval(estimate: "Estimate", digits: int) -> str:
    return f"{estimate.value:,.{digits}f} ({estimate.low:,.{digits}f} – {estimate.high:,.{digits}f})"


def _percent(estimate: "Estimate") -> str:
    return f"{estimate.value:.0%} ({estimate.low:.0%} – {estimate.high:.0%})"
