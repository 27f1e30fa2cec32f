"""LM Studio is given links to a model, and nothing it has is written over."""

from pathlib import Path

import pytest

from macft.errors import RunError
from macft.models.export.lmstudio import find_lmstudio, link_into


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_its_folder_is_found_where_it_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder here"):
        find_lmstudio(tmp_path)
    (tmp_path / ".cache" / "lm-studio").mkdir(parents=True)
    assert find_lmstudio(tmp_path) == tmp_path / ".cache" / "lm-studio" / "models"
    (tmp_path / ".lmstudio").mkdir()
    assert find_lmstudio(tmp_path) == tmp_path / ".lmstudio" / "models"


def test_a_model_is_linked_and_takes_no_room(model: Path, tmp_path: Path) -> None:
    place = link_into(tmp_path / "models", model, "mine")
    assert place == tmp_path / "models" / "macft" / "mine"
    assert (place / "config.json").samefile(model / "config.json")


def test_a_name_that_is_taken_is_refused(model: Path, tmp_path: Path) -> None:
    link_into(tmp_path / "models", model, "mine")
    with pytest.raises(RunError, match="is there already"):
        link_into(tmp_path / "models", model, "mine")
