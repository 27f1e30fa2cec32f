"""Every level of recomputation against the naive form, which keeps everything and makes every logit."""

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.data.batches import Batch, make_batch
from macft.models.adapted import find_dropouts, set_dropout_keys
from macft.models.adapters import attach
from macft.models.head import Head, find_head
from macft.models.load import load_model
from macft.models.recompute import recompute
from macft.models.stream import Stream, prepare_stream
from macft.recipe import LoraTable
from macft.training.objectives import Supervised
from tests.golden import load_case
from tests.training.conftest import rows_of

LEVELS = ("none", "pointwise", "mlp", "layer")
Found = tuple[float, dict[str, np.ndarray]]


def model_of(name: str, *, quantize: int | None = None, dropout: float = 0.0, kind: str = "lora") -> nn.Module:
    model, _ = load_model(load_case(name).folder, quantize=quantize, group_size=32, compute_dtype="float32")
    if kind == "full":
        model.unfreeze()
        return model.train()
    attach(model, LoraTable(rank=4, alpha=8.0, dropout=dropout), kind=kind, seed=0)
    filled = [
        (key, mx.random.normal(value.shape, key=mx.random.key(len(key))) * 0.1 + (1.0 if key.endswith(".m") else 0.0))
        for key, value in tree_flatten(model.trainable_parameters())
    ]
    model.load_weights(filled, strict=False)
    set_dropout_keys(find_dropouts(model), mx.random.key(7))
    return model.train()


@cache
def batch_of(name: str) -> Batch:
    rows = rows_of(load_case(name))
    return Batch(*(mx.array(part) for part in make_batch(rows, np.arange(len(rows)))))


def loss_and_gradients(model: nn.Module, head: Head, stream: Stream, name: str) -> Found:
    objective = Supervised(head, stream)
    total, tree = nn.value_and_grad(model, lambda b: objective.total(model, b, mx.random.key(0)))(batch_of(name))
    return total.item(), {key: np.array(value) for key, value in tree_flatten(tree)}


@cache
def naive(name: str, **choices: Any) -> Found:
    model = model_of(name, **choices)
    return loss_and_gradients(model, Head(None, takes_embeddings=False), Stream(0), name)


def check(model: nn.Module, stream: Stream, name: str, expected: Found) -> None:
    total, found = loss_and_gradients(model, find_head(model), stream, name)
    assert total == pytest.approx(expected[0], rel=1e-5)
    assert found.keys() == expected[1].keys()
    scale = max(np.abs(value).max() for value in expected[1].values())
    assert max(np.abs(found[key] - value).max() for key, value in expected[1].items()) < 1e-5 * scale


def stream_of(model: nn.Module, flat: bool) -> Stream:
    return prepare_stream(model, longest=8) if flat else Stream(0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("quantize", [None, 4, 8])
def test_gradients_at_every_level_equal_the_naive_form(
    quantize: int | None, dropout: float, flat: bool, level: str
) -> None:
    expected = naive("llama", quantize=quantize)
    model = model_of("llama", quantize=quantize, dropout=dropout)
    stream = stream_of(model, flat)
    if dropout:  # its mask is drawn over a stream or over rows, so the naive form is this model itself
        expected = loss_and_gradients(model, find_head(model), stream, "llama")
    assert recompute(model, level, stream) == level
    assert recompute(model, level, stream) == level  # asking twice changes nothing
    check(model, stream, "llama", expected)


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize(
    ("name", "kind", "flat"),
    [
        *((name, "lora", True) for name in ("qwen2", "qwen3", "smollm3")),
        *((name, "lora", False) for name in ("qwen3", "gemma3_text")),  # Gemma's rows are longer than its window here
        ("llama", "dora", True),
        ("llama", "full", True),
        ("llama", "full", False),
    ],
)
def test_every_family_and_adapter_has_every_level(name: str, kind: str, flat: bool, level: str) -> None:
    model = model_of(name, kind=kind)
    stream = stream_of(model, flat)
    assert bool(stream.layers) == flat
    assert recompute(model, level, stream) == level
    check(model, stream, name, naive(name, kind=kind))


def test_generation_is_untouched() -> None:
    from mlx_lm.models.cache import make_prompt_cache

    tokens = mx.array([[5, 80, 120, 7]])
    expected = model_of("llama").eval()(tokens)
    for level in LEVELS[1:]:
        model = model_of("llama")
        recompute(model, level, prepare_stream(model, longest=64))
        model.eval()
        held = make_prompt_cache(model)
        parts = [model(tokens[:, place : place + 1], cache=held) for place in range(4)]
        assert mx.allclose(mx.concatenate(parts, axis=1), expected, atol=1e-5).item()


def parallel(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
    """A layer that reads one norm twice, so that it cannot move into one reader."""
    normed = self.post_attention_layernorm(x)
    return normed + self.self_attn(self.input_layernorm(x), mask, cache) + self.mlp(normed)


@pytest.mark.parametrize("level", ["pointwise", "mlp"])
def test_what_a_family_does_not_allow_becomes_whole_layers(level: str) -> None:
    model = model_of("llama")
    for layer in model.layers:
        layer.__class__ = type("Parallel", (type(layer),), {"__call__": parallel})
    expected = loss_and_gradients(model, find_head(model), Stream(0), "llama")
    assert recompute(model, level, Stream(0)) == "layer"
    check(model, Stream(0), "llama", expected)


def squared_relu_model() -> nn.Module:
    model = model_of("llama")
    for layer in model.layers:
        call = {"__call__": lambda self, x: self.down_proj(mx.square(nn.relu(self.up_proj(x))))}
        layer.mlp.__class__ = type("Squared", (type(layer.mlp),), call)
    return model


def test_an_mlp_of_another_kind_is_recomputed_as_a_whole() -> None:
    model = squared_relu_model()
    expected = loss_and_gradients(model, find_head(model), Stream(0), "llama")
    assert recompute(model, "mlp", Stream(0)) == "mlp"
    check(model, Stream(0), "llama", expected)
    assert recompute(squared_relu_model(), "pointwise", Stream(0)) == "layer"


class Sharing(nn.Module):
    """A layer that is given another layer's output by keyword, as some families do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def __call__(self, x: mx.array, *, shared: mx.array) -> mx.array:
        return x + mx.tanh(self.linear(shared))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Sharing(), Sharing()]

    def __call__(self, x: mx.array) -> mx.array:
        first = self.layers[0](x, shared=x)
        return self.layers[1](x, shared=first)


def test_recomputed_layers_pass_gradients_through_arrays_given_by_keyword() -> None:
    mx.random.seed(0)
    model, x = TwoLayers(), mx.random.normal((3, 4))
    found = []
    for level in ("none", "layer"):
        recompute(model, level, Stream(0))
        _, gradients = nn.value_and_grad(model, lambda x: mx.square(model(x)).sum())(x)
        found.append({name: np.array(value) for name, value in tree_flatten(gradients)})
    assert np.abs(found[0]["layers.0.linear.weight"]).max() > 0
    assert all(np.abs(found[1][name] - value).max() < 1e-6 for name, value in found[0].items())


def test_a_recomputed_module_keeps_its_own_parameters() -> None:
    model = model_of("llama")
    stream = prepare_stream(model, longest=8)
    recompute(model, "layer", stream)
    before = {key: np.array(value) for key, value in tree_flatten(model.parameters())}
    loss_and_gradients(model, find_head(model), stream, "llama")
    after = {key: np.array(value) for key, value in tree_flatten(model.parameters())}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
