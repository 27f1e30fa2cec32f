"""A forward pass that holds one layer in memory, so that a model larger than the machine can be asked.

The rule: a model is loaded unevaluated, runs once, and each of its layers lets go of its weights when it has run. It
cannot run a second time.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


def run_once(model: nn.Module, tokens: mx.array) -> mx.array:
    """Return a model's logits, evaluated, with its weights read and dropped layer by layer.

    Args:
        model: From `load_lazily`, with or without an adapter; of no use afterwards.
        tokens: Token ids [B, T], padded on the right.

    Returns:
        Logits [B, T, V] in the model's type.
    """
    for layer in model.layers:
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (kind,), {"__call__": _burning(kind)})
    logits: mx.array = model(tokens)
    mx.eval(logits)
    return logits


def _burning(kind: type[nn.Module]) -> Any:
    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = kind.__call__(layer, *args, **kwargs)
        mx.eval(result)
        layer.update(tree_map(lambda _: mx.array(0.0), layer.parameters()))
        mx.clear_cache()
        return result

    return call
