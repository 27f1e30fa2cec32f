"""What a method minimizes on one micro-batch.

The rule: an objective turns a model and a batch into sums; the updater divides once, by the weight of the whole update.
A new method is one small class here, a loss in `losses`, and a recipe.
"""

from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from macft.data.batches import Batch
from macft.losses.logprobs import token_logprobs
from macft.losses.supervised import cross_entropy
from macft.models.head import Head


class Objective(Protocol):
    """A training method: what it sums up on a micro-batch, and what an update's sum is divided by."""

    head: Head

    def weight(self, batch: Batch) -> float:
        """Return what this micro-batch counts in the update: supervised tokens here, pairs in DPO."""

    def total(self, model: nn.Module, batch: Batch, key: mx.array) -> mx.array:
        """Return the summed loss of a micro-batch whose arrays are MLX's, a float32 scalar."""


class Supervised:
    """Cross-entropy on supervised tokens: SFT and continual pre-training."""

    def __init__(self, head: Head, *, neftune_alpha: float = 0.0) -> None:
        self.head = head
        self.neftune_alpha = neftune_alpha

    def weight(self, batch: Batch) -> float:
        """Return the number of supervised tokens."""
        return float(batch.weight.sum())

    def total(self, model: nn.Module, batch: Batch, key: mx.array) -> mx.array:
        """Return the summed cross-entropy, nats."""
        embeddings = None
        if self.neftune_alpha and model.training:
            embeddings = noisy_embeddings(model, batch, self.neftune_alpha, key)
        logits = self.head.logits_at(model, batch.tokens, batch.positions, embeddings)
        return cross_entropy(token_logprobs(logits, batch.targets), batch.weight)


def noisy_embeddings(model: nn.Module, batch: Batch, alpha: float, key: mx.array) -> mx.array:
    """Return the batch's embeddings with uniform noise of size alpha / sqrt(L·D) a row.

    Source: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """
    embeddings: mx.array = model.model.embed_tokens(batch.tokens)
    lengths = batch.lengths.reshape(-1, 1, 1).astype(mx.float32)
    size = alpha / mx.sqrt(lengths * embeddings.shape[-1])
    noise = mx.random.uniform(-1.0, 1.0, embeddings.shape, key=key) * size
    return embeddings + noise.astype(embeddings.dtype)
