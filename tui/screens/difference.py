"""Two runs over each other: their curves, and what their recipes differ in."""

import tomllib
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from macft.curves import loss_curve
from macft.format import MISSING, clean, number, one_line
from macft.recipe import differences
from tui.messages import RunRow
from tui.widgets.loss_chart import LossChart


class DifferenceScreen(ModalScreen[None]):
    """Curves and recipes of two runs.

    Args:
        rows: The two.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape,equals_sign,q", "app.pop_screen", "Close")]

    def __init__(self, rows: tuple[RunRow, RunRow]) -> None:
        super().__init__()
        self.rows = rows

    def compose(self) -> ComposeResult:
        """Put the curves above the table."""
        with Vertical(id="difference"):
            yield LossChart(id="both")
            with VerticalScroll(id="differences"):
                yield Static(describe(self.rows), markup=False)

    def on_mount(self) -> None:
        """Draw, once there is a size."""
        self.query_one("#both").border_title = "Loss, smoothed"
        self.query_one("#differences").border_title = "What differs"
        self.query_one("#differences").border_subtitle = "esc closes"
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        curves = [(one_line(row.name, 30), loss_curve(row.state)) for row in self.rows]
        steps = max(row.state.total_steps or row.state.step for row in self.rows)
        self.query_one(LossChart).overlay(curves, steps)


def describe(rows: tuple[RunRow, RunRow]) -> Content:
    """Return the keys that differ, and the results, a column a run."""
    lines = [("", *(one_line(row.name, 30) for row in rows))]
    found = differences(_recipe(rows[0]), _recipe(rows[1]))
    lines += [(key, clean(old or MISSING), clean(new or MISSING)) for key, old, new in found]
    lines.append(("train loss", *(number(row.state.loss) for row in rows)))
    lines.append(("best valid loss", *(_best(row) for row in rows)))
    width = max(len(key) for key, *_ in lines) + 2
    text = "\n".join(f"{key:<{width}}{one_line(before, 34):<36}{one_line(after, 34)}" for key, before, after in lines)
    return Content(text)


def _best(row: RunRow) -> str:
    return number(row.state.best.metrics.get("eval_loss")) if row.state.best else MISSING


def _recipe(row: RunRow) -> dict[str, Any]:
    try:
        return tomllib.loads((Path(row.path) / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
