"""An adapter becomes part of its base: a model that every tool loads, without the adapter.

The rule: the sum W + (alpha / rank)·(A·B)ᵀ is made in float32, one tensor at a time, from the most exact base there is:
the original weights, not the quantized ones that training may have used. Nothing is ever changed in place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from macft.errors import ModelError, Problem, RecipeError
from macft.models.adapters import ADAPTED, load_adapter, read_adapter_config
from macft.models.companions import make_config, write_companions
from macft.models.describe import ModelFacts, describe, fingerprint, read_config
from macft.models.headers import read_headers
from macft.models.load import cast_floats, load_lazily, quantize_layers, to_old_dialect
from macft.models.shards import SHARD_BYTES, Progress, write_shards

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
_SPREAD_GROUP, _SPREAD_STEPS = 32, 252
"""Weights that share a scale, and steps from the smallest to the largest of them: 255 less room for the start."""
QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused model that is not written yet: nothing of it is in memory.

    Attributes:
        base: The folder of the model that was tuned.
        tensors: Unevaluated, by name.
        config: Its `config.json`.
        size_bytes: What the tensors take on the disk.
        dtype: Of its floating-point weights.
        bits: Of its quantized layers, None when there are none.
        source: What the adapter was added to, for people.
        in_transformers: Whether names and shapes are those of the original checkpoint, and nothing is quantized.
    """

    base: Path
    tensors: dict[str, mx.array]
    config: dict[str, Any]
    size_bytes: int
    dtype: str
    bits: int | None
    source: str
    in_transformers: bool


def prepare_fuse(
    base: Path,
    adapter: Path | None,
    *,
    quantize: int | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
) -> Fused:
    """Say what fusing will write, without reading a weight.

    Args:
        base: The base model's folder.
        adapter: An adapter folder; None writes the base itself.
        quantize: Bits of the result; None writes floating-point weights.
        dequantize: Add to the base as training saw it, when it was quantized while loading, not to the original.
        dtype: Of floating-point weights; None keeps what the base is stored in.

    Raises:
        ModelError: The adapter is not this base's, or one of the two is damaged.
        RecipeError: Fewer bits were asked for than the base has.
    """
    origin = read_adapter_config(adapter).get("macft", {}) if adapter else {}
    facts, trained_bits = describe(base), origin.get("quantize")
    group_size = origin.get("quantize_group_size") or 64
    _refuse_fewer_bits(quantize, base, trained_bits)
    model, config = _load_base(base, facts, trained_bits, group_size, quantize=quantize, dequantize=dequantize)
    if adapter:
        load_adapter(model, adapter, base_fingerprint=fingerprint(base))
    was_quantized = any(isinstance(module, QUANTIZED) for module in model.modules())
    sums = _fuse_layers(model)
    if not quantize:
        _dequantize_layers(model)
        config.pop("quantization", None)
    wanted = dtype or _stored_dtype(base)
    cast_floats(model, DTYPES[wanted])
    if quantize:
        _quantize(model, config, sums, bits=quantize, group_size=group_size)
    tensors: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    written = make_config(
        base, to_old_dialect(read_config(base)), dtype=wanted, quantization=config.get("quantization") or {}
    )
    return Fused(
        base,
        tensors,
        written,
        sum(value.nbytes for value in tensors.values()),
        wanted,
        quantize,
        _source(facts, trained_bits, was_quantized),
        not quantize and not facts.is_quantized and _has_original_names(base, tensors),
    )


