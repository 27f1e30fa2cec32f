"""What stands on every screen: the tab bar above, and the line of the live run."""

from textual.content import Content
from textual.widgets import Static

from macft.format import duration, one_line
from tui.actions import SCREENS
from tui.messages import RunRow
from tui.theme import GLYPHS


class TabBar(Static):
    """The screens in one line, the current one bold and underlined.

    Args:
        current: Name of the screen it stands on.
    """

    def __init__(self, current: str) -> None:
        parts: list[tuple[str, str]] = [(" macft  ", "bold $primary")]
        for name, digit in SCREENS.items():
            style = "bold underline" if name == current else "$foreground 70%"
            parts += [(f"{digit} {name.title()}", style), ("  ", "")]
        super().__init__(Content.assemble(*parts), id="tabs")


class StatusLine(Static):
    """The run that is going on, on every screen; gone when there is none."""

    def show(self, row: RunRow | None) -> None:
        """Show a live run, or nothing."""
        self.display = row is not None
        if row is not None:
            self.update(Content(" " + describe_live(row)))


def describe_live(row: RunRow) -> str:
    """Say in one line how far a live run is."""
    state = row.state
    parts = [f"{GLYPHS.get(row.status, '✘')} {one_line(row.name, 40)}"]
    if state.total_steps and state.step:
        parts.append(f"{state.step / state.total_steps:.0%}")
        if state.remaining_seconds is not None and row.status == "running":
            parts.append(duration(state.remaining_seconds))
    if row.status == "paused":
        parts.append("paused")
    elif not state.step:
        phase = state.phase
        parts.append(f"{phase.name} {phase.done:,}/{phase.total:,}" if phase and phase.total else "getting ready")
    return " · ".join(parts)
