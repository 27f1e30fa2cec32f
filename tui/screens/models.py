"""Models: what is on this machine, whether it can be trained and chatted with here, and fetching more."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import DataTable, ProgressBar, Static
from textual.worker import get_current_worker

from macft import api
from macft.errors import RecipeError
from macft.events import PhaseProgress, decode_event
from macft.format import MISSING, clean, count, gigabytes, one_line
from macft.machine import MachineFacts, home, read_machine
from macft.plan import USABLE_SHARE, DataFacts, Verdict
from macft.plan import plan as make_plan
from macft.recipe import SftRecipe
from tui.actions import bindings
from tui.messages import RunRow
from tui.screens.ask import AskScreen
from tui.screens.jobs import Jobs
from tui.screens.listing import ListScreen
from tui.screens.plan_job import Wish
from tui.widgets.memory_bar import SIGNS

if TYPE_CHECKING:
    from macft.api import ModelFacts

COLUMNS = ("model", "parameters", "size", "bits", "context", "licence", "train", "chat")
USUAL_ROWS = DataFacts(rows=1000, tokens=256_000, supervised_tokens=100_000, longest=1024, p99=900)
"""What the verdict on training stands on: a thousand rows of up to 1,024 tokens, LoRA as recipes have it by default."""
CHAT_CACHE_BYTES = 2**29
EMPTY = """No model is here yet.

  p   fetch one: smollm2-135m (93 MB) is enough for the quickstart

Models in Hugging Face's own cache on this machine show up by themselves."""


class Known(NamedTuple):
    """A model on this machine, and what can be done with it here."""

    facts: "ModelFacts"
    train: str
    chat: str


