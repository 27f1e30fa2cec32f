"""Prompts answered by several voices, and what differs: length, speed, and how likely each answer is to each voice.

The rule: figures are sums over all prompts, divided once; a voice's own answers stand beside the others' under the same
voice, so that it shows whether a tuned model likes its own answers more than Base does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from macft.chat.compare import Question, Voices
from macft.chat.panes import NOTHING_YET, Ask, Reply, Sampling, Turn, Voice
from macft.chat.score import Likelihood, Said


class Exchange(NamedTuple):
    """One prompt and every voice's reply to it.

    Attributes:
        likelihoods: By answer, then by voice; empty when they were not asked for.
    """

    turns: tuple[Turn, ...]
    replies: list[Reply]
    likelihoods: list[list[Likelihood]]


class VoiceFigures(NamedTuple):
    """What one voice's replies came to.

    Attributes:
        tokens: Of all replies.
        seconds: From a reply's entry into the batch to its end, on average.
        tokens_per_second: Of one reply, beside the others.
        cut: Replies that were as long as allowed.
        logprobs: Mean log-probability a token of each voice's answers under this one, nats; empty when not scored.
        kl: KL(this voice ‖ first voice of its batch) a token, nats, over its own answers; None when not asked for.
    """

    voice: Voice
    tokens: int
    seconds: float
    tokens_per_second: float
    cut: int
    logprobs: list[float]
    kl: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file of prompts, answered by all voices."""

    voices: Sequence[Voice]
    sampling: Sampling
    exchanges: Sequence[Exchange]

    def figures(self) -> list[VoiceFigures]:
        """Return the figures of each voice, in their order."""
        return [self._figures(place) for place in range(len(self.voices))]

    def _figures(self, place: int) -> VoiceFigures:
        replies = [exchange.replies[place] for exchange in self.exchanges]
        tokens, seconds = sum(len(reply.token_ids) for reply in replies), sum(reply.seconds for reply in replies)
        scored = [exchange.likelihoods for exchange in self.exchanges if exchange.likelihoods]
        own = [by_answer[place][place] for by_answer in scored]
        with_kl = [likelihood for likelihood in own if likelihood.kl is not None]
        return VoiceFigures(
            voice=self.voices[place],
            tokens=tokens,
            seconds=seconds / max(1, len(replies)),
            tokens_per_second=tokens / seconds if seconds else 0.0,
            cut=sum(reply.finish_reason == "length" for reply in replies),
            logprobs=[
                _mean([by_answer[answer][place] for by_answer in scored])
                for answer in range(len(self.voices))
                if scored
            ],
            kl=sum((one.kl or 0.0) * one.tokens for one in with_kl) / max(1, sum(one.tokens for one in with_kl))
            if with_kl
            else None,
        )


def answer_prompts(
    voices: Voices,
    prompts: Sequence[tuple[Turn, ...]],
    sampling: Sampling,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Reply]]:
    """Let all voices answer all prompts; yields the replies to a prompt, by voice, in the order of the prompts.

    Args:
        progress: Told (replies done, all replies) after each one.
    """
    asks = [Ask(voice, turns, sampling) for turns in prompts for voice in range(len(voices.voices))]
    return answer_asks(voices, asks, progress=progress)


def answer_asks(
    voices: Voices, asks: Sequence[Ask], *, progress: Callable[[int, int], None] | None = None
) -> Iterator[list[Reply]]:
    """Let all voices answer; yields the replies to a prompt, by voice, in the order of the asks.

    Args:
        asks: Of each prompt one a voice, in the order of the voices.
        progress: Told (replies done, all replies) after each one.
    """
    count, replies = len(voices.voices), [NOTHING_YET] * len(asks)
    done = shown = 0
    for part in voices.stream(asks):
        replies[part.ask] = replies[part.ask].plus(part)
        if part.finish_reason is None:
            continue
        done += 1
        if progress:
            progress(done, len(asks))
        while shown < len(asks) and all(one.finish_reason for one in replies[shown : shown + count]):
            yield replies[shown : shown + count]
            shown += count


def score_exchanges(
    voices: Voices, prompts: Sequence[tuple[Turn, ...]], replies: Sequence[list[Reply]], *, kl: bool
) -> list[Exchange]:
    """Let every voice judge every answer, its own and the others'."""
    questions = [
        Question(turns, tuple(Said(reply.text, reply.token_ids, voice) for voice, reply in enumerate(answers)))
        for turns, answers in zip(prompts, replies, strict=True)
    ]
    scored = voices.score(questions, kl=kl)
    return [Exchange(*parts) for parts in zip(prompts, replies, scored, strict=True)]


def _mean(likelihoods: Sequence[Likelihood]) -> float:
    return sum(one.logprob for one in likelihoods) / max(1, sum(one.tokens for one in likelihoods))
