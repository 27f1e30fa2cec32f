"""A row's JSON, to be written anew."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static, TextArea


class EditRowScreen(ModalScreen[str | None]):
    """Asks for a row; None when the person leaves with escape.

    Args:
        title: Which row.
        text: Its JSON.
        problem: What was wrong with what the person wrote before.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss(None)", "Leave"),
        ("ctrl+s", "keep", "Keep"),
    ]

    def __init__(self, title: str, text: str, problem: str = "") -> None:
        super().__init__()
        self.row, self.text, self.problem = title, text, problem

    def compose(self) -> ComposeResult:
        """Show the text, and what is wrong with it."""
        with Vertical(id="edit-row") as box:
            box.border_title = self.row.replace("[", "(")
            box.border_subtitle = "ctrl+s keeps it · esc leaves"
            yield Static(f"✘ {self.problem}" if self.problem else "", id="edit-problem", markup=False)
            yield TextArea(self.text, id="edit-text", soft_wrap=True)

    def on_mount(self) -> None:
        """Write at once."""
        self.query_one("#edit-problem").display = bool(self.problem)
        self.query_one(TextArea).focus()

    def action_keep(self) -> None:
        """Give what was written."""
        self.dismiss(self.query_one(TextArea).text)
