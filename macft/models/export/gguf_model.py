"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

The rule: tensors are read, put into llama.cpp's order and written one at a time. What the file cannot say (a kind of
RoPE, an unknown tokenizer) is refused before anything is written.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macft.errors import ModelError
from macft.models.describe import ModelFacts, describe, read_config, text_config
from macft.models.export.llamacpp import Array, Family, Names, find_family, interleave
from macft.models.export.vocabulary import find_pre_tokenizer, read_tokenizer_file, write_vocabulary
from macft.models.headers import TensorHeader, read_headers
from macft.models.load import load_tokenizer, to_old_dialect
from macft.models.shards import Progress
from macft.models.tensors import load_tensors

KINDS: dict[str, tuple[str, str]] = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
"""Our name to ggml's for matrices, and to the file's."""
_BLOCK = 32


def check_gguf(folder: Path) -> None:
    """Refuse a model that cannot be written as GGUF, from its config and tokenizer alone.

    Raises:
        ModelError: The family, the RoPE or the tokenizer is not known.
    """
    config = _config(folder)
    find_family(str(config["model_type"]))
    _rope(config)
    find_pre_tokenizer(read_tokenizer_file(folder), folder)


def write_gguf(path: Path, folder: Path, *, kind: str, name: str, progress: Progress | None = None) -> None:
    """Write a model that is not quantized as a GGUF file.

    Args:
        path: The file.
        folder: A model folder in floating point.
        kind: Of its matrices, a key of `KINDS`; vectors stay float32.
        name: What the file calls itself.
        progress: Told (bytes read, all bytes).

    Raises:
        ModelError: The family, the RoPE or the tokenizer is not known.
    """
    from gguf import GGUFWriter

    facts, config = describe(folder), _config(folder)
    if facts.is_quantized:
        raise ModelError(f"{facts.name} is quantized, and GGUF is written from floating-point weights")
    family = find_family(facts.family)
    writer = GGUFWriter(path, family.architecture)
    _write_facts(writer, facts, config, kind=kind, name=name)
    write_vocabulary(writer, folder, load_tokenizer(folder), facts.vocab_size)
    factors = _rope(config)
    _write_tensors(writer, facts, family, factors, kind=kind, progress=progress)
    writer.close()


def _config(folder: Path) -> dict[str, Any]:
    config = text_config(read_config(folder))
    return config | to_old_dialect(config)


def _write_facts(writer: Any, facts: ModelFacts, config: dict[str, Any], *, kind: str, name: str) -> None:
    from gguf import LlamaFileType, RopeScalingType

    writer.add_type("model")
    writer.add_name(name)
    if facts.licence:
        writer.add_license(facts.licence)
    writer.add_context_length(facts.context or int(config.get("max_position_embeddings") or 2048))
    writer.add_embedding_length(facts.hidden_size)
    writer.add_block_count(facts.layers)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_key_length(facts.head_dim)
    writer.add_value_length(facts.head_dim)
    writer.add_rope_dimension_count(facts.head_dim)
    writer.add_vocab_size(facts.vocab_size)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(config.get("rope_theta") or 10000.0))
    if (scaling := config.get("rope_scaling")) and _rope_type(scaling) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    writer.add_file_type(LlamaFileType[KINDS[kind][1]])


def _write_tensors(
    writer: Any, facts: ModelFacts, family: Family, factors: Array | None, *, kind: str, progress: Progress | None
) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    names, stored = Names(family, facts.layers), _used(facts)
    made: list[tuple[str, Callable[[], Array], Any, tuple[int, ...]]] = []
    for name, header in stored.items():
        matrix = KINDS[kind][0] if len(header.shape) > 1 else "F32"
        if matrix == "Q8_0" and header.shape[-1] % _BLOCK:
            matrix = "F16"
        made.append((names(name), _reader(name, header, facts, family), GGMLQuantizationType[matrix], header.shape))
    if factors is not None:
        rows = factors
        made.append(("rope_freqs.weight", lambda: rows, GGMLQuantizationType.F32, factors.shape))
    for name, _, ggml, shape in made:
        like = quantize(np.zeros((1, shape[-1]), np.float32), ggml)
        stored_shape = (*shape[:-1], like.shape[-1])
        count = math.prod(shape[:-1]) * like.nbytes
        writer.add_tensor_info(name, stored_shape, like.dtype, count, raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(math.prod(shape) for *_, shape in made)
    for _, read, ggml, shape in made:
        writer.write_tensor_data(np.ascontiguousarray(quantize(read(), ggml)))
        mx.clear_cache()
        done += math.prod(shape)
        if progress:
            progress(done, total)


def _used(facts: ModelFacts) -> dict[str, TensorHeader]:
    stored = read_headers(facts.path)
    return {
        name: header
        for name, header in stored.items()
        if not (facts.tied and name.startswith("lm_head.")) and "rotary_emb.inv_freq" not in name
    }


def _reader(name: str, header: TensorHeader, facts: ModelFacts, family: Family) -> Callable[[], Array]:
    def read() -> Array:
        rows = np.array(load_tensors(header.file)[name].astype(mx.float32))
        if not family.interleaves:
            return rows
        return interleave(name, rows, heads=facts.heads, kv_heads=facts.kv_heads)

    return read


def _rope_type(scaling: dict[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _rope(config: dict[str, Any]) -> Array | None:
    """Return llama 3's factors of the frequencies [head_dim / 2], None where there are none.

    Raises:
        ModelError: RoPE is scaled in another way than linear or llama3, or not every layer or part of a head is turned.
    """
    scaling: dict[str, Any] = config.get("rope_scaling") or {}
    kind = _rope_type(scaling)
    if kind not in {"default", "linear", "llama3"} or float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(f"macft does not write {kind} RoPE as GGUF", fix="`--to mlx` keeps it.")
    if kind != "llama3":
        return None
    theta = float(config.get("rope_theta") or 10000.0)
    size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    before = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi * theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = (before / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < before / high, 1.0, np.where(wavelengths > before / low, factor, between))
    return factors.astype(np.float32)
