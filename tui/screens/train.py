"""Train: a recipe as a form, and what it will need as it is written."""

import time
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Select, Static
from textual.worker import get_current_worker

from macft import api
from macft.errors import DoesNotFit, MacftError, RecipeError
from macft.format import one_line
from macft.gallery import find_recipe, list_gallery, read_head
from macft.plan import Plan, Verdict
from macft.recipe import Recipe
from tui.actions import bindings
from tui.draft import Draft
from tui.screens.ask import AskScreen
from tui.screens.frame import StudioScreen
from tui.widgets.form import FieldRow, RecipeForm
from tui.widgets.memory_bar import MemoryBar, describe_short

WAIT_SECONDS = 0.25
"""After a keystroke, before the plan is made anew."""
FIRST_RECIPE = "quickstart"
SHOWN_PURPOSE = 60


class TrainScreen(StudioScreen):
    """A recipe to be started."""

    NAME = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("train")]
    AUTO_FOCUS = "#recipe"

    def __init__(self) -> None:
        super().__init__()
        self.recipe: Recipe | None = None
        self.plan: Plan | None = None
        self.why_not = ""
        self.every_key = False
        self.shown: Draft | None = None

    @property
    def draft(self) -> Draft:
        """The recipe in the making, which other screens change as well."""
        return self.studio.draft

    @draft.setter
    def draft(self, draft: Draft) -> None:
        self.studio.draft = draft

    def compose_body(self) -> ComposeResult:
        """Put the form beside plan, purpose and command."""
        with Horizontal(id="train"):
            with Vertical(id="left"):
                options = self._options()
                yield Select(options, value=self.draft.source, allow_blank=False, compact=True, id="recipe")
                yield Static(id="verdict", markup=False)
                yield RecipeForm(id="form")
            with VerticalScroll(id="right", can_focus=False):
                yield MemoryBar(id="memory", markup=False, classes="box")
                yield Static(id="command", markup=False, classes="box")
                yield Static(id="purpose", markup=False, classes="box")

    def _options(self) -> list[tuple[str, str]]:
        """Return the gallery, and the recipe that is open if that is another."""
        gallery = list_gallery()
        known = [(one_line(f"{recipe.name} · {recipe.purpose}", SHOWN_PURPOSE), recipe.name) for recipe in gallery]
        source = self.draft.source
        return known if any(source == name for _, name in known) else [*known, (_shown_path(source), source)]

    def on_mount(self) -> None:
        """Title the boxes, and show the first recipe."""
        for name, title in (
            ("memory", "Memory plan"),
            ("command", "The same without the studio"),
            ("purpose", "Recipe"),
        ):
            self.query_one(f"#{name}").border_title = title
        self._open(self.draft)

    def on_screen_resume(self) -> None:
        """Show the recipe that was made elsewhere: a run's, or one with a model or data chosen on another screen."""
        super().on_screen_resume()
        if self.shown not in (None, self.draft):
            self._open(self.draft)

    def _open(self, draft: Draft) -> None:
        self.draft = self.shown = draft
        chooser = self.query_one("#recipe", Select)
        if chooser.value != draft.source:
            with self.prevent(Select.Changed):
                chooser.set_options(self._options())
                chooser.value = draft.source
        method = str(draft.values().get("method", "sft"))
        self.query_one("#form", RecipeForm).show(draft, method, every_key=self.every_key)
        self.query_one("#purpose", Static).update(Content(self._purpose()))
        self._reconsider()

    def _purpose(self) -> str:
        try:
            return read_head(find_recipe(self.draft.source))
        except (OSError, RecipeError) as error:
            return str(error)

    def on_select_changed(self, event: Select.Changed) -> None:
        """Open the recipe that was chosen."""
        # The newest value: an event of the one before may come late.
        if event.select.id == "recipe" and event.select.value != self.draft.source:
            self._open(Draft(str(event.select.value)))

    def on_field_row_changed(self, event: FieldRow.Changed) -> None:
        """Take a key's new value, and plan anew."""
        changed = self.draft.change(event.key, event.value)
        if changed != self.draft:
            self.draft = self.shown = changed
            self._reconsider()

    def _reconsider(self) -> None:
        self.query_one("#command", Static).update(Content(self.draft.command()))
        self._plan(self.draft)

    @work(thread=True, exclusive=True, exit_on_error=False, group="plan")
    def _plan(self, draft: Draft) -> None:
        worker = get_current_worker()
        time.sleep(WAIT_SECONDS)
        if worker.is_cancelled:
            return
        recipe, made, why_not, problems = None, None, "", dict[str, str]()
        try:
            recipe = draft.recipe()
            made = api.plan(recipe, calibrated=False)
        except RecipeError as error:
            problems = {problem.where.removeprefix("--set ").split("=")[0]: problem.what for problem in error.problems}
            why_not = str(error)
        except MacftError as error:
            why_not = str(error)
        if not worker.is_cancelled:
            self.app.call_from_thread(self._show, recipe, made, why_not, problems)

    def _show(self, recipe: Recipe | None, made: Plan | None, why_not: str, problems: dict[str, str]) -> None:
        self.recipe, self.plan, self.why_not = recipe, made, why_not
        self.query_one(MemoryBar).show(made, why_not)
        self.query_one(RecipeForm).complain(problems)
        self.query_one("#verdict", Static).update(
            Content(describe_short(made) if made else f"✘ {why_not.splitlines()[0]}")
        )

    # What the keys do

    def action_start(self) -> None:
        """Start the run, or say why not."""
        if self.recipe is None:
            self.notify(
                self.why_not or "The plan is still being made.", title="Not yet", severity="warning", markup=False
            )
            return
        recipe, self.recipe = self.recipe, None  # the same key again starts no second run
        self._launch(recipe)

    @work(thread=True, exit_on_error=False, group="start")
    def _launch(self, recipe: Recipe) -> None:
        title = why_not = ""
        try:
            run = api.launch(recipe)
        except DoesNotFit as error:
            title, why_not = "It does not fit: f makes it fit", str(error)
        except MacftError as error:
            title, why_not = "It cannot start", str(error)
        if why_not:
            self.app.call_from_thread(self.notify, why_not, title=title, severity="error", timeout=12, markup=False)
        else:
            self.app.call_from_thread(self.studio.open_run, run.path)
        self.app.call_from_thread(self._reconsider)

    def action_fit(self) -> None:
        """Apply the cheapest change that makes the plan fit."""
        if self.plan is None or self.plan.verdict != Verdict.DOES_NOT_FIT:
            self.notify(self.why_not or "It fits as it is.", markup=False)
            return
        remedy = next((way for way in self.plan.remedies if way.fits), next(iter(self.plan.remedies), None))
        if remedy is None:
            self.notify("No change of the recipe is enough: take a smaller model.", severity="warning")
            return
        self.notify(f"{remedy.key} = {remedy.value}: {remedy.text} ({remedy.price})", title="Changed", markup=False)
        self._open(self.draft.change(remedy.key, str(remedy.value)))

    def action_copy(self) -> None:
        """Copy the command."""
        self.app.copy_to_clipboard(self.draft.command())
        self.notify("The command is copied.", timeout=3)

    def action_save(self) -> None:
        """Save the recipe as a file of the person's own."""
        suggested = f"{Path(self.draft.source).stem}-mine.toml"

        def save(name: str | None) -> None:
            if not name:
                return
            path = Path(name).expanduser()
            try:
                self.draft.save(path)
            except OSError as error:
                self.notify(f"{path} cannot be written ({error.strerror}).", severity="error", markup=False)
            else:
                self.notify(f"Saved as {path}", markup=False)

        self.app.push_screen(AskScreen("Save the recipe as", suggested), save)

    def action_every_key(self) -> None:
        """Show every key of the recipe, or the essential ones."""
        self.every_key = not self.every_key
        self._open(self.draft)

    def action_revert(self) -> None:
        """Go back to the recipe as it is on disk."""
        self._open(Draft(self.draft.source))

    def key_escape(self) -> None:
        """Leave the field, so that letters are keys again."""
        self.set_focus(self.query_one("#recipe"))


def _shown_path(source: str) -> str:
    """Return a recipe's file, a run's by the run's name."""
    path = Path(source)
    return one_line(f"{path.parent.name}/{path.name}", SHOWN_PURPOSE)
