"""A text of several lines, to be changed."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import TextArea


class EditScreen(ModalScreen[str | None]):
    """Lets a person change a text; None when they leave with escape.

    Args:
        title: What the text is.
        text: As it is.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave"), ("ctrl+s", "keep", "Keep")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self.heading, self.text = title, text

    def compose(self) -> ComposeResult:
        """Show the text in an editor."""
        with Vertical(id="edit") as box:
            box.border_title = self.heading
            box.border_subtitle = "^s keeps it · esc leaves"
            yield TextArea(self.text, soft_wrap=True, tab_behavior="indent")

    def action_keep(self) -> None:
        """Give the text."""
        self.dismiss(self.query_one(TextArea).text)
