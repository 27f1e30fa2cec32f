"""How answers are made: the system prompt and the sampling."""

import math
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from macft.chat.panes import Sampling
from macft.errors import RecipeError

HINTS = {
    "temperature": "0 takes the likeliest token each time",
    "top_p": "0 to 1: the likeliest tokens of this probability",
    "top_k": "this many of the likeliest tokens, 0 all",
    "min_p": "0 to 1: drop what is less likely than this share",
    "repetition_penalty": "above 1: less of what was said already",
    "seed": "the same seed, the same answer",
    "max_tokens": "longest answer",
}


class Settings(NamedTuple):
    """The system prompt, empty for none, and how tokens are chosen."""

    system: str
    sampling: Sampling


class SettingsScreen(ModalScreen[Settings | None]):
    """Shows the settings as fields; None when the person leaves with escape.

    Args:
        settings: As they are.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave"), ("ctrl+s", "keep", "Keep")]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def compose(self) -> ComposeResult:
        """Put a field on each line."""
        with VerticalScroll(id="settings", can_focus=False) as box:
            box.border_title = "How answers are made"
            box.border_subtitle = "enter keeps it · esc leaves"
            yield from self._line("system", self.settings.system, "said before everything else")
            for name, hint in HINTS.items():
                yield from self._line(name, f"{getattr(self.settings.sampling, name):g}", hint)
            yield Static(id="settings-wrong", markup=False)

    def _line(self, name: str, value: str, hint: str) -> ComposeResult:
        with Horizontal(classes="setting"):
            yield Static(Content(name), classes="key")
            yield Input(value, id=f"set-{name}", compact=True, placeholder="none" if name == "system" else "")
            if name != "system":
                yield Static(Content(hint), classes="hint")

    def on_input_changed(self) -> None:
        """Say what is wrong as the person types."""
        self._read()

    def on_input_submitted(self) -> None:
        """Keep the settings."""
        self.action_keep()

    def action_keep(self) -> None:
        """Give the settings, if they make sense."""
        if settings := self._read():
            self.dismiss(settings)

    def _read(self) -> Settings | None:
        values: dict[str, Any] = {}
        wrong = []
        for field in fields(Sampling):
            text = self.query_one(f"#set-{field.name}", Input).value.strip()
            kind = int if isinstance(field.default, int) else float
            try:
                values[field.name] = kind(text)
                if not math.isfinite(values.get(field.name, 0)):
                    raise ValueError(text)
            except ValueError:
                wrong.append(f"{field.name} is {text or 'empty'} (expected a {'whole ' * (kind is int)}number)")
        sampling = Sampling(**values)
        try:
            sampling.check()
        except RecipeError as error:
            wrong += [f"{problem.where} {problem.what}" for problem in error.problems]
        self.query_one("#settings-wrong", Static).update(Content("\n".join(f"✘ {line}" for line in wrong)))
        return None if wrong else Settings(self.query_one("#set-system", Input).value, sampling)
