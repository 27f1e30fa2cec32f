"""GGUF files read back by the `gguf` package, and computed with by a forward pass written out in NumPy."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from macft.errors import ModelError
from macft.models.adapters import load_adapter, read_adapter
from macft.models.describe import describe
from macft.models.export.gguf_adapter import write_gguf_adapter
from macft.models.export.gguf_model import check_gguf, write_gguf
from macft.models.export.llamacpp import Names, find_family, interleave
from macft.models.fuse import prepare_fuse, write_fused
from macft.models.gguf import import_gguf
from macft.models.load import load_model
from tests.golden import HERE, load_case
from tests.models.adapters import write_golden_adapter
from tests.models.export.lent import lend_tokenizer
from tests.models.numpy_llama import forward, read_gguf
from tests.models.tiny import TEMPLATE, make_weights
from tests.models.tiny import write_gguf as write_theirs

IDS = [1, 70, 300, 17, 256, 511, 2, 90]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a byte-level tokenizer, as its import from GGUF leaves it."""
    folder = tmp_path_factory.mktemp("tiny")
    import_gguf(write_theirs(folder / "tiny.gguf", make_weights()), folder / "tiny")
    return folder / "tiny"


def values(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize(("kind", "apart"), [("f32", 1e-6), ("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 2e-2)])
def test_a_model_computes_the_same_from_the_file(kind: str, apart: float, tiny: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "out.gguf", tiny, kind=kind, name="tiny")
    model, _ = load_model(tiny)
    expected = np.array(model(mx.array([IDS]))[0])
    found = forward(read_gguf(tmp_path / "out.gguf"), IDS, heads=4, kv_heads=2, theta=10_000.0)
    assert np.abs(found - expected).max() < apart * np.abs(expected).max()
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds["blk.1.attn_q.weight"] == kinds["token_embd.weight"] == kind.upper()
    assert kinds["output_norm.weight"] == "F32"


def test_what_was_written_is_imported_as_it_was(tiny: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "out.gguf", tiny, kind="f32", name="tiny")
    import_gguf(tmp_path / "out.gguf", tmp_path / "back")
    first, second = load_file(tiny / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        assert (tiny / name).read_text() == (tmp_path / "back" / name).read_text(), name


def test_the_file_says_what_the_model_is(tiny: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "out.gguf", tiny, kind="q8_0", name="mine")
    found = values(tmp_path / "out.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "mine",
        "general.license": "apache-2.0",
        "general.file_type": 7,
        "llama.block_count": 3,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert not [name for name in GGUFReader(tmp_path / "out.gguf").tensors if name.name == "output.weight"]


def test_llama_3s_frequencies_are_those_that_mlx_computes_with(tmp_path: Path) -> None:
    """The factors are checked as a whole: turning by them gives the logits of the golden llama 3."""
    case = load_case("llama3_rope")
    shutil.copytree(case.folder, tmp_path / "model")
    lend_tokenizer(tmp_path / "model")
    write_gguf(tmp_path / "out.gguf", tmp_path / "model", kind="f32", name="llama 3")
    tensors = read_gguf(tmp_path / "out.gguf")
    factors = tensors.pop("rope_freqs.weight")
    assert factors.shape == (8,)
    length = int(case.lengths[0])
    # θ^(−2i/d) / factor is a frequency of its own for each pair.
    ids = case.ids[0, :length].tolist()
    found = forward(tensors, ids, heads=4, kv_heads=2, theta=50_000.0, factors=factors, eps=1e-6)
    expected = case.logits[0, :length]
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def test_an_adapter_adds_what_it_adds_in_mlx(tiny: Path, tmp_path: Path) -> None:
    config, weights = read_adapter(write_golden_adapter(tmp_path / "adapter"))
    base = load_case("llama").folder
    write_gguf_adapter(tmp_path / "lora.gguf", config, weights, describe(base), name="mine")
    found, added = values(tmp_path / "lora.gguf"), read_gguf(tmp_path / "lora.gguf")
    assert found["general.type"] == "adapter"
    assert found["adapter.type"] == "lora"
    assert found["adapter.lora.alpha"] == 8.0
    named = Names(find_family("llama"), 3)
    stored = load_file(base / "model.safetensors").items()
    tensors = {named(name): interleave(name, rows, heads=4, kv_heads=2) for name, rows in stored}
    for name in [key.removesuffix(".lora_a") for key in added if key.endswith(".lora_a")]:
        a, b = added[f"{name}.lora_a"], added[f"{name}.lora_b"]
        tensors[name] = tensors[name] + found["adapter.lora.alpha"] / a.shape[0] * b @ a
    model, _ = load_model(base)
    load_adapter(model, tmp_path / "adapter")
    ids = [5, 80, 120, 7, 33, 101]
    computed = forward(tensors, ids, heads=4, kv_heads=2, theta=20_000.0, eps=1e-6)
    expected = np.array(model(mx.array([ids]))[0])
    assert np.abs(computed - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_fused_model_goes_all_the_way(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "fused"
    out.mkdir()
    write_fused(prepare_fuse(tiny, None, dtype="float16"), out)
    write_gguf(tmp_path / "out.gguf", out, kind="f16", name="tiny")
    stored = load_file(out / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert stored.dtype == np.float16
    assert np.array_equal(read_gguf(tmp_path / "out.gguf")["blk.0.ffn_up.weight"], stored.astype(np.float32))


@pytest.mark.parametrize("case", ["gemma3_text", "smollm3"])
def test_a_family_that_was_not_compared_with_llama_cpp_is_refused(case: str) -> None:
    with pytest.raises(ModelError, match=f"this one is {case}"):
        check_gguf(load_case(case).folder)


def test_rules_without_a_name_are_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    check_gguf(tmp_path / "model")
    told = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="cuts text by rules"):
        check_gguf(tmp_path / "model")
    told = json.loads((tiny / "tokenizer.json").read_text())
    told["model"]["merges"] = []
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="cuts text by rules"):
        check_gguf(tmp_path / "model")
    config = json.loads((tiny / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rope_scaling": yarn}))
    with pytest.raises(ModelError, match="does not write yarn RoPE"):
        check_gguf(tmp_path / "model")


def test_dora_has_no_place_in_a_lora_file(tmp_path: Path) -> None:
    config, weights = read_adapter(HERE / "peft" / "dora")
    with pytest.raises(ModelError, match="reads no dora adapters"):
        write_gguf_adapter(tmp_path / "x.gguf", config, weights, describe(load_case("llama").folder), name="x")
    assert not (tmp_path / "x.gguf").exists()
