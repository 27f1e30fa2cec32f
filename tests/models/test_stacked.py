from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macft.errors import RecipeError
from macft.models.adapters import adapter_parameters, adapters_off, attach, load_adapter, write_adapter_files
from macft.models.load import load_model
from macft.models.stacked import folded_parameters, is_stacked, stack_adapter
from macft.recipe import LoraTable
from tests.golden import load_case

TOKENS = mx.array([[1, 7, 3, 5, 2, 9, 4, 8]])
FOLDER = load_case("llama").folder


def disturb(model: nn.Module, seed: int) -> None:
    """Give what is trained values far from their start."""
    generator = np.random.default_rng(seed)
    trained = tree_flatten(model.trainable_parameters())
    changed = [(name, mx.array(generator.normal(0, 0.1, value.shape).astype(np.float32))) for name, value in trained]
    model.load_weights(changed, strict=False)


def stacked(second: LoraTable, **first: Any) -> tuple[nn.Module, dict, mx.array]:
    """Return a model with two adapters, the configuration of both, and what the first alone made of the tokens."""
    model = load_model(FOLDER)[0]
    config = attach(model, LoraTable(rank=4, alpha=8.0, **first), kind="lora", seed=0)
    disturb(model, 1)
    before = model(TOKENS)
    both = stack_adapter(model, config, second, seed=5)
    assert mx.array_equal(model(TOKENS), before)
    disturb(model, 2)
    return model, both, before


@pytest.mark.parametrize(
    "second",
    [
        LoraTable(rank=4, alpha=8.0),
        LoraTable(rank=6, alpha=3.0, targets="mlp"),
        LoraTable(rank=2, alpha=16.0, layers=1, targets="attention"),
        LoraTable(rank=3, alpha=8.0, rslora=True),
    ],
    ids=["alike", "other targets", "fewer layers", "rslora"],
)
def test_what_is_saved_is_both_adapters_as_one(second: LoraTable, tmp_path: Path) -> None:
    model, both, _ = stacked(second)
    assert is_stacked(model)
    write_adapter_files(tmp_path, folded_parameters(model, both), both, {})
    plain = load_model(FOLDER)[0]
    load_adapter(plain, tmp_path)
    assert not is_stacked(plain)
    wanted, found = model(TOKENS), plain(TOKENS)
    assert mx.abs(found - wanted).max().item() <= 1e-5 * mx.abs(wanted).max().item()


def test_adapters_on_different_layers_and_targets_make_one_that_loads(tmp_path: Path) -> None:
    model, both, _ = stacked(LoraTable(rank=2, alpha=4.0, layers=1, targets="mlp"), targets="attention")
    write_adapter_files(tmp_path, folded_parameters(model, both), both, {})
    plain = load_model(FOLDER)[0]
    load_adapter(plain, tmp_path)
    wanted, found = model(TOKENS), plain(TOKENS)
    assert mx.abs(found - wanted).max().item() <= 1e-5 * mx.abs(wanted).max().item()


def test_only_the_second_is_trained_and_both_can_be_switched_off() -> None:
    model, _, before = stacked(LoraTable(rank=4, alpha=8.0))
    base = load_model(FOLDER)[0](TOKENS)
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert names
    assert not [name for name in names if ".linear." in name]
    assert len(names) * 2 == len(adapter_parameters(model))
    tuned = model(TOKENS)
    with adapters_off(model, trained_only=True):
        assert mx.array_equal(model(TOKENS), before)
    with adapters_off(model):
        assert mx.array_equal(model(TOKENS), base)
    assert mx.array_equal(model(TOKENS), tuned)
    assert mx.abs(tuned - before).max().item() > 1e-2


def test_dora_is_refused_below() -> None:
    model = load_model(FOLDER)[0]
    config = attach(model, LoraTable(rank=4), kind="dora", seed=0)
    with pytest.raises(RecipeError, match="plain LoRA"):
        stack_adapter(model, config, LoraTable(rank=4), seed=0)
