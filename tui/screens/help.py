"""All keys of a screen."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.actions import ACTIONS, EVERYWHERE, PARTS
from tui.palette import key_name


class HelpScreen(ModalScreen[None]):
    """The actions table of one screen, as a page.

    Args:
        scope: The screen it was asked on.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,f1,q", "app.pop_screen", "Close")]

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope

    def compose(self) -> ComposeResult:
        """List the screen's own actions, then those of everywhere."""
        with VerticalScroll(id="help") as box:
            box.border_title = f"Keys of {self.scope.title()}"
            box.border_subtitle = "esc closes"
            for scope in (self.scope, *PARTS.get(self.scope, ()), EVERYWHERE):
                for action in ACTIONS.get(scope, ()):
                    yield Static(Content.assemble((f"{key_name(action):>9}  ", "bold"), action.help))
                yield Static("")
            yield Static(Content.assemble((f"{'^p':>9}  ", "bold"), "Find any action by its words."))
