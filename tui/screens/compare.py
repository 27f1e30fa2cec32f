"""Compare: two to four voices answer the same, and a person says who answers better.

The rule: whose answer is whose is said after the verdict only, unless somebody asked to see.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.widgets import Input

from macft import api
from macft.chat.panes import Turn, Voice
from macft.chat.preferences import Duel, Verdict
from macft.errors import MacftError
from macft.format import one_line
from macft.machine import home
from tui.actions import bindings
from tui.comparison import MOST, Comparison
from tui.draft import draft_for_picks
from tui.messages import RunRow
from tui.pickbook import ENOUGH, PickBook
from tui.rounds import Round, Talk
from tui.screens.ask import AskScreen
from tui.screens.edit import EditScreen
from tui.screens.frame import StudioScreen
from tui.screens.settings import Settings, SettingsScreen
from tui.screens.voices import Chosen, VoicesScreen
from tui.widgets.pane import LETTERS, Pane, Said, figures, sayings, title
from tui.widgets.verdict import VerdictBar, first_line, second_line

DRAW_SECONDS = 0.1
"""Between two looks at what came: text that changes more often cannot be read."""
SCROLLED_LINES = 2
GRACE_SECONDS = 0.7
"""After an answer's end, in which esc was meant to stop it."""
EMPTY = """Nothing to compare yet.

- **v** chooses who answers: runs, checkpoints, models
- **c** on Home or Live asks Base and a run

All that share a model share one copy of its weights."""


