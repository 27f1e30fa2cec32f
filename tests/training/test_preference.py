"""Preference updates against two separate sequences, themselves in other shapes, and their reference."""

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.data.batches import split_micro_batches
from macft.data.referenced import LabeledRows, Mismatched, ReferencedRows
from macft.errors import DataError, Stopped
from macft.models.adapters import adapters_off, attach
from macft.models.head import find_head
from macft.models.load import load_model
from macft.models.recompute import recompute
from macft.models.stream import Stream, prepare_stream
from macft.recipe import LoraTable, OptimizerTable, Recipe, make_recipe
from macft.training.evaluate import evaluate
from macft.training.objectives import make_objective, sum_responses, target_logprobs, to_device
from macft.training.optimizers import make_optimizer
from macft.training.reference import ReferencePass, refer
from macft.training.signs import starting_loss
from macft.training.update import Outcome, Updater
from tests.golden import GoldenCase
from tests.training.conftest import ResponseArrays, random_responses
from tests.training.test_update import largest_difference

VOCABULARY = 256


def recipe_of(method: str = "dpo", **keys: object) -> Recipe:
    return make_recipe({"model": "m", "method": method, **keys})


def tuned(case: GoldenCase, *, quantize: int | None = None) -> nn.Module:
    """The case's model with an adapter that is not at its start."""
    model, _ = load_model(case.folder, compute_dtype="float32", quantize=quantize, group_size=32)
    attach(model, LoraTable(rank=4, alpha=8.0), kind="lora", seed=0)
    trainable = tree_flatten(model.trainable_parameters())
    moved = [(name, 0.05 * mx.random.normal(value.shape, key=mx.random.key(len(name)))) for name, value in trainable]
    model.load_weights(moved, strict=False)
    model.train()
    return model


def fresh(case: GoldenCase) -> nn.Module:
    """The case's model with an adapter at its start, which changes nothing yet."""
    model, _ = load_model(case.folder, compute_dtype="float32")
    attach(model, LoraTable(rank=8, alpha=16.0), kind="lora", seed=1)
    model.train()
    return model


def separate(model: nn.Module, rows: ResponseArrays, reference: np.ndarray, beta: float) -> mx.array:
    """DPO's loss the plain way: every response behind its own copy of the prompt, all logits, in float32."""

    def logprob(prompt: np.ndarray, response: np.ndarray) -> mx.array:
        whole = mx.array(np.concatenate([prompt, response]))
        logits = model(whole[None, :-1])[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logprobs, whole[1:, None], axis=-1)[len(prompt) - 1 :].sum()

    loss = mx.array(0.0)
    for (prompt, chosen, rejected), (ref_chosen, ref_rejected) in zip(rows.tokens, reference.tolist(), strict=True):
        margin = (logprob(prompt, chosen) - ref_chosen) - (logprob(prompt, rejected) - ref_rejected)
        loss = loss + mx.logaddexp(-beta * margin, mx.array(0.0))
    return loss / len(rows)


def shared(
    model: nn.Module, rows: ResponseArrays, reference: np.ndarray, recipe: Recipe, stream: Stream
) -> tuple[float, dict[str, np.ndarray]]:
    objective = make_objective(recipe, find_head(model), stream)
    batch = ReferencedRows(rows, reference).batch(np.arange(len(rows)))
    whole = mx.array(objective.survey(model, batch))
    loss_and_gradients = nn.value_and_grad(
        model, lambda: objective.sums(model, to_device(batch), whole, mx.random.key(0))
    )
    sums, gradients = loss_and_gradients()
    weight = whole[0].item()
    return sums.loss.item() / weight, {name: np.array(value) / weight for name, value in tree_flatten(gradients)}


