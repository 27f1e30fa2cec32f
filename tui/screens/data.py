"""Data: rows as the model will see them, what is the matter with them, and what a person makes of them.

The rule: files are never changed; what was dropped or written anew is there in a copy that the person asks for.
"""

import re
from pathlib import Path
from typing import ClassVar

from textual.binding import BindingType

from tui.actions import bindings
from tui.paths import PathSuggester
from tui.screens.ask import AskScreen
from tui.screens.rows import RowsScreen
from tui.widgets.row_list import RowList
from tui.widgets.row_view import FILE, MASK, TOKENS, WINDOW, pair_of

SHARE = re.compile(r"(.*?)\s+(\d{1,2}(?:\.\d+)?)\s*%\s*")


class DataScreen(RowsScreen):
    """The rows that a run may learn from."""

    NAME = "data"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("data")]

    # What the keys do

    def action_open_file(self) -> None:
        """Ask for a file or a folder, and read it."""
        before = self.path or next(iter(self.wish["data"]["train"]), "")

        def read(path: str | None) -> None:
            if path and path.strip():
                self.open_path(path.strip())

        self.app.push_screen(AskScreen("Open which file or folder?", before, PathSuggester()), read)

    def action_model(self) -> None:
        """Ask whose tokenizer and template the rows are seen through."""

        def use(name: str | None) -> None:
            if name is not None:
                self.model = name.strip()
                self.open()

        self.app.push_screen(AskScreen("As which model sees them? Empty: the recipe's", self.wish["model"]), use)

    def action_part(self) -> None:
        """Show the rows that are held out, or those for training again."""
        if len(self.parts) < 2:
            self.notify("Nothing beside these rows is held out in files of its own.")
            return
        names = list(self.parts)
        self.part = names[(names.index(self.part) + 1) % len(names)]
        self.open()

    def action_again(self) -> None:
        """Read the rows again."""
        self.open()

    def action_read(self) -> None:
        """Give the row all the room, or give it back."""
        self.read(is_reading=not self.has_class("reading"))

    def action_down(self) -> None:
        """Go down a row."""
        self.query_one(RowList).action_move(1)

    def action_up(self) -> None:
        """Go up a row."""
        self.query_one(RowList).action_move(-1)

    def action_top(self) -> None:
        """Go to the first row."""
        self.query_one(RowList).action_move_to(0)

    def action_bottom(self) -> None:
        """Go to the last row."""
        self.query_one(RowList).action_move_to(-1)

    def action_mask(self) -> None:
        """Show the row with its mask, or as it stands in its file."""
        self._show_as(FILE if self.mode == MASK else MASK)

    def action_token_ids(self) -> None:
        """Show the row token by token, or with its mask."""
        self._show_as(MASK if self.mode == TOKENS else TOKENS)

    def action_pair(self) -> None:
        """Show a pair side by side, or one after the other with its mask."""
        self.as_pair = not self.as_pair if self.mode == MASK else True
        self._show_as(MASK)
        if self.told and not pair_of(self.told["parts"]):
            self.notify("This row is no pair of answers.")

    def _show_as(self, mode: str) -> None:
        self.mode = mode
        self._draw()

    def action_window(self, by: int) -> None:
        """Show other tokens of a long row."""
        longest = max((part["count"] for part in self.told.get("parts", ())), default=0)
        start = self.start + by * WINDOW
        if 0 <= start < longest:
            self.start = start
            self._show_current()

    def action_flagged(self) -> None:
        """Show only rows that something is the matter with, or all."""
        self.is_flagged_only = not self.is_flagged_only
        self._list()
        self._title()

    def action_drop_duplicates(self) -> None:
        """Take out every row that says the same as an earlier one."""
        numbers = self.rows.having("duplicate") if self.rows.names else []
        self._drop(numbers, f"{len(numbers):,} duplicates are dropped" if numbers else "There are no duplicates.")

    def action_drop(self) -> None:
        """Take out the row under the cursor."""
        if number := self.query_one(RowList).current:
            self._drop([number], f"Row {number:,} is dropped")

    def _drop(self, numbers: list[int], said: str) -> None:
        if numbers:
            self.rows.drop(numbers)
            said += ": u brings back, s writes a copy without"
        self._list(more=True)
        self.notify(said)

    def action_undo(self) -> None:
        """Take back the last change."""
        self.notify(self.rows.undo() or "Nothing to take back.")
        self._list(more=True)
        self._show_current()

    def action_edit(self) -> None:
        """Write the row under the cursor anew."""
        if self.told.get("parts") and self.told["row"] == self.query_one(RowList).current:
            self._edit(self.told["row"], self.told["raw"])
        else:
            self.notify("This row cannot be read: it can only be written anew in its file.", severity="warning")

    def action_save(self) -> None:
        """Write a copy, with what was dropped and edited, and perhaps split."""
        if not self.is_done:
            self.notify("The rows are still being read.", severity="warning")
            return
        first = Path(self.opened["files"][0] if self.opened["files"] else "rows")
        name = str(first.with_name(f"{first.stem}-copy"))

        def save(answer: str | None) -> None:
            if answer and answer.strip():
                split = SHARE.fullmatch(answer)
                folder, share = (split[1], float(split[2]) / 100) if split else (answer.strip(), 0.0)
                edited = {str(number): text for number, text in self.rows.edited.items()}
                dropped = sorted(self.rows.dropped)
                self._ask("save", folder=folder, dropped=dropped, edited=edited, valid_fraction=share)

        self.app.push_screen(AskScreen("Copy into which folder? Add 5% to hold that share out", name), save)

    def action_train(self) -> None:
        """Put the rows into the recipe on Train."""
        if not self.opened:
            self.notify("No rows are open.")
        elif self.rows.dropped or self.rows.edited:
            self.notify("s writes your changes into a copy first; u takes them back.", severity="warning")
        else:
            self.studio.train_on(self.parts, self.opened["method"])
