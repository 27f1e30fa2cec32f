"""Bytes that training needs: arithmetic only.

The rule: shapes in, bytes out. Nothing here knows a model, a machine or MLX.
"""

ACTIVATIONS_PER_WIDTH, ACTIVATIONS_PER_INNER, ACTIVATIONS_PER_KV = 6.0, 5.0, 2.3
"""Values kept for the backward pass, a token and layer, as multiples of D, of the MLP's width, and of the kv width."""
LOGIT_COPIES = 3
"""Logits, their softmax and its gradient live at once."""
FLOAT32_BYTES = 4


def activation_bytes(
    tokens: int, *, layers: int, width: int, inner: int, kv_width: int, value_bytes: int, recomputed: bool = False
) -> int:
    """Return the activations kept for the backward pass of `tokens` tokens.

    Source: fitted to traces of Llama-shaped models (ENGINE §3).
    """
    a_layer = ACTIVATIONS_PER_WIDTH * width + ACTIVATIONS_PER_INNER * inner + ACTIVATIONS_PER_KV * kv_width
    kept = layers * 1.1 * width + a_layer if recomputed else layers * a_layer
    return int(tokens * value_bytes * kept)


def logit_bytes(positions: int, *, vocabulary: int) -> int:
    """Return what the logits of the supervised positions need, in float32."""
    return positions * vocabulary * FLOAT32_BYTES * LOGIT_COPIES


def adapter_bytes(parameters: int) -> int:
    """Return weights, gradients and two moments of an adapter, in float32."""
    return parameters * FLOAT32_BYTES * 4


def largest_micro_batch(token_bytes: float, available_bytes: float, *, longest: int) -> int:
    """Return how many tokens fit one forward and backward pass: at least the longest row."""
    return max(longest, int(available_bytes / token_bytes))
