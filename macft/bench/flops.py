"""Floating-point operations that training needs: arithmetic only.

The rule: only useful work counts. Padding, logits nobody asked for and recomputation cost time, and earn nothing here.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """What a model with an adapter multiplies.

    Attributes:
        body: Weights that every token is multiplied with, without the head.
        head: Weights of the head, width × vocabulary.
        adapters: Weights of the adapter.
        layers: Layers with attention.
        attention_width: Heads × width of a head.
    """

    body: int
    head: int
    adapters: int
    layers: int
    attention_width: int


def useful_flops(
    shape: Shape, lengths: Sequence[int], *, supervised: int, shared: Sequence[int] = (), backward: bool = True
) -> int:
    """Return the operations of one update on rows of the given lengths, forward and backward.

    A frozen weight costs two products a token (forward, and its input's gradient), a trained one three; the head only
    where a token is supervised. A row of L tokens has L(L + 1)/2 causal pairs, each two products in every pass.

    Args:
        shape: Of the model.
        lengths: Tokens of each row.
        supervised: Supervised tokens of all rows.
        shared: Tokens that rows begin with and that another row has too: they need no work of their own.
        backward: False for a forward pass alone.
    """
    pairs = sum(length * (length + 1) // 2 for length in lengths) - sum(size * (size + 1) // 2 for size in shared)
    tokens = sum(lengths) - sum(shared)
    body, adapters, head, attention = (4, 6, 4, 12) if backward else (2, 2, 2, 4)
    linear = (body * shape.body + adapters * shape.adapters) * tokens + head * shape.head * supervised
    return linear + attention * shape.layers * shape.attention_width * pairs


def padded_flops(shape: Shape, *, rows: int, length: int) -> int:
    """Return the operations of one update that pads all rows to one length and makes all logits."""
    return rows * useful_flops(shape, [length], supervised=length)
