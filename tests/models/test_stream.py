"""Models on a flat stream against the same models on padded rows."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.data.batches import Batch, make_batch
from macft.models.adapters import attach
from macft.models.dequantized import multiply_dequantized
from macft.models.head import Head, find_head
from macft.models.load import load_model
from macft.models.stream import KEPT_SCORES, QUERY_BLOCK, Stream, attend, prepare_stream
from macft.recipe import LoraTable
from macft.training.objectives import Supervised
from tests.golden import NAMES, load_case
from tests.training.conftest import rows_of


def batch_of(name: str) -> Batch:
    rows = rows_of(load_case(name))
    return Batch(*(mx.array(part) for part in make_batch(rows, np.arange(len(rows)))))


def gradients(model: nn.Module, head: Head, stream: Stream, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    objective = Supervised(head, stream)
    total, tree = nn.value_and_grad(model, lambda b: objective.total(model, b, mx.random.key(0)))(batch)
    return total.item(), {key: np.array(value) for key, value in tree_flatten(tree)}


def model_of(name: str, *, quantize: int | None = None) -> nn.Module:
    model, _ = load_model(load_case(name).folder, quantize=quantize, group_size=32, compute_dtype="float32")
    attach(model, LoraTable(rank=4, alpha=8.0), kind="lora", seed=0)
    filled = [
        (key, mx.random.normal(value.shape, key=mx.random.key(len(key))) * 0.1)
        for key, value in tree_flatten(model.trainable_parameters())
    ]
    model.load_weights(filled, strict=False)
    return model.train()


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_family_takes_streams(name: str) -> None:
    stream = prepare_stream(model_of(name), longest=4)
    assert stream.layers == len(model_of(name).layers), stream.why_not
    assert stream.narrows


def test_a_model_may_be_prepared_twice() -> None:
    model = model_of("llama")
    first, head = prepare_stream(model, longest=4), find_head(model)
    expected, _ = gradients(model, head, first, batch_of("llama"))
    assert prepare_stream(model, longest=4) == first
    assert gradients(model, head, first, batch_of("llama"))[0] == expected


class Watched(nn.Module):
    """Notes the shapes that it is called with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def __call__(self, x: mx.array) -> mx.array:
        self.seen.append(x.shape)
        return self.inner(x)


def test_after_its_attention_the_last_layer_sees_only_what_is_supervised() -> None:
    model, batch = model_of("llama"), batch_of("llama")
    stream = prepare_stream(model, longest=64)
    watched = [Watched(layer.mlp) for layer in model.layers]
    for layer, mlp in zip(model.layers, watched, strict=True):
        layer.mlp = mlp
    stream.runner(batch)(model.model)
    tokens, wanted = batch.tokens.size, batch.positions.size
    assert wanted < tokens
    assert [mlp.seen[0][1] for mlp in watched] == [tokens] * (len(watched) - 1) + [wanted]


def test_what_does_not_fit_a_stream_says_why_and_stays_as_it_was() -> None:
    model = model_of("gemma3_text")
    kind = type(model.layers[0].self_attn)
    assert "rows are longer than its sliding window" in prepare_stream(model, longest=10_000).why_not
    unknown = model_of("llama")
    del unknown.layers[1].self_attn.rope
    assert "not known" in prepare_stream(unknown, longest=4).why_not
    assert type(model.layers[0].self_attn) is kind


class Shifting(nn.Module):
    """A rotary embedding that looks at absolute places: on a stream it would say something else."""

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        return x + 0.3 * mx.array(x.shape[2] + offset)


def test_an_attention_that_differs_on_a_stream_is_put_back() -> None:
    model = model_of("llama")
    kind = type(model.layers[0].self_attn)
    for layer in model.layers:
        layer.self_attn.q_norm = Shifting()
    assert "differs" in prepare_stream(model, longest=64).why_not
    assert type(model.layers[0].self_attn) is kind