class ModelsScreen(Jobs, ListScreen):
    """All models of this machine."""

    NAME = "models"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("models")]
    AUTO_FOCUS = "#models"

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Known] = []
        self.process: subprocess.Popen[str] | None = None
        self.is_quantizing = False

    def compose_body(self) -> ComposeResult:
        """Put the table beside what is said of one model."""
        with Horizontal(id="models-body"):
            with Vertical(id="models-list"):
                yield from self.compose_filter("models")
                yield DataTable(id="models", cursor_type="row")
                yield Static(Content(EMPTY), id="empty")
                with Vertical(id="pulling"):
                    yield Static(id="pulling-what", markup=False)
                    yield ProgressBar(id="pulling-bar", show_eta=False)
            yield Static(id="model-detail", classes="box", markup=False)
        yield from self.compose_job()

    def on_mount(self) -> None:
        """Make the columns, and read what is there."""
        table = self.query_one("#models", DataTable)
        for name in COLUMNS:
            table.add_column(name.upper(), key=name)
        for name in ("#pulling", "#empty"):
            self.query_one(name).display = False
        self.read_models()

    @work(thread=True, exclusive=True, exit_on_error=False, group="models")
    def read_models(self) -> None:
        """Look at the folders again; a cache with many models takes a moment."""
        machine = read_machine()
        found = [Known(facts, *verdicts(facts, machine)) for facts in api.list_models()]
        self.app.call_from_thread(self._show, found)

    def _show(self, found: list[Known]) -> None:
        self.models = found
        self.refill()

    def refill(self) -> None:
        """Show the models that the filter wants."""
        table = self.query_one("#models", DataTable)
        shown = [known for known in self.models if self.is_wanted(known.facts.name)]
        before = table.cursor_row
        table.clear()
        for known in shown:
            table.add_row(*_cells(known), key=str(known.facts.path))
        table.display = bool(self.models)
        self.query_one("#empty").display = not self.models
        if shown:
            table.move_cursor(row=min(before, len(shown) - 1), animate=False)
        self._show_detail()

    @property
    def current(self) -> Known | None:
        """The model under the cursor."""
        table = self.query_one("#models", DataTable)
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return next((known for known in self.models if str(known.facts.path) == key), None)

    def _show_detail(self) -> None:
        known = self.current
        self.query_one("#model-detail", Static).update(describe(known) if known else Content("No model is selected."))

    def on_data_table_row_highlighted(self) -> None:
        """Show the model that the cursor is on."""
        self._show_detail()

    def on_data_table_row_selected(self) -> None:
        """Use the model: a click or enter."""
        self.action_use()

    # What the keys do

    def action_use(self) -> None:
        """Put the model into the recipe on Train."""
        if known := self.current:
            self.studio.change_recipe("model", known.facts.name)

    def action_pull(self) -> None:
        """Ask for a name and fetch it."""
        if self.process:
            self.notify("One model at a time: k ends the one that is being fetched.", severity="warning")
            return
        question = "Fetch which model? A catalog name or a Hugging Face id"

        def pull(name: str | None) -> None:
            if name and name.strip():
                self.pull(name.strip())

        self.app.push_screen(AskScreen(question, "smollm2-135m"), pull)

    @work(thread=True, exit_on_error=False, group="pull")
    def pull(self, name: str) -> None:
        """Fetch a model, and show how far it is."""
        worker = get_current_worker()
        self.process = process = api.start_pull(name)
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            event = decode_event(line)
            if isinstance(event, PhaseProgress) and not worker.is_cancelled:
                self.app.call_from_thread(self._show_pull, event)
        said = process.stderr.read().strip()
        code = process.wait()
        self.process = None
        if not worker.is_cancelled:
            self.app.call_from_thread(self._end_pull, name, code, said)

    def _show_pull(self, event: PhaseProgress) -> None:
        self.query_one("#pulling").display = True
        amount = f"{event.done:,}/{event.total:,} {event.note}" if event.total else event.note
        self.query_one("#pulling-what", Static).update(Content(f"{clean(event.name)}  {amount}  (k ends it)"))
        self.query_one("#pulling-bar", ProgressBar).update(total=event.total or None, progress=event.done)

    def _end_pull(self, name: str, code: int, said: str) -> None:
        self.query_one("#pulling").display = False
        if code == 0:
            self.notify(f"{name} is here", markup=False)
        elif code > 0:
            self.notify(clean(said), title=f"{name} was not fetched", severity="error", timeout=15, markup=False)
        else:
            self.notify("Ended. Fetching it again goes on where it was.", timeout=6)
        self.read_models()

    def action_end_pull(self) -> None:
        """End the fetching; what was fetched stays."""
        if self.process:
            self.process.terminate()

    def action_quantize(self) -> None:
        """Plan a copy with fewer bits a weight."""
        known = self.current
        if known is None:
            return
        facts = known.facts
        if facts.is_quantized or not facts.trainable:
            self.notify(facts.why_not or f"{facts.name} is quantized already.", severity="warning", markup=False)
            return
        folder = str(facts.path)
        try:
            rows = [path for path in self.studio.draft.recipe().data.train if Path(path).exists()]
        except RecipeError:
            rows = []

        def options(wanted: dict[str, Any]) -> dict[str, Any]:
            out = home() / "models" / f"{Path(facts.name).name}-{wanted['quantize']}bit"
            return {"out": out, "data": rows, **wanted}

        self.plan_job(
            Wish(
                f"Quantize {facts.name}",
                lambda **wanted: api.plan_export(folder, to="mlx", **options(wanted)),
                lambda **wanted: api.export(folder, to="mlx", **options(wanted)),
                {"quantize": 4},
                (("q", "quantize", (4, 8), "a weight"),),
            )
        )

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Follow the quantizing, and list the copy when it is there."""
        was_live = self.is_quantizing
        row = self.studio.row_of(self.job)
        self.is_quantizing = row is not None and row.is_live
        self.show_job()
        if was_live and not self.is_quantizing:
            self.read_models()

    def action_refresh(self) -> None:
        """Look at the folders again."""
        self.read_models()


def verdicts(facts: "ModelFacts", machine: MachineFacts) -> tuple[str, str]:
    """Say whether a model can be trained and chatted with on this machine."""
    usable = machine.working_set_bytes * USABLE_SHARE
    chat = Verdict.FITS if facts.weight_bytes + CHAT_CACHE_BYTES <= usable else Verdict.DOES_NOT_FIT
    if not facts.trainable:
        return "✘ no", SIGNS[chat] if facts.weight_bytes else MISSING
    recipe = SftRecipe(model=facts.name, max_seq_length=USUAL_ROWS.longest)
    return SIGNS[make_plan(recipe, facts, USUAL_ROWS, machine).verdict], SIGNS[chat]


def _cells(known: Known) -> list[Text]:
    facts = known.facts
    texts = [
        one_line(facts.name, 44),
        count(facts.parameters) if facts.parameters else MISSING,
        gigabytes(facts.weight_bytes) if facts.weight_bytes else MISSING,
        f"{facts.bits:.1f}" if facts.bits else MISSING,
        f"{facts.context:,}" if facts.context else MISSING,
        one_line(facts.licence or MISSING, 16),
        known.train,
        known.chat,
    ]
    return [Text(text) for text in texts]


def describe(known: Known) -> Content:
    """Return what is known of a model, and what can be done with it."""
    facts = known.facts
    lines = [
        f"family    {facts.family or MISSING}",
        f"shape     {facts.layers} layers, width {facts.hidden_size:,}, {facts.vocab_size:,} tokens",
        f"template  {'✔ has a chat template' if facts.has_chat_template else '▲ none: text only'}",
        f"train     {known.train}, LoRA on rows of up to {USUAL_ROWS.longest:,} tokens",
        f"chat      {known.chat}",
        f"where     {facts.path}",
    ]
    if facts.why_not:
        lines.append(f"\n▲ {facts.why_not}")
    lines.append("\nenter puts it into the recipe on Train\nq writes a copy with fewer bits")
    return Content.assemble((one_line(facts.name), "bold"), "\n\n", clean("\n".join(lines)))
