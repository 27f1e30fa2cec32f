"""Where a model's body ends and its head begins.

The rule: logits are made only where a token is supervised, if the family allows it. The split is tried once on the
loaded model and used only when `head(body(tokens))` equals `model(tokens)`; else the model's own logits are gathered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import mlx.core as mx
import mlx.nn as nn

TOLERANCE = 1e-3
"""Largest difference between the two ways that still counts as equal, relative to the largest logit."""


@dataclass(frozen=True)
class Head:
    """How the logits of a model are read at chosen positions.

    Attributes:
        project: Hidden states [R, D] to logits [R, V]; None when the family is not understood.
        takes_embeddings: Whether the body accepts `input_embeddings`, as NEFTune needs.
    """

    project: Callable[[mx.array], mx.array] | None
    takes_embeddings: bool

    def logits_at(
        self, model: nn.Module, tokens: mx.array, positions: mx.array, embeddings: mx.array | None = None
    ) -> mx.array:
        """Return the logits that follow the tokens at `positions`.

        Args:
            model: The model that the head was found on.
            tokens: Token ids [B, L].
            positions: Places in the flattened tokens [R].
            embeddings: Used instead of the tokens' own [B, L, D].

        Returns:
            Scores before softmax [R, V], in the model's dtype.
        """
        more = {} if embeddings is None else {"input_embeddings": embeddings}
        if self.project is None:
            logits: mx.array = model(tokens, **more)
            return logits.reshape(-1, logits.shape[-1])[positions]
        hidden = model.model(tokens, **more)
        return self.project(hidden.reshape(-1, hidden.shape[-1])[positions])


def find_head(model: nn.Module) -> Head:
    """Split a loaded model into body and head where that provably changes nothing."""
    body = getattr(model, "model", None)
    if not isinstance(body, nn.Module):
        return Head(None, False)
    takes_embeddings = "input_embeddings" in signature(type(body).__call__).parameters
    project = _projection(model, body)
    if project is None or not _agrees(model, Head(project, takes_embeddings)):
        return Head(None, takes_embeddings)
    return Head(project, takes_embeddings)


def _projection(model: nn.Module, body: nn.Module) -> Callable[[mx.array], mx.array] | None:
    # Looked up at each call: the head's weights change when the full model is trained.
    if "lm_head" in model:
        return lambda hidden: model.lm_head(hidden)
    if "embed_tokens" in body and hasattr(body.embed_tokens, "as_linear"):
        return lambda hidden: body.embed_tokens.as_linear(hidden)
    return None


def _agrees(model: nn.Module, head: Head) -> bool:
    tokens = mx.array([[1, 7, 3, 5, 2, 9, 4, 8]]) % _vocabulary(model)
    try:
        split = head.logits_at(model, tokens, mx.arange(tokens.size))
    except (TypeError, ValueError, AttributeError):
        return False
    whole = model(tokens)[0]
    if split.shape != whole.shape:
        return False
    return bool((mx.abs(split - whole).max() <= TOLERANCE * mx.abs(whole).max()).item())


def _vocabulary(model: nn.Module) -> int:
    return int(getattr(model.args, "vocab_size", 16)) if hasattr(model, "args") else 16
