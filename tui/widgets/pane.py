"""One voice's side of a comparison: what was said, the newest answer as it grows, and its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from macft.chat.panes import Reply, Voice
from macft.format import clean, one_line
from tui.markdown import lay_out, lay_out_growing
from tui.rounds import Talk

LETTERS = "ABCD"
ENDS = {"stopped": "stopped", "lost": "cut off", "refused": "refused"}


class Said(NamedTuple):
    """One message: a person's, or a model's that may still grow."""

    is_person: bool
    text: str
    is_growing: bool = False


class Saying(Static):
    """A message on the screen."""

    shown: tuple[Said, int] | None = None

    def on_mount(self) -> None:
        """Measure anew: until a widget is up, Textual keeps the height of its first content."""
        self.call_later(lambda: self.update(self.content))

    def put(self, said: Said, width: int) -> None:
        """Show a message; the same one costs nothing."""
        if self.shown == (said, width):
            return
        self.shown = said, width
        self.set_class(said.is_person, "person")
        if said.is_person:
            self.update(Content.assemble(("You  ", "bold"), clean(said.text)))
        else:
            made = lay_out_growing(said.text, width) if said.is_growing else lay_out(said.text, width)
            self.update(made.append(" ▌") if said.is_growing else made)


class Pane(VerticalScroll):
    """One voice.

    Args:
        place: Among the panes.
    """

    class Scrolled(Message):
        """A person scrolled the pane."""

        def __init__(self, pane: "Pane") -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, place: int) -> None:
        super().__init__(id=f"pane-{LETTERS[place]}", classes="pane box")
        self.place = place
        self._sayings: list[Saying] = []
        self._said: list[Said] = []
        self._is_led = False

    def show(self, said: list[Said]) -> None:
        """Show messages, the last of which may grow; who has scrolled back stays there until the next one."""
        is_new, self._said = len(said) != len(self._said), said
        is_at_end = is_new or self.scroll_offset.y >= self.max_scroll_y
        while len(self._sayings) > len(said):
            self._sayings.pop().remove()
        missing = [Saying(markup=False) for _ in range(len(said) - len(self._sayings))]
        self._sayings += missing
        self._put()
        if missing:
            self.mount_all(missing)
        if is_at_end:
            self.call_after_refresh(lambda: self.follow(self.max_scroll_y))

    def _put(self) -> None:
        width = self.scrollable_content_region.width
        for saying, said in zip(self._sayings, self._said, strict=True):
            saying.put(said, width)

    def on_resize(self) -> None:
        """Lay the answers out anew."""
        self._put()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell the other panes, which may be linked, unless the pane only follows."""
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value) and not self._is_led:
            self.post_message(self.Scrolled(self))

    def follow(self, y: float) -> None:
        """Scroll to what is written, or to where another pane is, and take no other pane along."""
        self._is_led = True
        self.scroll_to(y=y, animate=False, immediate=True)
        self._is_led = False


def sayings(talk: Talk, place: int) -> list[Said]:
    """Return what a pane shows of a talk."""
    voice = talk.order[place]
    said = [Said(role == "user", text) for role, text in talk.opening if role != "system"]
    for one in talk.rounds:
        reply = one.replies[voice]
        said.append(Said(True, one.question))
        said.append(Said(False, reply.text, is_growing=not one.end and reply.finish_reason is None))
    return said


def title(voices: Sequence[Voice], order: Sequence[int], place: int, *, is_blind: bool) -> str:
    """Name a pane, and the voice that sits there unless nobody may know."""
    if not voices:
        return LETTERS[place]
    voice = voices[order[place]]
    model = Path(voice.model_path).name
    name = voice.name if voice.name == model else f"{voice.name} · {model}"
    return f"{LETTERS[place]}  {'?' if is_blind else one_line(name, 60)}"


def figures(talk: Talk, place: int) -> str:
    """Say how long an answer is and how fast it came; while names are hidden, only whether it is whole."""
    last = talk.last
    if last is None:
        return ""
    reply = last.replies[talk.order[place]]
    cut = "cut at the limit" if reply.finish_reason == "length" else ENDS.get(last.end, "")
    cut = "" if reply.finish_reason == "stop" else cut
    if talk.hides_names:
        return cut
    return " · ".join(filter(None, (*_speed(reply), cut)))


def _speed(reply: Reply) -> list[str]:
    count = len(reply.token_ids)
    return [f"{reply.tokens_per_second:.1f} tok/s", f"{count:,} tok", f"{reply.seconds:.1f} s"] if count else []
