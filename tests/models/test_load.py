"""Loading models and tokenizers: torch's golden logits, quantization, memory, and everything that is refused."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from mlx.utils import tree_flatten
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from macft.errors import ModelError
from macft.models.load import load_model, load_tokenizer, to_old_dialect
from tests.golden import NAMES, load_case
from tests.models.tiny import make_weights, write_model


@pytest.mark.parametrize("dialect", ["config.json", "config_v4.json"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers_in_both_dialects(name: str, dialect: str, tmp_path: Path):
    case = load_case(name)
    shutil.copy(case.folder / "model.safetensors", tmp_path)
    shutil.copy(case.folder / dialect, tmp_path / "config.json")
    model, _ = load_model(tmp_path)
    logits = np.array(model(mx.array(case.ids)))
    real = np.arange(case.ids.shape[1]) < case.lengths[:, None]
    assert np.abs(logits - case.logits)[real].max() <= 1e-5 * np.abs(case.logits).max()


def test_old_keys_are_left_alone():
    config = {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}}
    assert to_old_dialect(config) == {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert to_old_dialect({"rope_theta": 5.0}) == {}


def test_a_loaded_model_is_frozen_evaluated_and_in_float32_on_a_cpu(tmp_path: Path):
    half = {name: value.astype(np.float16) for name, value in make_weights().items()}
    model, config = load_model(write_model(tmp_path / "half", half))
    assert tree_flatten(model.trainable_parameters()) == []
    assert not model.training
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.float32}
    assert "quantization" not in config
    np.testing.assert_array_equal(model.model.norm.weight, half["model.norm.weight"].astype(np.float32))


def test_compute_dtype_is_the_one_asked_for(tiny: Path):
    model, _ = load_model(tiny, compute_dtype="bfloat16")
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 32)])
def test_quantizing_while_loading_equals_mlx_on_the_loaded_weights(tiny: Path, bits: int, group_size: int):
    model, config = load_model(tiny, quantize=bits, group_size=group_size)
    weights = load_file(tiny / "model.safetensors")
    layer = model.layers[1].self_attn.q_proj
    expected = mx.quantize(mx.array(weights["model.layers.1.self_attn.q_proj.weight"]), group_size, bits)
    for ours, theirs in zip((layer.weight, layer.scales, layer.biases), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert config["quantization"] == {"group_size": group_size, "bits": bits, "mode": "affine"}
    assert hasattr(model.model.embed_tokens, "scales")


def test_layers_that_do_not_divide_into_groups_stay_as_they_are(tiny: Path):
    model, _ = load_model(tiny, quantize=4, group_size=64)
    assert not hasattr(model.layers[0].mlp.down_proj, "scales")  # 96 columns
    assert hasattr(model.layers[0].mlp.up_proj, "scales")


def test_a_model_stored_quantized_loads_as_it_is(tiny: Path, tmp_path: Path):
    model, config = load_model(tiny, quantize=4, group_size=32)
    stored = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    folder = write_model(tmp_path / "quantized", stored, quantization=config["quantization"])
    again, again_config = load_model(folder, quantize=8, group_size=64)
    assert again_config["quantization"]["bits"] == 4
    for name, value in tree_flatten(again.parameters()):
        np.testing.assert_array_equal(value, stored[name])


def test_peak_memory_stays_near_the_quantized_size(tmp_path: Path):
    width, hidden, layers = 512, 1024, 8
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (512, width), "model.norm": (width,)}
    for i in range(layers):
        attention = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
        mlp = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
        norms = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        names = attention | {f"mlp.{part}": shape for part, shape in mlp.items()} | norms
        shapes |= {f"model.layers.{i}.{part}": shape for part, shape in names.items()}
    weights = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    size = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "num_key_value_heads": 4}
    folder = write_model(tmp_path / "wide", weights, **size)
    whole = sum(value.nbytes for value in weights.values())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _ = load_model(folder, quantize=4, group_size=64)
    quantized = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    peak = mx.get_peak_memory() - before
    largest_layer = 4 * hidden * width
    assert quantized < whole / 6
    assert peak <= quantized + 3 * largest_layer
    assert peak < whole / 2


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path):
    weights = make_weights()
    missing = {name: value for name, value in weights.items() if "layers.1.mlp.up_proj" not in name}
    extra = {**weights, "model.layers.0.surprise.weight": np.ones(3, np.float32)}
    wrong = {**weights, "model.norm.weight": np.ones(63, np.float32)}
    for folder, values, name in (
        ("missing", missing, r"layers\.1\.mlp\.up_proj\.weight"),
        ("extra", extra, r"layers\.0\.surprise\.weight"),
        ("wrong", wrong, r"norm\.weight"),
    ):
        with pytest.raises(ModelError, match=name) as caught:
            load_model(write_model(tmp_path / folder, values))
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_file": "model.py"}, "needs its own code"),
        ({"model_type": "invented", "auto_map": {"AutoModel": "model.Model"}}, "its own code"),
        ({"vision_config": {"hidden_size": 8}}, "reads more than text"),
        ({"audio_config": {"hidden_size": 8}}, "reads more than text"),
    ],
)
def test_what_macft_does_not_load_is_refused_and_no_code_runs(tmp_path: Path, changes: dict[str, Any], reason: str):
    folder = write_model(tmp_path / "m", make_weights(), **changes)
    (folder / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=reason):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_mlx_lm_imports_where_few_files_may_be_open():
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, 1024)); import macft.models.load;"
    code += "import os; os.getuid() or None; print(r.getrlimit(r.RLIMIT_NOFILE))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1024, 1024)", done.stderr


def write_tokenizer(folder: Path, size: int) -> None:
    vocabulary = {f"w{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_tokenizer_stops_at_the_ends_of_both_configs(tiny: Path):
    write_tokenizer(tiny, 512)
    (tiny / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w7"}))
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    tokenizer = load_tokenizer(tiny)
    assert tokenizer.eos_token_ids == {7, 8, 9}
    assert tokenizer.encode("w3 w500") == [3, 500]


def test_a_tokenizer_of_another_model_is_refused(tiny: Path):
    write_tokenizer(tiny, 513)
    with pytest.raises(ModelError, match="knows id 512, but the model embeds only 512 tokens"):
        load_tokenizer(tiny)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused(tiny: Path, content: str):
    (tiny / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tiny)


def test_a_missing_tokenizer_is_refused(tiny: Path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tiny)


def test_a_tokenizer_that_brings_code_never_runs_it(tiny: Path, tmp_path: Path):
    write_tokenizer(tiny, 512)
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tiny / "tokenizer_config.json").write_text(json.dumps(own))
    (tiny / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...")
    with pytest.raises(ModelError, match="needs its own code, which macft never runs"):
        load_tokenizer(tiny)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "GemmaTokenizer"}])
def test_a_bare_sentencepiece_model_reads_as_sentencepiece_does(tiny: Path, kind: str, settings: dict[str, str]):
    lines = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"] * 20
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=stored,
        model_type=kind,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",  # as language models are made
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tiny / "tokenizer.model").write_bytes(stored.getvalue())
    if settings:
        (tiny / "tokenizer_config.json").write_text(json.dumps(settings))
    original = sentencepiece.SentencePieceProcessor(model_proto=stored.getvalue())
    tokenizer = load_tokenizer(tiny)
    for text in ("the quick fox", "a box — naïve, 42 東京", "two  spaces"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids)
    detokenizer = tokenizer.detokenizer
    for index in original.encode("the lazy dog"):
        detokenizer.add_token(index)
    detokenizer.finalize()
    assert detokenizer.text.strip() == "the lazy dog"
