"""Comparing: who answers, what was asked, and the child that answers it.

The rule: everything that was said is kept here, so a child that dies takes nothing along. What is shown is a talk among
talks; the next of a list of prompts is answered while a person judges this one.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from macft.chat.panes import Part, Sampling, Turn, Voice
from tui.child import Answer, Child
from tui.rounds import Round, Talk, seat

Status = Literal["idle", "loading", "ready", "dead"]
MOST = 4
"""Panes that can be read side by side."""


class Comparison:
    """Two to four voices, and all that is said to them.

    Args:
        command: Starts the worker.
        changed: Called whenever something else is to be shown.
        seed: Fixes who sits where in blind talks; left out, nobody can know it.
    """

    def __init__(self, command: Sequence[str], changed: Callable[[], None], *, seed: int | None = None) -> None:
        self.child = Child(command, self._hear, self._lose)
        self._changed = changed
        self._seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        self.named: tuple[str, ...] = ()
        self.with_base = True
        self.voices: tuple[Voice, ...] = ()
        self.status: Status = "idle"
        self.trouble = ""
        self.system, self.sampling, self.is_blind = "", Sampling(), True
        self.talks: list[Talk] = []
        self.place = 0
        self.prompts: list[tuple[Turn, ...]] = []
        self.asked_prompts = 0
        self._rounds: dict[int, Round] = {}
        self.waiting = ""
        self._then: Callable[[], None] | None = None

    @property
    def talk(self) -> Talk | None:
        """The talk that is shown."""
        return self.talks[self.place] if self.talks else None

    @property
    def current(self) -> Round | None:
        """The round that is shown last."""
        return self.talk.last if self.talk else None

    @property
    def is_answering(self) -> bool:
        """Whether something still comes of the round that is shown."""
        return self.current is not None and not self.current.end

    def choose(self, named: Sequence[str], *, base: bool) -> None:
        """Take other voices; what was said to the ones before is gone."""
        self.stop()
        self._take_back()
        self.named, self.with_base = tuple(named), base
        self.voices, self.status, self.trouble = (), "idle", ""
        self.talks, self.place, self.asked_prompts = [], 0, 0
        self._changed()

    def load(self) -> None:
        """Load the voices, in a child that is started for it if there is none."""
        if self.named and self.status != "loading":
            self.status, self.trouble = "loading", ""
            self._ask([])
            self._changed()

    def say(self, text: str) -> None:
        """Ask all voices: on in the talk that is shown, or in a new one after a verdict."""
        self._when_ready(lambda: self._say(text), text)

    def _say(self, text: str) -> None:
        self.stop()
        self._take_back()
        talk = self.talk
        if talk is None or (talk.last and talk.last.verdict):
            talk = self._open_talk(self._opening())
            self._show(talk)
        self._send(talk.begin(text, self.sampling))

    def again(self) -> None:
        """Ask the last question again, with the settings as they are now; a verdict on it stays in its file."""
        talk, last = self.talk, self.current
        if talk is None or last is None:
            return
        self.stop()
        seed = last.sampling.seed + 1 if self.sampling.temperature > 0 else self.sampling.seed
        talk.rounds[-1] = Round(last.asked, replace(self.sampling, seed=seed))
        self._send(talk.rounds[-1])

    def stop(self) -> None:
        """End the answers that are coming; what came is kept."""
        if (last := self.current) and not last.end:
            self.child.cancel(last.request)
            last.end = "stopped"
            self._changed()

    def begin_anew(self) -> None:
        """Show an empty talk."""
        self.stop()
        self._take_back()
        if self.talk is None or self.talk.rounds:
            self._show(self._open_talk(self._opening()))

    def go_on_from_winner(self) -> bool:
        """Begin a talk that all voices share with the better answer; False when there is none."""
        turns = self.talk.winner() if self.talk else None
        if turns is None:
            return False
        self._take_back()
        self._show(self._open_talk(turns))
        return True

    def use_prompts(self, prompts: Sequence[tuple[Turn, ...]]) -> None:
        """Ask a list of prompts, one after the other."""
        self._take_back()
        self.prompts, self.asked_prompts = list(prompts), 0
        self._when_ready(self._next, f"{len(prompts):,} prompts")

    def next(self) -> bool:
        """Show the next talk, or ask the next prompt of the list; False when there is none."""
        if self.place + 1 >= len(self.talks) and self.asked_prompts >= len(self.prompts):
            return False
        self._when_ready(self._next, "the next prompt")
        return True

    def _next(self) -> None:
        self.stop()
        if self.place + 1 < len(self.talks):
            self._show(self.talks[self.place + 1])
        else:
            self._show(self._ask_prompt())
        self._ask_ahead()

    def back(self, talk: Talk) -> None:
        """Show a talk again."""
        self._show(talk)

    def restart(self) -> None:
        """Start the child anew, and ask again what it did not finish."""
        self.child.end()
        self._rounds.clear()
        self.status = "idle"
        self.load()
        for talk in self.talks[self.place :]:
            if talk.last and talk.last.end in {"", "lost"}:
                talk.rounds[-1] = Round(talk.last.asked, talk.last.sampling)
                self._send(talk.rounds[-1])

    # What it does for them

    def _when_ready(self, action: Callable[[], None], what: str) -> None:
        """Do something once it is known who the voices are."""
        if self.voices:
            action()
        else:
            self._then, self.waiting = action, what
            self.load()

    def _opening(self) -> tuple[Turn, ...]:
        return (("system", self.system),) if self.system.strip() else ()

    def _open_talk(self, opening: tuple[Turn, ...]) -> Talk:
        panes = len(self.voices)
        is_blind = self.is_blind and panes == 2
        order = seat(panes, blind=is_blind, seed=self._seed, number=len(self.talks))
        self.talks.append(Talk(order, opening, is_blind))
        return self.talks[-1]

    def _show(self, talk: Talk) -> None:
        self.place, talk.was_shown = self.talks.index(talk), True
        self._changed()

    def _ask_prompt(self) -> Talk:
        turns = self.prompts[self.asked_prompts]
        self.asked_prompts += 1
        talk = self._open_talk(())
        self._send(talk.begin_with(turns if turns[0][0] == "system" else (*self._opening(), *turns), self.sampling))
        return talk

    def _ask_ahead(self) -> None:
        """Have the next prompt answered while a person judges this one."""
        is_last = self.place == len(self.talks) - 1
        if is_last and not self.is_answering and self.status == "ready" and self.asked_prompts < len(self.prompts):
            self._ask_prompt()

    def _take_back(self) -> None:
        """Take back what was asked ahead: a person wants something else first."""
        while self.talks and not self.talks[-1].was_shown:
            last = self.talks.pop().last
            if last and not last.end:
                last.end = "stopped"
                self.child.cancel(last.request)
            self.asked_prompts -= 1

    def _send(self, one: Round) -> None:
        if self.status != "ready":
            self.status = "loading"
        self.trouble = ""
        asks = [
            {
                "voice": voice,
                "turns": [{"role": role, "content": content} for role, content in turns],
                "sampling": asdict(one.sampling),
                "pane": str(voice),
            }
            for voice, turns in enumerate(one.asked)
        ]
        one.request = self._ask(asks)
        self._rounds[one.request] = one
        self._changed()

    def _ask(self, asks: list[dict[str, Any]]) -> int:
        return self.child.ask("compare", voices=list(self.named), base=self.with_base, asks=asks)

    # What the child says

    def _hear(self, answer: Answer) -> None:
        match answer:
            case {"type": "opened", "voices": voices}:
                self._open(tuple(Voice(**voice) for voice in voices))
            case {"type": "part", "id": request, **part}:
                if one := self._rounds.get(request):
                    one.take(Part(**{key: value for key, value in part.items() if key in Part._fields}))
                    self._changed()
            case {"type": "done" | "cancelled" | "error" as kind, "id": request}:
                self._finish(request, kind, answer)

    def _open(self, voices: tuple[Voice, ...]) -> None:
        if len(voices) > MOST:
            self.status, self.trouble = "idle", f"{len(voices)} voices, Base included, and {MOST} fit side by side."
            self._changed()
        elif voices != self.voices or self.status != "ready":
            self.voices, self.status, self.trouble = voices, "ready", ""
            action, self._then, self.waiting = self._then, None, ""
            if action:
                action()
            self._changed()

    def _finish(self, request: int, kind: str, answer: Answer) -> None:
        one = self._rounds.pop(request, None)
        if kind == "error":
            self.trouble = " ".join(filter(None, (answer.get("message", ""), answer.get("fix", ""))))
            self.status = "ready" if self.voices else "idle"
        if one and not one.end:
            one.end = "refused" if kind == "error" else "stopped" if kind == "cancelled" else "done"
            if one is self.current and kind == "done":
                self._ask_ahead()
        if one or kind == "error":
            self._changed()

    def _lose(self, why: str) -> None:
        for one in self._rounds.values():
            one.end = one.end or "lost"
        self._rounds.clear()
        self.status, self.trouble = "dead", f"The models' process died ({why})."
        self._changed()