class CompareScreen(StudioScreen):
    """Voices side by side."""

    NAME = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("compare")]
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self.comparison = Comparison(self.studio.worker, self._note_change, seed=self.studio.seed)
        self.book: PickBook | None = None
        self.is_linked, self.is_editing = True, False
        self.judged: list[tuple[Talk, Round]] = []
        self._is_stale = True
        self._seen_end: tuple[int, str] = (0, "")
        self._changed_at = -GRACE_SECONDS
        self._seen_voices: tuple[Voice, ...] = ()

    def compose_body(self) -> ComposeResult:
        """Put the panes above the verdict and the line to write on."""
        with Container(id="panes"):
            for place in range(MOST):
                yield Pane(place)
        yield VerdictBar(id="verdict", markup=False)
        yield Input(id="say", placeholder="Message all · enter sends · esc leaves")

    def on_mount(self) -> None:
        """Look at what came, again and again."""
        self.set_interval(DRAW_SECONDS, self._draw_if_stale)
        self.draw()

    async def on_unmount(self) -> None:
        """End the child with the studio."""
        await self.comparison.child.close()

    def show_runs(self, rows: tuple[RunRow, ...]) -> None:
        """Offer the newest result, as long as nobody chose."""
        if not self.comparison.named and (row := next((row for row in rows if row.run.adapter.is_dir()), None)):
            self.comparison.choose([str(row.path)], base=True)
            self.draw()

    def open(self, names: Sequence[str], *, base: bool) -> None:
        """Load voices, unless they are there already."""
        if (tuple(names), base) != (self.comparison.named, self.comparison.with_base):
            self.comparison.choose(names, base=base)
            self.book, self.judged = None, []
        if not self.comparison.voices:
            self.comparison.load()
        if self.is_mounted:
            self.draw()

    # Drawing

    def _note_change(self) -> None:
        self._is_stale = True

    def _draw_if_stale(self) -> None:
        if self._is_stale and self.is_current:
            self.draw()

    def draw(self) -> None:
        """Show what there is now."""
        self._is_stale = False
        comparison = self.comparison
        if comparison.voices != self._seen_voices:
            self._take_voices(comparison.voices)
        count = len(comparison.voices) or 2
        self.query_one("#panes").set_classes(f"of-{count}")
        for place in range(MOST):
            pane = self.query_one(f"#pane-{LETTERS[place]}", Pane)
            pane.display = place < count
            if pane.display:
                self._draw_pane(pane)
        bar = self.query_one(VerdictBar)
        bar.show(first_line(comparison, is_editing=self.is_editing), second_line(comparison, self.book))
        bar.can_focus = isinstance(self._duel, Duel) and not self._is_judged
        self._place_focus(bar)

    def _draw_pane(self, pane: Pane) -> None:
        talk, voices = self.comparison.talk, self.comparison.voices
        blind = self.comparison.is_blind if talk is None else talk.hides_names
        pane.border_title = title(voices, talk.order if talk else range(MOST), pane.place, is_blind=blind)
        pane.border_subtitle = figures(talk, pane.place) if talk else ""
        if talk and voices:
            pane.show(sayings(talk, pane.place))
        elif self.comparison.waiting:
            pane.show([Said(True, self.comparison.waiting)])
        else:
            pane.show([Said(False, EMPTY)] if pane.place == 0 and not self.comparison.named else [])

    def _take_voices(self, voices: tuple[Voice, ...]) -> None:
        self._seen_voices, self.book, self.judged = voices, None, []
        for voice in voices:
            if voice.note:
                self.notify(voice.note, title=one_line(voice.name), severity="warning", markup=False)
        if len(voices) == 2:
            place = home() / "picks" / f"{voices[1].name.replace('/', '-')}.jsonl"
            self.book = PickBook((voices[0].name, voices[1].name), place)
            self._count()

    def _place_focus(self, bar: VerdictBar) -> None:
        """Go to the verdict when the answers are there, and back to the line when there is none to give."""
        last = self.comparison.current
        end = (id(last), last.end) if last else (0, "")
        line = self.query_one("#say", Input)
        if end != self._seen_end and bar.can_focus and not line.value:
            bar.focus()
        elif self.focused is None and not bar.can_focus:
            (line if self.comparison.named else self.query_one("#pane-A")).focus()
        self._seen_end = end

    @property
    def _duel(self) -> Duel | str:
        talk = self.comparison.talk
        return talk.duel([voice.name for voice in self.comparison.voices]) if talk else ""

    @property
    def _is_judged(self) -> bool:
        last = self.comparison.current
        return last is not None and last.verdict is not None

    def on_pane_scrolled(self, event: Pane.Scrolled) -> None:
        """Scroll the other panes too, unless answers are growing: each follows its own then."""
        if not self.is_linked or self.comparison.is_answering:
            return
        for pane in self.query(Pane):
            if pane is not event.pane and pane.display:
                pane.follow(event.pane.scroll_y)

    # What the keys do

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ask all voices."""
        if not event.value.strip():
            return
        if not self.comparison.named:
            self.action_voices()
            return
        self.comparison.say(event.value)
        event.input.value = ""
        self.draw()

    def key_escape(self) -> None:
        """Stop the answers; else leave the edit, the line, the bar."""
        bar = self.query_one(VerdictBar)
        if self.comparison.is_answering:
            self.comparison.stop()
        elif self.is_editing:
            self.is_editing = False
        elif self.focused is not bar and bar.can_focus:
            bar.focus()
        elif self.focused is not bar or time.monotonic() - self._changed_at > GRACE_SECONDS:
            self.query_one("#pane-A").focus()
        self.draw()

    def action_focus_say(self) -> None:
        """Write a message."""
        self.query_one("#say").focus()

    def action_voices(self) -> None:
        """Choose who answers."""

        def take(chosen: Chosen | None) -> None:
            if chosen:
                self.open(chosen.names, base=chosen.base)

        now = Chosen(self.comparison.named, self.comparison.with_base)
        self.app.push_screen(VoicesScreen(self.studio.rows, now), take)

    def action_next(self) -> None:
        """Show the next prompt's answers."""
        if not self.comparison.next():
            self.notify("There is no next prompt: ^l asks a file of them." if not self.comparison.prompts else "Done.")
        self.draw()

    def action_anew(self) -> None:
        """Begin a new talk."""
        if self.comparison.voices:
            self.comparison.begin_anew()
        self.action_focus_say()
        self.draw()

    def action_again(self) -> None:
        """Ask the last question again."""
        self.comparison.again()
        self.draw()

    def action_settings(self) -> None:
        """Change how answers are made."""

        def take(settings: Settings | None) -> None:
            if settings:
                self.comparison.system, self.comparison.sampling = settings
                self.notify("They hold from the next question on; the system prompt from the next talk.", timeout=4)

        self.app.push_screen(SettingsScreen(Settings(self.comparison.system, self.comparison.sampling)), take)

    def action_prompts(self) -> None:
        """Ask a file of prompts."""

        def take(name: str | None) -> None:
            if name and name.strip():
                self._read_prompts(Path(name.strip()))

        self.app.push_screen(AskScreen("Ask which file of prompts? A line or a row each"), take)

    @work(thread=True, exclusive=True, exit_on_error=False, group="prompts")
    def _read_prompts(self, path: Path) -> None:
        try:
            prompts = api.read_prompts(path)
        except (MacftError, OSError) as error:
            self.app.call_from_thread(self._say_failed, str(error), "These prompts cannot be asked")
        else:
            self.app.call_from_thread(self._use_prompts, prompts)

    def _use_prompts(self, prompts: list[tuple[Turn, ...]]) -> None:
        if not self.comparison.named:
            self.notify("v chooses who answers them.", severity="warning")
            return
        self.comparison.use_prompts(prompts)
        self.draw()

    def action_blind(self) -> None:
        """Hide names, or show them."""
        self.comparison.is_blind = not self.comparison.is_blind
        if not self.comparison.is_blind and self.comparison.talk:
            self.comparison.talk.is_blind = False
        self.notify("Names are hidden from the next talk on." if self.comparison.is_blind else "Names are shown.")
        self.draw()

    def action_link(self) -> None:
        """Scroll the panes together, or each by itself."""
        self.is_linked = not self.is_linked
        self.notify("The panes scroll together." if self.is_linked else "Each pane scrolls by itself.", timeout=3)

    def action_scroll(self, lines: int) -> None:
        """Scroll the first pane, and with it those that are linked."""
        self.query_one("#pane-A").scroll_relative(y=lines * SCROLLED_LINES, animate=False)

    def action_restart(self) -> None:
        """Start the child anew."""
        self.comparison.restart()
        self.draw()

    def action_winner(self) -> None:
        """Go on from the better answer."""
        if self.comparison.go_on_from_winner():
            self.action_focus_say()
        else:
            self.notify("There is no better answer yet: 1 or 2 says which.")
        self.draw()

    # Picking

    def action_edit(self) -> None:
        """Edit the answer that the next digit names."""
        self.is_editing = True
        self.draw()

    def action_judge(self, verdict: Verdict) -> None:
        """Record what the person thinks of the answers."""
        duel, talk = self._duel, self.comparison.talk
        if not isinstance(duel, Duel) or talk is None or talk.last is None or self._is_judged:
            return
        last = talk.last
        if not self.is_editing or verdict not in {"1", "2"}:
            self._judge(duel, talk, last, verdict, None)
            return

        def take(text: str | None) -> None:
            self.is_editing = False
            if text is not None:
                self._judge(duel, talk, last, verdict, text)
            self.draw()

        side = int(verdict) - 1
        self.app.push_screen(EditScreen(f"What {LETTERS[side]} should have said", duel.sides[side].text), take)

    @work(exit_on_error=False, group="picks")
    async def _judge(self, duel: Duel, talk: Talk, last: Round, verdict: Verdict, edited: str | None) -> None:
        book = self.book
        if book is None or last.verdict:
            return
        last.verdict, last.edited = verdict, edited or ""
        before = book.pairs
        try:
            await book.judge(duel, verdict, edited)
        except OSError as error:
            last.verdict, last.edited = None, ""
            self._say_failed(f"{error.filename or book.path}: {error.strerror}", "The pick is not written")
        else:
            self.judged.append((talk, last))
            self._after_verdict(before, book)
        self.draw()

    def _after_verdict(self, before: int, book: PickBook) -> None:
        if before < ENOUGH <= book.pairs:
            self.notify(f"{ENOUGH} pairs: t trains DPO on them.", timeout=8)
        if self.comparison.prompts and self.comparison.next():
            return
        self.action_focus_say()

    @work(exit_on_error=False, group="picks")
    async def action_undo(self) -> None:
        """Take the last verdict back."""
        if not self.judged or self.book is None:
            self.notify("There is no verdict to take back.")
            return
        await self._attempt_book(self.book.undo, self._undone)

    def _undone(self, is_undone: bool) -> None:
        if not is_undone:
            self.notify("The file has gone on since: that verdict stays.", severity="warning")
            return
        talk, last = self.judged.pop()
        last.verdict, last.edited = None, ""
        if talk in self.comparison.talks:
            self.comparison.back(talk)
        self.draw()
        self.query_one(VerdictBar).focus()

    @work(exit_on_error=False, group="picks")
    async def _count(self) -> None:
        if self.book:
            await self._attempt_book(self.book.count, lambda _: self.draw())

    async def _attempt_book(self, act: Callable[[], object], then: Callable[..., None]) -> None:
        try:
            result = await act()  # type: ignore[misc]
        except OSError as error:
            self._say_failed(f"{error.filename}: {error.strerror}", "The picks cannot be read")
        else:
            then(result)

    def _say_failed(self, text: str, title: str) -> None:
        self.notify(text, title=title, severity="error", timeout=12, markup=False)

    def action_train(self) -> None:
        """Put a DPO run on the picks into Train."""
        book, voices = self.book, self.comparison.voices
        if book is None or not book.pairs:
            self.notify("There are no picks to train on yet.", severity="warning")
            return
        if book.pairs < ENOUGH:
            self.notify(f"{book.pairs} pairs are few: a run mostly learns these very answers.", severity="warning")
        self.attempt(lambda: self.studio.open_draft(draft_for_picks(book.path, voices[-1])))
