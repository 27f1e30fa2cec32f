"""Batched answers equal one-by-one ones on every family; streams stop, sample and spell as they should."""

import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.decode import READ_TOKENS
from macft.chat.generate import Answer, answer_batch, stream_reply
from macft.chat.panes import Part, Sampling
from macft.models.load import load_model, load_tokenizer
from tests.golden import NAMES, load_case

LENGTHS = (3, 17, 1, 30, 8, 8, 21, 2, 40, 5)
MAX_TOKENS = 16


def make_prompts(shared: int) -> list[list[int]]:
    random = np.random.default_rng(7)
    opening = random.integers(1, 243, shared).tolist()
    return [opening + random.integers(1, 243, length).tolist() for length in LENGTHS]


class Wanderer(nn.Module):
    """A random model loves to repeat one token; with its logits turned it walks through the vocabulary instead."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __call__(self, ids: mx.array, cache: list[Any] | None = None) -> mx.array:
        return mx.roll(self.model(ids, cache=cache), 37, axis=-1)

    def make_cache(self) -> list[Any]:
        return make_prompt_cache(self.model)


def load_tiny(name: str) -> nn.Module:
    return Wanderer(load_model(load_case(name).folder)[0])


@pytest.fixture
def tokenizer() -> TokenizerWrapper:
    return load_tokenizer(load_case("llama").folder)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return load_tiny("llama")


def likeliest(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without any cache: the whole text through the model again for each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1]).item()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
def test_batched_answers_equal_the_model_without_cache(name: str, tokenizer: TokenizerWrapper):
    model = load_tiny(name)
    tokenizer.eos_token_ids = []
    for prompts in (make_prompts(shared=0), make_prompts(shared=9)):
        expected = [likeliest(model, prompt, MAX_TOKENS) for prompt in prompts]
        answers = answer_batch(model, tokenizer, prompts, max_tokens=MAX_TOKENS, batch_size=4)
        assert [answer.token_ids for answer in answers] == expected


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_long_prompts_are_read_in_chunks(name: str, tokenizer: TokenizerWrapper):
    model = load_tiny(name)
    random = np.random.default_rng(3)
    rows = READ_TOKENS // 64
    prompts = [random.integers(1, 243, length).tolist() for length in (130, 129, 66, *[9] * (rows - 3))]
    answers = answer_batch(model, tokenizer, prompts, max_tokens=3, batch_size=rows)
    assert [answer.token_ids for answer in answers[:5]] == [likeliest(model, prompt, 3) for prompt in prompts[:5]]


class Watched(Wanderer):
    """Notes the shape of every pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.passes: list[tuple[int, ...]] = []

    def __call__(self, ids: mx.array, cache: list[Any] | None = None) -> mx.array:
        self.passes.append(ids.shape)
        return super().__call__(ids, cache)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("shared", [READ_TOKENS + 1, READ_TOKENS + 70])
def test_no_pass_reads_more_than_its_share(name: str, shared: int, tokenizer: TokenizerWrapper):
    tokenizer.eos_token_ids = []
    watched = Watched(load_model(load_case(name).folder)[0])
    prompts = make_prompts(shared)[1:3]
    answers = answer_batch(watched, tokenizer, prompts, max_tokens=2)
    assert max(rows * columns for rows, columns in watched.passes) == READ_TOKENS
    assert [answer.token_ids for answer in answers] == [likeliest(watched, prompt, 2) for prompt in prompts]
    watched.passes.clear()
    answer_batch(watched, tokenizer, [list(range(1, 200)) * 15], max_tokens=2)
    assert max(rows * columns for rows, columns in watched.passes) <= READ_TOKENS + 1


def test_long_prompts_are_answered_few_at_a_time(tokenizer: TokenizerWrapper):
    tokenizer.eos_token_ids = []
    watched = Watched(load_model(load_case("llama").folder)[0])
    prompts = make_prompts(shared=0)
    answers = answer_batch(watched, tokenizer, prompts, max_tokens=MAX_TOKENS, cache_tokens=120)
    assert [answer.token_ids for answer in answers] == [likeliest(watched, prompt, MAX_TOKENS) for prompt in prompts]
    generating = [rows for rows, columns in watched.passes if columns == 1]
    assert generating[0] == 120 // (40 + MAX_TOKENS) == 2
    assert 2 < max(generating) <= 120 // (1 + MAX_TOKENS)
    watched.passes.clear()
    answer_batch(watched, tokenizer, prompts, max_tokens=MAX_TOKENS, cache_tokens=1)
    assert {rows for rows, _ in watched.passes} == {1}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_stop_at_any_end_token_and_keep_their_order(
    batch_size: int, llama: nn.Module, tokenizer: TokenizerWrapper
):
    tokenizer.eos_token_ids = range(0, 256, 9)
    prompts = make_prompts(shared=2)
    answers = answer_batch(llama, tokenizer, prompts, max_tokens=MAX_TOKENS, batch_size=batch_size)
    lengths = {len(answer.token_ids) for answer in answers}
    assert len(lengths) > 3, "rows should end at different places for this test to say anything"
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = likeliest(llama, prompt, MAX_TOKENS)
        end = next((place for place, token_id in enumerate(whole) if token_id % 9 == 0), MAX_TOKENS)
        assert answer.token_ids == whole[:end]
        assert answer.text == tokenizer.decode(whole[:end])


