"""A row depends on itself alone, panes keep what was computed, and mlx-lm's wired limit is out of reach."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors

from macft.chat import decode
from macft.chat.decode import Decoder, Request, Step
from macft.chat.panes import Sampling
from macft.models.load import load_model
from tests.golden import load_case

GREEDY = Sampling(max_tokens=10)


class Watched(nn.Module):
    """Walks through the vocabulary, where a random model would repeat itself, and notes the shape of every pass."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model, _ = load_model(load_case(name).folder)
        self.passes: list[tuple[int, ...]] = []

    def __call__(self, ids: mx.array, cache: list[Any] | None = None) -> mx.array:
        self.passes.append(ids.shape)
        return mx.roll(self.model(ids, cache=cache), 37, axis=-1)

    def make_cache(self) -> list[Any]:
        return make_prompt_cache(self.model)


def prompt(seed: int, length: int = 9) -> list[int]:
    return np.random.default_rng(seed).integers(1, 243, length).tolist()


def tokens(steps: list[Step], request: int = 0) -> list[int]:
    return [step.token_id for step in steps if step.request == request]


@pytest.fixture(scope="module")
def llama() -> Watched:
    return Watched("llama")


def test_a_sampled_row_is_the_same_in_any_company(llama: Watched) -> None:
    asked = [
        Request(prompt(seed), Sampling(temperature=1.5, seed=seed, top_p=0.9, top_k=50, min_p=0.001, max_tokens=12))
        for seed in range(3)
    ]
    together = list(Decoder(llama, []).run([*asked, Request(prompt(9), GREEDY)]))
    for place, request in enumerate(asked):
        assert tokens(together, place) == tokens(list(Decoder(llama, []).run([request])))
    again = asked[0]._replace(sampling=Sampling(temperature=1.5, seed=7, max_tokens=12))
    assert tokens(list(Decoder(llama, []).run([again]))) != tokens(together, 0)


def test_a_repetition_penalty_is_mlx_lms(llama: Watched) -> None:
    ids = prompt(1, 30)
    ours = tokens(list(Decoder(llama, []).run([Request(ids, Sampling(repetition_penalty=1.7, max_tokens=20))])))
    processors = make_logits_processors(repetition_penalty=1.7)
    theirs = generate_step(mx.array(ids), llama, max_tokens=20, logits_processors=processors)
    assert ours == [token_id for token_id, _ in theirs]
    assert ours != tokens(list(Decoder(llama, []).run([Request(ids, Sampling(max_tokens=20))])))


def test_rows_that_end_leave_the_batch(llama: Watched) -> None:
    llama.passes.clear()
    steps = list(Decoder(llama, []).run([Request(prompt(1), Sampling(max_tokens=n)) for n in (2, 9, 5)]))
    assert [len(tokens(steps, place)) for place in range(3)] == [2, 9, 5]
    sizes = [rows for rows, columns in llama.passes if columns == 1]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {1, 2, 3}
    ends = [step.finish_reason for step in steps if step.finish_reason]
    assert ends == ["length"] * 3


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_pane_reads_only_what_is_new(name: str) -> None:
    model = Watched(name)
    decoder, first, more = Decoder(model, []), prompt(1, 20), prompt(2, 6)
    said = tokens(list(decoder.run([Request(first, GREEDY, pane="a")])))
    model.passes.clear()
    second = [*first, *said, *more]
    kept = tokens(list(decoder.run([Request(second, GREEDY, pane="a")])))
    assert sum(columns for _, columns in model.passes if columns > 1) == len(more) - 1
    assert kept == tokens(list(Decoder(model, []).run([Request(second, GREEDY)])))


def test_a_pane_that_turns_back_trims_or_starts_anew(llama: Watched) -> None:
    decoder, first = Decoder(llama, []), prompt(1, 20)
    list(decoder.run([Request(first, GREEDY, pane="a")]))
    other = [*first[:12], *prompt(5, 8)]
    llama.passes.clear()
    turned = tokens(list(decoder.run([Request(other, GREEDY, pane="a")])))
    assert max(columns for _, columns in llama.passes) == 7
    assert turned == tokens(list(Decoder(llama, []).run([Request(other, GREEDY)])))
    same = tokens(list(decoder.run([Request(other, GREEDY, pane="a")])))
    assert same == turned
    strange = prompt(8, 15)
    fresh = tokens(list(Decoder(llama, []).run([Request(strange, GREEDY)])))
    assert tokens(list(decoder.run([Request(strange, GREEDY, pane="a")]))) == fresh


def test_closing_keeps_what_came(llama: Watched) -> None:
    whole = tokens(list(Decoder(llama, []).run([Request(prompt(1), Sampling(max_tokens=20))])))
    decoder = Decoder(llama, [])
    stream = decoder.run([Request(prompt(1), Sampling(max_tokens=20), pane="a"), Request(prompt(2), GREEDY)])
    came: list[int] = []
    while len(came) < 7:
        step = next(stream)
        came += [step.token_id] if step.request == 0 else []
    stream.close()
    assert came == whole[:7]
    llama.passes.clear()
    rest = tokens(list(decoder.run([Request([*prompt(1), *came], Sampling(max_tokens=13), pane="a")])))
    assert came + rest == whole
    assert all(columns == 1 for _, columns in llama.passes)


def test_panes_of_different_histories_go_on_together(llama: Watched) -> None:
    decoder = Decoder(llama, [])
    histories = {"a": prompt(1, 5), "b": prompt(2, 17), "c": prompt(3, 9)}
    for turn in range(3):
        asked = [Request(ids, GREEDY, pane=pane) for pane, ids in histories.items()]
        steps = list(decoder.run(asked))
        for place, (pane, ids) in enumerate(histories.items()):
            said = tokens(steps, place)
            assert said == tokens(list(Decoder(llama, []).run([Request(ids, GREEDY)])))
            histories[pane] = [*ids, *said, *prompt(10 * turn + place, 2 + 3 * place)]


def test_nothing_here_can_touch_the_wired_limit() -> None:
    names = {name for name in vars(decode) if "wired" in name or name in {"BatchGenerator", "stream_generate"}}
    assert not names
    for method in (decode.GenerationBatch, decode.PromptProcessingBatch):
        for function in vars(method).values():
            code = getattr(function, "__code__", None)
            assert code is None or not {part for part in code.co_names if "wired" in part}
