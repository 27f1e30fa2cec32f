"""A recipe in the making: where it comes from, and what the person changed.

The rule: a draft is a recipe's name and its changed keys, as `macft train NAME --set KEY=VALUE` takes them; so the
command that is shown is what Start does.
"""

import shlex
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomlkit

from macft import api
from macft.chat.panes import Voice
from macft.disk import write_atomic
from macft.errors import RecipeError
from macft.gallery import find_recipe
from macft.recipe import Recipe, to_toml

PLACES = {"data.train", "data.valid", "data.test"}
"""Keys whose values are paths; a person's paths are relative to where the studio was opened."""
FROM_ADAPTER, FROM_MODEL = "dpo-lora-devils", "dpo-lora-tone"
"""Recipes of the gallery that picks are trained with: after another run, and without one."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe to be started.

    Attributes:
        source: A gallery name, or a recipe's file.
        edits: Changed keys, dotted, with their values as TOML.
    """

    source: str
    edits: dict[str, str] = field(default_factory=dict)

    def change(self, key: str, value: str) -> "Draft":
        """Return the draft with one key set; an empty value goes back to what the source says."""
        edits = {name: text for name, text in self.edits.items() if name != key}
        return replace(self, edits={**edits, key: value.strip()} if value.strip() else edits)

    def change_all(self, values: dict[str, str]) -> "Draft":
        """Return the draft with several keys set."""
        draft = self
        for key, value in values.items():
            draft = draft.change(key, value)
        return draft

    def written(self, key: str) -> str:
        """Return what the source says of a key, as TOML; empty when it says nothing."""
        return look_up(self.values(), key)

    def shown(self, key: str) -> str:
        """Return a key's value as it stands now, as TOML."""
        return self.edits.get(key, self.written(key))

    def value(self, key: str) -> Any:
        """Return a key's value as it stands now, whether it is right or not; None when nothing is said."""
        try:
            return tomllib.loads(f"value = {_as_toml(key, self.shown(key))}")["value"] if self.shown(key) else None
        except (ValueError, TypeError):
            return None

    def values(self) -> dict[str, Any]:
        """Return the source as nested dicts; empty when it cannot be read."""
        try:
            return tomllib.loads(find_recipe(self.source).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecipeError):
            return {}

    def overrides(self) -> list[str]:
        """Return the edits as `--set` takes them."""
        return [f"{key}={_as_toml(key, value)}" for key, value in self.edits.items()]

    def recipe(self) -> Recipe:
        """Return the recipe as it would be started.

        Raises:
            RecipeError: With every key that is wrong.
        """
        return api.read_recipe(self.source, self.overrides())

    def command(self) -> str:
        """Return the command that does the same."""
        flags = "".join(f" \\\n  --set {shlex.quote(edit)}" for edit in self.overrides())
        return f"macft train {shlex.quote(self.source)}{flags}"

    def save(self, path: Path) -> None:
        """Write the draft as a recipe file; the source's comments stay."""
        document = tomlkit.parse(find_recipe(self.source).read_text(encoding="utf-8-sig"))
        for key, value in self.edits.items():
            *tables, name = key.split(".")
            target: Any = document
            for table in tables:
                target = target.setdefault(table, tomlkit.table())
            target[name] = tomllib.loads(f"value = {_as_toml(key, value)}")["value"]
        write_atomic(path, tomlkit.dumps(document).encode())


def draft_for_picks(picks: Path, voice: Voice) -> Draft:
    """Return a DPO recipe on what people picked, which goes on from the voice that is to become better.

    Raises:
        MacftError: The recipe that made the voice cannot be read.
    """
    rows = {"data.train": to_toml([str(picks)]), "data.valid": "[]", "data.valid_fraction": "0.1"}
    if voice.adapter is None:
        return Draft(FROM_MODEL, {"model": to_toml(voice.model_path), **rows})
    edits = {"model": to_toml(voice.model_path), "start_from": to_toml(voice.adapter)}
    adapter = Path(voice.adapter)
    run = next((folder for folder in adapter.parents[:2] if (folder / "recipe.toml").is_file()), None)
    if run:
        made = api.read_recipe(str(run / "recipe.toml"))
        edits |= {"model": to_toml(made.model), "start_from": to_toml(str(run)), "adapter": to_toml(made.adapter)}
        edits |= {"lora.rank": str(made.lora.rank), "lora.alpha": f"{made.lora.alpha:g}"}
        edits |= {"quantize": str(made.quantize)} if made.quantize else {}
    return Draft(FROM_ADAPTER, {**edits, **rows})


def look_up(values: dict[str, Any], key: str) -> str:
    """Return what nested dicts say of a dotted key, as TOML; empty when they say nothing."""
    value: Any = values
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None else str(tomlkit.item(value).as_string())


def _as_toml(key: str, value: str) -> str:
    """Return the value as TOML: words without quotes get them, and paths are made absolute."""
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        read = value
    if key in PLACES:
        paths = [read] if isinstance(read, str) else list(read)
        read = [str(Path(path).expanduser().resolve()) for path in paths]
    return str(tomlkit.item(read).as_string())
