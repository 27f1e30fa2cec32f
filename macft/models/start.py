"""Where an adapter starts: afresh, from an earlier one, or as a second over a frozen first.

The rule: training and whoever reads its checkpoints build the same layers, by this one function.
"""

import math
from pathlib import Path
from typing import Any

import mlx.nn as nn

from macft.errors import Problem, RecipeError
from macft.models.adapters import attach, load_adapter, set_dropout, update_scale
from macft.models.describe import fingerprint
from macft.models.stacked import stack_adapter
from macft.recipe import Recipe
from macft.run import find_adapter


def start_adapter(model: nn.Module, recipe: Recipe, folder: Path, runs: Path) -> dict[str, Any]:
    """Put the adapter that a recipe trains on a frozen model without adapters, as it is before the first update.

    Args:
        model: The base.
        recipe: Says which adapter, and from which start.
        folder: The base's.
        runs: Where a run named by `start_from` lies.

    Returns:
        The configuration that the result is written with.

    Raises:
        ModelError: The adapter of `start_from` cannot be used.
        RecipeError: The recipe asks for what this model cannot do.
        RunError: Nothing is called what `start_from` says.
    """
    if recipe.start_from is None:
        return attach(model, recipe.lora, kind=recipe.adapter, seed=recipe.seed)
    adapter = load_adapter(model, find_adapter(recipe.start_from, runs), base_fingerprint=fingerprint(folder))
    if recipe.stack:
        return stack_adapter(model, adapter, recipe.lora, seed=recipe.seed)
    _refuse_other_shape(recipe, adapter)
    set_dropout(model, recipe.lora.dropout)
    return adapter


def _refuse_other_shape(recipe: Recipe, adapter: dict[str, Any]) -> None:
    """Refuse a start whose adapter is not the one that the recipe describes: nothing is overruled in silence."""
    theirs = adapter["lora_parameters"]
    wanted = update_scale(recipe.lora)
    problems = []
    if adapter["fine_tune_type"] != recipe.adapter:
        problems.append(Problem("adapter", f"start_from is {adapter['fine_tune_type']} (got {recipe.adapter})"))
    if theirs["rank"] != recipe.lora.rank:
        problems.append(Problem("lora.rank", f"start_from has rank {theirs['rank']} (got {recipe.lora.rank})"))
    elif not math.isclose(theirs["scale"], wanted, rel_tol=1e-6) and not recipe.lora.rslora:
        alpha = theirs["scale"] * theirs["rank"]
        problems.append(Problem("lora.alpha", f"start_from has alpha {alpha:g} (got {recipe.lora.alpha:g})"))
    if problems:
        raise RecipeError(problems, fix="Its layers and targets are kept as well; to change them, start afresh.")
