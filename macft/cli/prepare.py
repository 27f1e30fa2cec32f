"""The commands that look at data, recipes and models before a run.

The rule: as in `main`, a command is one call of `macft.api` or a light room, and its answer shown.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path

from cyclopts import App

from macft import api, gallery
from macft.cli import tables
from macft.cli.arguments import AsJson, Method, Positive, Strings, TrainOn, choose_model, read_data_table
from macft.cli.render import narrate, open_view
from macft.events import PhaseProgress
from macft.format import clean, columns
from macft.machine import MIB
from macft.recipe import METHODS, describe_fields
from macft.state import RunState

data = App(name="data", help="Check, clean, split and mix rows, or show one as the model sees it.", help_epilogue="")
recipes = App(name="recipes", help="List, show and copy recipes, or list their keys.", help_epilogue="")


@data.command(name="show")
def show_row(
    file: str,
    /,
    *,
    row: Positive,
    model: str | None = None,
    method: Method | None = None,
    train_on: TrainOn = "assistant",
    strings: Strings = "text",
    ids: bool = False,
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Show a row as the model sees it, what is trained on underlined.

    Args:
        file: A file or folder of rows; - reads JSONL from stdin.
        row: Its place, counted from 1.
        model: Whose tokenizer and template; the only model here when left out.
        method: What the row is for; told by its columns when left out.
        train_on: Which tokens are trained on; assistant when left out.
        strings: Preferences written as strings are text as it stands, or a chat; text when left out.
        ids: Print the token ids too.
        json: Print JSON.
        plain: Mark with a line of ▔ below instead of underlining.
    """
    wanted = read_data_table([file], train_on=train_on, strings=strings)
    found = api.show_row(wanted, row, model=choose_model(model), method=method)
    if json:
        tables.print_json(tables.row_values(found))
    else:
        tables.print_row(found, with_ids=ids, plain=plain)


@recipes.default
def list_recipes(*, json: AsJson = False) -> None:
    """List the recipes that come with macft.

    Args:
        json: Print JSON.
    """
    known = gallery.list_gallery()
    if json:
        tables.print_json({"recipes": [recipe._asdict() for recipe in known]})
    else:
        tables.print_lines(columns([["RECIPE", "WHAT FOR"], *([recipe.name, recipe.purpose] for recipe in known)]))


recipes.command(list_recipes, name="list")


@recipes.command(name="show")
def show_recipe(name: str, /) -> None:
    """Print a recipe.

    Args:
        name: A recipe's name or file.
    """
    print(clean(gallery.find_recipe(name).read_text(encoding="utf-8")), end="")


@recipes.command(name="copy")
def copy_recipe(name: str, folder: Path = Path(), /) -> None:
    """Copy a recipe and its data, to be changed.

    Args:
        name: A recipe's name or file.
        folder: Where to; the current folder when left out.
    """
    print(gallery.copy_recipe(name, folder))


@recipes.command(name="keys")
def list_keys(*, method: Method = "sft", json: AsJson = False) -> None:
    """List every key of a recipe, its default and what it means.

    Args:
        method: Whose keys.
        json: Print JSON.
    """
    keys = describe_fields(METHODS[method])
    if json:
        fields = ("key", "default", "doc")
        tables.print_json({"keys": [dict(zip(fields, key, strict=True)) for key in keys]})
    else:
        tables.print_lines(tables.key_lines(keys))


def pull(model: str, /, *, config_only: bool = False, json: AsJson = False, plain: bool = False) -> None:
    """Fetch a model; the only command that goes online.

    Args:
        model: A name from the catalog (smollm2-135m) or a Hugging Face id.
        config_only: Only config and tokenizer, to plan with.
        json: Print event lines while it goes on, and an object with the path at the end.
        plain: Lines instead of bars.
    """
    with show_progress(json=json, plain=plain) as tell_progress:

        def progress(what: str, done: int, total: int) -> None:
            tell_progress(what, done // MIB, total // MIB, "MB" if done >= MIB else "")

        path = api.pull(model, config_only=config_only, progress=progress)
    print(dumps({"schema": tables.SCHEMA, "path": str(path)}) if json else path)


def list_models(*, json: AsJson = False) -> None:
    """List the models on this machine.

    Args:
        json: Print JSON.
    """
    known = api.list_models()
    if json:
        tables.print_json({"models": [tables.model_values(facts) for facts in known]})
    elif known:
        tables.print_lines(tables.model_lines(known))
    else:
        narrate("No models yet: `macft pull smollm2-135m` fetches a small one.")


@contextmanager
def show_progress(*, plain: bool, json: bool = False) -> Iterator[Callable[..., None]]:
    """Show phases that are no run's."""
    view = open_view(json=json, plain=plain)

    def progress(name: str, done: int, total: int, note: str = "") -> None:
        view.show(PhaseProgress(name=name, done=done, total=total, note=note), RunState())

    try:
        yield progress
    finally:
        view.close()
