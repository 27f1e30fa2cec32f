"""Voices answer as each model alone does under stock mlx-lm, whatever they are made of."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import pytest
from mlx_lm.generate import generate_step

from macft.chat.compare import IN_TURNS, ONE_AT_A_TIME, Batch, InTurns, Question, SideBySide, Voices, open_voices
from macft.chat.panes import NOTHING_YET, Ask, Reply, Sampling, Turn
from macft.chat.score import Said
from macft.chat.sources import VoiceSource, find_source, find_sources
from macft.data.chat_template import find_stop_ids, render_prompt
from macft.data.examples import Message
from macft.errors import MacftError, ModelError, RecipeError, RunError
from macft.machine import GIB, read_machine
from macft.models.load import load_model, load_tokenizer
from tests.shelf import Shelf

ROOMY, TIGHT = (replace(read_machine(), working_set_bytes=size) for size in (GIB, 0))
SHORT = Sampling(max_tokens=12)
QUESTION: tuple[Turn, ...] = (("system", "be kind"), ("user", "what is it?"))


def open_all(shelf: Shelf, *names: str, machine=ROOMY, **options: bool) -> Voices:
    return open_voices(find_sources(names, home=shelf.home, runs=shelf.runs, **options), machine)


def ask_all(voices: Voices, histories: Sequence[tuple[Turn, ...]], sampling: Sampling = SHORT) -> list[Reply]:
    replies = [NOTHING_YET] * len(histories)
    asks = [Ask(voice, turns, sampling, pane=str(voice)) for voice, turns in enumerate(histories)]
    for part in voices.stream(asks):
        replies[part.ask] = replies[part.ask].plus(part)
    return replies


def stock(folder: Path, adapter: Path | None, turns: tuple[Turn, ...], count: int) -> list[int]:
    """Greedy tokens of stock mlx-lm with the adapter, on a prompt made as training makes it."""
    model, _ = mlx_lm.utils.load_model(folder)
    if adapter is not None:
        model = mlx_lm.utils.load_adapters(model, str(adapter)).eval()
    tokenizer = load_tokenizer(folder)
    ids = render_prompt([Message(role, content) for role, content in turns], tokenizer)
    tokens = []
    for token, _ in generate_step(mx.array(ids), model, max_tokens=count):
        if token in find_stop_ids(tokenizer):
            break
        tokens.append(token)
    return tokens


def test_greedy_replies_are_stock_mlx_lms_over_three_turns(shelf: Shelf) -> None:
    runs = [shelf.add_run("one", seed=1), shelf.add_run("two", seed=5, rank=3)]
    voices = open_all(shelf, "one", "two")
    assert isinstance(voices, Batch)
    assert [voice.name for voice in voices.voices] == ["Base", "one", "two"]
    assert [voice.adapter for voice in voices.voices] == [None, *(str(run.adapter) for run in runs)]
    adapters = [None, *(run.adapter for run in runs)]
    histories = [QUESTION] * 3
    for turn in range(3):
        replies = ask_all(voices, histories)
        expected = [stock(shelf.tiny, adapter, turns, 12) for adapter, turns in zip(adapters, histories, strict=True)]
        assert [reply.token_ids for reply in replies] == expected
        assert all(reply.seconds > 0 and reply.finish_reason for reply in replies)
        histories = [
            (*turns, ("assistant", reply.text), ("user", f"and {turn}?"))
            for turns, reply in zip(histories, replies, strict=True)
        ]
    assert len({tuple(reply.token_ids) for reply in replies}) == 3


def test_a_checkpoint_is_a_voice(shelf: Shelf) -> None:
    run = shelf.add_run("one", seed=1)
    voices = open_all(shelf, "one", "one@best", "one@4")
    assert [voice.name for voice in voices.voices] == ["Base", "one", "one@2", "one@4"]
    replies = ask_all(voices, [QUESTION] * 4)
    assert replies[3].token_ids == replies[1].token_ids == stock(shelf.tiny, run.adapter, QUESTION, 12)
    assert replies[2].token_ids != replies[1].token_ids
    with pytest.raises(RunError, match=r"no checkpoint '7'.*kept: 2, 4"):
        find_source("one@7", home=shelf.home, runs=shelf.runs)
    with pytest.raises(RunError, match="no checkpoint 'latest'"):
        find_source("one@latest", home=shelf.home, runs=shelf.runs)


@pytest.mark.parametrize(("stack", "targets"), [(True, "all"), (True, "mlp"), (False, "attention")])
def test_a_checkpoint_stands_on_what_its_training_started_from(shelf: Shelf, stack: bool, targets: str) -> None:
    """Of a stacked run it holds the second adapter only; of a continued one, the layers of the first."""
    first = shelf.add_run("first", seed=1, targets="attention")
    run = shelf.add_run("second", seed=7, over=first, stack=stack, **({"targets": targets} if stack else {}))
    voices = open_all(shelf, "first", "second", "second@2", "second@4")
    assert isinstance(voices, Batch)
    replies = ask_all(voices, [QUESTION] * 5)
    expected = [stock(shelf.tiny, adapter, QUESTION, 12) for adapter in (None, first.adapter, run.adapter)]
    assert [reply.token_ids for reply in replies[:3]] == expected
    assert replies[4].token_ids == expected[2]
    assert len({tuple(reply.token_ids) for reply in replies}) == 4
    (first.adapter / "adapter_config.json").unlink()
    with pytest.raises(RunError, match=r"start_from of second: .*first"):
        open_all(shelf, "second@2")


def test_dora_takes_turns_on_the_same_weights_and_says_so(shelf: Shelf) -> None:
    run, dora = shelf.add_run("one", seed=1), shelf.add_run("dora", seed=2, kind="dora")
    voices = open_all(shelf, "one", "dora")
    assert isinstance(voices, SideBySide)
    assert [voice.note for voice in voices.voices] == ["", "", IN_TURNS]
    replies = ask_all(voices, [QUESTION] * 3)
    adapters = (None, run.adapter, dora.adapter)
    assert [reply.token_ids for reply in replies] == [stock(shelf.tiny, one, QUESTION, 12) for one in adapters]


def test_another_model_stands_beside_or_takes_turns_as_memory_allows(shelf: Shelf) -> None:
    shelf.add_run("one", seed=1)
    other = shelf.add_model("other", seed=3)
    beside = open_all(shelf, "one", "other")
    assert isinstance(beside, SideBySide)
    in_turns = open_all(shelf, "one", "other", machine=TIGHT)
    assert isinstance(in_turns, InTurns)
    assert [voice.note for voice in in_turns.voices] == [ONE_AT_A_TIME] * 3
    assert [voice.note for voice in beside.voices] == [""] * 3
    replies = ask_all(beside, [QUESTION] * 3)
    assert [reply.token_ids for reply in ask_all(in_turns, [QUESTION] * 3)] == [reply.token_ids for reply in replies]
    assert replies[2].token_ids == stock(other, None, QUESTION, 12)
    order = [part.ask for part in beside.stream([Ask(voice, QUESTION, SHORT) for voice in (0, 2)])]
    assert {first == second for first, second in pairwise(order[:8])} == {False}, "tokens of both come side by side"
    order = [part.ask for part in in_turns.stream([Ask(voice, QUESTION, SHORT) for voice in (2, 0)])]
    assert order == sorted(order, reverse=True)


def test_a_quantized_run_brings_the_base_it_learned_on(shelf: Shelf) -> None:
    shelf.add_run("four", seed=1, quantize=4)
    sources = find_sources(["four", "tiny"], home=shelf.home, runs=shelf.runs)
    assert [(source.name, source.quantize) for source in sources] == [("Base", 4), ("four", 4), ("tiny", None)]
    assert len({source.weights for source in sources}) == 2


@pytest.mark.parametrize("machine", [ROOMY, TIGHT])
def test_scores_are_those_of_each_model_alone(shelf: Shelf, machine) -> None:
    run = shelf.add_run("one", seed=1)
    other = shelf.add_model("other", seed=3)
    voices = open_all(shelf, "one", "other", machine=machine)
    tokenizer = load_tokenizer(shelf.tiny)
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in ("a kind answer", "no", "")]
    said = tuple(Said(tokenizer.decode(ids), ids, voice) for voice, ids in enumerate(answers))
    ((first, second, empty),) = voices.score([Question(QUESTION, said)], kl=True)
    prompt = render_prompt([Message(role, content) for role, content in QUESTION], tokenizer)
    logprobs = []
    for folder, adapter in ((shelf.tiny, None), (shelf.tiny, run.adapter), (other, None)):
        model, _ = mlx_lm.utils.load_model(folder)
        model = mlx_lm.utils.load_adapters(model, str(adapter)).eval() if adapter else model
        logits = model(mx.array([prompt + answers[0]]))[0, len(prompt) - 1 : -1]
        logprobs.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for place, row in enumerate(logprobs):
        own = row[mx.arange(len(answers[0])), mx.array(answers[0])]
        assert first[place].logprob == pytest.approx(own.sum().item(), rel=1e-4)
        assert first[place].mean == pytest.approx(own.mean().item(), rel=1e-4)
        assert first[place].tokens == len(answers[0])
    kl = (mx.exp(logprobs[1]) * (logprobs[1] - logprobs[0])).sum(axis=-1).mean().item()
    assert first[1].kl == pytest.approx(kl, rel=1e-3)
    assert first[0].kl == pytest.approx(0, abs=1e-6)
    assert [one.tokens for one in (*second, *empty)] == [2, 2, 2, 0, 0, 0]
    assert empty[0].mean == 0


def test_a_long_answer_is_scored_in_chunks(shelf: Shelf) -> None:
    voices = open_all(shelf, "tiny")
    text = "many words " * 25
    ((scored,),) = voices.score([Question(QUESTION, (Said(text, (), 0),))])
    model, tokenizer = load_model(shelf.tiny)[0], load_tokenizer(shelf.tiny)
    prompt = render_prompt([Message(role, content) for role, content in QUESTION], tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 256
    logits = model(mx.array([prompt + ids]))[0, len(prompt) - 1 : -1]
    own = (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[mx.arange(len(ids)), mx.array(ids)]
    assert scored[0].logprob == pytest.approx(own.sum().item(), rel=1e-4)


def test_without_a_template_the_text_goes_on(shelf: Shelf) -> None:
    (source,) = find_sources(["tiny"], home=shelf.home, runs=shelf.runs)
    voices = open_voices([source], ROOMY, template=False)
    (reply,) = ask_all(voices, [(("user", "Once upon"), ("assistant", " a time"), ("user", " there"))])
    model, tokenizer = mlx_lm.utils.load_model(shelf.tiny)[0], load_tokenizer(shelf.tiny)
    theirs = generate_step(mx.array(tokenizer.encode("Once upon a time there")), model, max_tokens=12)
    assert reply.token_ids == [token for token, _ in theirs][: len(reply.token_ids)]


def test_closing_a_stream_keeps_what_came_in_every_pane(shelf: Shelf) -> None:
    shelf.add_run("one", seed=1)
    voices = open_all(shelf, "one")
    stream = voices.stream([Ask(voice, QUESTION, SHORT, pane=str(voice)) for voice in range(2)])
    for _ in range(6):
        next(stream)
    stream.close()
    kept = voices._decoder._kept
    assert set(kept) == {("0", 0), ("1", 1)}
    assert all(held.cache[0].offset == len(held.ids) for held in kept.values())
    voices.close()
    assert not kept


def test_a_conversation_longer_than_the_context_is_refused_and_a_reply_ends_with_it(shelf: Shelf) -> None:
    voices = open_all(shelf, "tiny")
    with pytest.raises(MacftError, match=r"tiny: the conversation is .* tokens long, and the model reads 512"):
        list(voices.stream([Ask(0, (("user", "word " * 200),), SHORT)]))
    long = (("user", "x" * 450),)
    (reply,) = ask_all(voices, [long], Sampling(max_tokens=500))
    assert reply.finish_reason == "stop" or len(reply.token_ids) < 62


def test_names_mean_voices_once(shelf: Shelf) -> None:
    shelf.add_run("one", seed=1)

    def names(*given: str, **options: bool) -> list[str]:
        return [source.name for source in find_sources(given, home=shelf.home, runs=shelf.runs, **options)]

    assert names("one") == ["Base", "one"]
    assert names("tiny", "one") == ["tiny", "one"]
    assert names("one", base=False) == ["one"]
    assert names("one", "one@2", "one@best") == ["Base", "one", "one@2", "one@2 #2"]
    assert names(str(shelf.runs / "one" / "adapter")) == ["Base", "one"]
    with pytest.raises(RecipeError, match="9 voices"):
        names(*["one"] * 8)
    with pytest.raises(ModelError, match="is no run, adapter folder or model"):
        names("nothing")


def test_the_base_of_a_fully_tuned_model_is_found(shelf: Shelf) -> None:
    run = shelf.add_run("whole", seed=1)
    (run.path / "adapter").rename(run.path / "gone")
    model = shelf.add_model("other", seed=3).rename(run.path / "model")
    sources = find_sources(["whole"], home=shelf.home, runs=shelf.runs)
    assert [(source.name, source.folder) for source in sources] == [("Base", shelf.tiny), ("whole", model)]
    (alone,) = find_sources(["tiny"], home=shelf.home, runs=shelf.runs)
    with pytest.raises(ModelError, match="does not say which model it was before"):
        alone.without_adapter(shelf.home)


def test_a_damaged_checkpoint_is_named(shelf: Shelf) -> None:
    run = shelf.add_run("one", seed=1)
    path = run.checkpoints / "step-000002" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    source: VoiceSource = find_source("one@2", home=shelf.home, runs=shelf.runs)
    with pytest.raises(ModelError, match=r"weights.safetensors is damaged"):
        open_voices([source], ROOMY)