@pytest.mark.parametrize("level", ["none", "pointwise", "mlp", "layer"])
@pytest.mark.parametrize("quantize", [None, 8, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_a_shared_prompt_makes_the_loss_and_gradients_of_two_sequences(
    llama: GoldenCase, quantize: int | None, level: str, padded: bool
) -> None:
    model = tuned(llama, quantize=quantize)
    rows = random_responses(VOCABULARY)
    reference = np.random.default_rng(1).normal(-30, 3, (len(rows), 2)).astype(np.float32)
    expected, tree = nn.value_and_grad(model, lambda: separate(model, rows, reference, 0.1))()
    wanted = {name: np.array(value) for name, value in tree_flatten(tree)}
    stream = Stream(0, "asked for") if padded else prepare_stream(model, longest=64)
    assert bool(stream.layers) != padded
    recompute(model, level, stream)
    loss, gradients = shared(model, rows, reference, recipe_of(beta=0.1), stream)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert largest_difference(gradients, wanted) < 1e-5


def random_reference(rows: ResponseArrays) -> np.ndarray:
    return np.random.default_rng(1).normal(-30, 3, (len(rows), rows.responses)).astype(np.float32)


def reference_of(model: nn.Module, rows: ResponseArrays, folder: Path, ld_alpha: float | None = None) -> np.ndarray:
    """What the model says as it is, kept nowhere that another call would look."""
    stream = prepare_stream(model, longest=64)
    score = ReferencePass(model, find_head(model), stream, tokens=60, folder=folder, stands_on={"at": str(folder)})
    return score(rows, ld_alpha, lambda *_: None)


def rows_for(recipe: Recipe, rows: ResponseArrays, reference: np.ndarray) -> ReferencedRows | LabeledRows:
    if recipe.method != "kto":
        return ReferencedRows(rows, reference, ld_alpha=getattr(recipe, "ld_alpha", None))
    other = np.random.default_rng(2).normal(-40, 3, reference.shape).astype(np.float32)
    return LabeledRows(ReferencedRows(rows, reference), ReferencedRows(Mismatched(rows, 64), other))


RECIPES = [
    *(recipe_of(loss=loss) for loss in ("sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "sigmoid_norm")),
    recipe_of(sft_weight=0.7, label_smoothing=0.1, ld_alpha=0.3),
    recipe_of("orpo"),
    recipe_of("simpo", sft_weight=0.5),
    recipe_of("cpo"),
    recipe_of("kto", desirable_weight=1.3),
]


def named(recipe: Recipe) -> str:
    return f"{recipe.method}-{getattr(recipe, 'loss', '')}-{getattr(recipe, 'sft_weight', '')}"


def update(
    case: GoldenCase, recipe: Recipe, *, pairs_a_pass: int, compiled: bool = False, steps: int = 2
) -> tuple[dict[str, np.ndarray], Outcome]:
    model, plain = tuned(case), random_responses(VOCABULARY, responses=1 if recipe.method == "kto" else 2)
    rows = rows_for(recipe, plain, random_reference(plain))
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=64))
    optimizer = make_optimizer(OptimizerTable(name="sgd", betas=(0.0, 0.999)), 0.1)
    updater = Updater(model, objective, optimizer, max_grad_norm=1.0, seed=0, compiled=compiled)
    for step in range(1, steps + 1):
        parts = split_micro_batches(np.arange(len(rows)), rows.lengths, tokens=10**6, rows=pairs_a_pass)
        outcome = updater(step, [rows.batch(part) for part in parts], 0.1)
    return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}, outcome


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_micro_batches_make_the_same_update_as_the_whole_batch(llama: GoldenCase, recipe: Recipe) -> None:
    whole, of_whole = update(llama, recipe, pairs_a_pass=5)
    split, of_split = update(llama, recipe, pairs_a_pass=2)
    assert largest_difference(split, whole) < 1e-5
    assert of_split.loss == pytest.approx(of_whole.loss, rel=1e-5)
    assert of_split.grad_norm == pytest.approx(of_whole.grad_norm, rel=1e-4)
    assert of_split.metrics == pytest.approx(of_whole.metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("recipe", [RECIPES[7], RECIPES[-1]], ids=named)
def test_a_compiled_update_equals_an_uncompiled_one(llama: GoldenCase, recipe: Recipe) -> None:
    plain, _ = update(llama, recipe, pairs_a_pass=5, steps=1)
    compiled, _ = update(llama, recipe, pairs_a_pass=5, steps=1, compiled=True)
    assert largest_difference(compiled, plain) < 1e-5


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "sigmoid_norm", "hinge", "apo_zero", "apo_down", "ipo"])
def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(
    llama: GoldenCase, tmp_path: Path, loss: str
) -> None:
    model, plain = fresh(llama), random_responses(VOCABULARY)
    recipe = recipe_of(loss=loss, label_smoothing=0.1 if loss == "robust" else 0.0)
    with adapters_off(model):
        reference = reference_of(model, plain, tmp_path)
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=64))
    scored = evaluate(model, objective, ReferencedRows(plain, reference), tokens=40)
    assert scored is not None
    assert scored.loss == pytest.approx({"sigmoid": math.log(2)}.get(loss, starting_loss(recipe)), rel=2e-5)
    assert scored.weight == len(plain)
    assert scored.metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_the_reference_never_drifts(llama: GoldenCase, tmp_path: Path) -> None:
    """After 100 updates the model says bit for bit what it said of itself at the start, once its adapter is off."""
    model, plain = fresh(llama), random_responses(VOCABULARY)
    with adapters_off(model):
        before = reference_of(model, plain, tmp_path / "before")
    rows = ReferencedRows(plain, before)
    objective = make_objective(recipe_of(), find_head(model), prepare_stream(model, longest=64))
    updater = Updater(
        model, objective, make_optimizer(OptimizerTable(), 1e-3), max_grad_norm=1.0, seed=0, compiled=False
    )
    outcomes = [updater(step, [rows.batch(np.arange(len(rows)))], 1e-3) for step in range(1, 101)]
    assert outcomes[0].loss == pytest.approx(math.log(2), rel=1e-5)
    assert outcomes[-1].loss < 0.01  # one batch is learned by heart
    assert outcomes[-1].metrics["rewards/accuracies"] == 1.0
    with adapters_off(model):
        assert np.array_equal(reference_of(model, plain, tmp_path / "after"), before)
    assert not np.allclose(reference_of(model, plain, tmp_path / "tuned"), before, atol=1.0)


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_every_method_learns_one_batch_by_heart(llama: GoldenCase, tmp_path: Path, recipe: Recipe) -> None:
    model, plain = fresh(llama), random_responses(VOCABULARY, responses=1 if recipe.method == "kto" else 2)
    with adapters_off(model):
        score = lambda part, ld_alpha, _: reference_of(model, part, tmp_path, ld_alpha)  # noqa: E731
        (rows,) = refer(recipe, [plain], score, lambda *_: None, limit=64)
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=64))
    updater = Updater(
        model, objective, make_optimizer(OptimizerTable(), 1e-3), max_grad_norm=1.0, seed=0, compiled=False
    )
    outcomes = [updater(step, [rows.batch(np.arange(len(rows)))], 1e-3) for step in range(1, 21)]
    assert outcomes[-1].loss < outcomes[0].loss
    assert outcomes[-1].metrics["rewards/margins"] > outcomes[0].metrics["rewards/margins"] + 0.01


