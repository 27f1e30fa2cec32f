"""PEFT's adapters: read as transformers and peft compute with them, and written byte for byte as peft writes them."""

import hashlib
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from safetensors.numpy import load_file, save_file

from macft.errors import ModelError
from macft.models.adapters import load_adapter, read_adapter, write_adapter_files
from macft.models.load import load_model
from macft.models.peft import WEIGHTS, save_peft_tensors, to_peft
from tests.golden import HERE, load_case
from tests.models.adapters import write_golden_adapter

LLAMA, PEFT = load_case("llama"), HERE / "peft"


def written(folder: Path, out: Path) -> Path:
    """Write what a folder holds as a PEFT folder."""
    told, tensors = to_peft(*read_adapter(folder))
    out.mkdir()
    save_peft_tensors(out / WEIGHTS, tensors)
    (out / "adapter_config.json").write_text(json.dumps(told))
    return out


def away(model: nn.Module, name: str) -> float:
    """The furthest that a model's logits are from those of a PEFT adapter."""
    with np.load(PEFT / "logits.npz") as logits:
        return float(np.abs(np.array(model(mx.array(LLAMA.ids[:1]))[0]) - logits[name]).max())


def in_float64(model: nn.Module) -> nn.Module:
    """The same model without fp32's rounding, which is another on each CPU and up to 1.2e-5 on these logits."""
    model.update(tree_map(lambda tensor: tensor.astype(mx.float64), model.parameters()))
    return model


@pytest.mark.parametrize("name", ["lora", "dora", "patterns"])
def test_an_adapter_of_pefts_computes_what_peft_computes(name: str) -> None:
    model, _ = load_model(LLAMA.folder)
    base = away(model, name)
    load_adapter(model, PEFT / name)
    assert base > 0.05
    assert away(model, name) < 5e-5
    with mx.stream(mx.cpu):
        assert away(in_float64(model), name) < 1e-5


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_after_two_trips_the_bytes_are_pefts_own(name: str, tmp_path: Path) -> None:
    config, weights = read_adapter(PEFT / name)
    (tmp_path / "ours").mkdir()
    write_adapter_files(tmp_path / "ours", weights, config, {"base_model": "llama"})
    there = written(tmp_path / "ours", tmp_path / "theirs")
    assert (there / WEIGHTS).read_bytes() == (PEFT / name / WEIGHTS).read_bytes()
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (there, PEFT / name))
    assert {key: theirs[key] for key in ours} == ours | {"target_modules": theirs["target_modules"]}
    assert set(ours["target_modules"]) == set(theirs["target_modules"])


def test_what_is_filled_up_for_mlx_lm_computes_the_same_on_its_way_back(tmp_path: Path) -> None:
    """Ranks, alphas and layers of its own; two trips end with the bytes of the first."""
    once = written(PEFT / "patterns", tmp_path / "once")
    twice = written(once, tmp_path / "twice")
    assert (once / WEIGHTS).read_bytes() == (twice / WEIGHTS).read_bytes()
    assert json.loads((once / "adapter_config.json").read_text())["layers_to_transform"] == [0, 2]
    model, _ = load_model(LLAMA.folder)
    load_adapter(model, twice)
    with mx.stream(mx.cpu):
        assert away(in_float64(model), "patterns") < 1e-5


def test_a_fixed_adapter_gives_a_fixed_file(tmp_path: Path) -> None:
    """The file's hash; transformers and peft load exactly this one in a long test."""
    there = written(write_golden_adapter(tmp_path / "ours"), tmp_path / "theirs")
    assert hashlib.sha256((there / WEIGHTS).read_bytes()).hexdigest() == FIXED


FIXED = "ceb1e19c3062267d1ea0283ba3c9aca21d7e794694fe0fa2aef99631b0d93c3e"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"bias": "all"}, "`bias` is set"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save` is set"),
        ({"fan_in_fan_out": True}, "`fan_in_fan_out` is set"),
    ],
)
def test_what_mlx_lm_cannot_hold_is_refused_by_name(change: dict[str, object], said: str, tmp_path: Path) -> None:
    told = json.loads((PEFT / "lora" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(told | change))
    (tmp_path / WEIGHTS).write_bytes((PEFT / "lora" / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match=said):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["base_model.model.model.embed_tokens.lora_embedding_A", "model.norm.weight"])
def test_a_tensor_that_is_no_update_of_a_linear_layer_is_named(name: str, tmp_path: Path) -> None:
    tensors = load_file(PEFT / "lora" / WEIGHTS)
    save_file(tensors | {name: np.ones((4, 4), np.float32)}, tmp_path / WEIGHTS)
    (tmp_path / "adapter_config.json").write_bytes((PEFT / "lora" / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match=name):
        read_adapter(tmp_path)


def test_half_an_update_is_named(tmp_path: Path) -> None:
    tensors = load_file(PEFT / "lora" / WEIGHTS)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "adapter_config.json").write_bytes((PEFT / "lora" / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj has no A or no B"):
        read_adapter(tmp_path)


def test_experts_have_no_place_in_pefts_form(tmp_path: Path) -> None:
    config, _ = read_adapter(write_golden_adapter(tmp_path / "ours"))
    experts = {"model.layers.0.mlp.up.lora_a": mx.ones((2, 4, 8)), "model.layers.0.mlp.up.lora_b": mx.ones((2, 8, 4))}
    with pytest.raises(ModelError, match="adapts experts"):
        to_peft(config, experts)
