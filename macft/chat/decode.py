"""Decode many replies at once: one batch, a row a reply, each row as if it were alone.

The rule: MLX's wired limit is never touched (it is tied to kernel panics), so this stands on mlx-lm's batches of rows
and not on `stream_generate` or `BatchGenerator`, which raise it to the maximum. A row's tokens depend on its own
prompt, sampling and seed, never on its neighbours.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler, make_logits_processors

from macft.chat.panes import FinishReason, Sampling
from macft.models.voices import Rows

BATCH_SIZE = 32
"""Replies in the making at once: on two CPU cores and SmolLM2, 16 are a third slower and 96 are no faster."""

READ_TOKENS = 2048
"""Prompt tokens read at once, over all rows; bounds the memory of reading."""

CACHE_TOKENS = 16_384
"""Tokens kept of all replies in the making, prompts and padding counted: 0.8 GB on SmolLM2, 2 GB on an 8B model."""


class Request(NamedTuple):
    """A reply to be made.

    Attributes:
        ids: The prompt, at least one token.
        sampling: How tokens are chosen, and how many at most.
        voice: For a model with several voices, which of them.
        pane: Keeps the cache under this name for the next request of that name; empty keeps nothing.
    """

    ids: Sequence[int]
    sampling: Sampling
    voice: int = 0
    pane: str = ""

    @property
    def longest(self) -> int:
        """Most tokens that the cache will hold of it."""
        return len(self.ids) + self.sampling.max_tokens


class Step(NamedTuple):
    """One token of one reply; `finish_reason` is None before its end, `seconds` count from its entry into the batch."""

    request: int
    token_id: int
    finish_reason: FinishReason | None
    seconds: float


class _Kept(NamedTuple):
    """A cache, and the tokens that it holds."""

    ids: list[int]
    cache: list[Any]


class Decoder:
    """Makes replies with one model.

    Args:
        model: Loaded, in evaluation mode.
        stop_ids: Tokens that end a reply.
        rows: For a model with several voices, what says which row is whose.
        batch_size: Most replies in the making at once.
        cache_tokens: Most tokens in the making at once; a longer request is alone.
    """

    def __init__(
        self,
        model: nn.Module,
        stop_ids: Collection[int],
        *,
        rows: Rows | None = None,
        batch_size: int = BATCH_SIZE,
        cache_tokens: int = CACHE_TOKENS,
    ) -> None:
        self._model, self._rows = model, rows
        self._stops = StopSequences([[token_id] for token_id in stop_ids])
        self._batch_size, self._cache_tokens = batch_size, cache_tokens
        self._kept: dict[tuple[str, int], _Kept] = {}

    def run(self, requests: Sequence[Request]) -> Generator[Step, None, None]:
        """Make all replies, token by token; closing the iterator keeps what came for the panes' next turns.

        What all prompts of a voice begin with is computed once. The longest go first, and places are filled again when
        half of them are free, so that neighbours are of similar length and little is padded.
        """
        waiting = sorted(range(len(requests)), key=lambda index: requests[index].longest)
        shared = self._read_shared(requests)
        batch = GenerationBatch.empty(self._model, greedy_sampler)
        started: dict[int, float] = {}
        try:
            while waiting or batch.uids:
                longest = max(requests[index].longest for index in (*batch.uids, *waiting[-1:]))
                places = max(1, min(self._batch_size, self._cache_tokens // longest))
                if waiting and len(batch.uids) <= places // 2:
                    entering = sorted(waiting.pop() for _ in range(min(places - len(batch.uids), len(waiting))))
                    started |= dict.fromkeys(entering, time.perf_counter())
                    for group in self._read(requests, entering, shared):
                        batch.extend(group)
                self._choose(requests, batch.uids)
                steps = []
                for made in batch.next():
                    seconds = time.perf_counter() - started[made.uid]
                    steps.append(Step(made.uid, made.token, made.finish_reason, seconds))
                    if made.finish_reason and requests[made.uid].pane:
                        self._keep(requests[made.uid], made.all_tokens, made.prompt_cache)
                yield from steps
        except GeneratorExit:
            for row, index in enumerate(batch.uids):
                if requests[index].pane:
                    self._keep(requests[index], batch.tokens[row], batch.extract_cache(row))
            raise

    def forget(self) -> None:
        """Drop what was kept for panes."""
        self._kept.clear()

    def _keep(self, request: Request, ids: list[int], cache: list[Any]) -> None:
        mx.eval([layer.state for layer in cache])
        self._kept[request.pane, request.voice] = _Kept(list(ids), cache)

    def _choose(self, requests: Sequence[Request], indices: Sequence[int]) -> None:
        if self._rows is not None:
            self._rows.choose([requests[index].voice for index in indices])

    def _read_shared(self, requests: Sequence[Request]) -> dict[int, _Kept]:
        """Read what the prompts of each voice begin with, but for the panes', which keep their own."""
        shared = {}
        for voice in {request.voice for request in requests}:
            indices = [index for index, one in enumerate(requests) if one.voice == voice and not one.pane]
            length = _common_length([requests[index].ids for index in indices])
            if length:
                ids, cache = list(requests[indices[0]].ids[:length]), make_prompt_cache(self._model)
                self._choose(requests, indices[:1])
                for start in range(0, length, READ_TOKENS):
                    self._model(mx.array([ids[start : start + READ_TOKENS]]), cache=cache)
                    mx.eval([layer.state for layer in cache])
                shared[voice] = _Kept(ids, cache)
        return shared

    def _known(self, request: Request, shared: dict[int, _Kept]) -> _Kept:
        """Return a cache of what the prompt begins with; it holds less than the prompt."""
        if not request.pane:
            return shared.get(request.voice) or _Kept([], make_prompt_cache(self._model))
        kept = self._kept.pop((request.pane, request.voice), None)
        if kept is not None:
            same = _common_length([request.ids, [*kept.ids, -1]])
            if same == len(kept.ids) or (same and can_trim_prompt_cache(kept.cache)):
                trim_prompt_cache(kept.cache, len(kept.ids) - same)
                return _Kept(kept.ids[:same], kept.cache)
        return _Kept([], make_prompt_cache(self._model))

    def _read(
        self, requests: Sequence[Request], indices: Sequence[int], shared: dict[int, _Kept]
    ) -> Iterator[GenerationBatch]:
        """Read prompts from where they are not known, and start their replies."""
        known = {index: self._known(requests[index], shared) for index in indices}
        # A sliding-window cache cannot pad a chunk of one column: rows with nothing left are kept apart.
        bare = [index for index in indices if len(requests[index].ids) == len(known[index].ids) + 1]
        for group in (bare, [index for index in indices if index not in bare]):
            if group:
                yield self._start(requests, group, known)

    def _start(self, requests: Sequence[Request], indices: Sequence[int], known: dict[int, _Kept]) -> GenerationBatch:
        asked = [requests[index] for index in indices]
        rests = [list(one.ids[len(known[index].ids) : -1]) for index, one in zip(indices, asked, strict=True)]
        columns, longest = max(2, READ_TOKENS // len(asked)), max(map(len, rests))
        batch = PromptProcessingBatch(
            self._model,
            uids=list(indices),
            caches=[known[index].cache for index in indices],
            tokens=[list(known[index].ids) for index in indices],
            samplers=[_sampler(one.sampling) for one in asked],
            logits_processors=[_processors(one.sampling) for one in asked],
            stop_sequences=[self._stops] * len(asked),
            max_tokens=[one.sampling.max_tokens for one in asked],
            prefill_step_size=columns + (longest % columns == 1),
        )
        self._choose(requests, indices)
        if longest:
            batch.prompt(rests)
        return batch.generate([[one.ids[-1]] for one in asked])


class _RowSampler:
    """Samples one row with a key of its own: another batch, the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling, self._count = sampling, 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        chosen = self._sampling
        if chosen.top_p < 1.0:
            logprobs = apply_top_p(logprobs, chosen.top_p)
        if chosen.min_p > 0.0:
            logprobs = apply_min_p(logprobs, chosen.min_p)
        if 0 < chosen.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, chosen.top_k)
        key = mx.random.key((chosen.seed << 32 | self._count) % 2**64)
        self._count += 1
        return mx.random.categorical(logprobs / chosen.temperature, key=key)


def _sampler(sampling: Sampling) -> Callable[[mx.array], mx.array] | None:
    return _RowSampler(sampling) if sampling.temperature > 0 else None


def _processors(sampling: Sampling) -> list[Any]:
    penalty = sampling.repetition_penalty
    return cast(list[Any], make_logits_processors(repetition_penalty=penalty) if penalty != 1.0 else [])


def _common_length(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with, leaving each at least one of its own."""
    if len(prompts) < 2:
        return 0
    columns = enumerate(zip(*(prompt[:-1] for prompt in prompts), strict=False))
    shortest = min(len(prompt) for prompt in prompts) - 1
    return next((place for place, column in columns if len(set(column)) > 1), shortest)
