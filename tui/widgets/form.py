"""The recipe as a form: a line a key, what is wrong right below it."""

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Select, Static

from macft.format import one_line
from tui.draft import Draft, look_up
from tui.fields import Field, fields_of


class FieldRow(Vertical):
    """One key: its name, its value, what it means, and what is wrong with it.

    Args:
        field: The key.
        value: As it stands now, TOML; empty for the default.
        source: What the recipe itself says, TOML; going back to it is no change.
    """

    class Changed(Message):
        """The person wrote another value; it is empty when it is the recipe's own again."""

        def __init__(self, key: str, value: str) -> None:
            super().__init__()
            self.key, self.value = key, value

    def __init__(self, field: Field, value: str, source: str) -> None:
        super().__init__(classes="field")
        self.field, self.value, self.own = field, value, plain(source or field.default)

    def compose(self) -> ComposeResult:
        """Put name, value and meaning on one line."""
        field = self.field
        with Horizontal():
            yield Static(Content(field.key), classes="key")
            if field.choices:
                options = [(choice.strip('"') or "–", choice) for choice in field.choices]
                chosen = self.value or field.default
                value = chosen if chosen in field.choices else field.choices[0]
                yield Select(options, value=value, allow_blank=False, compact=True, classes="value")
            else:
                yield Input(plain(self.value), placeholder=plain(field.default), compact=True, classes="value")
            yield Static(Content(_hint(field)), classes="hint")
        wrong = Static(classes="wrong", markup=False)
        wrong.display = False
        yield wrong

    def complain(self, text: str) -> None:
        """Say what is wrong with the value, or nothing."""
        wrong = self.query_one(".wrong", Static)
        wrong.display = bool(text)
        wrong.update(Content(f"✘ {text}"))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Pass a written value on."""
        event.stop()
        self._tell(event.value)

    def on_select_changed(self, event: Select.Changed) -> None:
        """Pass a chosen value on."""
        event.stop()
        self._tell(str(event.value))

    def _tell(self, value: str) -> None:
        self.post_message(self.Changed(self.field.key, "" if plain(value) == self.own else value))


class RecipeForm(VerticalScroll, can_focus=False):
    """All fields of a method."""

    def show(self, draft: Draft, method: str, *, every_key: bool) -> None:
        """Make the fields of a draft anew."""
        self.remove_children()
        source = draft.values()
        rows = [
            FieldRow(field, draft.edits.get(field.key, written), written)
            for field in fields_of(method)
            if every_key or field.is_essential or field.key in draft.edits
            for written in [look_up(source, field.key)]
        ]
        self.mount_all(rows)

    def complain(self, problems: dict[str, str]) -> None:
        """Say below each field what is wrong with it."""
        for row in self.query(FieldRow):
            if row.is_mounted:
                row.complain(problems.get(row.field.key, ""))


def plain(value: str) -> str:
    """Return a TOML value as a person writes it: a single text without its quotes."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' and "\\" not in value else value


def _hint(field: Field) -> str:
    bounds = f"{field.bounds} · " if field.bounds else ""
    return one_line(bounds + field.help)
