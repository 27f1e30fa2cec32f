"""The studio: screens over run folders.

The rule: the app owns what outlives a screen (the watcher of the runs, which run is open, themes, keys); everything
else is a screen's.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import App
from textual.binding import BindingType
from textual.command import CommandPalette
from textual.worker import get_current_worker

from macft import api
from macft.machine import runs_folder
from tui.actions import EVERYWHERE, bindings, read_keys
from tui.draft import Draft
from tui.follow import RunsWatcher
from tui.messages import RunRow, RunsChanged
from tui.palette import StudioCommands
from tui.rows import RowsChild
from tui.screens.adapters import AdaptersScreen
from tui.screens.compare import CompareScreen
from tui.screens.data import DataScreen
from tui.screens.frame import StudioScreen
from tui.screens.help import HelpScreen
from tui.screens.home import HomeScreen
from tui.screens.live import LiveScreen
from tui.screens.models import ModelsScreen
from tui.screens.train import FIRST_RECIPE, TrainScreen
from tui.screens.voices import answering
from tui.theme import DARK, LIGHT, NAMES

SCREENS: tuple[type[StudioScreen], ...] = (
    HomeScreen,
    ModelsScreen,
    DataScreen,
    TrainScreen,
    LiveScreen,
    CompareScreen,
    AdaptersScreen,
)
RECIPES = {"sft": FIRST_RECIPE, "dpo": "dpo-lora-tone", "kto": "kto-lora-thumbs"}
"""What rows of a kind are trained with, when the recipe on Train is for others."""


class Studio(App[None]):
    """The app.

    Args:
        runs: Where the runs are; left out, macft's own folder.
        now: The clock that ages are told from.
        worker: Starts the child that loads models; left out, macft's own.
        seed: Fixes who sits where in blind comparisons; left out, nobody can know it.
        start_rows: Starts the child that reads rows.
    """

    TITLE = "macft"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {kind.NAME: kind for kind in SCREENS}
    DEFAULT_MODE = "home"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings(EVERYWHERE)]
    COMMANDS: ClassVar[set[Any]] = {StudioCommands}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 — declared by App
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012

    def __init__(
        self,
        runs: Path | None = None,
        *,
        now: Callable[[], float] = time.time,
        worker: Sequence[str] = (),
        seed: int | None = None,
        start_rows: Callable[[], RowsChild] = api.start_rows,
    ) -> None:
        super().__init__()
        self.now, self.seed = now, seed
        self.worker = worker or api.worker_command()
        self.start_rows = start_rows
        self.runs_folder = runs or runs_folder()
        self.rows: tuple[RunRow, ...] = ()
        self.open_path: Path | None = None
        self.draft = Draft(FIRST_RECIPE)

    def on_mount(self) -> None:
        """Start watching the runs."""
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = DARK.name
        try:
            self.set_keymap(read_keys())
        except (ValueError, OSError) as error:
            self.notify(str(error), title="Your keys are not used", severity="warning", timeout=12, markup=False)
        self._watch_runs()

    @work(thread=True, exit_on_error=False, group="runs")
    def _watch_runs(self) -> None:
        worker = get_current_worker()
        watcher = RunsWatcher(self.runs_folder, self._post_rows)
        watcher.watch(lambda: worker.is_cancelled)

    def _post_rows(self, rows: tuple[RunRow, ...]) -> None:
        self.post_message(RunsChanged(rows))

    def on_runs_changed(self, message: RunsChanged) -> None:
        """Keep the newest snapshot, and hand it to the screen that is up."""
        ended = {row.path for row in self.rows if row.is_live}
        self.rows = message.rows
        for row in message.rows:
            if row.path in ended and not row.is_live:
                self._say_end(row)
        if isinstance(self.screen, StudioScreen):
            self.screen.receive(message.rows)

    def _say_end(self, row: RunRow) -> None:
        reason = row.state.ended.reason if row.state.ended else "its process died; r resumes it"
        severity = "information" if row.status == "done" else "warning"
        text = f"{row.name}: {row.status}" + (f" ({reason})" if reason and row.status != "done" else "")
        self.notify(text, severity=severity, timeout=10, markup=False)  # type: ignore[arg-type]

    def row_of(self, path: Path | None) -> RunRow | None:
        """Return the row of a run's folder, None when it is gone."""
        return next((row for row in self.rows if row.path == path), None)

    def open_run(self, path: Path) -> None:
        """Show a run on Live."""
        self.open_path = path
        self.action_go("live")

    def change_recipe(self, key: str, value: str) -> None:
        """Set a key of the recipe on Train, and go there."""
        self.open_draft(self.draft.change(key, value))

    def train_on(self, parts: dict[str, list[str]], method: str) -> None:
        """Put rows into the recipe on Train, or into one for such rows, and go there."""
        draft = self.draft
        if method not in {"pretrain", kind_of(str(draft.values().get("method", "sft")))}:
            draft = Draft(RECIPES[method]).change("model", draft.shown("model"))
        values = {f"data.{part}": json.dumps(parts.get(part, [])) for part in ("train", "valid", "test")}
        self.open_draft(draft.change_all(values))

    def open_draft(self, draft: Draft) -> None:
        """Show a recipe in the making on Train."""
        self.draft = draft
        self.action_go("train")

    def compare(self, rows: Sequence[RunRow], *, base: bool) -> None:
        """Load runs on Compare: their results, or what they saved last."""
        names = [name for row in rows if (name := answering(row))]
        if len(names) < len(rows):
            self.notify("It has saved nothing yet that could answer.", severity="warning")
            return
        self.action_go("compare")
        if isinstance(self.screen, CompareScreen):
            self.screen.open(names, base=base)

    def action_go(self, name: str) -> None:
        """Go to a screen."""
        if isinstance(self.screen, HelpScreen | CommandPalette):
            self.pop_screen()
        self.switch_mode(name)

    def action_show_help(self) -> None:
        """Show all keys of the screen that is up."""
        if isinstance(self.screen, StudioScreen):
            self.push_screen(HelpScreen(self.screen.NAME))

    def action_next_theme(self) -> None:
        """Change to the next theme."""
        place = NAMES.index(self.theme) if self.theme in NAMES else -1
        self.theme = NAMES[(place + 1) % len(NAMES)]
        self.notify(self.theme, title="Theme", timeout=2)


def kind_of(method: str) -> str:
    """Return the method that stands for all methods with such rows."""
    return "sft" if method in {"sft", "pretrain"} else "kto" if method == "kto" else "dpo"
