"""How likely an answer is to each voice of a batch: does the tuned model like its own answer more than Base does?

The rule: a row a voice, all with the same tokens, read in chunks; log-probabilities are float32 and only those of the
answer's own tokens count.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from macft.losses.logprobs import token_logprobs

CHUNK_TOKENS = 128
"""Positions whose logits exist at once, of every voice."""


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
