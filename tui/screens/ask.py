"""One question with one line as its answer."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input


class AskScreen(ModalScreen[str | None]):
    """Asks for a line of text; None when the person leaves with escape.

    Args:
        question: What is asked.
        answer: What stands there to begin with.
        suggester: Completes what is typed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave")]

    def __init__(self, question: str, answer: str = "", suggester: Suggester | None = None) -> None:
        super().__init__()
        self.question, self.answer, self.suggester = question, answer, suggester

    def compose(self) -> ComposeResult:
        """Show the question above its field."""
        with Vertical(id="ask") as box:
            box.border_title = self.question.replace("[", "(")
            box.border_subtitle = "enter keeps it · esc leaves"
            yield Input(self.answer, suggester=self.suggester)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the answer."""
        self.dismiss(event.value)
