"""The update against torch, transformers and peft, and against itself in other shapes."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.data.batches import Batch, make_batch, split_micro_batches
from macft.models.adapted import find_dropouts, set_dropout_keys
from macft.models.adapters import adapter_parameters, adapters_off, attach
from macft.models.load import load_model
from macft.recipe import LoraTable, OptimizerTable
from macft.training.evaluate import evaluate
from macft.training.optimizers import make_optimizer
from macft.training.update import Updater
from tests.golden import ADAPTED_NAMES, NAMES, TARGETS, GoldenCase, load_case
from tests.training.conftest import ArrayRows, adapted, objective_of, rows_of


def batch_of(rows: ArrayRows):
    batch = make_batch(rows, np.arange(len(rows)))
    return type(batch)(*(mx.array(part) for part in batch))


def with_fillers(batch: Batch, count: int) -> Batch:
    """Add targets that carry no weight."""
    names = ("positions", "targets", "weight", "segment")
    return batch._replace(**{name: mx.pad(getattr(batch, name), (0, count)) for name in names})


def loss_and_gradients(model: nn.Module, rows: ArrayRows) -> tuple[float, dict[str, np.ndarray]]:
    objective, batch = objective_of(model), batch_of(rows)
    total, gradients = nn.value_and_grad(model, lambda b: objective.total(model, b, mx.random.key(0)))(batch)
    weight = float(batch.weight.sum().item())
    flat = {name: np.array(value) / weight for name, value in tree_flatten(gradients)}
    return total.item() / weight, flat


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest absolute difference over all tensors, relative to the largest expected value."""
    assert found.keys() == expected.keys()
    scale = max(np.abs(value).max() for value in expected.values())
    return max(np.abs(found[name] - expected[name]).max() for name in expected) / scale


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_the_base_equals_transformers(name: str) -> None:
    case = load_case(name)
    model, _ = load_model(case.folder, compute_dtype="float32")
    loss, weight, _ = evaluate(model, objective_of(model), rows_of(case), tokens=30)
    assert loss == pytest.approx(case.loss, rel=5e-6)
    assert weight == case.loss_mask[:, 1:].sum()


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "lora") for name in ADAPTED_NAMES] + [("llama", "rslora"), ("llama", "dora")],
)
def test_adapter_loss_and_gradients_equal_peft(name: str, kind: str) -> None:
    case = load_case(name)
    loss, gradients = loss_and_gradients(adapted(case, kind), rows_of(case))
    assert loss == pytest.approx(case.adapters[kind].loss, rel=5e-6)
    assert largest_difference(gradients, dict(case.adapters[kind].gradients)) < 1e-5


def test_gradients_equal_finite_differences(llama: GoldenCase) -> None:
    model, rows = adapted(llama, "lora"), rows_of(llama)
    _, gradients = loss_and_gradients(model, rows)
    name = "model.layers.1.self_attn.v_proj.lora_b"
    values = adapter_parameters(model)[name]
    direction = mx.random.normal(values.shape, key=mx.random.key(3))
    losses = []
    for sign in (1, -1):
        model.load_weights([(name, values + sign * 1e-2 * direction)], strict=False)
        losses.append(loss_and_gradients(model, rows)[0])
    slope = (losses[0] - losses[1]) / 2e-2
    assert slope == pytest.approx(float((gradients[name] * np.array(direction)).sum()), rel=1e-2)


@pytest.mark.parametrize("name", ADAPTED_NAMES)
def test_ten_adamw_updates_equal_torch(name: str) -> None:
    case = load_case(name)
    model, rows = adapted(case, "lora"), rows_of(case)
    table = OptimizerTable(weight_decay=0.01)
    updater = Updater(
        model, objective_of(model), make_optimizer(table, 1e-3), max_grad_norm=0.0, seed=0, compiled=False
    )
    losses = [updater(step, [make_batch(rows, np.arange(len(rows)))], 1e-3).loss for step in range(1, 11)]
    assert losses == pytest.approx(case.adamw.losses.tolist(), rel=1e-4)
    if case.adamw.weights:
        found = {key: np.array(value) for key, value in adapter_parameters(model).items()}
        assert largest_difference(found, dict(case.adamw.weights)) < 1e-4


def updates(
    case: GoldenCase, *, micro_batch_size: int, steps: int = 3, compiled: bool = False
) -> dict[str, np.ndarray]:
    model, rows = adapted(case, "lora"), rows_of(case)
    optimizer = make_optimizer(OptimizerTable(name="sgd", betas=(0.0, 0.999)), 0.1)
    updater = Updater(model, objective_of(model), optimizer, max_grad_norm=1.0, seed=0, compiled=compiled)
    for step in range(1, steps + 1):
        parts = split_micro_batches(np.arange(len(rows)), rows.lengths, tokens=10**6, rows=micro_batch_size)
        updater(step, [make_batch(rows, part) for part in parts], 0.1)
    return {name: np.array(value) for name, value in adapter_parameters(model).items()}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_make_the_same_update_as_the_whole_batch(llama: GoldenCase, size: int) -> None:
    whole = updates(llama, micro_batch_size=4)
    assert largest_difference(updates(llama, micro_batch_size=size), whole) < 1e-5


def test_a_compiled_update_equals_an_uncompiled_one(llama: GoldenCase) -> None:
    plain = updates(llama, micro_batch_size=2)
    assert largest_difference(updates(llama, micro_batch_size=2, compiled=True), plain) < 1e-5


