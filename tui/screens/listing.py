"""What screens with a table share: the filter above it.

The rule: the filter is there when it is asked for, and what is typed is all that it keeps.
"""

from textual.app import ComposeResult
from textual.widgets import Input

from tui.screens.frame import StudioScreen


class ListScreen(StudioScreen):
    """A screen with one list, which has the focus at first, and a filter."""

    def compose_filter(self, what: str) -> ComposeResult:
        """Yield the filter's field.

        Args:
            what: Is listed, in the plural.
        """
        field = Input(placeholder=f"Show {what} with these letters · esc ends", id="filter", compact=True)
        field.display = False
        yield field

    def refill(self) -> None:
        """Show the rows that the filter wants."""

    def is_wanted(self, text: str) -> bool:
        """Return whether a text has all words of the filter."""
        return all(word in text.lower() for word in self.query_one("#filter", Input).value.lower().split())

    def action_filter(self) -> None:
        """Ask for letters to look for."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def on_input_changed(self) -> None:
        """Filter as the person types."""
        self.refill()

    def on_input_submitted(self) -> None:
        """Go to what was found."""
        self.query_one(str(self.AUTO_FOCUS)).focus()

    def key_escape(self) -> None:
        """End the filter."""
        field = self.query_one("#filter", Input)
        field.value, field.display = "", False
        self.query_one(str(self.AUTO_FOCUS)).focus()
