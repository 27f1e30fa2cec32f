"""Run a model on a flat stream of tokens: padding costs nothing outside attention.

The rule: mlx-lm's own modules do the work; only the attention of a known family is replaced, and only for a batch that
comes as a stream, so generation is untouched. What is replaced is compared with the model itself at load, on rows of
uneven lengths, and dropped when it differs; the run says so and takes padded rows.
"""

import functools
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macft.data.batches import Batch, make_batch
from macft.losses.backward import checkpoint, custom_function
from macft.losses.exponential import is_slow, softmax, swiglu

TOLERANCE = 1e-4
"""Largest difference of hidden states from the model's own that still counts as equal in float32, relative."""
KEPT_SCORES = 512
"""On the CPU, rows up to this length keep their attention weights for the backward pass; longer ones recompute them."""
QUERY_BLOCK = 64
"""On the CPU, so many queries of a row meet only the keys that lie before them: half of the scores are never made."""
_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "rope", "scale", "n_heads", "n_kv_heads")


class StreamLayout:
    """What attention needs to know of a batch; handed to mlx-lm's modules where they expect a cache."""

    whole: mx.array | None = None
    """What the last layer's attention reads, where its own input holds only what is wanted [1, T, D]."""

    def __init__(self, batch: Batch) -> None:
        self._to_rows, self._to_stream = _gathers(batch)
        self.wanted = batch.positions

    def narrowed(self, whole: mx.array) -> "StreamLayout":
        """Return the layout of a layer that answers only where a token is supervised, and still looks at all others."""
        layout = copy(self)
        layout.whole = whole
        return layout

    def make_mask(self, *_: Any, **__: Any) -> None:
        """Return nothing: the rows are causal by themselves."""

    def to_rows(self, x: mx.array) -> mx.array:
        """Lay a stream [T, C] out as rows [S, L, C]."""
        rows: mx.array = self._to_rows(x)
        return rows

    def to_stream(self, rows: mx.array) -> mx.array:
        """Take the real tokens of rows [S, L, C] back into a stream [T, C]; a narrowed layer wants [R, C]."""
        stream: mx.array = self._to_stream(rows)
        return stream if self.whole is None else stream[self.wanted]


