"""Home: all runs, and the one under the cursor."""

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import DataTable, Static

from macft import api
from macft.format import MISSING, count, duration, number, one_line
from tui.actions import bindings
from tui.draft import Draft
from tui.messages import RunRow
from tui.screens.ask import AskScreen
from tui.screens.difference import DifferenceScreen
from tui.screens.listing import ListScreen
from tui.screens.removal import Removal
from tui.theme import GLYPHS, STYLES
from tui.widgets.run_detail import RunDetail

COLUMNS = ("state", "name", "model", "method", "step", "best", "size", "age", "note")
EMPTY = """Nothing yet. Three ways to begin:

  2   choose a model, or fetch one: smollm2-135m (93 MB) is small enough for any Mac
  4   the quickstart: that model learns to read addresses, in minutes
  4   another recipe, and your own rows as its data.train

Whatever trains shows up here, and goes on when the studio is closed."""


class HomeScreen(Removal, ListScreen):
    """All runs."""

    NAME = "home"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("home")]
    AUTO_FOCUS = "#runs"

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[Path] = []

    def compose_body(self) -> ComposeResult:
        """Put the table beside what is said of one run."""
        with Horizontal(id="home"):
            with Vertical(id="list"):
                yield from self.compose_filter("runs")
                yield DataTable(id="runs", cursor_type="row", zebra_stripes=False)
                yield Static(Content(EMPTY), id="empty")
            yield RunDetail(id="detail")

    def on_mount(self) -> None:
        """Make the columns."""
        table = self.table
        for name in COLUMNS:
            table.add_column(name.upper(), key=name)

    @property
    def table(self) -> "DataTable[Text]":
        """The table of runs."""
        return self.query_one("#runs", DataTable)

    @property
    def current(self) -> RunRow | None:
        """The run under the cursor."""
        table = self.table
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return self.studio.row_of(Path(key)) if key else None

    def refill(self) -> None:
        """Show the runs that the filter wants."""
        self.show_runs(self.studio.rows)

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Bring the table up to date without moving the cursor off its run."""
        table, shown = self.table, [row for row in rows if self._is_wanted(row)]
        table.display = bool(rows)
        self.query_one("#empty").display = not rows
        wanted = [str(row.path) for row in shown]
        if wanted != [key.value for key in table.rows]:
            before = self.current.path if self.current else None
            table.clear()
            for row in shown:
                table.add_row(*self._cells(row), key=str(row.path))
            if before and str(before) in wanted:
                table.move_cursor(row=wanted.index(str(before)), animate=False)
        else:
            for row in shown:
                for column, cell in zip(COLUMNS, self._cells(row), strict=True):
                    if table.get_cell(str(row.path), column) != cell:
                        table.update_cell(str(row.path), column, cell, update_width=True)
        self.query_one(RunDetail).show(self.current)

    def _is_wanted(self, row: RunRow) -> bool:
        model = row.state.started.model if row.state.started else ""
        return self.is_wanted(f"{row.name} {model} {row.note} {row.status}")

    def _cells(self, row: RunRow) -> list[Text]:
        state, started = row.state, row.state.started
        mark = "◆ " if row.path in self.marked else ""
        texts = [
            f"{mark}{GLYPHS.get(row.status, '✘')} {row.status}",
            one_line(row.name, 44),
            one_line(started.model, 24) if started else MISSING,
            f"{started.method} {started.adapter}" if started else MISSING,
            f"{state.step:,}/{state.total_steps:,}" if state.total_steps else MISSING,
            f"{number(state.best.metrics.get('eval_loss'))} @{state.best.step}" if state.best else MISSING,
            f"{count(row.size_bytes)}B" if row.size_bytes else MISSING,
            "now" if row.is_live else _age(row, self.studio.now()),
            one_line(row.note, 30),
        ]
        return [Text(text, style=STYLES.get(row.status, "") if place == 0 else "") for place, text in enumerate(texts)]

    def on_data_table_row_highlighted(self) -> None:
        """Show the run that the cursor is on."""
        self.query_one(RunDetail).show(self.current)

    def on_data_table_row_selected(self) -> None:
        """Open the run: a click or enter."""
        self.action_open()

    # What the keys do

    def action_open(self) -> None:
        """Show the run on Live."""
        if row := self.current:
            self.studio.open_run(row.path)

    def action_resume(self) -> None:
        """Go on with the run."""
        if row := self.current:
            self.attempt_aside(
                lambda: api.resume(str(row.path)), lambda run: self.studio.open_run(run.path), "It cannot go on"
            )

    def action_stop(self) -> None:
        """Ask the run to save and end."""
        if row := self.current:
            self.attempt(api.stop, str(row.path), done=f"{row.name} finishes its step and saves")

    def action_again(self) -> None:
        """Open the run's recipe on Train."""
        if row := self.current:
            self.studio.open_draft(Draft(str(row.path / "recipe.toml")))

    def action_compare(self) -> None:
        """Ask Base and the run side by side, or the two that are marked."""
        marked = [row for path in self.marked if (row := self.studio.row_of(path))]
        if len(marked) == 2:
            self.studio.compare(marked, base=False)
        elif row := self.current:
            self.studio.compare([row], base=True)

    def action_note(self) -> None:
        """Write a note on the run."""
        if row := self.current:

            def save(text: str | None) -> None:
                if text is not None:
                    self.attempt(api.write_note, str(row.path), text)

            self.app.push_screen(AskScreen(f"Note on {row.name}", row.note), save)

    def action_mark(self) -> None:
        """Mark the run, or take its mark away; of three the oldest mark goes."""
        if row := self.current:
            marked = [path for path in self.marked if path != row.path]
            self.marked = marked if row.path in self.marked else [*marked, row.path][-2:]
            self.show_runs(self.studio.rows)

    def action_overlay(self) -> None:
        """Show the two marked runs over each other; with one mark, that one and the run under the cursor."""
        paths = [*self.marked, *([self.current.path] if self.current else [])]
        rows = [row for path in dict.fromkeys(paths) if (row := self.studio.row_of(path))][:2]
        if len(rows) == 2:
            self.app.push_screen(DifferenceScreen((rows[0], rows[1])))
        else:
            self.notify("Mark a run with space, and go to another.")

    def action_remove(self) -> None:
        """Take the run away, for good after a while."""
        if row := self.current:
            self.remove_it(row.path, lambda: api.discard_run(str(row.path)), api.restore_run, api.forget_run)

    def action_down(self) -> None:
        """Go down a row."""
        self.table.action_cursor_down()

    def action_up(self) -> None:
        """Go up a row."""
        self.table.action_cursor_up()

    def action_top(self) -> None:
        """Go to the first row."""
        self.table.move_cursor(row=0)

    def action_bottom(self) -> None:
        """Go to the last row."""
        self.table.move_cursor(row=max(0, self.table.row_count - 1))


def _age(row: RunRow, now: float) -> str:
    """Return how long ago something happened, in the largest unit."""
    if not row.state.updated:
        return MISSING
    words = duration(now - row.state.updated).split()
    return " ".join(words[:2])
