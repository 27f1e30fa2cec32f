"""One question with a few answers."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option


class ChooseScreen(ModalScreen[str | None]):
    """Asks for one of several answers; None when the person leaves with escape.

    Args:
        question: What is asked.
        answers: Each with what it means.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave")]

    def __init__(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.question, self.answers = question, answers

    def compose(self) -> ComposeResult:
        """Show the question above its answers."""
        with Vertical(id="ask") as box:
            box.border_title = self.question.replace("[", "(")
            box.border_subtitle = "enter takes it · esc leaves"
            yield OptionList(
                *(
                    Option(Content.assemble((f"{name:<14}", "bold"), meaning), id=name)
                    for name, meaning in self.answers
                ),
                compact=True,
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Give the answer."""
        self.dismiss(event.option.id)
