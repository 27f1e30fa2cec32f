"""Adapters: what was trained on which base, what became of it, and what it can become.

The rule: nothing heavy is done here. A plan is arithmetic, the work is a job with a folder of its own, and what it says
there is what is shown.
"""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static, Tree

from macft import api
from macft.format import clean, one_line
from macft.machine import home
from tui.actions import bindings
from tui.draft import Draft
from tui.messages import RunRow
from tui.paths import PathSuggester
from tui.screens.ask import AskScreen
from tui.screens.choose import ChooseScreen
from tui.screens.jobs import Jobs
from tui.screens.listing import ListScreen
from tui.screens.plan_job import BITS, Turns, Wish
from tui.screens.removal import Removal
from tui.tree import ADAPTER, BASE, CHECKPOINT, JOB, RUN, Leaf, grow
from tui.widgets.leaf_detail import describe
from tui.widgets.leaf_tree import LeafTree

TARGETS = (
    ("mlx", "a whole model, for mlx-lm, LM Studio and transformers"),
    ("gguf", "a whole model in one file, for llama.cpp"),
    ("gguf-adapter", "the adapter alone, for llama.cpp"),
    ("peft", "the adapter alone, for transformers and vLLM"),
    ("ollama", "a model and a Modelfile that asks as training did"),
    ("lmstudio", "a whole model, in LM Studio's list at once"),
)
GGUF_TYPES = ("f16", "q8_0", "bf16", "f32")
EMPTY = """No adapters yet.

  4   train one: the quickstart takes minutes
  i   add a folder that another tool made: mlx-lm's or PEFT's"""


