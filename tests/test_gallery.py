"""The gallery: what it lists, and what a copy of a recipe takes along."""

from pathlib import Path

import pytest

from macft.errors import RecipeError
from macft.gallery import copy_recipe, find_recipe, list_gallery
from macft.recipe import load_recipe


def test_every_recipe_says_what_it_is_for_and_is_found_by_its_name() -> None:
    gallery = list_gallery()
    assert gallery
    for recipe in gallery:
        assert recipe.purpose
        assert find_recipe(recipe.name) == find_recipe(f"{recipe.name}.toml") == recipe.path


def test_every_recipe_is_whole_and_its_data_comes_with_a_licence() -> None:
    for recipe in list_gallery():
        data = load_recipe(recipe.path).data
        assert data.train
        for path in map(Path, (*data.train, *data.valid, *data.test)):
            assert path.is_file(), path
            assert (path.parent / "LICENSE.md").is_file()


def test_an_unknown_name_is_sent_to_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'quickstart'\?"):
        find_recipe("quikstart")


def test_a_copy_takes_its_data_along(tmp_path: Path) -> None:
    copied = load_recipe(copy_recipe("quickstart", tmp_path))
    assert copied.data.train
    for path in (*copied.data.train, *copied.data.valid, *copied.data.test):
        assert Path(path).is_relative_to(tmp_path)
        assert Path(path).exists()


def test_data_may_be_a_file_or_a_folder_and_what_is_not_named_stays(tmp_path: Path) -> None:
    data = tmp_path / "mine" / "data"
    (data / "folder").mkdir(parents=True)
    for name in ("rows.jsonl", "folder/more.jsonl", "other.jsonl"):
        (data / name).write_text(f'{{"text": "{name}"}}\n')
    mine = tmp_path / "mine" / "my.toml"
    mine.write_text('model = "m"\n[data]\ntrain = ["data/rows.jsonl", "data/folder"]\n')
    copy_recipe(str(mine), tmp_path / "copy")
    copies = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert copies == {"my.toml", "data/rows.jsonl", "data/folder/more.jsonl"}
    with pytest.raises(RecipeError, match="exists already"):
        copy_recipe(str(mine), tmp_path / "copy")
