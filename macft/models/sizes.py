"""How large a model is, from its config alone.

The rule: the same counts as from the headers of its weights, for the dense families that macft knows; for mixtures of
experts and families with layers of their own, an estimate.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

BFLOAT16_BYTES = 2
_BIASED = {"qwen2"}
"""Families with a bias on queries, keys and values."""
_NORMED = {"qwen3", "gemma3_text"}
"""Families that normalize queries and keys."""
_FOUR_NORMS = {"gemma2", "gemma3_text"}


class Sizes(NamedTuple):
    """Counts and bytes of a model's tensors.

    Attributes:
        parameters: Weights before any quantization, tied embeddings once.
        weight_bytes: As stored.
        float_values: Floating-point numbers among what is stored, scales included.
        code_bytes: Bytes of everything else: the codes of quantized weights.
    """

    parameters: int
    weight_bytes: int
    float_values: int
    code_bytes: int


def estimate_sizes(
    config: Mapping[str, Any],
    quantization: Mapping[str, Any],
    *,
    layers: int,
    width: int,
    inner: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
    tied: bool,
) -> Sizes:
    """Return the sizes that weights of these shapes have, stored in 16 bits or as `quantization` says."""
    family, queries, kv = config.get("model_type"), heads * head_dim, kv_heads * head_dim
    experts = next(
        (config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(key)), 0
    )
    mlp = 3 * width * inner
    if experts:
        mlp = experts * (3 * width * int(config.get("moe_intermediate_size") or inner) + width)
    matrices = layers * (2 * width * (queries + kv) + mlp) + vocabulary * width * (1 if tied else 2)
    a_layer = width * (4 if family in _FOUR_NORMS else 2)
    a_layer += 2 * head_dim if family in _NORMED else 0
    a_layer += queries + 2 * kv if family in _BIASED or config.get("attention_bias") else 0
    a_layer += width if config.get("attention_bias") and family not in _BIASED else 0
    vectors = layers * a_layer + width
    if not quantization:
        return Sizes(matrices + vectors, BFLOAT16_BYTES * (matrices + vectors), matrices + vectors, 0)
    codes = matrices * int(quantization.get("bits", 4)) // 8
    floats = vectors + 2 * matrices // int(quantization.get("group_size", 64))
    return Sizes(matrices + vectors, codes + BFLOAT16_BYTES * floats, floats, codes)
