"""The precision that losses are computed in.

The rule: float32 from the logits on, whatever the model computes in (bfloat16 cross-entropy moves gradients by 0.6%). A
model in float64 stays there: so a formula is held against another library's without any rounding between them.
"""

import mlx.core as mx


def at_least_float32(x: mx.array) -> mx.array:
    """Return an array in float32, or in float64 if it is."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)
