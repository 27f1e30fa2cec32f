"""What a run was and what came of it, as one page; two runs over each other.

The rule: everything on the page stands in the run folder, and the page says how to do it again. It shows the run's own
rows (samples, examples), so it is as private as they are.
"""

import json
import shlex
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from macft.curves import eval_curve, loss_curve, smoothed, step_curve
from macft.format import MISSING, clean, count, duration, gigabytes, number, preference, size
from macft.measure.chart import Series, draw
from macft.measure.page import columns, section, table, write_page
from macft.measure.table import render_scores
from macft.recipe import differences
from macft.run import Run
from macft.state import RunState

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Reported:
    """A run as the report needs it."""

    name: str
    status: str
    state: RunState
    recipe_toml: str
    plan: Mapping[str, Any]
    note: str = ""

    @classmethod
    def read(cls, run: Run) -> "Reported":
        """Read a run folder.

        Raises:
            OSError: Its recipe cannot be read.
        """
        state = run.state()
        recipe = (run.path / "recipe.toml").read_text(encoding="utf-8")
        return cls(run.name, run.status(state), state, recipe, _read_plan(run), run.note)


def write_report(runs: Sequence[Reported]) -> str:
    """Return the page of one run, or of several with what differs between them."""
    title = " · ".join(run.name for run in runs)
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="text">{escape(clean(run.note))}</p>' for run in runs)]
    parts.append(table(_transposed([("", [run.name for run in runs]), *figure_rows(runs)])))
    if len(runs) > 1:
        parts.append(section("What differs in the recipes", _differences(runs)))
    parts.append(section("Curves", f'<div class="charts">{"".join(charts(runs))}</div>'))
    for run in runs:
        suffix = f" · {run.name}" if len(runs) > 1 else ""
        parts += [part for make, head in _PARTS if (body := make(run)) for part in [section(head + suffix, body)]]
    return write_page(title, parts)


def figure_rows(runs: Sequence[Reported]) -> list[tuple[str, list[str]]]:
    """Return (what, its value in each run) of what can be said in one line."""
    rows = [(label, [tell(run) for run in runs]) for label, tell in _FIGURES]
    return [(label, values) for label, values in rows if any(values)]


def charts(runs: Sequence[Reported]) -> list[str]:
    """Return the curves that the runs have; with several runs, one colour a run."""
    several = len(runs) > 1
    losses = []
    for place, run in enumerate(runs):
        raw, name = loss_curve(run.state), run.name if several else "train"
        losses += [Series("", raw, place, is_faint=True), Series(name, smoothed(raw), place)]
        losses.append(
            Series("" if several else "held out", eval_curve(run.state), place if several else 1, has_dots=True)
        )
    drawn = [draw("loss (dots: held out)", losses)]
    for metric, label in _CURVES:
        trained = [
            Series(run.name if several else "train", step_curve(run.state, metric), n) for n, run in enumerate(runs)
        ]
        held = [] if several else [Series("held out", eval_curve(runs[0].state, f"eval_{metric}"), 1, has_dots=True)]
        drawn.append(draw(label, trained + held))
    return [chart for chart in drawn if chart]


