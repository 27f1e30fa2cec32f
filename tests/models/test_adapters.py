"""The precision that adapters compute in, and the one that they keep."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRASwitchLinear

from macft.data.batches import Batch, make_batch
from macft.models.adapters import adapters_off, attach, compute_in_model_dtype
from macft.models.head import find_head
from macft.models.load import load_model
from macft.models.stream import prepare_stream
from macft.recipe import LoraTable
from macft.training.objectives import Supervised
from tests.golden import load_case
from tests.training.conftest import rows_of


def gradients(compute_dtype: str, *, cast: bool, kind: str = "lora") -> dict[str, np.ndarray]:
    case = load_case("llama")
    model, _ = load_model(case.folder, compute_dtype=compute_dtype)
    attach(model, LoraTable(rank=4, alpha=8.0, dropout=0.1), kind=kind, seed=0)
    model.load_weights([(name, mx.array(value)) for name, value in case.adapters["lora"].weights.items()], strict=False)
    if cast:
        compute_in_model_dtype(model)
    objective = Supervised(find_head(model), prepare_stream(model.train(), longest=64))
    rows = rows_of(case)
    batch = Batch(*(mx.array(part) for part in make_batch(rows, np.arange(len(rows)))))
    _, tree = nn.value_and_grad(model, lambda b: objective.total(model, b, mx.random.key(0)))(batch)
    assert all(value.dtype == mx.float32 for _, value in tree_flatten([tree, model.trainable_parameters()]))
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Norm of the difference over all tensors, relative to the expected gradient's norm."""
    apart, norm = (
        sum(float(np.square(value).sum()) for value in values) ** 0.5
        for values in ([found[name] - expected[name] for name in expected], expected.values())
    )
    return apart / norm


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_in_a_float32_model_nothing_changes(kind: str) -> None:
    found, expected = (gradients("float32", cast=cast, kind=kind) for cast in (True, False))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_in_a_16_bit_model_gradients_are_rounded_no_worse_than_the_model_rounds_them() -> None:
    exact, mixed = gradients("float32", cast=False), gradients("bfloat16", cast=False)
    own = gradients("bfloat16", cast=True)
    assert difference(own, mixed) > 0
    assert difference(own, exact) < 1.2 * difference(mixed, exact) < 0.06


def test_dora_computes_in_float32() -> None:
    found, expected = (gradients("bfloat16", cast=cast, kind="dora") for cast in (True, False))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_experts_are_cast_too() -> None:
    """MLX's CPU backend multiplies experts in float32 only, so the 16-bit product is looked at, not made."""
    layer = LoRASwitchLinear(input_dims=8, output_dims=12, num_experts=3, r=2, scale=2.0)
    layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    x, indices = mx.random.normal((4, 1, 1, 8), key=mx.random.key(2)), mx.array([[0], [2], [1], [2]])
    expected = layer(x, indices)
    compute_in_model_dtype(nn.Sequential(layer))
    assert mx.array_equal(layer(x, indices), expected).item()
    layer.linear.set_dtype(mx.bfloat16)
    assert layer(x.astype(mx.bfloat16), indices).dtype == mx.bfloat16
    assert layer.lora_a.dtype == layer.lora_b.dtype == mx.float32


def test_an_adapter_that_casts_can_be_switched_off() -> None:
    model, _ = load_model(load_case("llama").folder, compute_dtype="bfloat16")
    tokens = mx.array([[5, 80, 120, 7]])
    base = model(tokens)
    attach(model, LoraTable(rank=4), kind="lora", seed=0)
    compute_in_model_dtype(model)
    with adapters_off(model):
        assert mx.array_equal(model(tokens), base).item()
