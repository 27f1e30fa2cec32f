"""What a method minimizes on one micro-batch.

The rule: an objective turns a model and a batch into sums; the updater divides once, by the weight of the whole update.
A new method is one small class here, a loss in `losses`, and a recipe.
"""

from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from macft.data.batches import Batch
from macft.losses.supervised import cross_entropy
from macft.models.head import Head
from macft.models.stream import Stream


class Objective(Protocol):
    """A training method: what it sums up on a micro-batch, and what an update's sum is divided by."""

    head: Head
    stream: Stream

    def weight(self, batch: Batch) -> float:
        """Return what this micro-batch counts in the update: supervised tokens here, pairs in DPO."""

    def total(self, model: nn.Module, batch: Batch, key: mx.array) -> mx.array:
        """Return the summed loss of a micro-batch whose arrays are MLX's, a float32 scalar."""


class Supervised:
    """Cross-entropy on supervised tokens: SFT and continual pre-training."""

    def __init__(self, head: Head, stream: Stream, *, neftune_alpha: float = 0.0) -> None:
        self.head, self.stream = head, stream
        self.neftune_alpha = neftune_alpha

    def weight(self, batch: Batch) -> float:
        """Return the number of supervised tokens."""
        return float(batch.weight.sum())

    def total(self, model: nn.Module, batch: Batch, key: mx.array) -> mx.array:
        """Return the summed cross-entropy, nats."""
        embeddings = None
        if self.neftune_alpha and model.training:
            embeddings = noisy_embeddings(model, batch, self.neftune_alpha, key)
        run = self.stream.runner(batch, embeddings)
        return cross_entropy(self.head.logprobs(model, run, batch.positions, batch.targets), batch.weight)


def noisy_embeddings(model: nn.Module, batch: Batch, alpha: float, key: mx.array) -> mx.array:
    """Return the stream's embeddings [T, D] with uniform noise of size alpha / sqrt(L · D), L the length of the row.

    Source: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """
    embeddings: mx.array = model.model.embed_tokens(batch.tokens)
    row_of_token = batch.back // batch.gather.shape[1]
    lengths = batch.lengths[row_of_token][:, None].astype(mx.float32)
    size = alpha / mx.sqrt(lengths * embeddings.shape[-1])
    noise = mx.random.uniform(-1.0, 1.0, embeddings.shape, key=key) * size
    return embeddings + noise.astype(embeddings.dtype)