@pytest.mark.parametrize("compiled", [True, False])
def test_a_shape_is_compiled_once_where_the_recipe_says_so_and_else_never(llama: GoldenCase, compiled: bool) -> None:
    model, rows = adapted(llama, "lora"), rows_of(llama)
    objective, runs = objective_of(model), []
    sums = objective.sums
    objective.sums = lambda *inputs: runs.append(1) or sums(*inputs)  # type: ignore[method-assign,func-returns-value]
    optimizer = make_optimizer(OptimizerTable(), 1e-3)
    updater = Updater(model, objective, optimizer, max_grad_norm=1.0, seed=0, compiled=compiled)
    for step, row in enumerate((0, 1, 0, 0, 1), start=1):
        updater(step, [make_batch(rows, np.array([row]))], 1e-3)
    assert rows.lengths[0] != rows.lengths[1]
    assert len(runs) == (2 if compiled else 5)


def test_dropout_changes_with_the_key_and_is_off_in_evaluation(llama: GoldenCase) -> None:
    model, _ = load_model(llama.folder, compute_dtype="float32")
    attach(model, LoraTable(rank=4, alpha=8.0, dropout=0.5), kind="lora", seed=0)
    model.load_weights([(key, mx.array(value)) for key, value in llama.adapters["lora"].weights.items()], strict=False)
    rows, losses = rows_of(llama), []
    model.train()
    for key in (1, 1, 2):
        set_dropout_keys(find_dropouts(model), mx.random.key(key))
        losses.append(loss_and_gradients(model, rows)[0])
    assert losses[0] == losses[1] != losses[2]
    loss, *_ = evaluate(model, objective_of(model), rows, tokens=999)
    assert loss == pytest.approx(llama.adapters["lora"].loss, rel=5e-6)
    assert model.training


def test_with_its_adapter_off_the_model_is_its_base_bit_for_bit(llama: GoldenCase) -> None:
    tokens = mx.array(llama.ids[:, :8])
    base, _ = load_model(llama.folder, compute_dtype="float32")
    for kind in ("lora", "dora"):
        model = adapted(llama, kind)
        tuned = model(tokens)
        with adapters_off(model):
            assert mx.array_equal(model(tokens), base(tokens)).item()
        assert mx.array_equal(model(tokens), tuned).item()
        assert not mx.allclose(tuned, base(tokens)).item()


def test_fillers_and_other_rows_change_nothing(llama: GoldenCase) -> None:
    """Filler targets carry weight 0; the loss of a row does not depend on what lies beside it in the stream."""
    model, rows = adapted(llama, "lora"), rows_of(llama)
    objective, batch = objective_of(model), with_fillers(batch_of(rows), 3)
    run = objective.stream.runner(batch)
    before = objective.head.logprobs(model, run, batch.targets)
    tokens, start = np.array(batch.tokens), int(rows.lengths[:2].sum())
    tokens[start : start + rows.lengths[2]] = 9
    targets = mx.where(batch.weight > 0, batch.targets, 11)
    changed = batch._replace(tokens=mx.array(tokens), targets=targets)
    after = objective.head.logprobs(model, objective.stream.runner(changed), changed.targets)
    for row in (0, 1, 3):
        mine = np.array((batch.segment == row) & (batch.weight > 0))
        assert np.array_equal(np.array(before)[mine], np.array(after)[mine])
    loss = objective.total(model, batch, mx.random.key(0)).item()
    assert objective.total(model, batch._replace(targets=targets), mx.random.key(0)).item() == loss


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_changes_no_weight(llama: GoldenCase, poison: float) -> None:
    model, rows = adapted(llama, "lora"), rows_of(llama)
    optimizer = make_optimizer(OptimizerTable(), 1e-3)
    updater = Updater(model, objective_of(model), optimizer, max_grad_norm=1.0, seed=0, compiled=False)
    batches = [make_batch(rows, np.arange(len(rows)))]
    assert updater(1, batches, 1e-3).is_finite
    before = {name: np.array(value) for name, value in tree_flatten([adapter_parameters(model), optimizer.state])}
    weights = batches[0].weight.copy()
    weights[0] = poison
    outcome = updater(2, [batches[0]._replace(weight=weights)], 1e-3)
    assert not outcome.is_finite
    after = {name: np.array(value) for name, value in tree_flatten([adapter_parameters(model), optimizer.state])}
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd", "muon"])
def test_every_optimizer_overfits_one_batch(llama: GoldenCase, name: str) -> None:
    model, _ = load_model(llama.folder, compute_dtype="float32")
    attach(model, LoraTable(rank=8, alpha=16.0, targets=list(TARGETS)), kind="lora", seed=1)
    rows = rows_of(llama)
    rate = {"adamw": 1e-2, "adafactor": 1e-2, "lion": 3e-3, "sgd": 0.3, "muon": 1e-2}[name]
    optimizer = make_optimizer(OptimizerTable(name=name, betas=(0.9, 0.99)), rate)
    updater = Updater(model, objective_of(model), optimizer, max_grad_norm=1.0, seed=0, compiled=False)
    batches = [make_batch(rows, np.arange(len(rows)))]
    losses = [updater(step, batches, rate).loss for step in range(1, 41)]
    assert losses[-1] < 0.7 * losses[0]