def test_equal_prompts_get_equal_answers(llama: nn.Module, tokenizer: TokenizerWrapper):
    prompt = make_prompts(shared=0)[1]
    answers = answer_batch(llama, tokenizer, [prompt] * 3, max_tokens=8)
    assert [answer.token_ids for answer in answers] == [likeliest(llama, prompt, 8)] * 3


def test_one_prompt_and_none(llama: nn.Module, tokenizer: TokenizerWrapper):
    assert answer_batch(llama, tokenizer, [], max_tokens=8) == []
    (answer,) = answer_batch(llama, tokenizer, [[65]], max_tokens=8)
    assert answer.token_ids == likeliest(llama, [65], 8)


def test_progress_and_seconds(llama: nn.Module, tokenizer: TokenizerWrapper):
    told: list[tuple[int, int]] = []
    started = time.perf_counter()
    answers = answer_batch(
        llama, tokenizer, make_prompts(0), max_tokens=4, batch_size=3, progress=lambda *done: told.append(done)
    )
    assert told == [(count, len(LENGTHS)) for count in range(1, len(LENGTHS) + 1)]
    assert all(0 < answer.seconds <= time.perf_counter() - started for answer in answers)
    assert all(isinstance(answer, Answer) for answer in answers)


def test_a_stream_spells_the_same_answer(llama: nn.Module, tokenizer: TokenizerWrapper):
    for prompt in make_prompts(shared=0):
        parts = list(stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=MAX_TOKENS)))
        (answer,) = answer_batch(llama, tokenizer, [prompt], max_tokens=MAX_TOKENS)
        text = "".join(part.text for part in parts).replace("Ā", "\0")  # mlx-lm's detokenizer spells the byte 0 so
        assert text.lstrip() == answer.text.lstrip()
        assert [part.token_id for part in parts if part.finish_reason != "stop"] == answer.token_ids
        assert all(part.finish_reason is None for part in parts[:-1])


def test_a_stream_says_why_it_ended(llama: nn.Module, tokenizer: TokenizerWrapper):
    prompt = make_prompts(shared=0)[1]
    first, second, third = likeliest(llama, prompt, 3)
    assert third not in {first, second}
    assert [part.finish_reason for part in stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=3))][
        -1
    ] == "length"
    tokenizer.eos_token_ids = [third]
    *parts, last = stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=9))
    assert [part.token_id for part in parts] == [first, second]
    assert last.finish_reason == "stop"
    assert last.token_id == third


def test_two_streams_do_not_mix(llama: nn.Module, tokenizer: TokenizerWrapper):
    prompts = make_prompts(shared=0)[:2]
    alone = [list(stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=12))) for prompt in prompts]
    left, right = (stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=12)) for prompt in prompts)
    together: list[tuple[Part, Part]] = list(zip(left, right, strict=True))
    assert [[pair[side].token_id for pair in together] for side in (0, 1)] == [
        [part.token_id for part in parts] for parts in alone
    ]


def test_sampling_repeats_with_a_seed_and_keeps_to_its_limits(llama: nn.Module, tokenizer: TokenizerWrapper):
    prompt = make_prompts(shared=0)[3]

    def ids(**options: float) -> list[int]:
        return [part.token_id for part in stream_reply(llama, tokenizer, prompt, Sampling(max_tokens=12, **options))]

    greedy = likeliest(llama, prompt, 12)
    assert ids(temperature=2.0, seed=5) == ids(temperature=2.0, seed=5)
    assert ids(temperature=2.0, seed=5) != ids(temperature=2.0, seed=6)
    assert ids(temperature=2.0, seed=5) != greedy
    for one_choice in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert ids(temperature=2.0, seed=5, **one_choice) == greedy


def test_the_tokens_are_those_of_mlx_lm(llama: nn.Module, tokenizer: TokenizerWrapper):
    prompt = make_prompts(shared=0)[4]
    steps = generate_step(mx.array(prompt), llama, max_tokens=8)
    assert [token_id for token_id, _ in steps] == likeliest(llama, prompt, 8)
