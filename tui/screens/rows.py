"""A list of rows beside the row under the cursor, as a child tells of them.

The rule: what is shown is what the child said last of the file that is open; answers about an earlier one are dropped.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message

from macft.errors import RecipeError
from macft.format import clean, one_line
from macft.recipe import DataTable
from tui.rows import Answer, Reader, Row, RowTable
from tui.screens.edit_row import EditRowScreen
from tui.screens.listing import ListScreen
from tui.widgets.data_summary import DataSummary
from tui.widgets.row_list import RowList
from tui.widgets.row_view import FILE, MASK, PAIR, TOKENS, WINDOW, RowView, pair_of

EMPTY = """No rows are open.

  o   opens a file, or a folder of files

JSONL, JSON, CSV, TSV, Parquet, text and Markdown are read.

A row is a chat (messages or conversations), a prompt and its completion, an instruction and its output, text, a pair \
(chosen, rejected), a completion with its label, or a pick made on Compare."""
TRAIN = "train"
ROOM = 60
"""Cells from which on the row's box says what its marks mean."""


class RowsScreen(ListScreen):
    """The rows of a file or a folder: a list, and the row under the cursor."""

    AUTO_FOCUS = "#rows"

    class Told(Message):
        """The child's answer to a question."""

        def __init__(self, kind: str, answer: Answer) -> None:
            super().__init__()
            self.kind, self.answer = kind, answer

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowTable()
        self.reader: Reader | None = None
        self.wish: Answer = {}
        self.parts: dict[str, list[str]] = {}
        self.part = TRAIN
        self.told: Answer = {}
        self.opened: Answer = {}
        self.is_opening = self.is_done = self.is_flagged_only = False
        self.mode, self.as_pair, self.start = MASK, True, 0
        self.path = ""
        self.model = ""
        self.words: list[str] = []
        self.found: list[int] = []
        self.numbers: list[int] = []
        self.editing: tuple[int, str] = (0, "")

    def compose_body(self) -> ComposeResult:
        """Put the list beside the row."""
        with Horizontal(id="data"):
            with Vertical(id="rows-box", classes="box"):
                yield from self.compose_filter("rows")
                yield RowList(id="rows")
                yield DataSummary(id="rows-summary", markup=False)
            yield RowView(id="row-box", classes="box")

    def on_mount(self) -> None:
        """Start the thread that asks."""
        self.reader = Reader(lambda kind, answer: self.post_message(self.Told(kind, answer)), self.studio.start_rows)
        self.reader.start()

    def on_unmount(self) -> None:
        """End the child."""
        if self.reader:
            self.reader.end()

    def on_screen_resume(self) -> None:
        """Read the recipe's rows, unless they are read already or the person opened others."""
        super().on_screen_resume()
        if self._wish() != self.wish:
            self.parts, self.part = {}, TRAIN
            self.open()

    # What is open

    def _wish(self) -> Answer:
        """Return the question that opens what the person wants to see."""
        draft = self.studio.draft
        try:
            recipe = draft.recipe()
            data, model, length = recipe.data, recipe.model, recipe.max_seq_length
            method: str | None = recipe.method
        except RecipeError:
            data, model = DataTable(train=draft.value("data.train") or []), str(draft.value("model") or "")
            length, method = 2048, None
        if self.path:
            data, method = DataTable(train=[str(Path(self.path).expanduser())]), None
        told = data.model_dump(mode="json")
        return {"data": told, "model": self.model or model, "method": method, "max_seq_length": length}

    def open_path(self, path: str) -> None:
        """Read another file or folder."""
        self.path, self.parts, self.part = path, {}, TRAIN
        self.open()

    def open(self) -> None:
        """Read the rows from the first on."""
        self.wish = self._wish()
        self.rows, self.opened, self.told = RowTable(), {}, {}
        has_rows = bool(self.wish["data"]["train"])
        self.is_opening, self.is_done, self.start = has_rows, not has_rows, 0
        self.words, self.found, self.numbers = [], [], []
        self._list()
        self._title()
        model = one_line(self.wish["model"], 60)
        words = f"Reading the rows, and {model}'s tokenizer …" if has_rows else EMPTY
        self.query_one(RowView).say(Content(words))
        if self.reader and has_rows:
            data = self.wish["data"]
            if self.part != TRAIN:
                data = {**data, "train": self.parts[self.part], "valid": [], "test": []}
            self.reader.ask("open", **{**self.wish, "data": data})

    def on_rows_screen_told(self, message: Told) -> None:
        """Take an answer."""
        kind, answer = message.kind, message.answer
        if self.is_opening and kind != "open":
            return
        if "message" in answer:
            self._complain(kind, answer)
        else:
            getattr(self, f"_take_{kind}")(answer)

    def _complain(self, kind: str, answer: Answer) -> None:
        said = clean(" ".join(filter(None, (answer["message"], answer.get("fix", "")))))
        if kind == "show" and self.editing[0]:
            number, text = self.editing
            self.editing = (0, "")
            self._edit(number, text, said)
            return
        if kind in {"open", "more", "show"}:
            ways = "o opens another file · l names another model · r reads again"
            self.query_one(RowView).say(Content.assemble((f"✘ {said}\n\n", "bold $error"), ways))
        else:
            self.notify(said, title="That did not work", severity="error", timeout=12, markup=False)

    def _take_open(self, answer: Answer) -> None:
        self.is_opening, self.opened = False, answer
        if self.part == TRAIN:
            self.parts = {TRAIN: answer["train"], **answer["held_out"]}
        self.rows.names = tuple(answer["flags"])
        words = {"truncate": f"cut to {answer['limit']:,}", "drop": "left out", "split": "split", "error": "refused"}
        self.query_one(RowList).longer = words[answer["longer"]]
        self._ask("more")

    def _take_more(self, answer: Answer) -> None:
        self.rows.add(answer["rows"], answer["said"])
        self.opened["files"], self.is_done = answer["files"], answer["is_done"]
        if not self.is_done:
            self._ask("more")
        self._list(more=True)
        self._title()
        self._draw_title()

    def _take_find(self, answer: Answer) -> None:
        if answer["words"] != self.words:
            return
        self.found += answer["rows"]
        if not answer["is_done"]:
            self._ask("find", words=self.words, after=answer["after"])
        self._list(more=True)
        self._title(finding=not answer["is_done"])

    def _take_show(self, answer: Answer) -> None:
        number = answer["row"]
        if self.editing[0] == number:
            self.rows.edit(number, Row(*answer["seen"]), self.editing[1], answer["said"])
            self.editing = (0, "")
            self._list(more=True)
        if number == self.query_one(RowList).current:
            self.told = answer
            self._draw()

    def _take_save(self, answer: Answer) -> None:
        if not answer["is_done"]:
            self._ask("save")
            return
        held = f", {answer['valid']:,} held out" if answer["valid"] else ""
        gone = f", {answer['dropped']:,} dropped" if answer["dropped"] else ""
        bad = f", {answer['unusable']:,} that cannot be used left out" if answer["unusable"] else ""
        self.notify(f"{answer['train']:,} rows to train on{held}{gone}{bad}", title="Copied", timeout=10, markup=False)
        self.open_path(answer["folder"])

    def _ask(self, kind: str, **more: Any) -> None:
        if self.reader:
            self.reader.ask(kind, **more)

    # What is shown

    def _list(self, *, more: bool = False) -> None:
        listed = self.query_one(RowList)
        if not more:
            self.numbers = []
        is_all = not self.words and not self.is_flagged_only
        if not is_all:
            self.numbers += self._next_numbers()
        if more and listed.rows is self.rows and listed.numbers is (None if is_all else self.numbers):
            listed.refill()
        else:
            listed.show(self.rows, None if is_all else self.numbers)
        self.query_one(DataSummary).show(self.rows, is_done=self.is_done, total=self.opened.get("total", 0))
        if listed.current and listed.current != self.told.get("row"):
            self._show_current()

    def _next_numbers(self) -> list[int]:
        """Return what else the filters let through of the rows that were read."""
        after = self.numbers[-1] if self.numbers else 0
        if not self.words:
            return self.rows.flagged(after)
        found = self.found[bisect_right(self.found, after) : bisect_right(self.found, len(self.rows))]
        return [number for number in found if not self.is_flagged_only or self.rows[number].flags]

    def _title(self, *, finding: bool = False) -> None:
        box = self.query_one("#rows-box")
        names = [Path(path).name for path in self.opened.get("train", self.wish.get("data", {}).get("train", []))]
        listed = self.query_one(RowList).count
        count = f"{listed:,} of {len(self.rows):,}" if self.words or self.is_flagged_only else f"{len(self.rows):,}"
        rows = "row" if count == "1" else "rows"
        more = " …" if finding or not self.is_done else ""
        box.border_title = one_line(f"{', '.join(names) or 'no file'}  {count} {rows}{more}", 70).replace("[", "(")
        others = [part for part in self.parts if part != self.part]
        parts = f" · p: {', '.join(others)}" if others else ""
        box.border_subtitle = f"{self.opened.get('method', '')}{parts}"

    def _show_current(self) -> None:
        number = self.query_one(RowList).current
        if number:
            text = self.rows.edited.get(number)
            self._ask("show", row=number, start=self.start, count=WINDOW, **({"text": text} if text else {}))

    def _draw(self) -> None:
        if self.told:
            self._draw_title()
            self.query_one(RowView).show(self.told, self._mode())

    def _mode(self) -> str:
        if not self.told["parts"]:
            return FILE
        is_pair = self.mode == MASK and self.as_pair and pair_of(self.told["parts"])
        return PAIR if is_pair else self.mode

    def _draw_title(self) -> None:
        if not self.told:
            return
        box, told, mode = self.query_one("#row-box"), self.told, self._mode()
        count = sum(part["count"] for part in told["parts"])
        trained = sum(part["supervised"] for part in told["parts"])
        share = f"{count:,} tokens · {trained / max(1, count):.0%} trained" if count else told["where"]
        names = {MASK: "as the model sees it", TOKENS: "tokens and ids", FILE: told["where"], PAIR: "a pair"}
        box.border_title = f"{told['row']:,} / {len(self.rows):,}  {one_line(names[mode], 40)}".replace("[", "(")
        legend = {
            MASK: "underlined = trained on",
            TOKENS: "underlined = trained on",
            PAIR: "underlined = only in this answer",
        }
        has_room = mode in legend and box.size.width >= ROOM
        box.border_subtitle = f"{share} · {legend[mode]}" if has_room else share

    def on_row_list_moved(self) -> None:
        """Show the row under the cursor."""
        self.start = 0
        self._show_current()

    def on_row_list_chosen(self) -> None:
        """Give the row all the room."""
        self.read(is_reading=True)

    def on_resize(self) -> None:
        """Lay the row out anew."""
        self.call_after_refresh(self._draw)

    def read(self, *, is_reading: bool) -> None:
        """Give the row all the room, or give it back."""
        self.set_class(is_reading, "reading")
        self.query_one("#row-text" if is_reading else "#rows").focus()
        self.call_after_refresh(self._draw)

    def refill(self) -> None:
        """Show the rows that the filter wants."""
        words = self.query_one("#filter").value.lower().split()  # type: ignore[attr-defined]
        if words == self.words:
            return
        self.words, self.found = words, []
        if self.reader:
            self.reader.forget("find")
        if words:
            self._ask("find", words=words, after=0)
        self._list()
        self._title(finding=bool(words))

    def key_escape(self) -> None:
        """Go one step back: from the row to the list, then from the filter to all rows."""
        if self.has_class("reading"):
            self.read(is_reading=False)
        else:
            super().key_escape()

    def _edit(self, number: int, text: str, problem: str = "") -> None:
        def keep(written: str | None) -> None:
            if written is not None and (written != text or problem):
                self.editing = (number, written)
                self._ask("show", row=number, start=0, count=WINDOW, text=written)

        self.app.push_screen(EditRowScreen(f"Row {number:,}", text, problem), keep)
