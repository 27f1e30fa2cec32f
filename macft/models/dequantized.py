"""Quantized layers that multiply through their dequantized weight, for the CPU backend.

The rule: same numbers, other way. MLX's quantized product on a CPU takes a hundred times longer than dequantizing the
weight and multiplying, once more than a few rows are multiplied; on Metal it is the other way round.
"""

import functools
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macft.losses.backward import custom_function

FEW_ROWS = 4
"""Up to this many rows the quantized product is the faster one."""


def multiply_dequantized(model: nn.Module) -> None:
    """Let the quantized layers of a model dequantize before they multiply many rows."""
    for module in model.modules():
        if type(module) in {nn.QuantizedLinear, nn.QuantizedEmbedding}:
            kind: Any = type(module)
            module.__class__ = _dequantizing(kind)


@functools.cache
def _dequantizing(kind: Any) -> Any:
    method = "as_linear" if kind is nn.QuantizedEmbedding else "__call__"

    def multiply(self: Any, x: mx.array) -> mx.array:
        if x.size // x.shape[-1] <= FEW_ROWS:
            product: mx.array = getattr(kind, method)(self, x)
            return product
        y = _product(x, self)
        return y + self["bias"] if "bias" in self else y

    return type(kind.__name__, (kind,), {method: multiply})


def _product(x: mx.array, layer: Any) -> mx.array:
    def weight(after: mx.array) -> mx.array:
        codes = mx.depends(layer.weight, after)  # or MLX would dequantize ahead of its turn, and hold several
        dequantized = mx.dequantize(codes, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)
        return dequantized.astype(x.dtype)

    @custom_function
    def product(x: mx.array) -> mx.array:
        return x @ weight(x).T

    @product.vjp
    def product_vjp(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        # Dequantized again: kept, all of them would fill the memory of a full model.
        return cotangent @ weight(cotangent)

    return cast(mx.array, product(x))
