"""A packed optimizer against MLX's own on the tree: the same bits, and the same state by name."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from macft.recipe import OptimizerTable
from macft.training.optimizers import make_optimizer
from macft.training.packed import SMALL_VALUES, VECTOR_VALUES, PackedOptimizer, group


def tree(seed: int) -> dict[str, Any]:
    """Two layers with an adapter, of which the first is frozen, and something on top."""
    keys = iter(mx.random.split(mx.random.key(seed), 5))
    layer = {
        "q": {"lora_a": mx.random.normal((6, 2), key=next(keys)), "lora_b": mx.random.normal((2, 8), key=next(keys))}
    }
    return {"layers": [{}, layer], "norm": mx.random.normal((6,), key=next(keys))}


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def same(found: Any, expected: Any) -> bool:
    found, expected = flat(found), flat(expected)
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd", "muon"])
def test_updates_and_state_are_those_of_mlx_to_the_bit(name: str) -> None:
    packed = make_optimizer(OptimizerTable(name=name, betas=(0.9, 0.99)), 1e-2)
    plain = make_optimizer(OptimizerTable(name=name, betas=(0.9, 0.99)), 1e-2).inner
    ours = theirs = tree(0)
    packed.init(ours)
    plain.init(theirs)
    assert len(packed.groups) == (3 if name in {"adafactor", "muon"} else 1)
    for step in range(3):
        packed.learning_rate = plain.learning_rate = 1e-2 / (step + 1)
        ours, theirs = packed.apply_gradients(tree(step + 1), ours), plain.apply_gradients(tree(step + 1), theirs)
    assert same(ours, theirs)
    assert same(packed.state, plain.state)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd", "muon"])
def test_a_state_that_was_written_by_parameter_goes_on_where_it_was(name: str) -> None:
    def fresh() -> PackedOptimizer:
        optimizer = make_optimizer(OptimizerTable(name=name, betas=(0.9, 0.99)), 1e-2)
        optimizer.init(tree(0))
        return optimizer

    first, resumed = fresh(), fresh()
    weights = first.apply_gradients(tree(1), tree(0))
    resumed.state = tree_map(mx.array, first.state)
    resumed.init(weights)  # as the updater does; what was read stays
    assert same(resumed.apply_gradients(tree(2), weights), first.apply_gradients(tree(2), weights))


def test_vectors_hold_small_matrices_of_one_type_and_no_more_than_fits() -> None:
    parameters = {
        "a": mx.zeros((4, 4)),
        "b": mx.zeros((2,), mx.bfloat16),
        "c": mx.zeros((3,), mx.bfloat16),
        "d": mx.zeros((SMALL_VALUES + 1,)),
        "e": mx.zeros((3,)),
    }
    assert [part.names for part in group(parameters, VECTOR_VALUES)] == [["a"], ["b", "c"], ["d"], ["e"]]
    assert [part.names for part in group(parameters, 0)] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert [part.names for part in group(tree(0), 28)] == [["layers.1.q.lora_a", "layers.1.q.lora_b"], ["norm"]]


def test_packing_and_unpacking_are_inverse() -> None:
    optimizer = make_optimizer(OptimizerTable(), 1e-2)
    optimizer.init(tree(0))
    assert same(optimizer.unpack(optimizer.pack(tree(5))), tree(5))
