"""What a pass takes, traced: the graph of a training step on a sketch of the model, and the buffers that live in it.

The rule: from a config alone, with nothing evaluated. Layers are alike, so few of them tell of all. What is found is
handed to the plan as a factor, by which its own arithmetic is put right.
"""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from macft.data.response_rows import ResponseRows
from macft.data.token_rows import TokenRows
from macft.machine import MachineFacts
from macft.memory import STREAMED, Pass
from macft.models.adapters import attach, compute_in_model_dtype
from macft.models.describe import ModelFacts
from macft.models.head import find_head
from macft.models.recompute import recompute
from macft.models.sketch import placeholder, put_placeholders, sketch_model
from macft.models.stream import prepare_stream
from macft.plan import PAIRED, DataFacts, Scales, count_layer, count_pass, make_pass, plan
from macft.recipe import Recipe
from macft.training.graph import gradient_graph
from macft.training.objectives import make_objective
from macft.training.reference import refer
from macft.training.residency import peak_bytes

TRACED_LAYERS = (2, 3)
"""Layers of the sketches; a model with no more than the most of these is traced as it is."""


def trace_scales(recipe: Recipe, facts: ModelFacts, data: DataFacts, machine: MachineFacts) -> Scales:
    """Trace the pass that a plan chooses, and those at the levels of recomputation that it then turns to.

    Args:
        recipe: What is planned.
        facts: Of the model as it will be loaded.
        data: Of the rows.
        machine: What it shall fit on.

    Returns:
        What the traces saw, of what the plan counts; nothing where a trace is not known to be right: on Metal, whose
        buffers nobody here could watch, and for families whose attention macft leaves to mlx-lm.
    """
    scales: dict[str, float] = {}
    is_known = facts.family in STREAMED and mx.default_device() == mx.cpu and not machine.is_apple_silicon
    while is_known and (made := plan(recipe, facts, data, machine, scales=scales)).recompute not in scales:
        part = make_pass(recipe, facts, data.cut(recipe.max_seq_length), made.recompute, made.micro_batch_tokens)
        scales[made.recompute] = trace_pass(recipe, facts, part) / count_pass(recipe, facts, part, is_gpu=False)
    return scales


def trace_pass(recipe: Recipe, facts: ModelFacts, part: Pass) -> int:
    """Return the bytes that come and go in a micro-batch, gradients included.

    Args:
        recipe: Says what is trained, and on what.
        facts: Of the model as it will be loaded.
        part: The micro-batch, and what is computed again.
    """
    layers = facts.layers if recipe.adapter == "full" or recipe.lora.layers == "all" else recipe.lora.layers
    layers = min(layers, facts.layers)
    if layers <= max(TRACED_LAYERS):
        return trace_layers(recipe, facts, part, layers)
    # MLX runs ahead by a number of calls, so the peak of few layers moves by steps; what a layer keeps does not.
    a_layer = count_layer(recipe, facts, part, is_gpu=False)
    besides = max(trace_layers(recipe, facts, part, few) - few * a_layer for few in TRACED_LAYERS)
    return besides + layers * a_layer


def even_rows(method: str, *, count: int, prompt: int, answer: int) -> TokenRows | ResponseRows:
    """Return rows of one length, as `data.prepare` makes them for a method: a prompt, and its answer or answers."""
    responses = {"kto": 1}.get(method, 2 if method in PAIRED else 0)
    parts = [prompt, *[answer] * responses] if responses else [prompt + answer]
    offsets = np.concatenate([[0], np.cumsum(parts * count)])
    ids, where = np.zeros(offsets[-1], np.int32), [f"row {number}" for number in range(count)]
    if not responses:
        return TokenRows(ids, np.tile(np.arange(prompt + answer) >= prompt, count), offsets, where)
    labels = np.arange(count) % 2 == 0 if responses == 1 else None
    return ResponseRows(ids, offsets, responses, labels, np.full(count, np.nan, np.float32), where)


def _rows_of(recipe: Recipe, part: Pass) -> TokenRows | ResponseRows:
    """Return even rows that lay out as a pass says."""
    answers = part.tokens - part.laid // 2 if recipe.method in PAIRED else min(part.supervised, part.tokens - 1)
    count = max(1, round(part.laid / part.longest / (2 if recipe.method in PAIRED else 1)))
    answer = max(1, round(answers / count))
    longest = max(2, round(part.laid / count / (2 if recipe.method in PAIRED else 1)))
    return even_rows(recipe.method, count=count, prompt=max(1, longest - answer), answer=answer)


def trace_layers(recipe: Recipe, facts: ModelFacts, part: Pass, layers: int) -> int:
    """Return the bytes that come and go in a model of so many layers."""
    model = _trainable_sketch(recipe, facts, layers)
    stream = prepare_stream(model, longest=part.longest, is_sketch=True)
    head = find_head(model, is_sketch=True)
    recompute(model, part.recompute, stream, is_sketch=True)
    model.train()
    put_placeholders(model)
    told = _rows_of(recipe, part)
    (rows,) = refer(recipe, [told], lambda rows, *_: _zeros(rows), lambda *_: None, limit=part.longest)
    batch = tree_map(lambda array: placeholder(mx.array(array)), rows.batch(np.arange(len(told))))
    trained = cast(list[tuple[str, mx.array]], tree_flatten(model.trainable_parameters()))
    objective, whole, key = make_objective(recipe, head, stream), placeholder(mx.ones(2)), mx.random.key(0)

    def total(*parameters: mx.array) -> mx.array:
        names = (name for name, _ in trained)
        model.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        return objective.sums(model, batch, whole, placeholder(key)).loss

    return peak_bytes(*gradient_graph(total, [value for _, value in trained]))


def _zeros(rows: Any) -> Any:
    return np.zeros((len(rows), rows.responses), np.float32)


def _trainable_sketch(recipe: Recipe, facts: ModelFacts, layers: int) -> nn.Module:
    full = recipe.adapter == "full"
    dtype = "float32" if full and recipe.compute_dtype == "auto" else recipe.compute_dtype
    model = sketch_model(
        facts, layers=layers, quantize=recipe.quantize, group_size=recipe.quantize_group_size, compute_dtype=dtype
    )
    if full:
        model.unfreeze()
        return model
    attach(model, recipe.lora.model_copy(update={"layers": "all"}), kind=recipe.adapter, seed=0)
    if recipe.adapter_dtype != "float32":
        compute_in_model_dtype(model)
    return model
