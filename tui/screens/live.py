"""Live: one run, as it learns or as it ended."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import RichLog, Static

from macft import api
from macft.format import duration, one_line
from macft.state import RunState
from tui.actions import bindings
from tui.messages import RunRow
from tui.news import tell
from tui.screens.frame import StudioScreen
from tui.theme import GLYPHS
from tui.widgets.gauges import Gauges
from tui.widgets.loss_chart import LossChart
from tui.widgets.samples import Samples

BAR_WIDTH = 30
SHOWN_NEWS = 200


class LiveScreen(StudioScreen):
    """One run: curve, figures, samples, events."""

    NAME = "live"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("live")]

    def __init__(self) -> None:
        super().__init__()
        self.is_frozen = False
        self._shown: tuple[object, ...] = ()

    def compose_body(self) -> ComposeResult:
        """Lay out head, chart beside gauges, samples beside events."""
        yield Static(id="head", markup=False)
        with Horizontal(id="curves"):
            yield LossChart(id="chart")
            yield Gauges(id="gauges", markup=False)
        with Horizontal(id="words"):
            yield Samples(id="samples", markup=False)
            yield RichLog(id="news", wrap=True, min_width=10, markup=False, highlight=False, max_lines=SHOWN_NEWS)

    def on_mount(self) -> None:
        """Title the boxes."""
        self.query_one("#chart").border_title = "Loss"
        self.query_one("#news").border_title = "Events"
        self.query_one("#news").can_focus = False

    @property
    def row(self) -> RunRow | None:
        """The run that is shown: the one that was opened, else the live one, else the newest."""
        rows = self.studio.rows
        return self.studio.row_of(self.studio.open_path) or next(iter(rows), None)

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Draw the run anew if it changed."""
        row = self.row
        seen = (row.path, row.status, id(row.state), self.size) if row else ()
        if self.is_frozen or seen == self._shown:
            return
        self._shown = seen
        if row is None:
            self.query_one("#head", Static).update("No run yet: 4 opens Train, where the quickstart waits.")
            return
        self.query_one("#head", Static).update(describe_head(row, frozen=self.is_frozen))
        self.query_one(LossChart).show(row.state)
        self.query_one(Gauges).show(row.state)
        self.query_one(Samples).show(row.state)
        self._show_news(row.state)

    def _show_news(self, state: RunState) -> None:
        log = self.query_one("#news", RichLog)
        log.clear()
        for line in tell(state)[-SHOWN_NEWS:]:
            log.write(line)

    def on_resize(self) -> None:
        """Draw anew in the new size."""
        self.call_after_refresh(self.receive, self.studio.rows)

    # What the keys do

    def _ask(self, action: str, said: str) -> None:
        row = self.row
        if row is None or not row.is_live:
            self.notify("This run is not going on; r resumes it." if row else "There is no run.", severity="warning")
        elif self.attempt(row.run.request, action):
            self.notify(said, timeout=3, markup=False)

    def action_pause(self) -> None:
        """Pause, or go on."""
        is_paused = self.row is not None and self.row.status == "paused"
        self._ask(
            "go_on" if is_paused else "pause", "The run goes on." if is_paused else "The run pauses after this step."
        )

    def action_stop(self) -> None:
        """Save and end."""
        if row := self.row:
            self.attempt(api.stop, str(row.path), done=f"{row.name} finishes its step and saves")

    def action_sample(self) -> None:
        """Answer the sample prompts now."""
        self._ask("sample", "The sample prompts are answered after this step.")

    def action_resume(self) -> None:
        """Go on with the run."""
        if row := self.row:
            self.attempt_aside(
                lambda: api.resume(str(row.path)), lambda run: self.notify(f"{run.name} goes on"), "It cannot go on"
            )

    def action_compare(self) -> None:
        """Ask Base and the run the same."""
        if row := self.row:
            self.studio.compare([row], base=True)

    def action_log_axis(self) -> None:
        """Change the axis."""
        chart = self.query_one(LossChart)
        chart.is_logarithmic = not chart.is_logarithmic
        self._redraw()

    def action_maximize_chart(self) -> None:
        """Give the chart the whole screen, or give it back."""
        self.toggle_class("zoomed")
        self.call_after_refresh(self._redraw)

    def action_freeze(self) -> None:
        """Hold the view."""
        self.is_frozen = not self.is_frozen
        self.notify("This view is held; the run goes on." if self.is_frozen else "This view follows again.", timeout=3)
        self._redraw()

    def action_sample_prompt(self, by: int) -> None:
        """Show another prompt's answers."""
        self.query_one(Samples).place += by
        self._redraw()

    def _redraw(self) -> None:
        self._shown = ()
        self.receive(self.studio.rows)


def describe_head(row: RunRow, *, frozen: bool) -> Content:
    """Say which run this is and how far it came."""
    state = row.state
    parts: list[Content | tuple[str, str]] = [(f" {GLYPHS.get(row.status, '✘')} {row.status.upper()}  ", "bold")]
    parts.append(Content(one_line(row.name, 48) + "  "))
    if state.total_steps:
        done = min(1.0, state.step / state.total_steps)
        filled = round(done * BAR_WIDTH)
        parts += [("━" * filled, "$primary"), ("━" * (BAR_WIDTH - filled), "$foreground 25%")]
        epochs = f" · epoch {state.steps[-1].epoch:.1f}" if state.steps else ""
        parts.append(Content(f"  {done:.0%}  step {state.step:,}/{state.total_steps:,}{epochs}"))
        if row.status == "running" and state.remaining_seconds is not None:
            parts.append(Content(f" · {duration(state.remaining_seconds)} left"))
    elif state.phase:
        amount = f" {state.phase.done:,}/{state.phase.total:,}" if state.phase.total else ""
        parts.append(Content(f"{state.phase.name}{amount}"))
    if frozen:
        parts.append(("  held", "$warning"))
    if state.ended and state.ended.reason:
        parts.append(Content(f"\n {one_line(' '.join(filter(None, (state.ended.reason, state.ended.fix))), 300)}"))
    elif row.status == "crashed":
        said = f"Its process died; r goes on from step {state.checkpoint_step:,}. {row.run.log.name} may say why"
        parts.append(Content(f"\n {said}"))
    return Content.assemble(*parts)
