"""A model card: what an exported model is made of, for whoever receives it.

The rule: counts, settings and figures only. No text of a row, no file name, no path of this machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macft import __version__
from macft.recipe import Recipe
from macft.state import RunState

_SAID = ("method", "adapter", "quantize", "batch_size", "learning_rate", "max_seq_length", "seed")
_LIBRARIES = {"mlx": "mlx", "lmstudio": "mlx", "peft": "peft", "gguf": "gguf", "gguf-adapter": "gguf", "ollama": "gguf"}


def write_card(
    folder: Path,
    *,
    name: str,
    to: str,
    base: str,
    licence: str,
    recipe: Recipe | None,
    state: RunState | None,
    facts: Mapping[str, str],
) -> None:
    """Write `README.md` for an exported model or adapter.

    Args:
        folder: Where to.
        name: Of the model.
        to: What it was exported to.
        base: The base model's name.
        licence: The base's, `""` when nothing says it.
        recipe: How it was trained; None when that is not known.
        state: What happened in the run; None when there is none.
        facts: More lines of the table, like what fusing kept.
    """
    head = ["---", *([f"license: {licence}"] if licence else []), *([f"base_model: {base}"] if "/" in base else [])]
    head += [f"library_name: {_LIBRARIES[to]}", "tags:", "- macft", *(["- lora"] if "peft" in to else []), "---"]
    lines = [*head, "", f"# {name}", "", f"{base or 'A model'}, fine-tuned with macft {__version__} ({to}).", ""]
    rows = {"base model": base or "not known", "licence of the base": licence or "not known: ask its maker", **facts}
    lines += _table("", rows)
    if state and state.planned:
        lines += _table("Data", _data(state))
    if recipe:
        lines += _table("Recipe", _recipe(recipe, state))
    if state and (figures := _figures(state)):
        lines += _table("Figures", figures)
    lines += ["The rows that it was trained on are not part of this folder."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    head = [f"## {title}", ""] if title else []
    return [*head, "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items()), ""]


def _data(state: RunState) -> dict[str, str]:
    planned = state.planned
    rows = {"training rows": f"{planned.train_rows:,}", "held-out rows": f"{planned.valid_rows:,}"} if planned else {}
    trained = sum(step.metrics.get("supervised_tokens", 0.0) for step in state.steps)
    return rows | ({"tokens trained on": f"{int(trained):,}"} if trained else {})


def _recipe(recipe: Recipe, state: RunState | None) -> dict[str, str]:
    values: dict[str, Any] = recipe.model_dump(mode="json")
    said = {key: values[key] for key in _SAID if values.get(key) is not None}
    if state and state.step:
        said["steps"] = state.step
    if recipe.adapter != "full":
        said |= {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "targets": recipe.lora.targets}
    said |= {"optimizer": recipe.optimizer.name, "schedule": recipe.schedule.name}
    return {key.replace("_", " "): str(value) for key, value in said.items()}


def _figures(state: RunState) -> dict[str, str]:
    figures = {}
    if state.evaluations:
        first = state.evaluations[0].metrics.get("eval_loss")
        best = (state.best or state.evaluations[-1]).metrics.get("eval_loss")
        if first is not None and best is not None:
            figures["loss on held-out rows, nats a token"] = f"{first:.3f} before, {best:.3f} after"
    if scores := state.scores:
        figures |= {
            f"{key.replace('_', ' ')}, {scores.rows} test rows": f"{scores.base[key]:.1%} before, {value:.1%} after"
            for key, value in scores.tuned.items()
            if key in scores.base
        }
    return figures