def test_pairs_say_nothing_to_each_other(llama: GoldenCase) -> None:
    """Another pair of the same lengths leaves a pair's log-probabilities bit for bit, one of others to rounding."""
    model, plain = tuned(llama), random_responses(VOCABULARY)
    stream, head = prepare_stream(model, longest=64), find_head(model)

    def logprobs(rows: ResponseArrays) -> np.ndarray:
        batch = to_device(ReferencedRows(rows, random_reference(rows)).batch(np.arange(len(rows))))
        return np.array(sum_responses(target_logprobs(head, stream, model, batch.layout), batch)).reshape(-1, 2)

    before = logprobs(plain)
    other = [(part + 1) % VOCABULARY for part in plain.tokens[2]]
    assert np.array_equal(np.delete(logprobs(replaced(plain, 2, other)), 2, 0), np.delete(before, 2, 0))
    longer = [np.tile(part, 3) for part in other]
    assert np.allclose(np.delete(logprobs(replaced(plain, 2, longer)), 2, 0), np.delete(before, 2, 0), rtol=1e-6)


def replaced(rows: ResponseArrays, place: int, parts: list[np.ndarray]) -> ResponseArrays:
    return ResponseArrays([*rows.tokens[:place], parts, *rows.tokens[place + 1 :]])


