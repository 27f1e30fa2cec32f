"""The bar below the panes: what can be judged, what was, and how many pairs there are."""

from pathlib import Path
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.widgets import Static

from macft.chat.preferences import Duel
from macft.format import one_line
from tui.actions import bindings
from tui.comparison import Comparison
from tui.pickbook import ENOUGH, PickBook
from tui.rounds import Talk

GAUGE_CELLS = 8
QUESTION = "Which is better?  1 A   2 B   0 tie   x both bad   e edit the winner"
WHICH = "Edit which answer?  1 A   2 B   esc neither"


class VerdictBar(Static):
    """Takes verdicts while it has the focus; it can have it only while there is something to judge."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("verdict")]
    can_focus = False
    lines = ("", "")

    def show(self, line: str, below: str) -> None:
        """Show two lines."""
        if self.lines != (line, below):
            self.lines = line, below
            self.set_class(line.startswith("✘"), "wrong")
            self._draw()

    def watch_has_focus(self, has_focus: bool) -> None:
        """Show whether the digits are verdicts now."""
        super().watch_has_focus(has_focus)
        self._draw()

    def _draw(self) -> None:
        line, below = self.lines
        mark = "▸" if self.has_focus else " "
        self.update(Content.assemble((f"{mark}{line}\n", "bold"), (f" {below}", "$foreground 70%")))


def first_line(comparison: Comparison, *, is_editing: bool) -> str:
    """Say what can be done with the answers that are shown, or why nothing can."""
    talk, names = comparison.talk, [voice.name for voice in comparison.voices]
    if comparison.status == "dead":
        return f"✘ {comparison.trouble} ^r starts it again."
    if comparison.trouble:
        return f"✘ {comparison.trouble}"
    if comparison.waiting:
        return f"Loading the models. Then: {one_line(comparison.waiting, 60)}"
    if comparison.status == "loading":
        return "Loading the models …"
    if talk is None or talk.last is None:
        return _invitation(comparison)
    if talk.last.verdict:
        return _judged(talk, names)
    duel = talk.duel(names)
    if isinstance(duel, Duel):
        return WHICH if is_editing else QUESTION
    return duel


def _invitation(comparison: Comparison) -> str:
    if not comparison.named:
        return "v chooses two to four voices: runs, checkpoints, models."
    known = [voice.name for voice in comparison.voices]
    names = known or [*(["Base"] if comparison.with_base else []), *(Path(name).name for name in comparison.named)]
    return f"Ask something: {' and '.join(one_line(name, 30) for name in names)} answer."


def _judged(talk: Talk, names: list[str]) -> str:
    assert talk.last is not None
    verdict, edited = talk.last.verdict or "", " (edited)" if talk.last.edited else ""
    what = {"1": f"✔ A is better{edited}", "2": f"✔ B is better{edited}", "tie": "✔ a tie", "both bad": "✔ both bad"}
    sides = " · ".join(
        f"{letter} was {one_line(names[voice], 24)}" for letter, voice in zip("AB", talk.order, strict=True)
    )
    return f"{what[verdict]}: {sides} · u undoes"


def second_line(comparison: Comparison, book: PickBook | None) -> str:
    """Return the list's place, the tally and the gauge."""
    parts = []
    if comparison.prompts:
        shown = comparison.asked_prompts - sum(not talk.was_shown for talk in comparison.talks)
        parts.append(f"prompt {shown:,}/{len(comparison.prompts):,}")
    if book:
        tally = book.tally
        parts.append(gauge(book.pairs))
        if any(tally.wins) or tally.ties or tally.both_bad:
            parts.append(one_line(str(tally)))
    return " · ".join(parts)


def gauge(pairs: int) -> str:
    """Draw how far the pairs are from being enough to train on."""
    filled = min(GAUGE_CELLS, pairs * GAUGE_CELLS // ENOUGH)
    said = f"{'▇' * filled}{'▁' * (GAUGE_CELLS - filled)} {pairs:,} of ≥ {ENOUGH} pairs"
    return f"{said}: t trains DPO on them" if pairs >= ENOUGH else said
