"""Where a model's body ends and its head begins.

The rule: logits are made only where a token is supervised, if the family allows it. The split is tried once on the
loaded model and used only when `head(body(tokens))` equals `model(tokens)`; else the model's own logits are gathered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macft.losses.logprobs import Projection, head_logprobs, token_logprobs

TOLERANCE = 1e-3
"""Largest difference between the two ways that still counts as equal, relative to the largest logit."""
Run = Callable[..., mx.array]
"""Runs a module on a batch and returns its output at the batch's positions, [R, …]."""


@dataclass(frozen=True)
class Head:
    """How log-probabilities are read off a model.

    Attributes:
        projection: The head as functions; None when the family is not understood.
        takes_embeddings: Whether the body accepts `input_embeddings`, as NEFTune needs.
    """

    projection: Projection | None
    takes_embeddings: bool

    def logprobs(self, model: nn.Module, run: Run, targets: mx.array) -> mx.array:
        """Return the log-probabilities of the tokens that follow a batch's positions.

        Args:
            model: The model that the head was found on.
            run: Runs the body, or the whole model, on the batch.
            targets: Those tokens [R].

        Returns:
            Natural-log probabilities [R], float32, nats.
        """
        if self.projection is None:
            return token_logprobs(run(model), targets)
        hidden = run(model.model)
        if _is_trained(model):  # the head's own gradient needs the logits in the graph
            return token_logprobs(self.projection.logits(hidden), targets)
        return head_logprobs(hidden, targets, self.projection, with_gradient=model.training)


def find_head(model: nn.Module, *, is_sketch: bool = False) -> Head:
    """Split a loaded model into body and head where that provably changes nothing; a sketch is taken at its word."""
    body = getattr(model, "model", None)
    if not isinstance(body, nn.Module):
        return Head(None, takes_embeddings=False)
    takes_embeddings = "input_embeddings" in signature(type(body).__call__).parameters
    projection = _projection(model, body)
    if projection is None or not (is_sketch or _agrees(model, projection)):
        return Head(None, takes_embeddings)
    return Head(projection, takes_embeddings)


def _projection(model: nn.Module, body: nn.Module) -> Projection | None:
    layer = model.lm_head if "lm_head" in model else body.embed_tokens if "embed_tokens" in body else None
    if not isinstance(layer, nn.Linear | nn.QuantizedLinear | nn.Embedding | nn.QuantizedEmbedding) or "bias" in layer:
        return None
    arguments: Any = getattr(model, "args", None)
    scale = float(getattr(arguments, "logit_scale", None) or 1.0) / float(
        getattr(arguments, "logits_scaling", None) or 1.0
    )
    cap = float(getattr(arguments, "final_logit_softcapping", None) or 0.0)
    if isinstance(layer, nn.Linear | nn.Embedding):
        return Projection(
            forward=lambda hidden: hidden @ layer.weight.T,
            backward=lambda mix: mix.astype(layer.weight.dtype) @ layer.weight,
            rows=lambda ids: layer.weight[ids],
            scale=scale,
            cap=cap,
        )
    return _quantized(layer, scale, cap)


def _quantized(layer: Any, scale: float, cap: float) -> Projection:
    packing = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}

    def weight(place: Any = ..., codes: mx.array | None = None) -> mx.array:
        biases = layer.get("biases")
        return mx.dequantize(
            (layer.weight if codes is None else codes)[place],
            layer.scales[place],
            None if biases is None else biases[place],
            **packing,
        )

    def multiply(x: mx.array, transpose: bool) -> mx.array:
        if mx.default_device() == mx.cpu:  # many rows: dequantizing first is faster by far on this backend
            whole = weight(codes=mx.depends(layer.weight, x))  # or MLX would dequantize ahead of its turn
            return x @ (whole.T if transpose else whole)
        return mx.quantized_matmul(x, layer.weight, layer.scales, layer.get("biases"), transpose=transpose, **packing)

    return Projection(
        forward=lambda hidden: multiply(hidden, True),
        backward=lambda mix: multiply(mix.astype(layer.scales.dtype), False),
        rows=weight,
        scale=scale,
        cap=cap,
    )


def _agrees(model: nn.Module, projection: Projection) -> bool:
    tokens = mx.array([[1, 7, 3, 5, 2, 9, 4, 8]]) % _vocabulary(model)
    try:
        split = projection.logits(model.model(tokens)[0])
    except (TypeError, ValueError, AttributeError):
        return False
    mx.eval(split)  # one after the other: a quantized head may be dequantized in each
    whole = model(tokens)[0]
    if split.shape != whole.shape:
        return False
    return bool((mx.abs(split - whole).max() <= TOLERANCE * mx.abs(whole).max()).item())


def _vocabulary(model: nn.Module) -> int:
    return int(getattr(model.args, "vocab_size", 16)) if hasattr(model, "args") else 16


def _is_trained(model: nn.Module) -> bool:
    layer = model.lm_head if "lm_head" in model else model.model.embed_tokens
    return bool(layer.trainable_parameters())
