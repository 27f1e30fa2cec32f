"""What arguments mean: recipes with overrides, paths as the person sees them, the model that was not named.

The rule: a path on the command line is relative to the current folder, one in a recipe to the recipe.
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tomlkit
from cyclopts import Parameter
from cyclopts.validators import Number

from macft import api
from macft.errors import ModelError, Problem, RecipeError
from macft.recipe import DataTable, Recipe, apply_overrides, make_recipe

STDIN = "/dev/stdin"
"""What a lone dash is called from here on."""
FIRST_MODEL = "smollm2-135m"

AsJson = Annotated[bool, Parameter(name="--json")]
Files = Annotated[list[str], Parameter(consume_multiple=True)]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Method = Literal["sft", "pretrain", "dpo", "orpo", "simpo", "cpo", "kto"]
Strings = Literal["text", "chat"]
TrainOn = Literal["assistant", "last", "all"]


def read_recipe(name: str, *, model: str | None, data: Sequence[str], settings: Sequence[str]) -> Recipe:
    """Read a recipe by path, gallery name or from stdin, with what the command line changes.

    Raises:
        RecipeError: With every problem.
    """
    overrides = [f"model={_toml(_model_path(model))}"] if model else []
    if STDIN in data:
        raise RecipeError(
            [Problem("--data -", "a run outlives the pipe that its rows come through")],
            fix="Save the rows to a file and name that.",
        )
    if data:
        overrides.append(f"data.train=[{', '.join(_toml(path) for path in absolute(data))}]")
        overrides += ["data.valid=[]", "data.test=[]"]  # the recipe's own would score another task
    overrides += settings
    if name != STDIN:
        return api.read_recipe(name, overrides)
    try:
        values = tomllib.loads(sys.stdin.read())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError([Problem("stdin", f"is not TOML: {error}")]) from None
    return make_recipe(apply_overrides(values, overrides), folder=Path.cwd())


def read_data_table(files: Sequence[str], *, train_on: str = "assistant", strings: str = "text") -> DataTable:
    """Return files as a data table that holds nothing out."""
    how = {"train_on": train_on, "strings": strings, "valid_fraction": 0.0}
    return DataTable.model_validate({"train": absolute(files), **how})


def choose_model(model: str | None) -> str:
    """Return the named model, or the only one on this machine.

    Raises:
        ModelError: There are several.
    """
    if model:
        return _model_path(model)
    known = [facts.name for facts in api.list_models() if facts.trainable]
    if len(known) > 1:
        raise ModelError("tokens depend on the model, and several are here", fix=f"--model: {', '.join(known)}.")
    return known[0] if known else FIRST_MODEL


def absolute(paths: Sequence[str]) -> list[str]:
    """Return paths that mean the same from any folder; stdin becomes a dash."""
    return ["-" if path == STDIN else str(Path(path).expanduser().resolve()) for path in paths]


def _model_path(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if model.startswith((".", "~")) or path.is_dir() else model


def _toml(text: str) -> str:
    return tomlkit.item(text).as_string()
