"""Choose who answers: results of runs, their checkpoints, models."""

from typing import ClassVar, NamedTuple

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from macft import api
from macft.format import number, one_line
from tui.comparison import MOST
from tui.messages import RunRow


class Chosen(NamedTuple):
    """Voices by name, and whether what they were before tuning answers too."""

    names: tuple[str, ...]
    base: bool


class _Choice(NamedTuple):
    name: str
    text: str


class VoicesScreen(ModalScreen[Chosen | None]):
    """Lists what can answer; None when the person leaves with escape.

    Args:
        rows: The runs.
        chosen: Who answers now.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss(None)", "Leave"),
        ("space", "mark", "Mark"),
        ("b", "base", "Base"),
    ]

    def __init__(self, rows: tuple[RunRow, ...], chosen: Chosen) -> None:
        super().__init__()
        self.rows, self.marked, self.base = rows, list(chosen.names), chosen.base
        self.choices: list[_Choice] = []

    def compose(self) -> ComposeResult:
        """Show the list."""
        with Vertical(id="voices") as box:
            box.border_title = "Who answers?"
            yield OptionList(id="voices-list", markup=False)

    def on_mount(self) -> None:
        """Look for what there is."""
        self._show()
        self._look()

    @work(thread=True, exit_on_error=False)
    def _look(self) -> None:
        found = [choice for row in self.rows for choice in _choices(row)]
        found += [
            _Choice(str(facts.path), f"{one_line(facts.name, 40)}  model as it is")
            for facts in api.list_models()
            if facts.weight_bytes
        ]
        self.app.call_from_thread(self._fill, found)

    def _fill(self, found: list[_Choice]) -> None:
        self.choices = found
        self._show()

    def _show(self) -> None:
        listed = self.query_one(OptionList)
        before = listed.highlighted or 0
        listed.clear_options()
        for choice in self.choices:
            listed.add_option(Option(Content(f"{'◆' if choice.name in self.marked else ' '} {choice.text}")))
        if self.choices:
            listed.highlighted = min(before, len(self.choices) - 1)
        base = "with Base" if self.base else "without Base"
        self.query_one("#voices").border_subtitle = f"space marks · b {base} · enter loads · esc leaves"

    @property
    def _under_cursor(self) -> str | None:
        place = self.query_one(OptionList).highlighted
        return self.choices[place].name if place is not None and place < len(self.choices) else None

    def action_mark(self) -> None:
        """Mark the voice under the cursor, or take its mark away."""
        if name := self._under_cursor:
            self.marked = [one for one in self.marked if one != name] + ([] if name in self.marked else [name])
            self._show()

    def action_base(self) -> None:
        """Let Base answer too, or not."""
        self.base = not self.base
        self._show()

    def on_option_list_option_selected(self) -> None:
        """Take what is marked, or what is under the cursor."""
        names = tuple(self.marked) or ((self._under_cursor,) if self._under_cursor else ())
        if len(names) > MOST:
            self.notify(f"{len(names)} are marked, and {MOST} fit side by side.", severity="warning")
        elif names:
            self.dismiss(Chosen(names, self.base))


def answering(row: RunRow) -> str:
    """Return what of a run can answer, as the worker takes it: its result, else its last checkpoint, else nothing."""
    if row.run.is_job or row.run.adapter.is_dir():
        return str(row.path)
    return f"{row.path}@latest" if (row.run.checkpoints / "latest").exists() else ""


def _choices(row: RunRow) -> list[_Choice]:
    if row.run.is_job:
        return []
    name, started = one_line(row.name, 40), row.state.started
    how = f"{started.method} {started.adapter}" if started else ""
    best = f" · best {number(row.state.best.metrics.get('eval_loss'))} @{row.state.best.step}" if row.state.best else ""
    result = [_Choice(str(row.path), f"{name}  {how}{best}")] if row.run.adapter.is_dir() else []
    steps = sorted(int(path.name[5:]) for path in row.run.checkpoints.glob("step-*") if path.name[5:].isdigit())
    return result + [_Choice(f"{row.path}@{step}", f"   {name}@{step}") for step in steps]
