"""Results as text or JSON on stdout.

The rule: stdout is data. What is printed here is what was asked for; a table without colour that a pipe can take, or
JSON with a `schema` version.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from macft.api import RunSummary
from macft.events import Scored, share_preferred
from macft.format import MISSING, clean, columns, count, duration, number, one_line, preference
from macft.run import Run
from macft.state import RunState

if TYPE_CHECKING:
    from rich.console import Console

    from macft.data.inspect import RowView
    from macft.data.report import DataReport
    from macft.doctor import Finding
    from macft.models.describe import ModelFacts

SCHEMA = 1
NARROWEST, WIDEST, PIPED = 60, 140, 100
GLYPHS = {"preparing": "●", "running": "●", "paused": "‖", "done": "✔", "stopped": "■", "waiting": "·"}
LEVELS = {"ok": "✔", "warn": "▲", "bad": "✘"}
_PARTS = {"prompt": "▸", "chosen": "✔", "rejected": "✘", "desirable": "✔", "undesirable": "✘"}
_BARS = "▁▂▃▄▅▆▇█"


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to stdout."""
    for line in lines:
        print(line)


def print_json(values: Mapping[str, Any]) -> None:
    """Print an object with its schema version."""
    print(json.dumps({"schema": SCHEMA, **values}, ensure_ascii=False, indent=2, default=str))


def run_values(row: RunSummary) -> dict[str, Any]:
    """Return a run as JSON values."""
    run, state, status = row
    best = state.best.metrics if state.best else {}
    return {
        "name": run.name,
        "path": str(run.path),
        "status": status,
        "step": state.step,
        "total_steps": state.total_steps,
        "method": state.started.method if state.started else None,
        "adapter": state.started.adapter if state.started else None,
        "model": state.started.model if state.started else None,
        "loss": state.loss,
        "eval_loss": best.get("eval_loss"),
        "eval_margin": best.get("eval_rewards/margins"),
        "eval_accuracy": best.get("eval_rewards/accuracies"),
        "best_step": state.best.step if state.best else None,
        "updated": state.updated or None,
    }


def run_lines(rows: Sequence[RunSummary], *, now: float | None = None) -> list[str]:
    """Return the table of runs."""
    now = time.time() if now is None else now
    head = ["STATUS", "RUN", "MODEL", "METHOD", "STEP", "LOSS", "BEST EVAL", "AGE"]
    return columns([head, *(_run_cells(row, now) for row in rows)], right=range(4, 8))


def _run_cells(row: RunSummary, now: float) -> list[str]:
    run, state, status = row
    return [
        f"{GLYPHS.get(status, '✘')} {status}",
        one_line(run.name),
        one_line(state.started.model) if state.started else MISSING,
        f"{state.started.method} {state.started.adapter}" if state.started else MISSING,
        f"{state.step}/{state.total_steps}" if state.total_steps else MISSING,
        number(state.loss),
        _best(state),
        duration(now - state.updated) if state.updated else MISSING,
    ]


def _best(state: RunState) -> str:
    if not state.best:
        return MISSING
    metrics = state.best.metrics
    said = preference(metrics, "eval_") or [number(metrics.get("eval_loss"))]
    return f"{', '.join(said)} @{state.best.step}"


def model_values(facts: "ModelFacts") -> dict[str, Any]:
    """Return a model as JSON values."""
    return asdict(facts) | {"path": str(facts.path)}


def model_lines(models: "Sequence[ModelFacts]") -> list[str]:
    """Return the table of models, and why some cannot be trained."""
    head = ["MODEL", "PARAMETERS", "BITS", "LAYERS", "CONTEXT", "LICENCE", "TRAIN"]
    rows = [
        [
            one_line(facts.name),
            count(facts.parameters) if facts.parameters else MISSING,
            f"{facts.bits:.1f}" if facts.bits else MISSING,
            str(facts.layers or MISSING),
            f"{facts.context:,}" if facts.context else MISSING,
            one_line(facts.licence, 20) or MISSING,
            ("▲ yes" if facts.why_not else "✔ yes") if facts.trainable else "✘ no",
        ]
        for facts in models
    ]
    notes = [f"{one_line(facts.name)}: {one_line(facts.why_not)}" for facts in models if facts.why_not]
    return [*columns([head, *rows], right=range(1, 5)), *notes]


