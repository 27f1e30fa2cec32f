"""What a run stands on, by name: base, tokenizer, template, rows, start, and the keys of its recipe.

The rule: a run goes on only where all of it is as it was, so that it ends as if it had never stopped.
"""

from pathlib import Path

from macft.data.prepare import Prepared
from macft.machine import runs_folder
from macft.models.adapters import adapter_hash
from macft.models.describe import fingerprint, template_hash, tokenizer_hash
from macft.recipe import Recipe
from macft.run import find_adapter

FREE_TO_CHANGE = {
    "checkpoint",
    "evaluate",
    "data",
    "model",
    "micro_batch_size",
    "recompute",
    "compile",
    "max_chosen_fall",
}
"""Recipe keys that may differ when a run is resumed; rows and model have fingerprints of their own."""


def make_world(recipe: Recipe, folder: Path, data: Prepared) -> dict[str, str]:
    """Return what a checkpoint stands on, by name."""
    start = recipe.start_from if recipe.adapter != "full" else None
    return recipe_keys(recipe) | {
        "base model": fingerprint(folder),
        "tokenizer": tokenizer_hash(folder),
        "evaluate.metric": recipe.evaluate.metric,
        "start adapter": adapter_hash(find_adapter(start, runs_folder())) if start else "none",
        "chat template": template_hash(folder),
        "training rows": data.train.fingerprint,
        "validation rows": data.valid.fingerprint,
    }


def recipe_keys(recipe: Recipe) -> dict[str, str]:
    """Return what of a recipe must not change while a run goes on, by dotted key."""
    flat: dict[str, str] = {}
    for name, value in recipe.model_dump(mode="json", exclude=FREE_TO_CHANGE).items():
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: str(part) for key, part in parts.items()}
    return flat
