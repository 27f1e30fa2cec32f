"""A model of a config's shapes without its weights: what a trace runs, and nobody evaluates.

The rule: nothing is read but the config, and nothing is allocated; every array stands for one in memory.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.utils import _get_classes, load_config

from macft.models.dequantized import multiply_dequantized
from macft.models.describe import ModelFacts, text_config
from macft.models.load import DTYPES, cast_floats, quantize_layers, to_old_dialect

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What families call the number of their layers."""


def sketch_model(
    facts: ModelFacts, *, layers: int, quantize: int | None, group_size: int, compute_dtype: str
) -> nn.Module:
    """Build a frozen model with fewer layers, as `load_model` would, on a config alone.

    Args:
        facts: Of the model as it will be loaded.
        layers: How many.
        quantize: Bits, as for `load_model`.
        group_size: Weights that share a scale.
        compute_dtype: As for `load_model`.
    """
    config = load_config(facts.path)
    config = config | to_old_dialect(config) | {key: layers for key in _DEPTHS if key in config}
    kind, arguments = _get_classes(config)
    model: nn.Module = kind(arguments.from_dict(config))
    own: dict[str, Any] = config.get("quantization") or config.get("quantization_config") or {}
    stored = text_config(config).get("torch_dtype") or text_config(config).get("dtype") or "bfloat16"
    is_auto = compute_dtype == "auto"
    cast_floats(model, DTYPES[("float32" if mx.default_device() == mx.cpu else stored) if is_auto else compute_dtype])
    if own:
        quantize_layers(model, {}, bits=int(own.get("bits", 4)), group_size=int(own.get("group_size", 64)))
    elif quantize:
        quantize_layers(model, {}, bits=quantize, group_size=group_size)
    if mx.default_device() == mx.cpu:
        multiply_dequantized(model)
    model.freeze()
    return model


def placeholder(array: mx.array) -> mx.array:
    """Return an array of the same shape and type that stands for one in memory."""
    return mx.full(array.shape, MARK, dtype=array.dtype)


def put_placeholders(model: nn.Module) -> None:
    """Put placeholders where a model's parameters are."""
    model.update(tree_map(placeholder, model.parameters()))


MARK = 77
"""Value of every placeholder, by which a graph tells one from other constants."""
