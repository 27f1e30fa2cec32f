"""What was said side by side: rounds of one question with an answer a voice, and talks of several rounds.

The rule: plain values. Voices are counted as the worker counts them; panes are what a person sees, and the order says
which voice sits in which pane.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from macft.chat.panes import NOTHING_YET, Part, Reply, Sampling, Turn
from macft.chat.preferences import Answered, Duel, Verdict, shuffled

End = Literal["", "done", "stopped", "lost", "refused"]
"""Why nothing more comes of a round; empty while something does."""


@dataclass(slots=True)
class Round:
    """One question, as each voice was asked it, and what each has answered so far.

    Attributes:
        asked: By voice: the conversation that ends with the question.
        sampling: How the answers are made.
        replies: By voice.
        request: The worker's number for it.
        verdict: What a person made of it.
        edited: What the winner should have said; empty when it was left as it was.
    """

    asked: tuple[tuple[Turn, ...], ...]
    sampling: Sampling
    replies: list[Reply] = field(default_factory=list)
    request: int = 0
    end: End = ""
    verdict: Verdict | None = None
    edited: str = ""

    def __post_init__(self) -> None:
        self.replies = self.replies or [NOTHING_YET] * len(self.asked)

    @property
    def question(self) -> str:
        """What was asked."""
        return self.asked[0][-1][1]

    def take(self, part: Part) -> None:
        """Add what a token brings; what comes after the end is dropped."""
        if not self.end:
            self.replies[part.ask] = self.replies[part.ask].plus(part)

    def after(self, voice: int) -> tuple[Turn, ...]:
        """Return a voice's conversation with its answer."""
        return (*self.asked[voice], ("assistant", self.replies[voice].text))


@dataclass(slots=True)
class Talk:
    """Rounds that follow from each other.

    Attributes:
        order: By pane: the voice that sits there.
        opening: The turns that all voices share before the first round.
        is_blind: Whether names are hidden until a verdict.
        was_shown: Whether a person has seen it; what was only asked ahead may be taken back.
    """

    order: tuple[int, ...]
    opening: tuple[Turn, ...] = ()
    is_blind: bool = False
    was_shown: bool = False
    rounds: list[Round] = field(default_factory=list)

    @property
    def last(self) -> Round | None:
        """The round that is shown last."""
        return self.rounds[-1] if self.rounds else None

    @property
    def hides_names(self) -> bool:
        """Whether nobody may know yet who sits where."""
        return self.is_blind and not any(one.verdict for one in self.rounds)

    def begin(self, text: str, sampling: Sampling) -> Round:
        """Add a round: every voice is asked the same after a conversation of its own, without what was refused."""
        if self.last and self.last.end == "refused":
            self.rounds.pop()
        last = self.last
        before = [last.after(voice) if last else self.opening for voice in range(len(self.order))]
        asked = tuple((*turns, ("user", text)) for turns in before)
        return self._add(Round(asked, sampling))

    def begin_with(self, turns: Sequence[Turn], sampling: Sampling) -> Round:
        """Add the first round with a conversation that ends with a question."""
        self.opening = tuple(turns[:-1])
        return self._add(Round((tuple(turns),) * len(self.order), sampling))

    def _add(self, one: Round) -> Round:
        self.rounds.append(one)
        return one

    def duel(self, names: Sequence[str]) -> Duel | str:
        """Return what can be judged, or why nothing can."""
        last = self.last
        if last is None or len(self.order) != 2:
            return "" if last is None else "Picking is between two voices: v chooses them."
        if not last.end:
            return "Answering: esc stops and keeps what came."
        sides = [Answered(names[voice], last.replies[voice].text) for voice in self.order]
        how = asdict(last.sampling)
        seed = how.pop("seed")
        made = Duel(last.asked[0], (sides[0], sides[1]), how, seed)
        if last.asked[0] != last.asked[1]:
            return "Each pane went its own way, so there is no pair to pick: ^n begins anew."
        if not any(side.text.strip() for side in sides):
            return "Nothing was answered: ^g asks again."
        return "Both say the same: there is nothing to pick." if made.is_same else made

    def winner(self) -> tuple[Turn, ...] | None:
        """Return the conversation with the better answer, to go on from; None when none was better."""
        last = self.last
        if last is None or last.verdict not in {"1", "2"}:
            return None
        voice = self.order[0 if last.verdict == "1" else 1]
        return (*last.asked[voice], ("assistant", last.edited or last.replies[voice].text))


def seat(voices: int, *, blind: bool, seed: int, number: int) -> tuple[int, ...]:
    """Return which voice sits in which pane; blind pairs are shuffled as `macft compare --pick` does."""
    if not blind or voices != 2:
        return tuple(range(voices))
    sides = shuffled(Duel((), (Answered("0", ""), Answered("1", ""))), seed=seed, number=number).sides
    return tuple(int(side.voice) for side in sides)
