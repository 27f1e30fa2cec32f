"""What all screens share: tabs above, the live run and the keys below, and news of the runs.

The rule: a screen draws what `show_runs` hands it and keeps no truth of its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Footer

from macft.errors import MacftError
from tui.messages import RunRow
from tui.widgets.chrome import StatusLine, TabBar

if TYPE_CHECKING:
    from tui.app import Studio


class StudioScreen(Screen[None]):
    """One of the screens.

    Attributes:
        NAME: Its mode, and the scope of its actions.
    """

    NAME: ClassVar[str] = ""
    BINDINGS: ClassVar[list[BindingType]] = []

    def compose(self) -> ComposeResult:
        """Put the body between the tabs and the keys."""
        yield TabBar(self.NAME)
        yield from self.compose_body()
        with Vertical(id="foot"):
            yield StatusLine(id="status", markup=False)
            yield Footer(compact=True, show_command_palette=False)

    def compose_body(self) -> ComposeResult:
        """Yield the screen's own widgets."""
        raise NotImplementedError

    @property
    def studio(self) -> "Studio":
        """The app."""
        return cast("Studio", self.app)

    def on_screen_resume(self) -> None:
        """Show the runs as they are now; they may have changed while another screen was up."""
        self.receive(self.studio.rows)

    def receive(self, rows: tuple[RunRow, ...]) -> None:
        """Take a new snapshot of the runs."""
        self.query_one("#status", StatusLine).show(next((row for row in rows if row.is_live), None))
        self.show_runs(rows)

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Draw what of the runs this screen shows."""

    @work(thread=True, exit_on_error=False, group="attempts")
    def attempt_aside(self, act: Callable[[], Any], then: Callable[[Any], None], title: str) -> None:
        """Do what takes a while in a thread, and go on with its result, or say what is wrong."""
        try:
            result = act()
        except MacftError as error:
            self.app.call_from_thread(self.notify, str(error), title=title, severity="error", timeout=12, markup=False)
        else:
            self.app.call_from_thread(then, result)

    def attempt(self, work: Callable[..., Any], *arguments: Any, done: str = "") -> bool:
        """Do something that macft may refuse; says what was done, or what is wrong and what to do."""
        try:
            work(*arguments)
        except MacftError as error:
            self.notify(str(error), title="That did not work", severity="error", timeout=12, markup=False)
            return False
        if done:
            self.notify(done, markup=False)
        return True