def write_fused(
    fused: Fused, folder: Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> None:
    """Write a fused model into an empty folder; `fused` is used up.

    Args:
        fused: From `prepare_fuse`.
        folder: Where to; it exists.
        shard_bytes: Largest file.
        progress: Told (bytes done, all bytes).
    """
    write_companions(fused.base, folder, fused.config)
    write_shards(folder, fused.tensors, shard_bytes=shard_bytes, progress=progress)


def _load_base(
    base: Path, facts: ModelFacts, trained_bits: int | None, group_size: int, *, quantize: int | None, dequantize: bool
) -> tuple[nn.Module, dict[str, Any]]:
    if dequantize and trained_bits:
        return load_lazily(base, quantize=trained_bits, group_size=group_size)
    twin = base / "quantized"
    if quantize and not facts.is_quantized and (twin / "config.json").exists():
        return load_lazily(twin, compute_dtype="stored")  # layers without an adapter keep the file's own codes
    return load_lazily(base, compute_dtype="stored")


def _refuse_fewer_bits(quantize: int | None, base: Path, trained_bits: int | None) -> None:
    stored = read_config(base).get("quantization") or {}
    bits = stored.get("bits") if isinstance(stored, dict) else None
    if quantize and quantize < (bits or trained_bits or 0):
        problem = Problem("--quantize", f"the base has {bits or trained_bits} bits (got {quantize})")
        raise RecipeError([problem], fix="Fewer bits would lose what training changed.")


def _fuse_layers(model: nn.Module) -> dict[str, mx.array]:
    """Put plain layers with the sum, still unevaluated, in the place of adapted ones; returns the sums by path."""
    adapted = {path: module for path, module in model.named_modules() if isinstance(module, ADAPTED)}
    sums = {path: _sum(module) for path, module in adapted.items()}
    model.update_modules(
        tree_unflatten([(path, _plain(_inner(module), sums[path])) for path, module in adapted.items()])
    )
    return sums


def _quantize(
    model: nn.Module, config: dict[str, Any], sums: dict[str, mx.array], *, bits: int, group_size: int
) -> None:
    """Quantize a fused model; of a base that is quantized already, only the layers that had an adapter."""
    own = config.get("quantization")
    if not own:
        quantize_layers(model, config, bits=bits, group_size=group_size)
        return
    size = _SPREAD_GROUP if bits == 8 else own["group_size"]
    quantize_layers(model, config, bits=bits, group_size=size, only=sums)
    modules = dict(model.named_modules())
    for path, weight in sums.items():
        layer: Any = modules[path]
        if bits == 8 and isinstance(layer, QUANTIZED):
            layer.weight, layer.scales, layer.biases = spread_codes(weight, layer.scales.dtype)


def spread_codes(weight: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Quantize to 8 bits on a grid that does not line up with the one a 4-bit base lies on.

    On MLX's own grid every weight of a 4-bit base is a grid point, and what training added, mostly less than half a
    step, is rounded away: of SmolLM2's addresses more than half was lost. Here each group's grid starts at a random
    place (the same at every call), so that small changes survive on average.

    Args:
        weight: Floats [..., columns], columns a multiple of 32.
        dtype: Of scales and biases.

    Returns:
        MLX's affine form: packed codes, scales, biases.
    """
    groups = weight.reshape(*weight.shape[:-1], -1, _SPREAD_GROUP)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scale = (mx.maximum(high - low, 1e-8) / _SPREAD_STEPS).astype(dtype)
    start = mx.random.uniform(shape=low.shape, key=mx.random.key(0))
    bias = (low - start * scale * (255 - _SPREAD_STEPS)).astype(dtype)
    exact_scale, exact_bias = scale.astype(mx.float32), bias.astype(mx.float32)
    codes = mx.clip(mx.round((groups - exact_bias) / exact_scale), 0, 255).astype(mx.uint8)
    return codes.reshape(weight.shape).view(mx.uint32), scale.squeeze(-1), bias.squeeze(-1)


def _dequantize_layers(model: nn.Module) -> None:
    quantized = [(path, module) for path, module in model.named_modules() if isinstance(module, QUANTIZED)]
    model.update_modules(tree_unflatten([(path, _plain(module, _weight(module))) for path, module in quantized]))


def _inner(module: Any) -> Any:
    return module.linear if "linear" in module else module.embedding


def _sum(module: Any) -> mx.array:
    """Return the weight that does what a layer with its adapter does, float32."""
    weight: mx.array
    weight, a, b = _weight(_inner(module)), module.lora_a.astype(mx.float32), module.lora_b.astype(mx.float32)
    match module:
        case LoRALinear() | DoRALinear():
            weight = weight + (module.scale * b.T) @ a.T
        case LoRAEmbedding() | DoRAEmbedding():
            weight = weight + (module.scale * a) @ b
        case LoRASwitchLinear():
            weight = weight + (module.scale * b) @ a
        case _:
            raise ModelError(f"macft cannot fuse a {type(module).__name__}")
    if isinstance(module, DoRALinear | DoRAEmbedding):
        weight = (module.m / mx.linalg.norm(weight, axis=1))[:, None] * weight
    return weight


def _weight(layer: Any) -> mx.array:
    """Return a layer's weight in float32; scales are widened first, so that nothing is rounded."""
    if not isinstance(layer, QUANTIZED):
        return cast(mx.array, layer.weight.astype(mx.float32))
    scales, biases = layer.scales, layer.get("biases")
    if mx.issubdtype(scales.dtype, mx.floating):
        scales, biases = scales.astype(mx.float32), None if biases is None else biases.astype(mx.float32)
    dequantized = mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits, layer.mode)
    return dequantized.astype(mx.float32)


def _plain(layer: Any, weight: mx.array) -> nn.Module:
    """Return a floating-point layer like `layer`, with another weight."""
    bias = "bias" in layer
    if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding):
        plain: Any = nn.Embedding(1, 1)
    elif isinstance(layer, SwitchLinear | QuantizedSwitchLinear):
        plain = SwitchLinear(1, 1, 1, bias=bias)
    else:
        plain = nn.Linear(1, 1, bias=bias)
    plain.weight = weight
    if bias:
        plain.bias = layer.bias
    return cast(nn.Module, plain)


def _stored_dtype(base: Path) -> str:
    """Return the type in which most of a base's numbers (of a quantized one, its scales) are stored."""
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    counts: dict[str, int] = {}
    for tensor in read_headers(base).values():
        if name := names.get(tensor.dtype):
            counts[name] = counts.get(name, 0) + tensor.elements
    return max(counts, key=lambda name: counts[name], default="bfloat16")


def _has_original_names(base: Path, tensors: dict[str, mx.array]) -> bool:
    stored = read_headers(base)
    return all(name in stored and stored[name].shape == value.shape for name, value in tensors.items())


def _source(facts: ModelFacts, trained_bits: int | None, was_quantized: bool) -> str:
    if not was_quantized:
        return "the original weights"
    return f"{facts.name} as it was trained on, {trained_bits} bits" if trained_bits else "the base's quantized weights"
