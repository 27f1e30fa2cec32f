"""What a job will do, before it does it: what, where, disk, how long; nothing starts before the person says so."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from macft.errors import MacftError
from macft.format import clean, duration, one_line, size
from tui.paths import PathSuggester
from tui.screens.ask import AskScreen

if TYPE_CHECKING:
    from macft.api import JobEstimate

BITS = (None, 8, 4)
Turns = tuple[tuple[str, str, tuple[Any, ...], str], ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job shall be.

    Attributes:
        title: For people.
        plan: Makes the plan from the options; may refuse.
        start: Starts the job with the same options; returns its run.
        options: As `plan` and `start` take them.
        turns: Options that a key goes round: key, option, its values, what it is called.
    """

    title: str
    plan: Callable[..., "JobEstimate"]
    start: Callable[..., Any]
    options: dict[str, Any]
    turns: Turns = ()

    def turn(self, key: str) -> "Wish":
        """Return the wish with an option's next value."""
        for own, option, values, _ in self.turns:
            if own == key:
                now = self.options.get(option, values[0])
                value = values[(values.index(now) + 1) % len(values)]
                return replace(self, options={**self.options, option: value})
        return self


class PlanJobScreen(ModalScreen[Wish | None]):
    """Shows a job's plan; gives the wish when the person starts it, None when they leave.

    Args:
        wish: What the job shall be.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss(None)", "Leave"),
        ("enter", "start", "Start"),
        ("w", "where", "Where"),
        ("q", "turn('q')", "Bits"),
        ("t", "turn('t')", "Type"),
        ("d", "turn('d')", "Base"),
        ("b", "turn('b')", "Way"),
    ]

    def __init__(self, wish: Wish) -> None:
        super().__init__()
        self.wish = wish
        self.estimate: JobEstimate | None = None
        self.why_not = ""

    def compose(self) -> ComposeResult:
        """Show the plan as a few lines."""
        with Vertical(id="ask") as box:
            box.border_title = one_line(self.wish.title, 70).replace("[", "(")
            box.border_subtitle = "enter starts it · esc leaves"
            yield Static(id="job-plan", markup=False)

    def on_mount(self) -> None:
        """Make the plan."""
        self._plan()

    def _plan(self) -> None:
        try:
            self.estimate, self.why_not = self.wish.plan(**self.wish.options), ""
        except MacftError as error:
            self.estimate, self.why_not = None, str(error)
        self.query_one("#job-plan", Static).update(self._describe())

    def _describe(self) -> Content:
        lines = list[str]()
        if self.estimate:
            lines += describe_estimate(self.estimate)
        else:
            lines.append(f"✘ {clean(self.why_not)}")
        lines.append("")
        for key, option, values, name in self.wish.turns:
            value = self.wish.options.get(option, values[0])
            lines.append(f"{key}  {name}: {_shown(value)}")
        lines.append("w  another folder")
        return Content("\n".join(lines))

    def action_turn(self, key: str) -> None:
        """Take an option's next value, and plan anew."""
        self.wish = self.wish.turn(key)
        self._plan()

    def action_where(self) -> None:
        """Ask for the folder of the result."""

        def use(path: str | None) -> None:
            if path and path.strip():
                self.wish = replace(self.wish, options={**self.wish.options, "out": Path(path.strip()).expanduser()})
                self._plan()

        self.app.push_screen(AskScreen("Into which folder?", self._where(), PathSuggester()), use)

    def _where(self) -> str:
        return self.estimate.where if self.estimate and "…" not in self.estimate.where else ""

    def action_start(self) -> None:
        """Start it, or say why not."""
        if self.estimate and self.estimate.fits:
            self.dismiss(self.wish)
        else:
            words = self.why_not or "There is not enough room on that disk: w names another folder."
            self.notify(words, title="It cannot start", severity="error", markup=False)


def describe_estimate(estimate: "JobEstimate") -> list[str]:
    """Return the plan as lines."""
    disk = f"about {size(estimate.size_bytes)}"
    if estimate.needed_bytes > estimate.size_bytes:
        disk += f", {size(estimate.needed_bytes)} while it is made"
    verdict = "✔" if estimate.fits else "✘ not enough:"
    time = f"about {duration(estimate.seconds)}, as before on this machine" if estimate.seconds else "not measured yet"
    lines = [
        f"what   {one_line(estimate.what)}",
        f"from   {one_line(' on '.join(filter(None, (estimate.job.name, estimate.job.base_name))))}",
        f"where  {one_line(estimate.where)}",
        f"disk   {disk} {verdict} {size(estimate.free_bytes)} free",
        f"time   {time}",
    ]
    return lines + [f"▲ {one_line(note)}" for note in estimate.notes]


def _shown(value: Any) -> str:
    if value is None:
        return "as the base has them"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value} bits" if isinstance(value, int) else str(value)
