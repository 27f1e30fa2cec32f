"""Importing GGUF files, held against the `gguf` package's own arithmetic and a forward pass written out in NumPy."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from macft.errors import ModelError
from macft.models.gguf import import_gguf
from macft.models.load import load_model, load_tokenizer
from tests.models.numpy_llama import forward, read_gguf
from tests.models.tiny import LAYERS, TEMPLATE, gguf_name, make_weights, write_gguf


@pytest.fixture(scope="module")
def imported(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "tiny"
    import_gguf(tiny_gguf, folder, source={"package": "none"})
    return folder


def test_weights_are_the_files_numbers_with_heads_in_the_usual_order(tiny_gguf: Path, imported: Path):
    ours, theirs = load_file(imported / "model.safetensors"), read_gguf(tiny_gguf)
    assert len(ours) == len(theirs)
    for name, values in ours.items():
        stored = theirs[gguf_name(name)]
        if "q_proj" in name or "k_proj" in name:
            half = 8  # of a head of 16: row 2i of the file is row i here, 2i + 1 is row i + 8
            order = [16 * head + 2 * (i % half) + i // half for head in range(len(stored) // 16) for i in range(16)]
            stored = stored[order]
        np.testing.assert_array_equal(values, stored)
    original = make_weights()
    worst = max(np.abs(ours[name] - original[name]).max() for name in original)
    assert worst < 0.05, "the heads are in another order than before the file was written"


def test_logits_equal_a_forward_pass_on_the_file(tiny_gguf: Path, imported: Path):
    ids = [1, 70, 300, 17, 256, 511, 2, 90]
    expected = forward(read_gguf(tiny_gguf), ids, heads=4, kv_heads=2, theta=10000.0)
    model, _ = load_model(imported)
    np.testing.assert_allclose(np.array(model(mx.array([ids])))[0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_asking_for_a_quantized_base_keeps_the_files_numbers(imported: Path, bits: int):
    floats = load_file(imported / "model.safetensors")
    model, config = load_model(imported, quantize=bits, group_size=64)
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    layers = [(f"model.layers.{LAYERS - 1}.self_attn.k_proj", 4), ("model.embed_tokens", 8)]
    modules = dict(model.named_modules())
    for name, own in layers:
        layer = modules[name]
        values = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=own)
        np.testing.assert_array_equal(np.array(values), floats[f"{name}.weight"])


def test_the_quantized_twin_is_optional(tiny_gguf: Path, tmp_path: Path):
    import_gguf(tiny_gguf, tmp_path / "plain", keep_quantized=False)
    assert not (tmp_path / "plain" / "quantized").exists()


def test_tokenizer_comes_with_its_special_tokens_and_template(imported: Path):
    tokenizer = load_tokenizer(imported)
    text = "The year 1984, naïve 東京 🦊\n\ttabs<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == 2
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1984")] == ["1", "9", "8", "4"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" the")) == ["Ġt", "he"]
    assert tokenizer.eos_token_ids == {2}
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>hi<|im_end|>\n"
    assert (imported / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((imported / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


def test_provenance_is_written_down(imported: Path):
    source = json.loads((imported / "macft_source.json").read_text())
    assert source["licence"] == "apache-2.0"
    assert source["family"] == "llama"
    assert source["package"] == "none"
    assert len(source["file_sha256"]) == 64


def test_config_speaks_both_dialects(imported: Path):
    config = json.loads((imported / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rms_norm_eps"] == 1e-5


def test_other_families_are_named(tmp_path: Path):
    path = write_gguf(tmp_path / "other.gguf", make_weights(), family="qwen2")
    with pytest.raises(ModelError, match="holds a 'qwen2' model"):
        import_gguf(path, tmp_path / "out")


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path):
    weights = make_weights()
    path = write_gguf(tmp_path / "a.gguf", weights, skip="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks the tensor for model\.layers\.1\.mlp\.up_proj"):
        import_gguf(path, tmp_path / "out")
    weights["model.norm.weight"] = np.ones(32, np.float32)
    path = write_gguf(tmp_path / "b.gguf", weights)
    with pytest.raises(ModelError, match=r"output_norm\.weight has shape \[32\] \(expected \[64\]\)"):
        import_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny_gguf: Path, tmp_path: Path, kept: float):
    data = tiny_gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "out")


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_is_imported_or_refused_by_name(tiny_gguf: Path, tmp_path: Path, seed: int):
    random = np.random.default_rng(seed)
    good = np.frombuffer(tiny_gguf.read_bytes(), np.uint8)
    outcomes = []
    for _ in range(25):
        data = good.copy()
        places = random.integers(0, 800, 3)  # the counts, keys and lengths come first
        data[places] = random.integers(0, 256, 3)
        (tmp_path / "bad.gguf").write_bytes(data.tobytes())
        try:
            import_gguf(tmp_path / "bad.gguf", tmp_path / "out")
            outcomes.append("imported")
        except ModelError as error:
            outcomes.append(error.message)
    refused = [outcome for outcome in outcomes if outcome != "imported"]
    assert len(refused) > 8
    assert all("bad.gguf" in message or "not all finite" in message for message in refused)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path):
    (tmp_path / "note.gguf").write_text("not a model at all")
    with pytest.raises(ModelError, match=r"note\.gguf is not a sound GGUF file \(GGUF magic invalid\)"):
        import_gguf(tmp_path / "note.gguf", tmp_path / "out")
    with pytest.raises(ModelError, match="cannot be read"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "out")