def report_lines(report: "DataReport") -> list[str]:
    """Return what is in the data."""
    bars = [rows for _, rows in report.histogram]
    formats = ", ".join(f"{rows:,} {one_line(kind)}" for kind, rows in report.formats.items())
    share = f"{report.supervised_share:.0%}"
    lines = [
        f"rows      {report.rows_read:,} read ({formats}), {report.train_rows:,} to train on",
        f"tokens    {report.tokens:,}, of which {report.supervised_tokens:,} are trained on ({share})",
        f"lengths   {_sparkline(bars)}  p50 {report.length_p50:,} · p90 {report.length_p90:,} · "
        f"p99 {report.length_p99:,} · longest {report.length_max:,} tokens",
    ]
    if report.responses:
        kinds = (f"{kind} of {_mean(counts)} tokens" for kind, counts in report.responses.items())
        lines.append(f"answers   {' and '.join(kinds)} on average")
    counted = {
        **{f"left out: {reason} {_places(report, reason)}".rstrip(): rows for reason, rows in report.dropped.items()},
        "cut to max_seq_length": report.truncated_rows,
        "split into several": report.split_rows,
        "the same as an earlier one": report.duplicate_rows,
        **report.notes,
    }
    flagged = [
        f"▲ {rows:,} {'row' if rows == 1 else 'rows'}: {one_line(what)}" for what, rows in counted.items() if rows
    ]
    flagged += [f"▲ {one_line(report.length_bias)}"] if report.length_bias else []
    return lines + (flagged or ["✔ nothing was left out, cut or changed"])


def _mean(counts: Mapping[str, float]) -> str:
    return f"{counts['mean_tokens']:.1f}"


def _places(report: "DataReport", reason: str) -> str:
    named = report.name_dropped(reason)
    return f"({named})" if named else ""


def _sparkline(values: Sequence[int]) -> str:
    highest = max([1, *values])
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // highest)] for value in values)


def row_values(row: "RowView") -> dict[str, Any]:
    """Return a row as JSON values."""
    ids, mask = row.encoded
    return {
        "where": row.where,
        "tokens": len(ids),
        "supervised_tokens": int(mask.sum()),
        "spans": [{"text": text, "trained": trained} for text, trained in row.spans],
        "ids": [int(token) for token in ids],
        "loss_mask": [int(trained) for trained in mask],
        **({"parts": [part._asdict() for part in row.parts]} if row.parts else {}),
    }


def print_row(row: "RowView", *, with_ids: bool, plain: bool) -> None:
    """Print a row as the model sees it: trained text underlined on a terminal, else with ▔ below it."""
    values = row_values(row)
    tokens, trained_tokens = values["tokens"], values["supervised_tokens"]
    share = trained_tokens / max(1, tokens)
    print(f"{one_line(row.where)} · {tokens:,} tokens · {trained_tokens:,} trained on ({share:.0%})\n")
    draw = (lambda spans: print_lines(marked_lines(spans))) if plain or not sys.stdout.isatty() else _print_underlined
    shown = [(clean(text).replace("\n", "⏎\n"), trained) for text, trained in row.spans]
    if not row.parts:
        draw(shown)
    for part, span in zip(row.parts, shown, strict=bool(row.parts)):
        margin = "" if part.margin is None else f" (scored {part.margin:+g})"
        print(f"{_PARTS[part.kind]} {part.kind}{margin}")
        draw([span])
        print()
    if with_ids:
        print("\nids", *values["ids"])


