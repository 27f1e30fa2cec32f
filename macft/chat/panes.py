"""What goes into a comparison and what comes out of it.

The rule: plain values that load nothing heavy, so that a command line, a pipe or a screen can hold them. A voice is a
pane's model; an ask is what one voice is asked; a part is what one token adds to the reply.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from macft.errors import Problem, RecipeError

if TYPE_CHECKING:
    from macft.data.examples import Role

MOST_VOICES = 8
"""Voices side by side: a batch of more no longer costs about as much as one row."""

Turn = tuple["Role", str]
"""Who speaks, and what is said."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Make each of the last 20 tokens less likely by this factor; 1 changes nothing."""
    seed: int = 0
    """The same seed gives the same reply, whatever else is asked at the same time."""
    max_tokens: int = 512
    """Longest reply, in tokens; 512 when left out."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            RecipeError: With every problem.
        """
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
        }
        if wrong := [
            Problem(name, f"is {getattr(self, name)} (expected {expected})")
            for name, (is_right, expected) in limits.items()
            if not is_right
        ]:
            raise RecipeError(wrong)


@dataclass(frozen=True, slots=True)
class Voice:
    """A model that answers.

    Attributes:
        name: What to call it: Base, a run, a run's checkpoint, a model.
        model_path: The folder of its weights.
        adapter: The folder of its adapter or checkpoint; None without one.
        note: Something the person should know, empty most of the time.
    """

    name: str
    model_path: str
    adapter: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one voice is asked.

    Attributes:
        voice: Its place among the voices.
        turns: The conversation so far; the last turn is a person's.
        pane: Keeps what was computed under this name, for the pane's next turn; empty keeps nothing.
        ids: The prompt as the model's own tokens, instead of turns; empty renders the turns.
    """

    voice: int
    turns: tuple[Turn, ...]
    sampling: Sampling = Sampling()
    pane: str = ""
    ids: tuple[int, ...] = ()


class Part(NamedTuple):
    """What one token adds to a reply.

    Attributes:
        ask: Place among the asks.
        text: Often a word's end, sometimes nothing yet; the texts joined are the reply.
        token_id: The token; on the last part of a reply that stopped, the one that ended it.
        finish_reason: None before the end.
        seconds: Since the ask went to the model.
    """

    ask: int
    text: str
    token_id: int
    finish_reason: FinishReason | None
    seconds: float


Parts = Generator[Part, None, None]
"""Parts as they come; `close` stops the replies and keeps what came."""


class Reply(NamedTuple):
    """A whole reply, without the token that ended it; `finish_reason` is None when it was cancelled."""

    text: str
    token_ids: list[int]
    seconds: float
    finish_reason: FinishReason | None

    @property
    def tokens_per_second(self) -> float:
        """Speed of this reply, reading the prompt included."""
        return len(self.token_ids) / self.seconds if self.seconds > 0 else 0.0

    def plus(self, part: Part) -> "Reply":
        """Return the reply with one more part."""
        ids = self.token_ids if part.finish_reason == "stop" else [*self.token_ids, part.token_id]
        return Reply(self.text + part.text, ids, part.seconds, part.finish_reason)


NOTHING_YET = Reply("", [], 0.0, None)
