"""Load the base and make the recipe's part of it trainable: a fresh adapter, an earlier one, or the model itself."""

import fnmatch
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macft.errors import Problem, RecipeError
from macft.models.adapters import compute_in_model_dtype, count_values
from macft.models.load import load_model
from macft.models.start import start_adapter
from macft.recipe import Recipe


def make_trainable(recipe: Recipe, folder: Path, runs: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model and unfreeze what the recipe trains.

    Args:
        recipe: Says what is trained, on which base, from which start.
        folder: The base.
        runs: Where a run named by `start_from` lies.

    Returns:
        The model and the configuration that its result is written with: the adapter's, or the model's.

    Raises:
        ModelError: The base or the adapter cannot be used.
        RecipeError: The recipe asks for what this model cannot do.
    """
    full = recipe.adapter == "full"
    if full and recipe.start_from is not None:
        raise RecipeError([Problem("start_from", 'does not go with adapter = "full"; set model to the earlier result')])
    # Updates of full fine-tuning are smaller than bfloat16 can hold beside the weights.
    dtype = "float32" if full and recipe.compute_dtype == "auto" else recipe.compute_dtype
    model, config = load_model(
        folder, quantize=recipe.quantize, group_size=recipe.quantize_group_size, compute_dtype=dtype
    )
    if full:
        if any(isinstance(module, nn.QuantizedLinear) for module in model.modules()):
            raise RecipeError([Problem("adapter", "a quantized model cannot be trained in full; use lora or dora")])
        _unfreeze(model, recipe.freeze)
        return model, config
    adapter = start_adapter(model, recipe, folder, runs)
    if recipe.adapter_dtype != "float32":
        compute_in_model_dtype(model)
    return model, adapter


def _unfreeze(model: nn.Module, patterns: list[str]) -> None:
    model.unfreeze()
    unused = set(patterns)
    for path, module in model.named_modules():
        for name, value in list(module.items()):
            full_name = f"{path}.{name}".lstrip(".")
            matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(full_name, pattern)]
            if matching and isinstance(value, mx.array):
                module.freeze(recurse=False, keys=[name])
                unused -= set(matching)
    if unused:
        raise RecipeError([Problem("freeze", f"{pattern!r} matches no parameter") for pattern in sorted(unused)])
    if not count_values(model.trainable_parameters())[0]:
        raise RecipeError([Problem("freeze", "leaves nothing to train")])