def test_ld_alpha_weighs_what_the_longer_response_says_beyond_the_shorter() -> None:
    rows = ResponseArrays([[np.array([1, 2]), np.array([3, 4, 5, 6]), np.array([7, 8])]])
    batch = ReferencedRows(rows, np.zeros((1, 2), np.float32), ld_alpha=0.25).batch(np.array([0]))
    assert batch.share[:6].tolist() == [1.0, 1.0, 0.25, 0.25, 1.0, 1.0]
    assert not batch.share[6:].any()
    assert batch.lengths.tolist() == [4.0, 2.0]


def test_the_kl_comes_from_the_answer_to_the_nearest_earlier_other_prompt() -> None:
    prompts = ([1], [1], [2], [3])
    rows = ResponseArrays(
        [[np.array(prompt), np.full(place + 1, 10 + place)] for place, prompt in enumerate(prompts)],
        np.array([True, False, True, True]),
    )
    others = Mismatched(rows, 64)
    assert [others.parts(index)[1].tolist()[0] for index in range(4)] == [13, 13, 11, 12]
    assert [others.parts(index)[0].tolist() for index in range(4)] == [[1], [1], [2], [3]]
    assert others.lengths.max() <= rows.lengths.max()
    same = ResponseArrays([[np.array([1]), np.array([place])] for place in range(3)], np.ones(3, bool))
    assert [Mismatched(same, 64).parts(index)[1][0] for index in range(3)] == [2, 0, 1]


def test_a_stopped_reference_pass_goes_on_where_it_was(llama: GoldenCase, tmp_path: Path) -> None:
    model, plain = tuned(llama), random_responses(VOCABULARY, rows=9)
    stream, scored = prepare_stream(model, longest=64), []
    score = ReferencePass(model, find_head(model), stream, tokens=40, folder=tmp_path, stands_on={"base": "b"})
    calls: list[int] = []

    def stop_later(done: int, _: int) -> None:
        calls.append(done)
        if done > 3:
            raise Stopped("asked for")

    with pytest.raises(Stopped):
        score(plain, None, stop_later)
    stopped_at = calls[-1]
    scored = []
    found = score(plain, None, lambda done, _: scored.append(done))
    assert scored[0] == stopped_at > 3
    assert scored[-1] == len(plain)
    fresh_start = ReferencePass(model, find_head(model), stream, tokens=40, folder=tmp_path / "new", stands_on={})
    assert np.array_equal(found, fresh_start(plain, None, lambda *_: None))
    again: list[int] = []
    assert np.array_equal(score(plain, None, lambda done, _: again.append(done)), found)
    assert again == []
    elsewhere = ReferencePass(model, find_head(model), stream, tokens=40, folder=tmp_path, stands_on={"base": "c"})
    asked: list[int] = []
    elsewhere(plain, None, lambda done, _: asked.append(done))
    assert asked[0] == 0


def test_a_response_that_has_no_finite_log_probability_is_named(llama: GoldenCase, tmp_path: Path) -> None:
    model, plain = tuned(llama), random_responses(VOCABULARY)
    name = "model.norm.weight"
    model.load_weights([(name, mx.full(model.model.norm.weight.shape, math.nan))], strict=False)
    with pytest.raises(DataError, match=r"pairs.jsonl:1: has no finite log-probability"):
        reference_of(model, plain, tmp_path)
    assert not list(tmp_path.glob("*.npy"))