@pytest.mark.parametrize("quantize", [None, 4])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gradients_on_every_path_equal_the_naive_form(name: str, quantize: int | None) -> None:
    batch = batch_of(name)
    naive = gradients(model_of(name, quantize=quantize), Head(None, takes_embeddings=False), Stream(0), batch)
    scale = max(np.abs(value).max() for value in naive[1].values())
    for flat in (False, True):
        model = model_of(name, quantize=quantize)
        stream = prepare_stream(model, longest=64) if flat else Stream(0)
        assert bool(stream.layers) == flat
        found = gradients(model, find_head(model), stream, batch)
        assert found[0] == pytest.approx(naive[0], rel=1e-5)
        assert max(np.abs(found[1][key] - naive[1][key]).max() for key in naive[1]) < 1e-5 * scale


def test_a_row_does_not_see_its_neighbours() -> None:
    """Changing a row at the same length changes no other bit; at another length nothing beyond rounding."""
    model = model_of("llama")
    stream, head, rows = prepare_stream(model, longest=64), find_head(model), rows_of(load_case("llama"))

    def losses(ids: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
        changed = type(rows)(ids, masks)
        batch = Batch(*(mx.array(part) for part in make_batch(changed, np.arange(len(ids)))))
        logprobs = np.array(head.logprobs(model, stream.runner(batch), batch.targets))
        real, segment = np.array(batch.weight) > 0, np.array(batch.segment)
        return [logprobs[real & (segment == row)] for row in range(len(ids))]

    before = losses(rows.ids, rows.masks)
    other = [rows.ids[0], (rows.ids[1] + 5) % 256, *rows.ids[2:]]
    assert all(np.array_equal(before[row], losses(other, rows.masks)[row]) for row in (0, 2, 3))
    longer = [rows.ids[0], np.tile(rows.ids[1], 3), *rows.ids[2:]]
    masks = [rows.masks[0], np.tile(rows.masks[1], 3), *rows.masks[2:]]
    after = losses(longer, masks)
    assert all(np.allclose(before[row], after[row], rtol=1e-6, atol=1e-6) for row in (0, 2, 3))


def test_generation_is_untouched_by_streams() -> None:
    tokens = mx.array([[5, 80, 120, 7]])
    plain, changed = model_of("llama").eval(), model_of("llama").eval()
    prepare_stream(changed, longest=64)
    assert mx.allclose(plain(tokens), changed(tokens), atol=1e-5).item()


@pytest.mark.parametrize("length", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK - 1, KEPT_SCORES + 1])
def test_attention_equals_mlx(length: int) -> None:
    mx.random.seed(2)
    queries = mx.random.normal((1, 4, length, 8))
    keys, values = mx.random.normal((1, 2, length, 8)), mx.random.normal((1, 2, length, 8))
    pull = mx.random.normal(queries.shape)

    def ours(*arrays: mx.array) -> mx.array:
        return (attend(*arrays, 0.3) * pull).sum()

    def theirs(*arrays: mx.array) -> mx.array:
        return (mx.fast.scaled_dot_product_attention(*arrays, scale=0.3, mask="causal") * pull).sum()

    found = mx.value_and_grad(ours, argnums=(0, 1, 2))(queries, keys, values)
    expected = mx.value_and_grad(theirs, argnums=(0, 1, 2))(queries, keys, values)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-4)
    assert all(mx.abs(a - b).max().item() < 1e-4 for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize(("bits", "rows"), [(4, 2), (4, 40), (8, 40)])
def test_dequantizing_first_gives_the_same_product_and_gradient(bits: int, rows: int) -> None:
    mx.random.seed(3)
    layer = nn.Linear(64, 96).to_quantized(32, bits)
    x = mx.random.normal((rows, 64))

    def total(x: mx.array) -> mx.array:
        return mx.square(layer(x)).sum()

    expected = mx.value_and_grad(total)(x)
    holder = nn.Sequential(layer)
    multiply_dequantized(holder)
    found = mx.value_and_grad(total)(x)
    assert isinstance(layer, nn.QuantizedLinear)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert mx.abs(found[1] - expected[1]).max().item() < 1e-5 * mx.abs(expected[1]).max().item()
