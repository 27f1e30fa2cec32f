"""The job that was started last: how far it is, and what came of it."""

from textual.content import Content
from textual.widgets import Static

from macft.format import clean, duration, one_line, size
from tui.messages import RunRow
from tui.theme import GLYPHS

BAR_WIDTH = 24


class JobLine(Static):
    """A job as a line or two; gone while there is none."""

    def show(self, row: RunRow | None, stop_key: str) -> None:
        """Show a job."""
        self.display = row is not None
        if row is not None:
            self.update(describe(row, stop_key))


def describe(row: RunRow, stop_key: str) -> Content:
    """Return what a job does, how far it is, or what it left."""
    state = row.state
    kind = state.started.kind if state.started else "job"
    head = f"{GLYPHS.get(row.status, '✘')} {kind} {one_line(row.name, 40)}  "
    if state.result:
        return Content.assemble((head, "bold"), *_result(row))
    if state.ended:
        said = clean(" ".join(filter(None, (state.ended.reason, state.ended.fix))))
        return Content.assemble((head, "bold"), f"{row.status}: {said}")
    if row.status == "crashed":
        return Content.assemble((head, "bold"), f"its process died; {row.run.log.name} in its folder may say why")
    phase = state.phase
    if phase is None or not phase.total:
        return Content.assemble((head, "bold"), f"getting ready · {stop_key} cancels")
    share = phase.done / phase.total
    filled = round(share * BAR_WIDTH)
    return Content.assemble(
        (head, "bold"),
        ("━" * filled, "$primary"),
        ("━" * (BAR_WIDTH - filled), "$foreground 25%"),
        f" {share:.0%} {one_line(phase.name)} · {stop_key} cancels",
    )


def _result(row: RunRow) -> list[str]:
    result, state = row.state.result, row.state
    assert result is not None
    took = duration(result.time - state.started.time) if state.started else ""
    parts = [f"{size(result.size_bytes)} in {took}"]
    if (kept := result.metrics.get("kept")) is not None:
        parts.insert(0, f"kept {kept:.1%} of what training changed")
    if (same := result.metrics.get("agreement")) is not None:
        parts.insert(len(parts) - 1, f"{same:.1%} of greedy tokens as the original's")
    return [" · ".join(parts), f"\n  {clean(result.path)}", *(f"\n  {clean(note)}" for note in result.notes[:2])]
