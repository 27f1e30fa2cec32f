"""Preference updates against two separate sequences, against themselves in other shapes, and against their reference."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.data.referenced import ReferencedRows
from macft.models.adapters import attach, recompute_layers
from macft.models.head import find_head
from macft.models.load import load_model
from macft.models.stream import Stream, prepare_stream
from macft.recipe import LoraTable, Recipe, make_recipe
from macft.training.objectives import make_objective, to_device
from tests.golden import GoldenCase
from tests.training.conftest import ResponseArrays, random_responses
from tests.training.test_update import largest_difference

VOCABULARY = 256


def recipe_of(method: str = "dpo", **keys: object) -> Recipe:
    return make_recipe({"model": "m", "method": method, **keys})


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


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("quantize", [None, 8, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_a_shared_prompt_makes_the_loss_and_gradients_of_two_sequences(
    llama: GoldenCase, quantize: int | None, recomputed: bool, padded: bool
) -> None:
    model, _ = load_model(llama.folder, compute_dtype="float32", quantize=quantize, group_size=32)
    attach(model, LoraTable(rank=4, alpha=8.0), kind="lora", seed=0)
    model.load_weights(
        [
            (name, mx.random.normal(value.shape, key=mx.random.key(len(name))) * 0.05)
            for name, value in tree_flatten(model.trainable_parameters())
        ],
        strict=False,
    )
    model.train()
    rows = random_responses(VOCABULARY)
    reference = np.random.default_rng(1).normal(-30, 3, (len(rows), 2)).astype(np.float32)
    expected, tree = nn.value_and_grad(model, lambda: separate(model, rows, reference, 0.1))()
    wanted = {name: np.array(value) for name, value in tree_flatten(tree)}
    stream = Stream(0, "asked for") if padded else prepare_stream(model, longest=64)
    assert bool(stream.layers) != padded
    if recomputed:
        recompute_layers(model)
    loss, gradients = shared(model, rows, reference, recipe_of(beta=0.1), stream)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert largest_difference(gradients, wanted) < 1e-5
