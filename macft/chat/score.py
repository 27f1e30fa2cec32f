"""How likely an answer, or a row of a data set, is to each voice of a batch.

The rule: a row a voice, all with the same tokens; log-probabilities are float32, and only those of an answer's own
tokens, or of a row's supervised ones, count.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from macft.data.chat_template import Encoded
from macft.losses.logprobs import token_logprobs

CHUNK_TOKENS = 128
"""Positions whose logits exist at once, of every voice."""
ROW_TOKENS = 1024
"""Positions of rows whose logits exist at once, of all voices together; a longer row is alone."""


class Said(NamedTuple):
    """An answer and whose it is; without token ids, its text is tokenized."""

    text: str
    token_ids: Sequence[int]
    voice: int


class Likelihood(NamedTuple):
    """How likely an answer is to a voice.

    Attributes:
        logprob: Of the whole answer, nats.
        tokens: Of the answer, as this voice's tokenizer cuts it.
        kl: KL(voice ‖ first voice of its batch) a token, over the answer's positions, nats; None when not asked for.
    """

    logprob: float
    tokens: int
    kl: float | None = None

    @property
    def mean(self) -> float:
        """Mean log-probability a token, nats; 0 for an empty answer."""
        return self.logprob / self.tokens if self.tokens else 0.0


class RowLikelihood(NamedTuple):
    """How likely a row's supervised tokens are to a voice.

    Attributes:
        logprob: Of all of them, nats.
        tokens: How many there are.
        right: At how many of them the voice's likeliest token is the row's.
    """

    logprob: float
    tokens: int
    right: int


def score_rows(
    model: nn.Module, rows: Sequence[Encoded], *, voices: int, choose: Callable[[Sequence[int]], None]
) -> Iterator[tuple[int, list[RowLikelihood]]]:
    """Score rows under all voices of a model, several rows at once; yields each row's place and its scores, by voice.

    Args:
        model: With several voices.
        rows: Token ids [T] and loss mask [T] of each.
        voices: How many.
        choose: Told which voice each row of the next pass is.
    """
    places = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    while places:
        longest = len(rows[places[-1]].ids)
        group = [places.pop() for _ in range(min(len(places), max(1, ROW_TOKENS // (longest * voices))))]
        ids = np.zeros((len(group), longest), np.int32)
        for number, place in enumerate(group):
            ids[number, : len(rows[place].ids)] = rows[place].ids
        choose([voice for _ in group for voice in range(voices)])
        logits = model(mx.repeat(mx.array(ids), voices, axis=0))  # padding is on the right, where nothing looks
        for number, place in enumerate(group):
            targets = np.flatnonzero(rows[place].mask[1:])
            own = logits[number * voices : (number + 1) * voices][:, mx.array(targets)]
            yield place, _score_targets(own, mx.array(rows[place].ids[targets + 1]))


def _score_targets(logits: mx.array, targets: mx.array) -> list[RowLikelihood]:
    """Score targets [R] by logits [V, R, vocabulary]."""
    if not targets.size:
        return [RowLikelihood(0.0, 0, 0)] * logits.shape[0]
    logprobs = mx.stack([token_logprobs(voice, targets).sum() for voice in logits])
    right = (logits.argmax(axis=-1) == targets).sum(axis=-1)
    sums, counts = cast(list[float], logprobs.tolist()), cast(list[int], right.tolist())
    return [RowLikelihood(total, targets.size, count) for total, count in zip(sums, counts, strict=True)]


def score_answer(
    model: nn.Module, prompt: Sequence[int], answer: Sequence[int], *, voices: int, kl: bool
) -> list[Likelihood]:
    """Score one answer under all voices of a model at once.

    Args:
        model: Its rows are chosen: row v of a batch is voice v.
        prompt: Token ids before the answer, at least one.
        answer: Token ids of the answer.
        voices: Rows of the batch.
        kl: Also compare the distributions, each voice's with the first one's.
    """
    ids = mx.array([*prompt, *answer])
    cache, first = make_prompt_cache(model), len(prompt) - 1
    logprob, divergence = mx.zeros(voices), mx.zeros(voices)
    for start in range(0, len(ids) - 1, CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, len(ids) - 1)
        logits = model(mx.tile(ids[start:end], (voices, 1)), cache=cache)
        if (begin := max(start, first)) < end:
            logits, targets = logits[:, begin - start :], ids[begin + 1 : end + 1]
            logprob += mx.stack([token_logprobs(row, targets).sum() for row in logits])
            divergence += _divergence(logits) if kl else 0.0
        mx.eval([layer.state for layer in cache], logprob, divergence)  # a chunk of the prompt makes no logits
    per_token = cast(list[float], (divergence / max(1, len(answer))).tolist())
    sums = cast(list[float], logprob.tolist())
    return [Likelihood(total, len(answer), per_token[voice] if kl else None) for voice, total in enumerate(sums)]


def _divergence(logits: mx.array) -> mx.array:
    """Return the sum over positions of KL(row ‖ first row) [V, T, vocabulary] → [V], nats."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return (mx.exp(logprobs) * (logprobs - logprobs[:1])).sum(axis=(1, 2))
