"""Generate text: many answers at once for measuring, or one reply as it comes.

The rule: MLX's wired limit is never touched (it is tied to kernel panics), so this stands on mlx-lm's steps and
batches and not on `stream_generate` or `BatchGenerator`, which raise it to the maximum.
"""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import PromptProcessingBatch, generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import greedy_sampler, make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

BATCH_SIZE = 32
"""Answers in the making at once: on two CPU cores and SmolLM2, 16 are a third slower and 96 are no faster."""

READ_TOKENS = 2048
"""Prompt tokens read at once, over all rows; bounds the memory of reading."""

CACHE_TOKENS = 16_384
"""Tokens kept of all answers in the making, prompts and padding counted: 0.8 GB on SmolLM2, 2 GB on an 8B model."""


class Answer(NamedTuple):
    """One prompt's greedy answer, without the token that ended it."""

    text: str
    token_ids: list[int]
    seconds: float


class ReplyPart(NamedTuple):
    """What one token adds to a reply: often a word's end, sometimes no text yet; the last part says why it ended."""

    text: str
    token_id: int
    finish_reason: Literal["stop", "length"] | None


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

    What all prompts begin with is computed once. The longest go first, and places are filled again when half of them
    are free, so that neighbours are of similar length and little is padded.

    Args:
        prompts: Token ids, at least one each.
        batch_size: Most answers in the making at once.
        cache_tokens: Most tokens in the making at once; a longer prompt is alone.
        progress: Told (answers done, all answers) after each one.

    Returns:
        The answers in the order of the prompts; `seconds` runs from a prompt's entry into the batch to its last token.
    """
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows = _Rows(model, prompts)
    token_ids: list[list[int]] = [[] for _ in prompts]
    started = [0.0] * len(prompts)
    answers: dict[int, Answer] = {}
    while waiting or rows.indices:
        longest = max(len(prompts[index]) for index in (*rows.indices, *waiting[-1:]))
        places = max(1, min(batch_size, cache_tokens // (longest + max_tokens)))
        if waiting and len(rows.indices) <= places // 2:
            entering = [waiting.pop() for _ in range(min(places - len(rows.indices), len(waiting)))]
            for index in entering:
                started[index] = time.perf_counter()
            rows.add(entering)
        for index, token_id in rows.step():
            stopped = token_id in tokenizer.eos_token_ids
            if not stopped:
                token_ids[index].append(token_id)
            if stopped or len(token_ids[index]) == max_tokens:
                text = tokenizer.decode(token_ids[index], clean_up_tokenization_spaces=False)
                answers[index] = Answer(text, token_ids[index], time.perf_counter() - started[index])
                if progress:
                    progress(len(answers), len(prompts))
        rows.drop(answers.keys())
    return [answers[index] for index in range(len(prompts))]


def stream_reply(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
) -> Iterator[ReplyPart]:
    """Yield a reply token by token; the texts joined are the reply.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: Keep the likeliest tokens that together have this probability; 1 keeps all.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest; 0 keeps all.
        seed: Makes a sampled reply repeatable; seeds MLX's generator for the process.
    """
    if seed is not None:
        mx.random.seed(seed)
    sampler = make_sampler(temperature, top_p=top_p, min_p=min_p, top_k=top_k)
    detokenizer = tokenizer.detokenizer
    steps = generate_step(mx.array(list(prompt_ids)), model, max_tokens=max_tokens, sampler=sampler)
    for count, (token_id, _) in enumerate(steps, start=1):
        stopped = token_id in tokenizer.eos_token_ids
        if not stopped:
            detokenizer.add_token(token_id)
        if stopped or count == max_tokens:
            detokenizer.finalize()
            yield ReplyPart(detokenizer.last_segment, token_id, "stop" if stopped else "length")
            return
        yield ReplyPart(detokenizer.last_segment, token_id, None)


class _Rows:
    """The prompts being answered: which they are, the last token of each, and the cache of all before it."""

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]]) -> None:
        self._model = model
        self._prompts = prompts
        self._shared = _common_length(prompts)
        self._shared_cache: list[Any] = make_prompt_cache(model)
        for start in range(0, self._shared, READ_TOKENS):
            model(mx.array([prompts[0][start : min(start + READ_TOKENS, self._shared)]]), cache=self._shared_cache)
            mx.eval([layer.state for layer in self._shared_cache])
        self._batch = PromptProcessingBatch.empty(model, greedy_sampler)
        self._last = mx.array([], dtype=mx.int32)

    @property
    def indices(self) -> list[int]:
        """Places in the list of prompts."""
        uids: list[int] = self._batch.uids
        return uids

    def add(self, indices: list[int]) -> None:
        """Read these prompts but for their last tokens, from where they differ."""
        # A sliding-window cache cannot pad a chunk of one column: rows with nothing left are kept apart.
        bare = [index for index in indices if len(self._prompts[index]) == self._shared + 1]
        for group in (bare, [index for index in indices if index not in bare]):
            if group:
                self._add(group, [self._prompts[index][self._shared : -1] for index in group])

    def _add(self, indices: list[int], rests: list[list[int]]) -> None:
        count, longest = len(indices), max(map(len, rests))
        columns = max(2, READ_TOKENS // count)
        batch = PromptProcessingBatch(
            self._model,
            uids=indices,
            caches=[self._shared_cache] * count,
            samplers=[None] * count,
            logits_processors=[()] * count,
            prefill_step_size=columns + (longest % columns == 1),
        )
        if longest:
            batch.prompt(rests)
        self._batch.extend(batch)
        self._last = mx.concatenate([self._last, mx.array([self._prompts[index][-1] for index in indices])])

    def step(self) -> list[tuple[int, int]]:
        """Take the likeliest next token of every row; returns (index, token id) pairs."""
        logits = self._model(self._last[:, None], cache=self._batch.prompt_cache)
        self._last = mx.argmax(logits[:, -1], axis=-1)
        return list(zip(self.indices, cast(list[int], self._last.tolist()), strict=True))

    def drop(self, indices: Container[int]) -> None:
        """Take these rows out."""
        keep = [row for row, index in enumerate(self.indices) if index not in indices]
        if len(keep) < len(self.indices):
            self._batch.filter(keep)
            self._last = self._last[mx.array(keep, dtype=mx.int32)]


def _common_length(prompts: Sequence[list[int]]) -> int:
    """Count the tokens that all prompts begin with, leaving each at least one of its own."""
    if len(prompts) < 2:
        return 0
    columns = enumerate(zip(*(prompt[:-1] for prompt in prompts), strict=False))
    shortest = min(len(prompt) for prompt in prompts) - 1
    return next((place for place, column in columns if len(set(column)) > 1), shortest)
