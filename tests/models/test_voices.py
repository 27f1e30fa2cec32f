"""Rows of one batch answer as each voice alone does, over one copy of the weights."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from macft.models.adapters import attach
from macft.models.load import load_model
from macft.models.voices import Rows, agrees, can_stack, share_weights, stack_adapters
from macft.recipe import LoraTable
from tests.golden import ADAPTED_NAMES, load_case

IDS = [5, 9, 2, 7, 1]


def tune(base: nn.Module, table: LoraTable, *, seed: int, kind: str = "lora") -> nn.Module:
    """The model with an adapter on that changes it plainly."""
    model = share_weights(base)
    attach(model, table, kind=kind, seed=seed)
    mx.random.seed(seed)
    changed = [
        (name, 0.3 * mx.random.normal(value.shape))
        for name, value in tree_flatten(model.parameters())
        if name.endswith("lora_b")
    ]
    model.load_weights(changed, strict=False)
    return model.eval()


@pytest.fixture
def choir() -> Callable[[str], tuple[nn.Module, Rows, list[nn.Module]]]:
    """Base and two adapters of other ranks, layers and targets."""

    def make(name: str) -> tuple[nn.Module, Rows, list[nn.Module]]:
        base, _ = load_model(load_case(name).folder)
        first = tune(base, LoraTable(rank=4, alpha=6.0), seed=1)
        second = tune(base, LoraTable(rank=3, targets="attention", layers=1), seed=2)
        model, rows = stack_adapters(base, {1: first, 2: second})
        return model, rows, [base, first, second]

    return make


@pytest.mark.parametrize("name", ADAPTED_NAMES)
def test_every_row_is_its_own_voice(name: str, choir: Callable) -> None:
    model, rows, alone = choir(name)
    chosen = [2, 0, 1, 0, 2]
    rows.choose(chosen)
    together = model(mx.array([IDS] * len(chosen)))
    for place, voice in enumerate(chosen):
        expected = alone[voice](mx.array([IDS]))[0]
        assert mx.abs(together[place] - expected).max() <= 2e-5 * mx.abs(expected).max()
    difference = mx.abs(together[0] - together[1]).max()
    assert difference > 0.1
    assert agrees(model, rows, alone)


def test_rows_of_base_alone_are_base_bit_for_bit(choir: Callable) -> None:
    model, rows, (base, *_) = choir("llama")
    rows.choose([0, 0])
    assert mx.array_equal(model(mx.array([IDS] * 2)), base(mx.array([IDS] * 2)))


def test_the_weights_are_there_once_and_base_stays_without_adapters(choir: Callable) -> None:
    model, _, (base, first, _) = choir("llama")
    theirs = {name.replace(".linear.", "."): value for name, value in tree_flatten(model.parameters())}
    for name, value in tree_flatten(base.parameters()):
        assert theirs[name] is value
        assert "lora" not in name
    assert sum("lora" in name for name in theirs) == sum("lora" in name for name, _ in tree_flatten(first.parameters()))


def test_a_layer_of_the_base_runs_once_for_all_voices(choir: Callable) -> None:
    model, rows, alone = choir("llama")
    calls: list[tuple[int, ...]] = []

    class Counting(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            calls.append(x.shape)
            return super().__call__(x)

    linears = [module for module in model.modules() if type(module) is nn.Linear]
    for module in linears:
        module.__class__ = Counting
    rows.choose([0, 1, 2])
    mx.eval(model(mx.array([[1], [1], [1]])))
    assert len(calls) == len(linears) == 7 * len(model.layers)
    assert {shape[0] for shape in calls} == {3}
    assert agrees(model, rows, alone)


def test_disagreement_is_seen(choir: Callable) -> None:
    model, rows, (base, first, second) = choir("llama")
    assert not agrees(model, rows, [base, second, first])


def test_dora_does_not_share_a_batch(choir: Callable) -> None:
    base, _ = load_model(load_case("llama").folder)
    assert can_stack(base)
    assert can_stack(tune(base, LoraTable(rank=2), seed=1))
    assert not can_stack(tune(base, LoraTable(rank=2), seed=1, kind="dora"))


def test_adapters_stack_on_quantized_weights() -> None:
    base, _ = load_model(load_case("llama").folder, quantize=4, group_size=32)
    tuned = tune(base, LoraTable(rank=4), seed=1)
    model, rows = stack_adapters(base, {1: tuned})
    assert agrees(model, rows, [base, tuned])
