"""Passes traced from a config alone, held against what MLX counts and against the plan's own arithmetic."""

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
from macft.losses.backward import checkpoint, custom_function
from macft.machine import MIB
from macft.macs import find_mac
from macft.memory import LEVELS
from macft.models.describe import ModelFacts, describe_as_loaded
from macft.models.sketch import placeholder
from macft.plan import DataFacts, count_layer, count_pass, make_pass
from macft.recipe import Recipe, make_recipe
from macft.training.graph import gradient_graph
from macft.training.residency import order, peak_bytes
from macft.training.trace import even_rows, trace_layers, trace_pass, trace_scales
from tests.benchmarks.plan_grid import LINUX

SHAPE = {
    **{"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 32, "vocab_size": 512, "num_hidden_layers": 12, "tie_word_embeddings": True},
    **{"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16"},
    **{"sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 32},
}
DATA = DataFacts(rows=100, tokens=12_800, supervised_tokens=6400, longest=128, p99=128, widest=128)


def facts_of(folder: Path, **changes: Any) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE, **changes}))
    return describe_as_loaded(folder, quantize=None)


def recipe_of(facts: ModelFacts, **changes: Any) -> Recipe:
    return make_recipe({"model": str(facts.path), "batch_size": 4, "recompute": "none", **changes})


def trace_of(facts: ModelFacts, recipe: Recipe, *, layers: int) -> int:
    part = make_pass(recipe, facts, DATA, recipe.recompute, 512)
    return trace_pass(recipe, replace(facts, layers=layers), part)


@pytest.mark.parametrize(
    ("family", "level"), [*(("llama", level) for level in LEVELS), ("qwen3", "none"), ("gemma3_text", "layer")]
)
def test_what_is_counted_is_what_is_traced(tmp_path: Path, family: str, level: str) -> None:
    facts = facts_of(tmp_path, model_type=family)
    recipe = recipe_of(facts, recompute=level)
    part = make_pass(recipe, facts, DATA, level, 512)
    assert 0.9 <= count_pass(recipe, facts, part, is_gpu=False) / trace_pass(recipe, facts, part) <= 1.15


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen3", {"method": "dpo"})], ids=str)
def test_each_layer_adds_what_is_counted(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    facts = facts_of(tmp_path, model_type=family)
    recipe = recipe_of(facts, **changes)
    part = make_pass(recipe, facts, DATA, "none", 512)
    few, many = (trace_layers(recipe, facts, part, layers) for layers in (3, 10))
    assert (many - few) / 7 == pytest.approx(count_layer(recipe, facts, part, is_gpu=False), rel=0.05)


def test_a_config_is_enough_and_nothing_is_allocated(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, vocab_size=152_000, hidden_size=4096, intermediate_size=12288)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for changes in ({"quantize": 4}, {"method": "dpo", "recompute": "layer"}):
        assert trace_of(facts, recipe_of(facts, **changes), layers=12) > 50 * MIB
    assert mx.get_peak_memory() - before < MIB


@pytest.mark.parametrize("method", ["pretrain", "orpo", "simpo", "kto"])
def test_every_method_has_a_trace(tmp_path: Path, method: str) -> None:
    facts = facts_of(tmp_path)
    recipe = recipe_of(facts, method=method)
    scales = trace_scales(recipe, facts, replace(DATA, widest=192 if method in {"dpo", "orpo"} else 128), LINUX)
    assert list(scales) == ["none"]
    assert 0.8 <= scales["none"] <= 1.25


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"recompute": "none"}, {"recompute": "layer"}),
        ({"adapter": "dora"}, {"adapter": "lora"}),
        ({"adapter": "full"}, {"adapter": "lora"}),
        ({"lora": {"layers": 6}}, {"lora": {"layers": 2}}),
        ({"adapter_dtype": "float32"}, {"adapter_dtype": "model"}),
    ],
    ids=str,
)
def test_a_trace_sees_what_a_recipe_saves(tmp_path: Path, more: dict[str, Any], less: dict[str, Any]) -> None:
    facts = facts_of(tmp_path)
    dtype = {"compute_dtype": "bfloat16"} if "adapter_dtype" in more else {}
    traced = [trace_of(facts, recipe_of(facts, **each, **dtype), layers=12) for each in (more, less)]
    assert traced[0] > 1.02 * traced[1]


def test_no_trace_where_none_is_known_to_be_right(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert trace_scales(recipe_of(facts), facts, DATA, find_mac("M4 Max 128GB")[0]) == {}
    assert trace_scales(recipe_of(facts), replace(facts, family="phi3"), DATA, LINUX) == {}


def test_levels_are_traced_until_one_fits(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    recipe = recipe_of(facts, recompute="auto")
    small = replace(LINUX, working_set_bytes=60 * MIB)
    assert list(trace_scales(recipe, facts, DATA, LINUX)) == ["none"]
    assert set(trace_scales(recipe, facts, DATA, small)) <= set(LEVELS)
    assert "layer" in trace_scales(recipe, facts, DATA, small)


def test_a_graph_holds_forward_and_backward_of_custom_functions() -> None:
    """Two squares, one with a backward pass of its own, one computed again: x² and 2·x·ct are there twice."""

    @custom_function
    def square(x: mx.array) -> mx.array:
        return x * x

    @square.vjp
    def square_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return mx.sin(x) * cotangent

    again = checkpoint(lambda x: mx.exp(x) * x)
    graph, outputs = gradient_graph(lambda x: again(square(x)).sum(), [placeholder(mx.zeros((8, 8)))])
    names = [node.name for node in order(graph, outputs)]
    assert names.count("Sin") == 1  # the backward pass that was given, once
    assert names.count("Exp") == 2  # forward, and again
    assert len(outputs) == 2


@pytest.mark.parametrize("rows", [64, 512])
def test_the_peak_of_a_chain_is_mlxs(rows: int) -> None:
    """A deep chain of products with its gradient, evaluated here: MLX's own count of bytes above what was there."""
    weights = [mx.random.normal((256, 256), key=mx.random.key(layer)) * 0.05 for layer in range(12)]
    x = mx.random.normal((rows, 256), key=mx.random.key(99))
    mx.eval(weights, x)

    def loss(first: mx.array, *others: mx.array) -> mx.array:
        hidden = x
        for weight in (first, *others):
            hidden = nn.silu(hidden @ weight)
        return hidden.sum()

    marks = placeholder(x), [placeholder(weight) for weight in weights]
    held, x = x, marks[0]
    traced = peak_bytes(*gradient_graph(loss, marks[1]))
    x = held
    gc.collect()  # what other tests left must not be freed while it is counted
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss, argnums=list(range(12)))(*weights))
    assert traced == pytest.approx(mx.get_peak_memory() - before, rel=0.1)


def test_even_rows_are_those_of_prepared_data() -> None:
    chats = even_rows("sft", count=3, prompt=5, answer=7)
    assert (chats.lengths.tolist(), chats.supervised.tolist()) == ([12] * 3, [7] * 3)
    pairs = even_rows("dpo", count=3, prompt=5, answer=7)
    assert (pairs.lengths.tolist(), pairs.longest.tolist(), pairs.supervised.tolist()) == ([19] * 3, [12] * 3, [14] * 3)
    assert even_rows("kto", count=2, prompt=5, answer=7).labels.tolist() == [True, False]
    assert np.array_equal(chats.batch(np.arange(3)).lengths, [12, 12, 12])
