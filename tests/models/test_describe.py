"""Facts and fingerprints without loading weights; every damage is named with its file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from macft.errors import ModelError
from macft.models.describe import RENAMED_FAMILIES, describe, describe_as_loaded, fingerprint, template_hash
from macft.models.headers import read_headers
from macft.models.load import load_model
from tests.golden import NAMES, load_case
from tests.models.tiny import CONFIG, make_weights, write_model

PARAMETERS = 512 * 64 + 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64) + 64


def test_facts_of_a_plain_model(tiny: Path):
    facts = describe(tiny)
    assert (facts.name, facts.path, facts.family) == ("tiny", tiny, "llama")
    assert (facts.parameters, facts.weight_bytes, facts.bits) == (PARAMETERS, 4 * PARAMETERS, 32.0)
    assert (facts.layers, facts.hidden_size, facts.intermediate_size) == (3, 64, 96)
    assert (facts.heads, facts.kv_heads, facts.head_dim) == (4, 2, 16)
    assert (facts.vocab_size, facts.context, facts.tied) == (512, 128, True)
    assert (facts.is_quantized, facts.trainable, facts.why_not) == (False, True, "")
    assert (facts.licence, facts.has_chat_template) == ("", False)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 64), (3, 64), (6, 32)])
def test_parameters_are_counted_through_quantization(tiny: Path, tmp_path: Path, bits: int, group_size: int):
    model, config = load_model(tiny, quantize=bits, group_size=group_size)
    stored = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    facts = describe(write_model(tmp_path / "q", stored, quantization=config["quantization"]))
    assert facts.parameters == PARAMETERS == mlx_lm.utils.get_total_parameters(load_model(tiny)[0])
    assert facts.weight_bytes == sum(value.nbytes for value in stored.values())
    assert facts.is_quantized


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *((name, None) for name in NAMES),
        *((name, 4) for name in NAMES if name != "gemma3_text"),
    ],  # narrower than a group
)
def test_sizes_from_the_config_alone_are_those_of_the_weights(tmp_path: Path, name: str, bits: int | None):
    folder = load_case(name).folder
    model, config = load_model(folder, quantize=bits, group_size=32)
    stored = {key: np.array(value.astype(mx.float16)) for key, value in tree_flatten(model.parameters()) if not bits}
    stored = stored or {key: np.array(value) for key, value in tree_flatten(model.parameters())}
    for part in ("with", "without"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "with" / "model.safetensors", metadata={"format": "mlx"})
    whole, guessed = describe(tmp_path / "with"), describe(tmp_path / "without", without_weights=True)
    assert guessed.parameters == pytest.approx(whole.parameters, rel=0 if bits is None else 0.01)
    assert guessed.float_values == pytest.approx(whole.float_values, rel=0 if bits is None else 0.02)
    assert guessed.code_bytes == pytest.approx(whole.code_bytes, rel=0.02)
    assert guessed.tied == whole.tied
    with pytest.raises(ModelError, match=r"no model\*\.safetensors"):
        describe(tmp_path / "without")


def test_experts_are_counted_from_the_config(tmp_path: Path):
    """Four experts of 3·64·32 weights and a router of 4·64 take the place of each of three MLPs of 3·64·96."""
    changes = {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    mixture = describe(tmp_path, without_weights=True)
    assert mixture.parameters == PARAMETERS + 3 * (4 * (3 * 64 * 32 + 64) - 3 * 64 * 96)


def test_codes_and_floats_are_told_apart(tiny: Path, tmp_path: Path):
    model, config = load_model(tiny, quantize=4, group_size=32)
    stored = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    facts = describe(write_model(tmp_path / "q", stored, quantization=config["quantization"]))
    assert facts.code_bytes == sum(value.nbytes for value in stored.values() if value.dtype == np.uint32)
    assert facts.float_values == sum(value.size for value in stored.values() if value.dtype == np.float32)
    assert (describe(tiny).code_bytes, describe(tiny).float_values) == (0, PARAMETERS)


def test_the_twin_of_an_import_is_what_quantizing_loads(tiny: Path, tmp_path: Path):
    model, config = load_model(tiny, quantize=4, group_size=32)
    stored = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    folder = write_model(tmp_path / "m", make_weights())
    write_model(folder / "quantized", stored, quantization=config["quantization"])
    assert not describe_as_loaded(folder, quantize=None).is_quantized
    twin = describe_as_loaded(folder, quantize=4)
    assert (twin.is_quantized, twin.name) == (True, "m")


def test_a_head_of_its_own_is_counted_only_when_it_is_used(tmp_path: Path):
    weights = {**make_weights(), "lm_head.weight": np.ones((512, 64), np.float32)}
    tied = describe(write_model(tmp_path / "tied", weights))
    untied = describe(write_model(tmp_path / "untied", weights, tie_word_embeddings=False))
    assert (tied.parameters, untied.parameters) == (PARAMETERS, PARAMETERS + 512 * 64)


def test_cards_templates_and_snapshots_are_read(tmp_path: Path):
    folder = tmp_path / "models--some--model-1b" / "snapshots" / "abc"
    write_model(folder, make_weights())
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: other\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    facts = describe(folder)
    assert (facts.name, facts.licence, facts.has_chat_template) == ("some/model-1b", "mit", True)
    assert describe(folder, "mine").name == "mine"


def test_the_context_of_gemma2_ends_with_its_sliding_window(tmp_path: Path):
    folder = write_model(tmp_path / "g", make_weights(), model_type="gemma2", sliding_window=32)
    assert describe(folder).context == 32


@pytest.mark.parametrize(
    ("changes", "trainable", "why"),
    [
        ({"vision_config": {"x": 1}}, False, "reads more than text"),
        ({"audio_config": {"x": 1}}, False, "reads more than text"),
        ({"model_type": "invented"}, False, "not one that mlx-lm can load"),
        ({"model_type": "../llama"}, False, "not one that mlx-lm can load"),
        ({"model_type": "invented", "auto_map": {"AutoModel": "m.M"}}, False, "without its own code"),
        ({"model_file": "m.py"}, False, "needs its own code"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, False, "'bitsandbytes'"),
        ({"model_type": "qwen3_next"}, True, "recurrent layers"),
        ({"model_type": "mistral"}, True, ""),
        ({"model_type": "phi3", "auto_map": {"AutoConfig": "m.C"}}, True, ""),
    ],
)
def test_what_can_be_trained_is_judged(tmp_path: Path, changes: dict[str, Any], trainable: bool, why: str):
    facts = describe(write_model(tmp_path / "m", make_weights(), **changes))
    assert facts.trainable is trainable
    assert (why in facts.why_not) if why else facts.why_not == ""


def test_renamed_families_are_those_of_mlx_lm():
    assert RENAMED_FAMILIES == mlx_lm.utils.MODEL_REMAPPING


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "has no config.json"),
        ("{", "config.json cannot be read as JSON"),
        ("[1]", "config.json is not a JSON object"),
        ("{}", "`model_type` is missing"),
        ('{"model_type": "llama"}', "`num_attention_heads` is missing"),
        ('{"model_type": "llama", "num_attention_heads": "4"}', "`num_attention_heads` is '4'"),
        ('{"model_type": "llama", "num_attention_heads": 4, "hidden_size": -1}', "`hidden_size` is -1"),
    ],
)
def test_a_damaged_config_is_named_with_its_key(tiny: Path, config: str | None, expected: str):
    (tiny / "config.json").unlink()
    if config is not None:
        (tiny / "config.json").write_text(config)
    with pytest.raises(ModelError, match=expected):
        describe(tiny)


def damage(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)


def test_damaged_weights_are_named(tiny: Path):
    good = (tiny / "model.safetensors").read_bytes()
    header = int.from_bytes(good[:8], "little")
    cases = [b"", good[:7], good[: header // 2], good[: header + 8], good[:-1], b"\xff" * 8 + good[8:]]
    cases.append(good[:8] + b"[" + good[9:])
    cases.append(good.replace(b'"F32"', b'"F16"', 1))
    for data in cases:
        damage(tiny, data)
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
            describe(tiny)


def test_mutated_headers_are_read_or_refused(tiny: Path):
    good = (tiny / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in random.integers(0, header, 2):
            data[place] = random.integers(0, 256)
        damage(tiny, bytes(data))
        try:
            read_headers(tiny)
        except ModelError:
            refused += 1
    assert refused > 100


def test_missing_weights_are_told_from_pickles(tiny: Path):
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\*\.safetensors\. Fetch"):
        read_headers(tiny)
    (tiny / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin: pickled weights can run code"):
        describe(tiny)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"a": "../../secret.safetensors"}, "outside the model's folder"),
        ({"a": "/etc/passwd"}, "outside the model's folder"),
        ({"a": 3}, "outside the model's folder"),
        ({"a": "model-00002-of-00002.safetensors"}, "lacks model-00002-of-00002"),
        ([], "is damaged"),
    ],
)
def test_a_bad_index_is_refused(tiny: Path, weight_map: Any, expected: str):
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=expected):
        describe(tiny)


def test_a_fingerprint_follows_the_weights_and_nothing_else(tiny: Path, tmp_path: Path):
    first = fingerprint(tiny)
    weights = load_file(tiny / "model.safetensors")
    os.utime(tiny / "model.safetensors", (0, 0))
    moved = write_model(tmp_path / "elsewhere", weights)
    (moved / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), start=1):
        save_file({name: weights[name] for name in part}, moved / f"model-{number:05}-of-00002.safetensors")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    assert fingerprint(tiny) == fingerprint(moved) == first

    tuned = {name: value * 1.01 for name, value in weights.items()}
    assert fingerprint(write_model(tmp_path / "tuned", tuned)) != first
    assert fingerprint(write_model(tmp_path / "theta", weights, rope_theta=5.0)) != first


def test_a_template_has_one_hash_wherever_it_is_written(tiny: Path):
    assert template_hash(tiny) == ""
    (tiny / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ a }}"}))
    first = template_hash(tiny)
    (tiny / "tokenizer_config.json").unlink()
    (tiny / "chat_template.jinja").write_text("{{ a }}")
    assert template_hash(tiny) == first != ""


def test_facts_need_neither_mlx_nor_transformers(tiny: Path):
    code = (
        "import sys; from pathlib import Path; from macft.models.describe import describe, fingerprint;"
        "from macft.models.catalog import local_models;"
        f"p = Path({str(tiny)!r}); describe(p); fingerprint(p); local_models(p, hub_cache=p);"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_described_model_loads(tiny: Path):
    model, _ = load_model(tiny)
    assert describe(tiny).weight_bytes == sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert model(mx.array([[1, 2]])).shape == (1, 2, describe(tiny).vocab_size)
