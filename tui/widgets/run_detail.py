"""The run under the cursor, in short."""

from textual.content import Content
from textual.widgets import Static

from macft.format import clean, count, duration, gigabytes, number, one_line
from tui.messages import RunRow
from tui.theme import GLYPHS
from tui.widgets.sparkline import sparkline

LABEL_WIDTH, LINES, CURVE_WIDTH = 10, 2, 36


class RunDetail(Static):
    """What a run is, how far it came, and what to do next."""

    def show(self, row: RunRow | None) -> None:
        """Show a run, or how to begin when there is none."""
        self.update(describe(row) if row else Content("No run is selected."))


def describe(row: RunRow) -> Content:
    """Return a run's facts, its loss as two lines, and what can be done with it."""
    state = row.state
    parts: list[Content | tuple[str, str]] = [(f"{GLYPHS.get(row.status, '✘')} {row.status}  ", "bold")]
    parts.append(Content(one_line(row.name)))
    for label, value in facts(row):
        parts.append(Content.assemble("\n", (f"{label:<{LABEL_WIDTH}}", "$foreground 60%"), value))
    losses = [step.metrics["loss"] for step in state.steps if step.metrics.get("loss") is not None]
    if losses:
        parts.append(Content(f"\n\nloss  {number(losses[0])} → {number(losses[-1])}\n"))
        parts.append(("\n".join(sparkline(losses, width=CURVE_WIDTH, height=LINES)), "$primary"))
    if advice := next_step(row):
        parts.append(Content(f"\n\n{advice}"))
    return Content.assemble(*parts)


def facts(row: RunRow) -> list[tuple[str, str]]:
    """Return label and value of what is known."""
    state, found = row.state, list[tuple[str, str]]()
    if state.started:
        bits = f", {state.started.quantize} bits" if state.started.quantize else ""
        found.append(("model", one_line(state.started.model) + bits))
        found.append(("method", f"{state.started.method} · {state.started.adapter}"))
    if state.planned:
        found.append(("rows", f"{state.planned.train_rows:,} train · {state.planned.valid_rows:,} valid"))
        found.append(("trainable", f"{count(state.planned.trainable_parameters)} parameters"))
        found.append(("step", f"{state.step:,} of {state.total_steps:,}"))
    if state.best:
        found.append(("best", f"{number(state.best.metrics.get('eval_loss'))} at step {state.best.step:,}"))
    if peak := max((step.metrics.get("peak_memory_bytes", 0) for step in state.steps[-1:]), default=0):
        found.append(("memory", f"{gigabytes(peak)} at its highest"))
    if state.started and state.updated:
        found.append(("took", duration(state.updated - state.started.time)))
    if row.note:
        found.append(("note", one_line(row.note, 200)))
    return found


def next_step(row: RunRow) -> str:
    """Say what a person would do with a run as it is."""
    ended = row.state.ended
    match row.status:
        case "crashed":
            return f"Its process died. r goes on from step {row.state.checkpoint_step:,}; log: {row.run.log.name}"
        case "failed":
            return clean(" ".join(filter(None, (ended.reason, ended.fix))) if ended else "")
        case "stopped":
            return f"r goes on from step {row.state.checkpoint_step:,}"
        case "unreadable":
            return clean(row.error)
        case "done":
            return "c asks Base and it the same, side by side"
        case _:
            return "enter follows it"
