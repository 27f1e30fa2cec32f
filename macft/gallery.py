"""The recipes that come with macft, found by name from anywhere.

The rule: a recipe's head comment says what it is for; nothing about a recipe is written down twice.
"""

import difflib
import shutil
from pathlib import Path
from typing import NamedTuple

from macft.errors import Problem, RecipeError


class GalleryRecipe(NamedTuple):
    """A recipe of the gallery: its name, its file and the first line of its head comment."""

    name: str
    path: Path
    purpose: str


def list_gallery() -> list[GalleryRecipe]:
    """List the gallery by name."""
    return [
        GalleryRecipe(path.stem, path, read_head(path).partition("\n")[0]) for path in sorted(_folder().glob("*.toml"))
    ]


def read_head(path: Path) -> str:
    """Return a recipe's head comment without its comment marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(lines)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe that is named by its path or by its name in the gallery.

    Raises:
        RecipeError: Neither exists; the nearest gallery name is given.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = {recipe.name: recipe.path for recipe in list_gallery()}
    if (stem := name.removesuffix(".toml").removeprefix("recipes/")) in known:
        return known[stem]
    near = difflib.get_close_matches(stem, known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise RecipeError(
        [Problem(name, "no such file, and no recipe of the gallery")], fix=f"{hint}`macft recipes` lists it."
    )


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a gallery recipe and the data it names into `folder`, to be changed there.

    Raises:
        RecipeError: There is no such recipe, or the file exists already.
    """
    source = find_recipe(name)
    target = folder / source.name
    if target.exists():
        raise RecipeError([Problem(str(target), "exists already")], fix="Copy into another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    for data in sorted((source.parent / "data").glob("*")):
        if f"data/{data.name}" in text:
            _copy(data, folder / "data" / data.name)
    shutil.copyfile(source, target)
    return target


def find_data(name: str) -> Path:
    """Return a folder of rows that come with macft."""
    return _folder() / "data" / name


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def _folder() -> Path:
    # In a wheel the gallery lies inside the package, in a checkout beside it.
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
