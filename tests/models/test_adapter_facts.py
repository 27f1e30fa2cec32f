"""Adapters of every writer are described without their weights, and known by folders and links alone."""

import json
from pathlib import Path

import pytest

from macft.errors import ModelError
from macft.models.adapter_facts import add_adapter, describe_adapter, discard_adapter, list_adapters
from tests.golden import HERE
from tests.shelf import Shelf


def write_mlx_lm(folder: Path) -> Path:
    folder.mkdir(parents=True)
    told = {"fine_tune_type": "dora", "num_layers": 8, "lora_parameters": {"rank": 16, "scale": 20.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    (folder / "adapters.safetensors").write_bytes(b"x" * 100)
    return folder


def test_an_adapter_says_what_it_is_whoever_wrote_it(shelf: Shelf, tmp_path: Path) -> None:
    ours = describe_adapter(shelf.add_run("one", seed=1, rank=4).adapter, "one")
    assert (ours.name, ours.base, ours.writer, ours.rank, ours.kind) == ("one", "tiny", "macft", 4, "lora")
    assert ours.size_bytes == (shelf.runs / "one" / "adapter" / "adapters.safetensors").stat().st_size
    theirs = describe_adapter(write_mlx_lm(tmp_path / "theirs"))
    assert (theirs.writer, theirs.kind, theirs.rank, theirs.scale, theirs.layers) == ("mlx-lm", "dora", 16, 20.0, 8)
    peft = describe_adapter(HERE / "peft" / "patterns")
    told = json.loads((HERE / "peft" / "patterns" / "adapter_config.json").read_text())
    assert (peft.writer, peft.rank) == ("PEFT", told["r"])
    assert peft.scale == pytest.approx(told["lora_alpha"] / told["r"])


def test_what_is_damaged_says_so(tmp_path: Path) -> None:
    assert "cannot be read" in describe_adapter(tmp_path).problem
    folder = write_mlx_lm(tmp_path / "a")
    (folder / "adapters.safetensors").unlink()
    assert "has no adapters.safetensors" in describe_adapter(folder).problem
    (folder / "adapter_config.json").write_text("[]")
    assert describe_adapter(folder).problem


def test_folders_elsewhere_are_known_by_a_link(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    theirs = write_mlx_lm(tmp_path / "work" / "adapters")
    snapshot = write_mlx_lm(cache / "models--them--it" / "snapshots" / "abc")
    assert add_adapter(theirs, home).name == "work"
    found = list_adapters(home, hub_cache=cache, here=theirs.parent)
    assert [(facts.name, facts.rank) for facts in found] == [("work", 16), ("./adapters", 16), ("them/it", 16)]
    assert found[2].path == snapshot
    with pytest.raises(ModelError, match="there already"):
        add_adapter(theirs, home)
    with pytest.raises(ModelError, match="cannot be read"):
        add_adapter(tmp_path, home)


def test_only_what_is_macfts_own_can_be_taken_away(tmp_path: Path) -> None:
    home = tmp_path / "home"
    theirs = write_mlx_lm(tmp_path / "theirs")
    link = add_adapter(theirs, home).path
    kept = discard_adapter(link, home)
    assert list_adapters(home, hub_cache=tmp_path) == []
    assert describe_adapter(theirs).problem == ""
    kept.rename(link)
    assert [facts.name for facts in list_adapters(home, hub_cache=tmp_path)] == ["theirs"]
    with pytest.raises(ModelError, match="is not macft's"):
        discard_adapter(theirs, home)
