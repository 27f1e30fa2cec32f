"""What the user asks for: one frozen, validated object, read from a TOML file.

The rule: every field is documented where it is declared, and that docstring feeds errors, `--help`, the studio's form
and the reference in the README. Nothing is copied out of a Recipe into another configuration object.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomlkit
from pydantic import BaseModel, Discriminator, TypeAdapter, ValidationError

from macft.errors import Problem, RecipeError
from macft.recipe_methods import (
    VERSION,
    BaseRecipe,
    CpoRecipe,
    DpoRecipe,
    KtoRecipe,
    OrpoRecipe,
    PreferenceRecipe,
    PretrainRecipe,
    SftRecipe,
    SimpoRecipe,
    SupervisedRecipe,
)
from macft.recipe_tables import (
    CheckpointTable,
    DataTable,
    EvaluateTable,
    LoraTable,
    OptimizerTable,
    ScheduleTable,
    Table,
)

__all__ = [
    "METHODS",
    "VERSION",
    "BaseRecipe",
    "CheckpointTable",
    "CpoRecipe",
    "DataTable",
    "DpoRecipe",
    "EvaluateTable",
    "KtoRecipe",
    "LoraTable",
    "OptimizerTable",
    "OrpoRecipe",
    "PreferenceRecipe",
    "PretrainRecipe",
    "Recipe",
    "ScheduleTable",
    "SftRecipe",
    "SimpoRecipe",
    "SupervisedRecipe",
    "Table",
    "apply_overrides",
    "describe_fields",
    "dump_recipe",
    "load_recipe",
    "make_recipe",
]


Recipe = SftRecipe | PretrainRecipe | DpoRecipe | OrpoRecipe | SimpoRecipe | CpoRecipe | KtoRecipe
"""Any recipe; `method` says which. Keys of another method are refused."""

_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Discriminator("method")])
_BRANCH = re.compile(r"literal\[|list\[|constrained-|bool$|int$")
_SHOWN_CHARACTERS = 80
METHODS: dict[str, type[BaseRecipe]] = {
    "sft": SftRecipe,
    "pretrain": PretrainRecipe,
    "dpo": DpoRecipe,
    "orpo": OrpoRecipe,
    "simpo": SimpoRecipe,
    "cpo": CpoRecipe,
    "kto": KtoRecipe,
}
"""The class of each method."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides and validate the whole.

    Args:
        path: A TOML file; paths inside it are relative to it.
        overrides: `a.b=c` in order; the value is TOML, or a plain string when it is not.

    Raises:
        RecipeError: The file is missing or not TOML, or anything in it is wrong; all problems at once.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError([Problem(str(path), "no such recipe")], fix="`macft recipes` lists the gallery.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read ({error})")]) from None
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: Python limits digits and depth
        raise RecipeError([Problem(str(path), f"is not TOML: {error}")]) from None
    return make_recipe(apply_overrides(values, overrides), folder=path.parent)


def make_recipe(values: dict[str, Any], *, folder: Path | None = None) -> Recipe:
    """Validate a recipe given as nested dicts; relative paths are taken from `folder`.

    Raises:
        RecipeError: With every problem, its dotted key and the nearest valid name.
    """
    if isinstance(version := values.get("version", VERSION), int) and version > VERSION:
        raise RecipeError(
            [Problem("version", f"this recipe is written for format {version}; this macft reads up to {VERSION}")],
            fix="Update macft.",
        )
    values = {"method": "sft", **values}
    try:
        recipe = _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = [_problem(dict(detail), values) for detail in error.errors()]
        raise RecipeError(_merged(problems)) from None
    if conflicts := recipe.list_conflicts():
        raise RecipeError(conflicts)
    return _resolve_paths(recipe, folder.resolve()) if folder else recipe


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `values` with each `a.b=c` set; tables are made where they are missing.

    Raises:
        RecipeError: An override without `=`, or a path through something that is not a table.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    problems = []
    for override in overrides:
        dotted, found, text = override.partition("=")
        *tables, key = dotted.strip().split(".")
        target: Any = merged
        for name in tables:
            target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if not found or not key or not isinstance(target, dict):
            problems.append(Problem(f"--set {override}", "expected key=value, like lora.rank=16"))
        else:
            target[key] = _toml_value(text.strip())
    if problems:
        raise RecipeError(problems)
    return merged


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML, every key spelled out, None left out."""
    return tomlkit.dumps({"method": recipe.method, **recipe.model_dump(mode="json", exclude_none=True)})


def to_toml(value: Any) -> str:
    """Write a value as TOML."""
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, value before, value after) of each key that is not the same in two recipes.

    Values are TOML, and empty where a recipe has none.
    """
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            found += differences(old or {}, new or {}, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, "" if old is None else to_toml(old), "" if new is None else to_toml(new)))
    return found


def describe_fields(table: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """List (dotted key, default as TOML, documentation) of every key of a recipe, tables last."""
    rows, tables = [], []
    for name, field in table.model_fields.items():
        default = field.get_default()
        if isinstance(default, BaseModel):
            tables += describe_fields(type(default), f"{prefix}{name}.")
        else:
            shown = "required" if field.is_required() else "" if default is None else tomlkit.item(default).as_string()
            rows.append((prefix + name, shown, field.description or ""))
    return rows + tables


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _problem(detail: dict[str, Any], values: dict[str, Any]) -> Problem:
    method = str(values.get("method"))
    # Pydantic names the branch of a union in the path; those parts are not keys.
    path = [str(part) for part in detail["loc"] if str(part) not in METHODS and not _BRANCH.match(str(part))]
    key = ".".join(path)
    if detail["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return Problem("method", f"{method!r} is not a method (expected one of {', '.join(METHODS)}).{hint}")
    if detail["type"] == "extra_forbidden":
        known = [row[0] for row in describe_fields(METHODS.get(method, SftRecipe))]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            name for name in known if name.rsplit(".")[-1] == path[-1]
        ]
        return Problem(key, "unknown key." + (f" Did you mean `{near[0]}`?" if near else ""))
    if detail["type"] == "missing":
        return Problem(key, "is required")
    got = detail.get("input")
    shown = f" (got {_shorten(got)})" if isinstance(got, str | int | float | bool) else ""
    return Problem(key, detail["msg"][0].lower() + detail["msg"][1:] + shown)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _merged(problems: list[Problem]) -> list[Problem]:
    # A union reports each branch by itself: one key, one line.
    by_key: dict[str, list[str]] = {}
    for problem in problems:
        by_key.setdefault(problem.where, []).append(problem.what)
    return [Problem(key, ", or ".join(texts)) for key, texts in by_key.items()]


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(text: str) -> str:
        return text if text == "-" else str((folder / Path(text).expanduser()).resolve())

    data = recipe.data
    resolved = data.model_copy(
        update={
            name: [absolute(text) for text in getattr(data, name)] for name in ("train", "valid", "test", "general")
        }
    )
    update: dict[str, Any] = {"data": resolved}
    for name in ("model", "start_from"):
        text = getattr(recipe, name) or ""
        if text.startswith((".", "/", "~")) or (text and (folder / text).is_dir()):
            update[name] = absolute(text)
    return recipe.model_copy(update=update)
