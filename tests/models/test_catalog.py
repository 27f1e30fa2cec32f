"""Names become folders without going online, and a path is never taken for an id."""

from pathlib import Path

import pytest

from macft.errors import ModelError, NeedsNetwork
from macft.models.catalog import CATALOG, local_models, resolve
from tests.models.tiny import make_weights, write_model


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache with one model, one repository without weights and one that is not whole."""
    cache = tmp_path / "hub"
    for name, commit in (("org--small", "c1"), ("org--words", "c2"), ("org--broken", "c3")):
        repository = cache / f"models--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        write_model(repository / "snapshots" / commit, make_weights())
    (cache / "models--org--words" / "snapshots" / "c2" / "model.safetensors").unlink()
    (cache / "models--org--broken" / "snapshots" / "c3" / "model.safetensors").write_bytes(b"cut")
    return cache


def test_folders_are_found_as_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tiny), "./tiny", "tiny", "~/tiny"):
        assert resolve(name, tmp_path / "home") == tiny.resolve()


def test_catalog_names_are_found_in_any_case(tmp_path: Path):
    folder = write_model(tmp_path / "models" / "smollm2-135m", make_weights())
    assert resolve("SmolLM2-135M", tmp_path) == folder


def test_hub_ids_are_found_in_the_cache_and_in_macfts_folder(tmp_path: Path, cache: Path):
    assert resolve("org/small", tmp_path, hub_cache=cache).name == "c1"
    own = write_model(tmp_path / "models" / "org--small", make_weights())
    assert resolve("org/small", tmp_path, hub_cache=cache) == own


@pytest.mark.parametrize("name", ["smollm2-135m", "SMOLLM2-135M", "org/other"])
def test_a_model_that_is_not_here_says_how_to_pull_it(name: str, tmp_path: Path, cache: Path):
    with pytest.raises(NeedsNetwork, match=f"{name} is not on this machine") as caught:
        resolve(name, tmp_path, hub_cache=cache)
    pulled = name.lower() if name.lower() in CATALOG else name
    assert caught.value.fix == f"`macft pull {pulled}` fetches it."


@pytest.mark.parametrize("name", ["./org/other", "/no/where", "~/nothing-here", "../org/other"])
def test_a_mistyped_path_is_never_taken_for_an_id(name: str, tmp_path: Path):
    with pytest.raises(ModelError, match="is not there"):
        resolve(name, tmp_path)


@pytest.mark.parametrize("name", ["smolm2-135", "gpt", "a/b/c", "org/", "org/..", "", " ", "org/na me", "x" * 300])
def test_unknown_names_get_the_nearest_one(name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve(name, tmp_path / "home", hub_cache=cache)
    assert "smollm2-135m" in caught.value.fix


def test_a_file_is_no_model(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(tmp_path / "model.gguf"), tmp_path)


def test_all_models_are_listed_with_what_is_wrong(tmp_path: Path, cache: Path):
    write_model(tmp_path / "models" / "smollm2-135m", make_weights())
    write_model(tmp_path / "models" / "org--own", make_weights())
    (tmp_path / "models" / ".smollm2-135m.partial-1").mkdir()
    (tmp_path / "models" / "empty").mkdir()
    facts = {model.name: model for model in local_models(tmp_path, hub_cache=cache)}
    assert set(facts) == {"smollm2-135m", "org/own", "empty", "org/small", "org/broken"}
    assert facts["org/small"].trainable
    assert "has no config.json" in facts["empty"].why_not
    assert "is damaged" in facts["org/broken"].why_not
    assert not facts["org/broken"].trainable


def test_a_machine_without_models_lists_none(tmp_path: Path):
    assert local_models(tmp_path / "none", hub_cache=tmp_path / "neither") == []