class AdaptersScreen(Jobs, Removal, ListScreen):
    """Bases, runs, checkpoints and what they became."""

    NAME = "adapters"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("adapters")]
    AUTO_FOCUS = "#tree"

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Leaf] = []
        self.marked: list[Leaf] = []
        self.server: subprocess.Popen[str] | None = None
        self._grown: object = None

    def compose_body(self) -> ComposeResult:
        """Put the tree beside what is said of one leaf, above the job."""
        with Vertical(id="adapters"):
            with Horizontal(id="adapters-body"):
                with Vertical(id="tree-box", classes="box"):
                    yield from self.compose_filter("adapters")
                    yield LeafTree(id="tree")
                    yield Static(Content(EMPTY), id="empty")
                yield Static(id="leaf", classes="box", markup=False)
            yield Static(id="serving", markup=False)
            yield from self.compose_job()

    def on_mount(self) -> None:
        """Nothing goes on yet."""
        self.query_one("#tree-box").border_title = "Base → runs → checkpoints"
        for name in ("#serving", "#empty"):
            self.query_one(name).display = False

    def on_unmount(self) -> None:
        """End the server: it is this screen's."""
        if self.server:
            self.server.kill()

    @property
    def listing(self) -> LeafTree:
        """The tree."""
        return self.query_one(LeafTree)

    @property
    def current(self) -> Leaf | None:
        """The leaf under the cursor."""
        node = self.listing.cursor_node
        return node.data if node else None

    # What is shown

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Grow the tree anew when a run or a result changed; the job's line follows every news."""
        self.show_job()
        known = tuple(
            (row.path, row.status, row.size_bytes, row.state.checkpoint_step, row.state.result) for row in rows
        )
        if known != self._grown:
            self._grown = known
            self.look(rows)

    @work(thread=True, exclusive=True, exit_on_error=False, group="adapters")
    def look(self, rows: tuple[RunRow, ...]) -> None:
        """Look at the folders: a cache with many takes a moment."""
        leaves = grow(rows, api.list_adapters())
        self.app.call_from_thread(self._show, leaves)

    def _show(self, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        self.refill()

    def refill(self) -> None:
        """Show what the filter wants; the cursor stays, and so does what is open."""
        self.query_one("#empty").display = not self.leaves
        self.listing.display = bool(self.leaves)
        marked = {leaf.name for leaf in self.marked}
        self._describe(self.listing.show(self.leaves, self.is_wanted, marked))

    def on_leaf_tree_resized(self) -> None:
        """Write the lines anew for the new width."""
        self.refill()

    def on_tree_node_highlighted(self, event: "Tree.NodeHighlighted[Leaf]") -> None:
        """Say what the cursor is on."""
        self._describe(event.node.data)

    def _describe(self, leaf: Leaf | None) -> None:
        self.query_one("#leaf", Static).update(describe(leaf) if leaf else Content("Nothing is selected."))

    # What the keys do

    def _taken(self) -> Leaf | None:
        """Return the leaf under the cursor if it can be fused, exported and merged; say why not otherwise."""
        leaf = self.current
        if leaf is None:
            return None
        if leaf.kind in {RUN, ADAPTER} or (leaf.kind == JOB and leaf.path):
            return leaf
        words = {
            BASE: "This is a base: go to a run or an adapter below it.",
            CHECKPOINT: "A checkpoint is for resuming, serving and comparing; the run above it holds the result.",
        }
        self.notify(words.get(leaf.kind, "This job left nothing."), severity="warning")
        return None

    def _source(self, leaf: Leaf) -> str:
        return str(leaf.path) if leaf.kind == JOB else leaf.name

    def action_fuse(self) -> None:
        """Plan the fusing of the adapter."""
        if leaf := self._taken():
            name = self._source(leaf)
            turns: Turns = (("q", "quantize", BITS, "bits"),)
            if leaf.facts and leaf.facts.quantize:
                turns = (*turns, ("d", "dequantize", (False, True), "add to the base as training saw it"))
            self.plan_job(
                Wish(
                    f"Fuse {leaf.shown}",
                    lambda **options: api.plan_fuse(name, **options),
                    lambda **options: api.fuse(name, **options),
                    {},
                    turns,
                )
            )

    def action_export(self) -> None:
        """Ask for which tool, and plan."""
        if self._taken():

            def go(to: str | None) -> None:
                if to:
                    self.action_export_to(to)

            self.app.push_screen(ChooseScreen("For which tool?", TARGETS), go)

    def action_export_to(self, to: str) -> None:
        """Plan the export to a tool."""
        if leaf := self._taken():
            name = self._source(leaf)
            turns: Turns = ()
            if to in {"gguf", "ollama"}:
                turns = (("t", "gguf_type", GGUF_TYPES, "type"),)
            elif to in {"mlx", "lmstudio"}:
                turns = (("q", "quantize", BITS, "bits"),)
            self.plan_job(
                Wish(
                    f"{leaf.shown} for {to}",
                    lambda **options: api.plan_export(name, to=to, **options),
                    lambda **options: api.export(name, to=to, **options),
                    {},
                    turns,
                )
            )

    def action_mark(self) -> None:
        """Mark an adapter, or take its mark away."""
        if leaf := self._taken():
            others = [one for one in self.marked if one.name != leaf.name]
            self.marked = others if len(others) < len(self.marked) else [*others, leaf]
            self.refill()

    def action_merge(self) -> None:
        """Ask for the strengths of what is marked, and plan the merge."""
        if len(self.marked) < 2:
            self.notify("Mark two adapters of one base with space, or more.")
            return
        names = [one.facts.name if one.facts else one.shown for one in self.marked]
        asked = f"Strengths of {', '.join(one_line(name, 24) for name in names)}"

        def plan(text: str | None) -> None:
            if text is not None:
                self._plan_merge(text.replace(",", " ").split(), names)

        self.app.push_screen(AskScreen(asked, " ".join(["0.5"] * len(names))), plan)

    def _plan_merge(self, strengths: list[str], names: list[str]) -> None:
        try:
            parts = [(self._source(one), float(text)) for one, text in zip(self.marked, strengths, strict=True)]
        except ValueError:
            said = f"{len(names)} numbers are needed, like {' '.join(['0.5'] * len(names))}"
            self.notify(said, title="That did not work", severity="error")
            return
        stem = "+".join(name[:24].replace("/", "-") for name in names)
        self.plan_job(
            Wish(
                f"Merge {' and '.join(names)}",
                lambda **options: api.plan_merge(parts, **options),
                lambda **options: api.start_merge(parts, **options),
                {"out": _free(home() / "adapters" / stem)},
                (("b", "way", ("concat", "linear"), "way"),),
            )
        )

    def action_serve(self) -> None:
        """Serve what the cursor is on, or end that."""
        if self.server:
            self.server.kill()
            return
        leaf = self.current
        if leaf and (leaf.kind != BASE):
            self.query_one("#serving").display = True
            self.query_one("#serving", Static).update(Content(f"● loading {clean(leaf.shown)} to serve it · s ends it"))
            self.serve(leaf.name if leaf.kind != JOB else str(leaf.path))

    @work(thread=True, exit_on_error=False, group="serve")
    def serve(self, name: str) -> None:
        """Follow a server from its start to its end."""
        with api.start_server(name) as server:
            self.server = server
            told = _read_object(server.stdout) if server.stdout else {}
            if told:
                said = f"● serving {told['model']} at {told['url']} · key {told['token']} · s ends it"
                self.app.call_from_thread(self.query_one("#serving", Static).update, Content(clean(said)))
            said = server.stderr.read().strip() if server.stderr else ""
        self.server = None
        if self.is_mounted and self.app.is_running:
            self.app.call_from_thread(self._end_server, server.returncode, said)

    def _end_server(self, code: int, said: str) -> None:
        self.query_one("#serving").display = False
        if code > 0:
            self.notify(clean(said), title="It is not served", severity="error", timeout=12, markup=False)

    def action_again(self) -> None:
        """Start from the adapter: put it into a recipe on Train."""
        leaf = self._taken()
        if leaf is None:
            return
        if leaf.kind == RUN and leaf.row:
            draft = Draft(str(leaf.row.path / "recipe.toml")).change("start_from", str(leaf.row.path))
        else:
            base = leaf.facts.base if leaf.facts else ""
            draft = self.studio.draft.change("start_from", str(leaf.path))
            draft = draft.change("model", base) if base else draft
        self.studio.open_draft(draft)

    def action_add(self) -> None:
        """Ask for a folder that another tool made."""

        def add(path: str | None) -> None:
            if path and path.strip() and self.attempt(api.add_adapter, Path(path.strip()), done="It is listed now"):
                self.action_refresh()

        self.app.push_screen(AskScreen("Which adapter's folder?", "", PathSuggester()), add)

    def action_remove(self) -> None:
        """Take a run, a job or an adapter away, for good after a while."""
        leaf = self.current
        if leaf and leaf.kind in {RUN, JOB} and leaf.row:
            path = leaf.row.path
            self.remove_it(path, lambda: api.discard_run(str(path)), api.restore_run, api.forget_run)
        elif leaf and leaf.kind == ADAPTER and leaf.path:
            folder = leaf.path
            self.remove_it(folder, lambda: api.discard_adapter(folder), api.restore_adapter, api.forget_adapter)
            self.action_refresh()
        else:
            self.notify("Runs, jobs and adapters can be removed; checkpoints go with their run.")

    def after_start(self) -> None:
        """Take the marks away: what they were for goes on."""
        self.marked = []
        self.show_runs(self.studio.rows)

    def after_undo(self) -> None:
        """Look again."""
        self.action_refresh()

    def action_refresh(self) -> None:
        """Look at the folders again."""
        self.look(self.studio.rows)

    def action_down(self) -> None:
        """Go down."""
        self.listing.action_cursor_down()

    def action_up(self) -> None:
        """Go up."""
        self.listing.action_cursor_up()


def _read_object(lines: Iterable[str]) -> dict[str, str]:
    """Return the first JSON object of some lines; nothing when they end before it does."""
    text = ""
    for line in lines:
        text += line
        if line.startswith("}"):
            return dict(json.loads(text))
    return {}


def _free(folder: Path) -> Path:
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found