def _gathers(batch: Batch) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if batch.gather.shape == (1, batch.tokens.size):  # a single row, in the order of the stream
        return lambda x: x[None], lambda rows: rows.squeeze(0)
    # Each way's backward pass is the other way: cheaper than the scatter-add of autodiff, and deterministic.
    gather, back, taken, copies = batch.gather, batch.back, batch.taken, batch.copies
    shared = copies.shape[1]

    @custom_function
    def to_rows(x: mx.array) -> mx.array:
        return x[gather]

    @to_rows.vjp
    def to_rows_vjp(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        flat = cotangent.reshape(-1, cotangent.shape[-1])
        stream = flat[back]
        if not shared:
            return stream
        first = functools.reduce(mx.add, [flat[places] for places in copies], stream[:shared])
        return mx.concatenate([first, stream[shared:]])

    @custom_function
    def to_stream(rows: mx.array) -> mx.array:
        return rows.reshape(-1, rows.shape[-1])[back]

    @to_stream.vjp
    def to_stream_vjp(rows: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        spread = mx.where(taken[:, None], cotangent[gather.reshape(-1)], 0)
        return spread.reshape(rows.shape)

    return to_rows, to_stream


@dataclass(frozen=True)
class Stream:
    """How a model is run on a batch.

    Attributes:
        layers: Layers that take the stream; 0 when rows are padded instead.
        why_not: Why they are, for people.
        narrows: Whether the last layer goes on after attention only with what is supervised: nothing reads the rest.
    """

    layers: int
    why_not: str = ""
    narrows: bool = False

    def runner(self, batch: Batch, embeddings: mx.array | None = None) -> Callable[[nn.Module], mx.array]:
        """Return what runs a body, or a whole model, on a batch: module to outputs at the batch's positions [R, …].

        Args:
            batch: The micro-batch, as MLX arrays.
            embeddings: Used instead of the tokens' own [T, D].
        """
        layout = StreamLayout(batch)

        def run(module: nn.Module) -> mx.array:
            if self.layers:
                more = {} if embeddings is None else {"input_embeddings": embeddings[None]}
                stream: mx.array = module(batch.tokens[None], cache=[layout] * self.layers, **more)
                return stream.squeeze(0) if self.narrows else stream[0, batch.positions]
            more = {} if embeddings is None else {"input_embeddings": layout.to_rows(embeddings)}
            return layout.to_stream(module(batch.tokens[batch.gather], **more))[batch.positions]

        return run


def prepare_stream(model: nn.Module, *, longest: int, is_sketch: bool = False) -> Stream:
    """Give a model attention that takes streams, if its family is known and the result is the model's own.

    It may be given to a model that has it already.

    Args:
        model: Loaded; its attention and, on the CPU backend, its MLP are replaced in place.
        longest: Most tokens of any row; sliding windows must be longer.
        is_sketch: The model has no weights; the result is taken to be its own.
    """
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in model.layers]
    if not all(part is not None and all(hasattr(part, name) for name in _PARTS) for part in attentions):
        return Stream(0, "this family's attention is not known")
    if (window := _window(model)) and window < longest:
        return Stream(0, f"rows are longer than its sliding window of {window}")
    batch, stream = probe(model, longest=window or longest), Stream(len(attentions))
    last: Any = model.layers[-1]
    last.__class__ = getattr(type(last), "narrowed", type(last))
    own = Stream(0).runner(batch)(model.model)
    is_gated = _looks_gated if is_sketch else _is_gated
    gated: list[Any] = [layer.mlp for layer in model.layers if is_gated(layer)] if is_slow() else []
    kinds = [type(module) for module in (*attentions, *gated)]
    for module in attentions:
        module.__class__ = _streaming(cast(Any, type(module)))
    for module in gated:
        module.__class__ = _fast_gated(cast(Any, type(module)))
    if is_sketch or equals(stream, batch, model, own):
        return _narrow_last(stream, batch, model, own, is_sketch=is_sketch)
    for module, kind in zip((*attentions, *gated), kinds, strict=True):
        module.__class__ = kind
    return Stream(0, "attention on a stream differs from the model's own")


def _narrow_last(stream: Stream, batch: Batch, model: nn.Module, own: mx.array, *, is_sketch: bool) -> Stream:
    """Let the last layer go on after attention only with what is supervised, if the result is the model's own."""
    last: Any = model.layers[-1]
    kind: Any = type(last)
    last.__class__ = _narrowing(kind)
    narrowed = replace(stream, narrows=True)
    if is_sketch or equals(narrowed, batch, model, own):
        return narrowed
    last.__class__ = kind
    return stream


def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Return causal attention of queries [S, H, L, d] on keys and values [S, K, L, d], H a multiple of K."""
    if not (is_slow() and queries.dtype == mx.float32):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    rows, heads, length, width = queries.shape
    grouped = (queries * scale).reshape(rows, keys.shape[1], heads // keys.shape[1], length, width)
    attend_block = _attend_block if length <= KEPT_SCORES else checkpoint(_attend_block)
    ends = [*range(QUERY_BLOCK, length, QUERY_BLOCK), length]
    blocks = [
        attend_block(grouped[:, :, :, start:end], keys[:, :, :end], values[:, :, :end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return mx.concatenate(blocks, axis=3).reshape(queries.shape)


def _attend_block(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Return attention of the last queries of a row [S, K, G, B, d] on all keys up to the last of them [S, K, L, d]."""
    rows, kv_heads, groups, size, width = queries.shape
    length = keys.shape[2]
    scores = queries.reshape(rows, kv_heads, groups * size, width) @ keys.swapaxes(-1, -2)
    future = mx.where(mx.arange(length - size, length)[:, None] < mx.arange(length), -mx.inf, 0.0)
    return (softmax(scores + mx.tile(future, (groups, 1))) @ values).reshape(queries.shape)


@functools.cache
def _streaming(kind: Any) -> type[nn.Module]:
    """Return a family's attention that also takes streams."""

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if not isinstance(cache, StreamLayout):
            output: mx.array = kind.__call__(self, x, mask, cache)
            return output

        def rows(projected: mx.array, heads: int, norm: str = "") -> mx.array:
            if norm in self:
                projected = self[norm](projected.reshape(-1, heads, projected.shape[-1] // heads)).reshape(
                    projected.shape
                )
            laid = cache.to_rows(projected)
            return laid.reshape(*laid.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        queries, keys, values = self.project((x if cache.whole is None else cache.whole).squeeze(0))
        queries = self.rope(rows(queries, self.n_heads, "q_norm"))
        keys = self.rope(rows(keys, self.n_kv_heads, "k_norm"))
        attended = attend(queries, keys, rows(values, self.n_kv_heads), self.scale).transpose(0, 2, 1, 3)
        return self.o_proj(cache.to_stream(attended.reshape(*attended.shape[:2], -1)))[None]  # type: ignore[no-any-return]

    return type(kind.__name__, (kind,), {"__call__": call, "project": _project})


@functools.cache
def _narrowing(kind: Any) -> type[nn.Module]:
    """Return a family's layer that, on a stream, goes on after attention only with what is supervised."""

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if isinstance(cache, StreamLayout):
            x, cache = x[:, cache.wanted], cache.narrowed(self.input_layernorm(x))
        output: mx.array = kind.__call__(self, x, mask, cache)
        return output

    return type(kind.__name__, (kind,), {"__call__": call, "narrowed": kind})


def _project(attention: Any, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return queries, keys and values of a stream; the part of attention that `recompute` computes again."""
    return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)


@functools.cache
def _fast_gated(kind: Any) -> type[nn.Module]:
    """Return a family's SwiGLU that takes no slow exponentials."""

    def call(self: Any, x: mx.array) -> mx.array:
        product: mx.array = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return product

    return type(kind.__name__, (kind,), {"__call__": call})


def _looks_gated(layer: nn.Module) -> bool:
    """Return whether a layer's MLP has the matrices of a SwiGLU."""
    mlp = getattr(layer, "mlp", None)
    return mlp is not None and all(name in mlp for name in ("gate_proj", "up_proj", "down_proj"))


def _is_gated(layer: nn.Module) -> bool:
    """Return whether a layer's MLP computes down(silu(gate) · up), by trying it."""
    if not _looks_gated(layer):
        return False
    mlp: Any = layer.mlp
    x = mx.random.normal((2, _width(layer)), key=mx.random.key(1))
    own, ours = mlp(x), mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    return bool((mx.abs(own - ours).max() <= TOLERANCE * mx.abs(own).max()).item())


def _width(layer: nn.Module) -> int:
    return int(layer.input_layernorm.weight.size)


def _window(model: nn.Module) -> int:
    """Return the size of the sliding window when any layer uses one, else 0."""
    slides = any(
        getattr(layer, "use_sliding", False) or getattr(layer.self_attn, "is_sliding", False) for layer in model.layers
    )
    body = model.model
    return int(getattr(body, "sliding_window", None) or getattr(body, "window_size", None) or 0) if slides else 0


class _ProbeRows:
    """Three short rows of different lengths."""

    def __init__(self, vocabulary: int, longest: int) -> None:
        generator = np.random.default_rng(0)
        self.ids = [generator.integers(0, vocabulary, min(size, longest)) for size in (7, 3, 5)]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Any:
        return np.array([len(row) for row in self.ids])

    supervised = lengths

    def row(self, index: int) -> tuple[Any, Any]:
        return self.ids[index], np.ones(len(self.ids[index]), np.bool_)


def probe(model: nn.Module, *, longest: int) -> Batch:
    """Return three short rows as a batch, to compare two forms of a model on."""
    vocabulary = int(getattr(getattr(model, "args", None), "vocab_size", 16))
    batch = make_batch(_ProbeRows(vocabulary, longest), np.arange(3))
    return Batch(*(mx.array(part) for part in batch))


def equals(stream: Stream, batch: Batch, model: nn.Module, own: mx.array) -> bool:
    """Return whether a model's hidden states on a batch are those that it had [R, D]."""
    try:
        ours = stream.runner(batch)(model.model)
        close = mx.abs(ours - own).max() <= _tolerance(own.dtype) * mx.abs(own).max()
        return bool(close.item())
    except (TypeError, ValueError, AttributeError):
        return False


def _tolerance(dtype: mx.Dtype) -> float:
    return TOLERANCE if dtype == mx.float32 else 5e-2
