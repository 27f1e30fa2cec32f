"""What the command line makes of recipes and paths."""

from pathlib import Path

import pytest

from macft.cli.arguments import read_recipe


def test_rows_of_ones_own_take_the_place_of_all_the_recipes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("quickstart", model=None, data=["my.jsonl"], settings=["steps=3", "data.test=['t.jsonl']"])
    assert recipe.data.train == [str(tmp_path / "my.jsonl")]
    assert recipe.data.valid == []
    assert [Path(path).name for path in recipe.data.test] == ["t.jsonl"]  # what is set by name is kept
    assert recipe.steps == 3
    assert read_recipe("quickstart", model=None, data=[], settings=[]).data.valid != []
