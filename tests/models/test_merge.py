"""Merged adapters: the concatenated one is the exact weighted sum of the updates."""

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest

from macft.errors import ModelError, RecipeError
from macft.models.adapters import load_adapter, read_adapter, read_adapter_config
from macft.models.describe import read_config
from macft.models.load import load_model, to_old_dialect
from macft.models.merge import Part, merge_adapters
from tests.golden import HERE, load_case
from tests.models.adapters import TOKENS, write_golden_adapter

LLAMA, PATTERNS = load_case("llama").folder, HERE / "peft" / "patterns"


def updates(folder: Path) -> dict[str, np.ndarray]:
    """Every module's update, written out in NumPy."""
    config, weights = read_adapter(folder)
    scale = config["lora_parameters"]["scale"]
    modules = {name.rpartition(".")[0] for name in weights}
    return {name: scale * np.array(weights[f"{name}.lora_a"]) @ np.array(weights[f"{name}.lora_b"]) for name in modules}


def merged(out: Path, *parts: Part, way: str = "concat") -> Path:
    out.mkdir()
    merge_adapters(parts, out, way=way)
    return out


def test_concat_is_the_weighted_sum_whatever_ranks_and_targets(tmp_path: Path) -> None:
    whole = write_golden_adapter(tmp_path / "whole", kind="rslora")
    out = merged(tmp_path / "out", Part(whole, 0.7), Part(PATTERNS, -0.3))
    found, first, second = updates(out), updates(whole), updates(PATTERNS)
    for name, update in found.items():
        expected = 0.7 * first[name] - 0.3 * second.get(name, np.zeros_like(update))
        np.testing.assert_allclose(update, expected, atol=1e-6)
    assert second.keys() < found.keys() == first.keys()
    assert read_adapter_config(out)["lora_parameters"]["rank"] == 8


def test_stock_mlx_lm_loads_what_was_merged_and_computes_the_same(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", Part(PATTERNS, 0.5), Part(PATTERNS, 0.5))
    ours, _ = load_model(LLAMA)
    load_adapter(ours, out)
    alone, _ = load_model(LLAMA)
    load_adapter(alone, PATTERNS)
    theirs, _ = mlx_lm.utils.load_model(LLAMA, model_config=to_old_dialect(read_config(LLAMA)))
    theirs = mlx_lm.utils.load_adapters(theirs, str(out)).eval()
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS)).item()
    expected = alone(TOKENS)
    assert mx.abs(ours(TOKENS) - expected).max().item() < 2e-6 * mx.abs(expected).max().item()


def test_linear_keeps_the_rank(tmp_path: Path) -> None:
    one = write_golden_adapter(tmp_path / "one")
    out = merged(tmp_path / "out", Part(one, 0.25), Part(one, 0.25), way="linear")
    # √¼ of A twice is A, and so for B: linear merging of an adapter with itself keeps all of it.
    for name, update in updates(out).items():
        np.testing.assert_allclose(update, updates(one)[name], atol=1e-6)
    assert read_adapter_config(out)["lora_parameters"]["rank"] == 4


def test_it_says_what_it_was_made_of_without_a_path(tmp_path: Path) -> None:
    one = write_golden_adapter(tmp_path / "one", base_fingerprint="f" * 64)
    out = merged(tmp_path / "out", Part(one, 0.7), Part(one, 0.3))
    told = json.loads((out / "adapter_config.json").read_text())["macft"]
    assert told["merged"] == [{"adapter": "one", "strength": 0.7}, {"adapter": "one", "strength": 0.3}]
    assert told["base_fingerprint"] == "f" * 64
    assert str(tmp_path) not in (out / "adapter_config.json").read_text()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    one = write_golden_adapter(tmp_path / "one", base_fingerprint="f" * 64)
    other = write_golden_adapter(tmp_path / "other", base_fingerprint="0" * 64)
    dora = write_golden_adapter(tmp_path / "dora", kind="dora")
    with pytest.raises(ModelError, match="different bases"):
        merge_adapters([Part(one, 0.5), Part(other, 0.5)], tmp_path, way="concat")
    with pytest.raises(ModelError, match="dora adapter, whose update is no sum"):
        merge_adapters([Part(one, 0.5), Part(dora, 0.5)], tmp_path, way="concat")
    with pytest.raises(RecipeError, match="patterns: has no update of"):
        merge_adapters([Part(write_golden_adapter(tmp_path / "a"), 1), Part(PATTERNS, 1)], tmp_path, way="linear")
