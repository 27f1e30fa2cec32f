"""From what a person names to what a voice is made of.

The rule: what names a run names its result, `RUN@600` its checkpoint at that step; an adapter knows its base by name
and fingerprint, and is refused on another. No weight is read before `put_on`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from macft.chat.panes import MOST_VOICES
from macft.errors import ModelError, Problem, RecipeError, RunError
from macft.models.adapters import load_adapter
from macft.models.adapters import read_adapter_config as read_config
from macft.models.catalog import resolve
from macft.models.describe import fingerprint, template_hash
from macft.models.stacked import fold, is_stacked
from macft.models.start import start_adapter
from macft.models.tensors import check_tensors, load_tensors
from macft.recipe import Recipe, load_recipe
from macft.run import Run, find_adapter, find_run

_CHECKPOINT = re.compile(r"(.+)@(best|latest|\d+)")
CHANGED_TEMPLATE = "the chat template is not the one this adapter was trained with"


@dataclass(frozen=True, slots=True)
class VoiceSource:
    """What a voice is made of.

    Attributes:
        name: What to call it beside others.
        folder: Of the model's weights.
        quantize: Bits that the weights are quantized to while loading, as in training.
        adapter: An adapter's folder, or a checkpoint's; None for a model as it is.
        run: The run that a checkpoint is of.
        enable_thinking: Passed to the chat template.
        base: The model that was tuned, when that has another folder or is not on this machine under its name.
        note: Something the person should know, empty most of the time.
    """

    name: str
    folder: Path
    quantize: int | None = None
    group_size: int = 64
    adapter: Path | None = None
    run: Run | None = None
    enable_thinking: bool = False
    base: str = ""
    note: str = ""

    @property
    def weights(self) -> tuple[Path, int | None, int | None]:
        """What identifies the weights that are loaded; sources with the same ones can share them."""
        return self.folder, self.quantize, self.group_size if self.quantize else None

    def read_recipe(self) -> Recipe | None:
        """Return the recipe that made this; None when no run did."""
        folder = self.run.path if self.run else (self.adapter or self.folder).parent
        path = folder / "recipe.toml"
        return load_recipe(path) if path.is_file() else None

    def put_on(self, model: nn.Module) -> None:
        """Put the adapter, if there is one, on a model of its base's weights.

        Raises:
            ModelError: It is damaged, or another base's.
            RunError: What a checkpoint's training started from is gone.
        """
        if self.adapter is None:
            return
        if self.run is None:
            load_adapter(model, self.adapter, base_fingerprint=fingerprint(self.folder))
        else:
            self._put_checkpoint_on(model, self.run, self.adapter / "weights.safetensors")

    def _put_checkpoint_on(self, model: nn.Module, run: Run, path: Path) -> None:
        recipe, weights, config = load_recipe(run.path / "recipe.toml"), load_tensors(path), {}
        if recipe.adapter == "full":
            check_tensors(weights, dict(tree_flatten(model.parameters())), where=path, complete=False)
        else:
            try:
                config = start_adapter(model, recipe, self.folder, run.path.parent)
            except RunError as error:
                raise RunError(f"start_from of {run.name}: {error.message}", fix=error.fix) from None
            check_tensors(weights, dict(tree_flatten(model.trainable_parameters())), where=path)
        model.load_weights(list(weights.items()), strict=False)
        if is_stacked(model):
            fold(model, config)

    @property
    def is_stackable(self) -> bool:
        """Whether it may share a batch with others of the same weights; what is loaded may still say no."""
        if self.adapter is None:
            return True
        if self.run is not None:
            return load_recipe(self.run.path / "recipe.toml").adapter == "lora"
        return bool(read_config(self.adapter)["fine_tune_type"] == "lora")

    def without_adapter(self, home: Path) -> "VoiceSource":
        """Return Base: what this was before it was tuned.

        Raises:
            ModelError: It does not say, or that model is not here.
        """
        plain = replace(self, name="Base", adapter=None, run=None, note="", base="")
        if self.adapter is not None:
            return plain
        if not self.base:
            raise ModelError(
                f"{self.name} does not say which model it was before", fix="Name that model by its own name."
            )
        return replace(plain, folder=resolve(self.base, home))


def find_source(name: str, *, home: Path, runs: Path, model: str | None = None) -> VoiceSource:
    """Find what a name means: a run, a checkpoint of it, an adapter folder, or a model.

    Args:
        name: As the person wrote it.
        home: macft's folder of models.
        runs: The folder of runs.
        model: The base of an adapter that does not name one on this machine.

    Raises:
        MacftError: Nothing has that name.
    """
    if (match := _CHECKPOINT.fullmatch(name)) and not Path(name).expanduser().exists():
        return _find_checkpoint(match[1], match[2], home, runs)
    try:
        adapter = find_adapter(name, runs)
    except RunError:
        if _is_run(name, runs):
            raise
        folder = _model_or_say(name, home)
        return VoiceSource(folder.name if Path(name).expanduser().is_dir() else name, folder, **_tuned_from(folder))
    own_name = adapter.parent.name if adapter.name in {"adapter", "model"} else adapter.name
    if (adapter / "config.json").is_file():
        return VoiceSource(own_name, adapter, **(_tuned_from(adapter) | _base_named_by(adapter.parent)))
    config = read_config(adapter)
    origin = config.get("macft", {})
    base = model or _recipe_model(adapter.parent) or config.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{adapter.name} does not name its base", fix="Name it with --model.")
    folder = resolve(base, home)
    changed = origin.get("template_hash", "") not in {"", template_hash(folder)}
    return VoiceSource(
        own_name,
        folder,
        # As in training: an adapter learns the errors of its base's quantization too.
        quantize=origin.get("quantize"),
        group_size=origin.get("quantize_group_size", 64),
        adapter=adapter,
        enable_thinking=bool(origin.get("enable_thinking", False)),
        note=CHANGED_TEMPLATE if changed else "",
    )


def find_sources(
    names: Sequence[str], *, home: Path, runs: Path, base: bool = True, model: str | None = None
) -> list[VoiceSource]:
    """Find the voices that names mean, with the Base of each that was tuned before it, once.

    Args:
        names: As the person wrote them.
        home: macft's folder of models.
        runs: The folder of runs.
        base: Add what tuned voices were before.
        model: The base of an adapter that does not name one.

    Raises:
        MacftError: A name means nothing, or there are more than eight voices.
    """
    named = [find_source(name, home=home, runs=runs, model=model) for name in names]
    voices: list[VoiceSource] = []
    plain = {source.weights for source in named if source.adapter is None}
    for source in named:
        if base and (source.adapter or source.base):
            before = source.without_adapter(home)
            if before.weights not in plain:
                plain.add(before.weights)
                voices.append(before)
        voices.append(source)
    if len(voices) > MOST_VOICES:
        raise RecipeError([Problem("", f"{len(voices)} voices, Base included (expected at most {MOST_VOICES})")])
    return [replace(source, name=name) for source, name in zip(voices, _names(voices), strict=True)]


def _names(voices: Sequence[VoiceSource]) -> list[str]:
    """Return names that differ: several Bases are called by their models, what is there twice is numbered."""
    bases = sum(source.name == "Base" for source in voices)
    names: list[str] = []
    for source in voices:
        name = f"Base {source.folder.name}" if source.name == "Base" and bases > 1 else source.name
        twice = sum(known.rpartition(" #")[0] == name or known == name for known in names)
        names.append(f"{name} #{twice + 1}" if twice else name)
    return names


def _find_checkpoint(name: str, which: str, home: Path, runs: Path) -> VoiceSource:
    run = find_run(name, runs)
    pointer = run.checkpoints / which
    step = pointer.read_text().strip() if pointer.is_file() else f"step-{int(which):06d}" if which.isdigit() else ""
    folder = run.checkpoints / step
    if not step or not (folder / "weights.safetensors").is_file():
        there = ", ".join(str(int(path.name[5:])) for path in sorted(run.checkpoints.glob("step-*"))) or "none"
        raise RunError(f"{run.name} has no checkpoint {which!r}", fix=f"Steps that were kept: {there}.")
    recipe = load_recipe(run.path / "recipe.toml")
    return VoiceSource(
        f"{run.name}@{int(step[5:])}",
        resolve(recipe.model, home),
        quantize=recipe.quantize,
        group_size=recipe.quantize_group_size,
        adapter=folder,
        run=run,
        enable_thinking=recipe.data.enable_thinking,
    )


def _tuned_from(folder: Path) -> dict[str, Any]:
    """Return what a model that macft wrote says about itself."""
    try:
        origin = json.loads((folder / "macft.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"base": origin.get("base_model", ""), "enable_thinking": bool(origin.get("enable_thinking", False))}


def _base_named_by(folder: Path) -> dict[str, str]:
    name = _recipe_model(folder)
    return {"base": name} if name else {}


def _recipe_model(folder: Path) -> str | None:
    recipe = folder / "recipe.toml"
    return load_recipe(recipe).model if recipe.is_file() else None


def _is_run(name: str, runs: Path) -> bool:
    try:
        find_run(name, runs)
    except RunError:
        return False
    return True


def _model_or_say(name: str, home: Path) -> Path:
    try:
        return resolve(name, home)
    except ModelError:
        raise ModelError(
            f"{name!r} is no run, adapter folder or model on this machine",
            fix="`macft runs` and `macft models` list what there is; `latest` is the last run.",
        ) from None