_CURVES = (
    ("rewards/margins", "margin between chosen and rejected"),
    ("rewards/accuracies", "share of pairs with the chosen one ahead"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens a second"),
)


def _result(run: Reported) -> str:
    if not run.state.best:
        return ""
    metrics = run.state.best.metrics
    said = [number(metrics.get("eval_loss")), *preference(metrics, "eval_")]
    return f"{' · '.join(said)} at step {run.state.best.step:,}"


def _evaluated(run: Reported, place: int) -> str:
    evaluations = run.state.evaluations
    return number(evaluations[place].metrics.get("eval_loss")) if evaluations else ""


def _speed(run: Reported) -> str:
    speeds = step_curve(run.state, "tokens_per_second").values
    return f"{statistics.median(speeds):.0f} tokens/s (median)" if speeds else ""


def _memory(run: Reported) -> str:
    peaks = step_curve(run.state, "peak_memory_bytes").values
    planned = run.plan.get("peak_bytes")
    parts = [f"{gigabytes(max(peaks))} at its highest"] if peaks else []
    return " · ".join([*parts, *([f"{gigabytes(planned)} planned"] if isinstance(planned, int | float) else [])])


def _time(run: Reported) -> str:
    started, seconds = run.state.started, run.plan.get("seconds")
    if not started:
        return ""
    took = duration(run.state.updated - started.time)
    return f"{took} · {duration(seconds)} planned" if isinstance(seconds, int | float) else took


def _end(run: Reported) -> str:
    ended = run.state.ended
    reason = f": {clean(ended.reason)}" if ended and ended.reason else ""
    return f"{run.status}{reason}, step {run.state.step:,} of {run.state.total_steps or MISSING}"


def _method(run: Reported) -> str:
    started = run.state.started
    if not started:
        return ""
    bits = f", {started.quantize} bits" if started.quantize else ""
    return f"{started.method} · {started.adapter} on {clean(started.model)}{bits}"


def _rows(run: Reported) -> str:
    planned = run.state.planned
    return f"{planned.train_rows:,} to train on, {planned.valid_rows:,} held out" if planned else ""


def _trained(run: Reported) -> str:
    planned = run.state.planned
    if not planned:
        return ""
    return f"{count(planned.trainable_parameters)} of {count(planned.parameters)} parameters, on {planned.device}"


_FIGURES: tuple[tuple[str, Callable[[Reported], str]], ...] = (
    ("method", _method),
    ("end", _end),
    ("rows", _rows),
    ("trained", _trained),
    ("held-out loss before", lambda run: _evaluated(run, 0)),
    ("held-out loss at the end", lambda run: _evaluated(run, -1)),
    ("best", _result),
    ("time", _time),
    ("speed", _speed),
    ("memory", _memory),
)


def _scores(run: Reported) -> str:
    scores = run.state.scores
    if not scores:
        return ""
    rows = [
        [row.metric.replace("_", " "), *(MISSING if value is None else f"{value:.1%}" for value in row[1:])]
        for row in render_scores(scores.base, scores.tuned)
    ]
    shown = [table([[f"{scores.rows} test rows", "Base", "tuned"], *rows])]
    for example in scores.examples:
        told = {key: clean(value) for key, value in example.items()}
        shown.append(f'<p class="text"><b>{escape(told.get("prompt", ""))}</b> ({escape(told.get("change", ""))})</p>')
        shown.append(columns([(head, told.get(key, "")) for key, head in _VOICES]))
    return "".join(shown)


_VOICES = (("reference", "expected"), ("base", "Base"), ("tuned", "tuned"))


def _samples(run: Reported) -> str:
    """Show the answers to each prompt at the start, half-way and at the end."""
    shown = []
    for index in sorted({sample.index for sample in run.state.samples}):
        told = [sample for sample in run.state.samples if sample.index == index]
        kept = list({place: told[place] for place in (0, len(told) // 2, len(told) - 1)}.values())
        shown.append(f'<p class="text"><b>{escape(clean(told[0].prompt))}</b></p>')
        shown.append(columns([(f"step {sample.step:,}", clean(sample.text)) for sample in kept]))
    return "".join(shown)


def _warnings(run: Reported) -> str:
    lines = [
        f"<li>{escape(clean(' · '.join(filter(None, (one.message, one.fix)))))}</li>" for one in run.state.warnings
    ]
    skipped = len(run.state.skipped)
    lines += [f"<li>{skipped:,} steps were skipped: a loss or gradient was not finite</li>"] if skipped else []
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _plan(run: Reported) -> str:
    parts = run.plan.get("parts")
    if not isinstance(parts, Mapping):
        return ""
    rows = [[str(name), size(amount)] for name, amount in parts.items() if isinstance(amount, int | float)]
    return table([["planned", "memory"], *rows])


def _again(run: Reported) -> str:
    versions = run.state.started.versions if run.state.started else {}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = f"macft train {shlex.quote(f'{run.name}.toml')}"
    return (
        f"<p>Save this recipe as <code>{escape(run.name)}.toml</code>, then <code>{escape(command)}</code>. "
        f"Made with {escape(named) or 'unknown versions'}.</p><pre>{escape(clean(run.recipe_toml))}</pre>"
    )


_PARTS: tuple[tuple[Callable[[Reported], str], str], ...] = (
    (_scores, "Base and tuned"),
    (_samples, "Samples"),
    (_warnings, "Warnings"),
    (_plan, "Plan"),
    (_again, "How to do it again"),
)


def _differences(runs: Sequence[Reported]) -> str:
    first = tomllib.loads(runs[0].recipe_toml)
    parts = []
    for other in runs[1:]:
        found = differences(first, tomllib.loads(other.recipe_toml))
        rows = [[key, *(clean(value) or MISSING for value in values)] for key, *values in found]
        parts.append(table([["key", runs[0].name, other.name], *rows]) if rows else "<p>Nothing.</p>")
    return "".join(parts)


def _transposed(rows: Sequence[tuple[str, Sequence[str]]]) -> list[list[str]]:
    return [[label, *(value or MISSING for value in values)] for label, values in rows]


def _read_plan(run: Run) -> Mapping[str, Any]:
    try:
        plan = json.loads((run.path / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}
