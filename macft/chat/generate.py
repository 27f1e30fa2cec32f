"""Generate text: many answers at once for measuring, or one reply as it comes.

The rule: both are `decode.Decoder`, so what is measured is what a person reads.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.decode import BATCH_SIZE, CACHE_TOKENS, Decoder, Request, Step
from macft.chat.panes import Part, Parts, Sampling


class Answer(NamedTuple):
    """One prompt's greedy answer, without the token that ended it."""

    text: str
    token_ids: list[int]
    seconds: float


def answer_batch(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    batch_size: int = BATCH_SIZE,
    cache_tokens: int = CACHE_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer every prompt greedily, several at once, each as if it were alone.

    Args:
        prompts: Token ids, at least one each.
        batch_size: Most answers in the making at once.
        cache_tokens: Most tokens in the making at once; a longer prompt is alone.
        progress: Told (answers done, all answers) after each one.

    Returns:
        The answers in the order of the prompts; `seconds` runs from a prompt's entry into the batch to its last token.
    """
    decoder = Decoder(model, tokenizer.eos_token_ids, batch_size=batch_size, cache_tokens=cache_tokens)
    token_ids: list[list[int]] = [[] for _ in prompts]
    answers: dict[int, Answer] = {}
    for step in decoder.run([Request(ids, Sampling(max_tokens=max_tokens)) for ids in prompts]):
        ids = token_ids[step.request]
        if step.finish_reason != "stop":
            ids.append(step.token_id)
        if step.finish_reason:
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            answers[step.request] = Answer(text, ids, step.seconds)
            if progress:
                progress(len(answers), len(prompts))
    return [answers[index] for index in range(len(prompts))]


def stream_reply(model: nn.Module, tokenizer: TokenizerWrapper, prompt_ids: Sequence[int], sampling: Sampling) -> Parts:
    """Yield a reply token by token; the texts joined are the reply."""
    return spell(Decoder(model, tokenizer.eos_token_ids).run([Request(prompt_ids, sampling)]), tokenizer)


def spell(steps: Generator[Step, None, None], tokenizer: TokenizerWrapper) -> Parts:
    """Turn tokens into text as they come, each reply with a detokenizer of its own."""
    detokenizers: dict[int, Any] = {}
    with closing(steps):
        for step in steps:
            if step.request not in detokenizers:
                detokenizers[step.request] = tokenizer.detokenizer
            detokenizer = detokenizers[step.request]
            if step.finish_reason != "stop":
                detokenizer.add_token(step.token_id)
            if step.finish_reason:
                detokenizer.finalize()
            yield Part(step.request, detokenizer.last_segment, step.token_id, step.finish_reason, step.seconds)
