"""Rows of data, of which only those in view are ever drawn.

The rule: nothing here costs more for a million rows than for ten.
"""

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from macft.format import one_line
from tui.rows import RowTable

HEAD = 1
"""Lines above the rows, which stay when these scroll."""
NARROW = 48
"""Cells below which columns and words are shorter."""
_LONG = {
    "unusable": "✘ {said}",
    "nothing": "✘ nothing to learn",
    "too_long": "▲ too long, {longer}",
    "duplicate": "≈ same as {same}",
    "odd_roles": "▲ odd roles",
}
_SHORT = {
    "unusable": "✘ bad",
    "nothing": "✘ empty",
    "too_long": "▲ long",
    "duplicate": "≈ {same}",
    "odd_roles": "▲ roles",
}


class RowList(ScrollView, can_focus=True):
    """A list with a cursor, which arrows and pages move."""

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def can_replace(self, message: Message) -> bool:
            """Return whether this one makes an earlier message needless."""
            return isinstance(message, RowList.Moved)

    class Chosen(Message):
        """The person wants to read the row: a second click."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row-list--head",
        "row-list--cursor",
        "row-list--bad",
        "row-list--odd",
        "row-list--gone",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "move_page(-1)", "Page up", show=False),
        Binding("pagedown", "move_page(1)", "Page down", show=False),
        Binding("home", "move_to(0)", "First", show=False),
        Binding("end", "move_to(-1)", "Last", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.rows = RowTable()
        self.numbers: list[int] | None = None
        self.cursor = 0
        self.longer = ""

    @property
    def count(self) -> int:
        """How many rows are listed."""
        return len(self.rows) if self.numbers is None else len(self.numbers)

    @property
    def current(self) -> int:
        """The number of the row under the cursor, 0 when there is none."""
        return self._number(self.cursor) if self.cursor < self.count else 0

    def _number(self, place: int) -> int:
        return place + 1 if self.numbers is None else self.numbers[place]

    def show(self, rows: RowTable, numbers: list[int] | None) -> None:
        """List rows, all of them or those with some numbers; the cursor stays on its row when that is listed still."""
        before = self.current if rows is self.rows else 0
        same = rows is self.rows and numbers is None and self.numbers is None
        self.rows, self.numbers = rows, numbers
        if not same:
            self.cursor = self._place(before)
        self.virtual_size = Size(self.size.width, self.count + HEAD)
        self._scroll_to_cursor()
        self.refresh()

    def _place(self, number: int) -> int:
        if self.numbers is None:
            return max(0, number - 1)
        return next((place for place, listed in enumerate(self.numbers) if listed >= number), 0)

    def refill(self) -> None:
        """Draw again: rows were added, or what is said of some changed."""
        self.virtual_size = Size(self.size.width, self.count + HEAD)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        place, width = self.scroll_offset.y + y - HEAD, self.scrollable_content_region.width
        if y < HEAD:
            style = self.get_component_rich_style("row-list--head")
            return Strip([Segment(head(width), style)]).adjust_cell_length(width, style)
        if place >= self.count:
            return Strip.blank(width, self.rich_style)
        number = self._number(place)
        text = describe(number, self.rows, width=width, longer=self.longer, marked=place == self.cursor)
        return Strip([Segment(text, self._style(number, place))]).adjust_cell_length(width, self.rich_style)

    def _style(self, number: int, place: int) -> Style:
        flags = self.rows.flags_of(self.rows[number])
        name = (
            "gone"
            if number in self.rows.dropped
            else "bad"
            if {"unusable", "nothing"} & set(flags)
            else "odd"
            if flags
            else ""
        )
        style = self.get_component_rich_style(f"row-list--{name}", partial=True) if name else Style()
        if place == self.cursor:
            style = self.get_component_rich_style("row-list--cursor") + style
        return self.rich_style + style

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.move_to(self.cursor + by)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by what is in view."""
        self.move_to(self.cursor + by * max(1, self.size.height - HEAD - 1))

    def action_move_to(self, place: int) -> None:
        """Move to the first row, or to the last."""
        self.move_to(place if place >= 0 else self.count - 1)

    def move_to(self, place: int) -> None:
        """Put the cursor on a place of the list."""
        before, self.cursor = self.cursor, max(0, min(place, self.count - 1))
        if self.cursor != before:
            for line in (before, self.cursor):
                self.refresh(Region(0, line - self.scroll_offset.y + HEAD, self.size.width, 1))
            self._scroll_to_cursor()
            self.post_message(self.Moved(self.current))

    def _scroll_to_cursor(self) -> None:
        top, height = round(self.scroll_offset.y), max(1, self.size.height - HEAD)
        if not top <= self.cursor < top + height:
            target = self.cursor if self.cursor < top else self.cursor - height + 1
            self.scroll_to(y=target, animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        """Move to the row that was clicked; read it when the cursor was there already."""
        place = round(self.scroll_offset.y) + event.y - HEAD
        if event.y >= HEAD and place < self.count:
            if place == self.cursor:
                self.post_message(self.Chosen())
            self.move_to(place)

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self.virtual_size = Size(self.size.width, self.count + HEAD)
        self._scroll_to_cursor()


def head(width: int) -> str:
    """Return the names of the columns."""
    if width < NARROW:
        return f"  {'#':>6} {'tokens':>6} {'train':>5}  flags"
    return f"  {'#':>7} {'turns':>5} {'tokens':>7} {'trained':>7}  flags"


def describe(number: int, rows: RowTable, *, width: int, longer: str, marked: bool) -> str:
    """Return a row as a line."""
    row, sign = rows[number], "▸" if marked else " "
    share = f"{row.share:.0%}" if row.tokens else "–"
    tokens = f"{row.tokens:,}" if row.tokens else "–"
    said = describe_flags(number, rows, longer=longer, short=width < NARROW)
    if width < NARROW:
        return cut(f"{sign} {number:>6} {tokens:>6} {share:>5}  {said}", width)
    turns = str(row.turns) if row.turns else "–"
    return cut(f"{sign} {number:>7,} {turns:>5} {tokens:>7} {share:>7}  {said}", width)


def cut(text: str, width: int) -> str:
    """Cut a line with … when it is too long; spaces stay."""
    return text if len(text) <= width else text[: width - 1] + "…"


def describe_flags(number: int, rows: RowTable, *, longer: str, short: bool) -> str:
    """Say in a few words what is the matter with a row, and what the person did to it."""
    row, words = rows[number], _SHORT if short else _LONG
    said = one_line(rows.said.get(number, "cannot be used"), 80)
    filled = {"same": f"{row.same_as:,}", "longer": longer, "said": said}
    changed = [("– dropped", rows.dropped), ("✎ edited", rows.edited)]
    parts = [word for word, numbers in changed if number in numbers]
    return "  ".join([*parts, *(words[name].format_map(filled) for name in rows.flags_of(row))])