def marked_lines(spans: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """Yield the lines of a text, each with ▔ below what is trained on."""
    from rich.cells import cell_len

    text = marks = ""
    for piece, trained in spans:
        for index, part in enumerate(piece.expandtabs(4).split("\n")):
            if index:
                yield from (line.rstrip() for line in (text, marks) if line == text or "▔" in line)
                text = marks = ""
            text += part
            marks += ("▔" if trained else " ") * cell_len(part)
    if text:
        yield from (line.rstrip() for line in (text, marks) if line == text or "▔" in line)


def _print_underlined(spans: Iterable[tuple[str, bool]]) -> None:
    from rich.text import Text

    styled = Text.assemble(*((text, "underline green" if trained else "dim") for text, trained in spans))
    _stdout().print(styled, soft_wrap=True)


def print_result(run: Run, state: RunState) -> None:
    """Print where the result of a run is, and its scores."""
    if run.adapter.is_dir():
        print(run.adapter)
    if lines := held_out_lines(state):
        print()
        print_lines(lines)
    if state.scores:
        print()
        print_lines(score_lines(state.scores))
        print_examples(state.scores.examples)
    sys.stdout.flush()


def held_out_lines(state: RunState) -> list[str]:
    """Return the table of what held-out preferences said at the start and of the result; nothing for other runs."""
    last = next(reversed(state.evaluations), None)
    shown = state.best if state.best and state.best.step else last  # without a better one, the last weights are kept
    if not shown or not preference(shown.metrics, "eval_") or shown.step == 0:
        return []
    start, end = state.evaluations[0].metrics, shown.metrics
    accuracies = [_share(share_preferred(part, "eval_")) for part in (start, end)]
    rows = [["rewards/accuracies", *accuracies]] if "eval_rewards/accuracies" in end else []
    for name in ("rewards/margins", "logps/chosen", "logps/rejected", "loss"):
        rows.append([name, number(start.get(f"eval_{name}")), number(end.get(f"eval_{name}"))])
    return columns([["held out", "start", f"@{shown.step}"], *rows], right=(1, 2))


def score_lines(scores: Scored) -> list[str]:
    """Return the table of Base against tuned."""
    rows = [
        [metric.replace("_", " "), _share(scores.base.get(metric)), _share(scores.tuned.get(metric))]
        for metric in {**scores.tuned, **scores.base}
    ]
    return columns([[f"{scores.rows:,} test rows", "Base", "tuned"], *rows], right=(1, 2))


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def print_examples(examples: Sequence[Mapping[str, str]]) -> None:
    """Print a few answers side by side."""
    from rich.table import Table
    from rich.text import Text

    console = _stdout()

    def cell(example: Mapping[str, str], key: str) -> Text:
        return Text(clean(example.get(key, "")))

    for place, example in enumerate(examples, start=1):
        change = example.get("change", "")
        prompt = clean(example.get("prompt", ""))
        print(f"\n{place}  {prompt}" + (f"  ({change})" if change else ""))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
        for title in ("expected", "Base", "tuned"):
            table.add_column(title, ratio=1, overflow="fold")
        table.add_row(*(cell(example, key) for key in ("reference", "base", "tuned")))
        with console.capture() as drawn:
            console.print(table)
        print_lines(line.rstrip() for line in drawn.get().splitlines())


def _stdout() -> "Console":
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED
    return Console(width=min(max(width, NARROWEST), WIDEST), highlight=False, markup=False, emoji=False)


def finding_lines(findings: "Sequence[Finding]") -> list[str]:
    """Return what was looked at, with what to do below."""
    lines = []
    for finding in findings:
        lines.append(f"{LEVELS[finding.level]} {one_line(finding.what)}")
        lines += [f"  {one_line(finding.fix)}"] if finding.fix else []
    return lines


def key_lines(keys: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the keys of a recipe with their defaults, and below each what it means."""
    lines = []
    for key, default, doc in keys:
        lines += [f"{key} = {default}" if default else key, f"    {one_line(doc)}"]
    return lines
