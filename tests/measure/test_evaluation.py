"""Base and tuned are measured as each alone would be, whatever they are made of."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macft.chat.compare import Batch, SideBySide, open_voices
from macft.chat.generate import answer_batch
from macft.chat.panes import Ask, Part, Voice
from macft.chat.score import Likelihood, RowLikelihood
from macft.chat.sources import find_source, find_sources
from macft.data.chat_template import Encoded, find_stop_ids
from macft.data.questions import Question
from macft.errors import DataError, ModelError, RecipeError
from macft.machine import read_machine
from macft.measure.evaluation import Evaluation, HeldOut, evaluate_voices, read_held_out
from macft.models.adapters import load_adapter
from macft.models.load import load_model, load_tokenizer
from macft.recipe import Recipe
from tests.shelf import Shelf

ROWS = [("what is it?", "it is a cat"), ("where?", "on the mat, of course"), ("and now?", "gone"), ("why?", "gone")]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    chats = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in ROWS]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return path


def held_out(shelf: Shelf, rows: Path, *, recipe: Recipe | None = None, limit: int | None = None) -> HeldOut:
    return read_held_out(shelf.tiny, recipe, [str(rows)], limit=limit, progress=lambda *_: None)


def evaluate(shelf: Shelf, name: str, held: HeldOut) -> Evaluation:
    voices = open_voices(find_sources([name], home=shelf.home, runs=shelf.runs), read_machine())
    assert isinstance(voices, SideBySide if name == "dora" else Batch)
    return evaluate_voices(voices, held, max_tokens=8, tell=lambda *_: None)


def weigh(model: nn.Module, held: HeldOut) -> tuple[float, float]:
    """Loss and token accuracy, a row at a time, in NumPy."""
    loss, right, tokens = 0.0, 0, 0
    for ids, mask in held.rows:
        logits = np.array(model(mx.array(ids[None]))[0, :-1].astype(mx.float32), np.float64)
        logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logprobs -= logits.max(-1, keepdims=True)
        places = np.flatnonzero(mask[1:])
        loss -= logprobs[places, ids[places + 1]].sum()
        right += int((logits[places].argmax(-1) == ids[places + 1]).sum())
        tokens += len(places)
    return loss / tokens, right / tokens


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_both_are_measured_as_each_alone(shelf: Shelf, rows: Path, kind: str) -> None:
    run = shelf.add_run(kind, seed=1, kind=kind)
    held = held_out(shelf, rows)
    found = evaluate(shelf, kind, held)
    tokenizer = load_tokenizer(shelf.tiny)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    for measured, adapter in ((found.base, None), (found.tuned, run.adapter)):
        model, _ = load_model(shelf.tiny)
        if adapter:
            load_adapter(model, adapter)
        loss, accuracy = weigh(model.eval(), held)
        assert measured.figures["loss"].value == pytest.approx(loss, rel=1e-5)
        assert measured.figures["token_accuracy"].value == pytest.approx(accuracy)
        answers = answer_batch(model, tokenizer, [question.ids for question in held.questions], max_tokens=8)
        assert [row.answer for row in measured.answers.rows] == [answer.text for answer in answers]
    assert found.base.figures["loss"].value != found.tuned.figures["loss"].value


class Scripted:
    """Two voices that answer by heart."""

    def __init__(self, answers: Sequence[Sequence[str]]) -> None:
        self.voices: Sequence[Voice] = [Voice("Base", ""), Voice("one", "", "")]
        self._answers = answers

    def stream(self, asks: Sequence[Ask]) -> Iterator[Part]:
        for place, ask in enumerate(asks):
            yield Part(place, self._answers[ask.ids[0]][ask.voice], 7, "length" if ask.voice else "stop", 1.0)

    def score(self, questions: object, *, kl: bool = False) -> list[list[list[Likelihood]]]:
        raise NotImplementedError

    def weigh(self, rows: Sequence[Encoded], *, progress: Callable) -> list[list[RowLikelihood]]:
        return [[RowLikelihood(-2.0, 1, 0), RowLikelihood(-3.0, 3, 2)] for _ in rows]

    def close(self) -> None:
        pass


def test_figures_by_hand() -> None:
    references = ["yes", "no", "yes", "no", "yes", "no"]
    answers = [("no", "Yes."), ("no", "maybe"), ("yes", "yes"), ("a", "b"), ("x", "yes"), ("y", "no")]
    held = HeldOut(
        [Encoded(np.zeros(1, np.int32), np.ones(1, bool))] * 2,
        [Question(f"q{place}", [place], reference) for place, reference in enumerate(references)],
    )
    found = evaluate_voices(Scripted(answers), held, max_tokens=8, tell=lambda *_: None)
    values = found.values()
    assert (values["base"]["loss"], values["tuned"]["loss"]) == (2.0, 1.0)
    assert (values["base"]["token_accuracy"], values["tuned"]["token_accuracy"]) == (0.0, pytest.approx(2 / 3))
    assert values["tuned"]["perplexity"] == pytest.approx(np.e)
    assert (values["base"]["accuracy"], values["tuned"]["accuracy"]) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert values["tuned"]["exact_match"] == pytest.approx(3 / 6)
    assert values["outcomes"] == {"fixed": 3, "broken": 1, "right_in_both": 1, "wrong_in_both": 1}
    assert values["cut"] == {"base": 0, "tuned": 6}
    assert [example["prompt"] for example in values["worst"][:2]] == ["q1", "q3"]
    assert values["p"]["accuracy"] > 0.3


def test_long_or_different_references_are_no_labels() -> None:
    for references in (["yes", "no", "maybe"], ["a text of more than eight words is no label"] * 4, [""] * 4):
        held = HeldOut([], [Question("", [place], reference) for place, reference in enumerate(references)])
        answers = [("a", "b")] * len(references)
        found = evaluate_voices(Scripted(answers), held, max_tokens=8, tell=lambda *_: None)
        assert "accuracy" not in found.metrics


def test_values_say_what_was_asked_and_how_sure_it_is(shelf: Shelf, rows: Path) -> None:
    shelf.add_run("one", seed=1)
    values = evaluate(shelf, "one", held_out(shelf, rows)).values(worst=2)
    assert (values["rows"], values["questions"]) == (4, 4)
    assert {"loss", "perplexity", "token_accuracy", "exact_match", "f1", "rougeL", "bleu", "chrf"} <= set(
        values["base"]
    )
    assert values["base"]["perplexity"] == pytest.approx(np.exp(values["base"]["loss"]))
    for side in ("base", "tuned"):
        for metric, value in values[side].items():
            low, high = values["intervals"][side][metric]
            assert low <= value <= high or metric in {"bleu", "chrf"}
    assert set(values["p"]) == set(values["tuned"]) - {"perplexity"}
    assert sum(values["outcomes"].values()) == 4
    scores = [example["tuned_score"] for example in values["worst"]]
    assert scores == sorted(scores)
    assert len(scores) == 2
    json.dumps(values, allow_nan=False)


def test_rows_are_limited_and_come_from_the_recipe_when_none_are_named(shelf: Shelf, rows: Path) -> None:
    assert len(held_out(shelf, rows, limit=2).rows) == len(held_out(shelf, rows, limit=2).questions) == 2
    shelf.add_run("one", seed=1)
    recipe = find_source("one", home=shelf.home, runs=shelf.runs).read_recipe()
    assert recipe is not None
    with pytest.raises(RecipeError, match="the recipe names no test"):
        read_held_out(shelf.tiny, recipe, [], limit=None, progress=lambda *_: None)
    tested = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": [str(rows)]})})
    assert len(read_held_out(shelf.tiny, tested, [], limit=None, progress=lambda *_: None).rows) == 4
    with pytest.raises(DataError, match="no such file"):
        held_out(shelf, rows.with_name("nothing.jsonl"))


def test_a_model_without_a_base_is_refused(shelf: Shelf, rows: Path) -> None:
    voices = open_voices(find_sources(["tiny"], home=shelf.home, runs=shelf.runs), read_machine())
    with pytest.raises(ModelError, match="no Base beside it"):
        evaluate_voices(voices, held_out(shelf, rows), max_tokens=8, tell=lambda *_: None)
