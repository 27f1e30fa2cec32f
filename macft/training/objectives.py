"""What a method minimizes on one micro-batch.

The rule: an objective turns a model and a batch into sums; the updater divides once, by the weight of the whole update.
What a sum needs to know of the whole update, `survey` tells before any gradient is made, so the split into
micro-batches changes nothing. A new method is one small class here, a loss in `losses`, and a recipe.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macft.data.batches import Batch, LabeledBatch, ResponseBatch
from macft.events import Metrics
from macft.losses import preference as losses
from macft.losses.preference import Pair, PreferenceLoss, kto
from macft.losses.responses import response_logprobs
from macft.losses.supervised import cross_entropy
from macft.models.head import Head
from macft.models.stream import Stream
from macft.recipe import CpoRecipe, DpoRecipe, KtoRecipe, OrpoRecipe, Recipe, SimpoRecipe

PairLoss = Callable[[Pair, Pair, Pair], PreferenceLoss]
"""From the responses' log-probabilities under policy and reference, and their lengths, to the loss of each pair."""


def make_objective(recipe: Recipe, head: Head, stream: Stream) -> "Objective":
    """Return what a recipe minimizes."""
    match recipe:
        case DpoRecipe():
            return Preference(head, stream, _dpo_loss(recipe), sft_weight=recipe.sft_weight)
        case OrpoRecipe(beta=beta):
            odds: PairLoss = lambda own, _, sizes: losses.orpo(own, sizes, beta=beta)  # noqa: E731
            return Preference(head, stream, odds, sft_weight=1.0, by_token=True)
        case SimpoRecipe(beta=beta, gamma=gamma):
            score: PairLoss = lambda own, _, sizes: losses.simpo(own, sizes, beta=beta, gamma=gamma)  # noqa: E731
            return Preference(head, stream, score, sft_weight=recipe.sft_weight, by_token=True)
        case CpoRecipe(beta=beta, label_smoothing=smoothing):
            score = lambda own, *_: losses.cpo(own, beta=beta, label_smoothing=smoothing)  # noqa: E731
            return Preference(head, stream, score, sft_weight=recipe.alpha)
        case KtoRecipe():
            return Labeled(head, stream, recipe)
        case _:
            return Supervised(head, stream, neftune_alpha=recipe.neftune_alpha)


def _dpo_loss(recipe: DpoRecipe) -> PairLoss:
    beta, smoothing = recipe.beta, recipe.label_smoothing
    by_name: dict[str, PairLoss] = {
        "sigmoid": lambda own, ref, _: losses.sigmoid(own, ref, beta=beta, label_smoothing=smoothing),
        "robust": lambda own, ref, _: losses.robust(own, ref, beta=beta, label_smoothing=smoothing),
        "hinge": lambda own, ref, _: losses.hinge(own, ref, beta=beta),
        "ipo": lambda own, ref, sizes: losses.ipo(own, ref, sizes, beta=beta),
        "apo_zero": lambda own, ref, _: losses.apo_zero(own, ref, beta=beta),
        "apo_down": lambda own, ref, _: losses.apo_down(own, ref, beta=beta),
        "sigmoid_norm": lambda own, ref, sizes: losses.sigmoid_norm(
            own, ref, sizes, beta=beta, label_smoothing=smoothing
        ),
    }
    return by_name[recipe.loss]


class Sums(NamedTuple):
    """What an objective adds up over a micro-batch.

    Attributes:
        loss: Float32 scalar, nats; the gradient is this one's.
        metrics: Other sums, float32 scalars; every batch of an objective has the same ones.
    """

    loss: mx.array
    metrics: dict[str, mx.array]


class Objective(Protocol):
    """A training method: what it sums up on a micro-batch, and what an update's sums are divided by."""

    head: Head
    stream: Stream

    def survey(self, model: nn.Module, batch: Any) -> list[float]:
        """Return what is added up over the whole update before any gradient: first what a micro-batch counts in it."""

    def sums(self, model: nn.Module, batch: Any, whole: mx.array, key: mx.array) -> Sums:
        """Return the sums of a micro-batch whose arrays are MLX's; `whole` is the survey of the whole update."""

    def metrics(self, sums: Mapping[str, float], whole: Sequence[float]) -> Metrics:
        """Return the metrics of a whole update, under TRL's names, from its sums and its survey."""


class Supervised:
    """Cross-entropy on supervised tokens: SFT and continual pre-training."""

    def __init__(self, head: Head, stream: Stream, *, neftune_alpha: float = 0.0) -> None:
        self.head, self.stream = head, stream
        self.neftune_alpha = neftune_alpha

    def survey(self, model: nn.Module, batch: Batch) -> list[float]:
        """Return the number of supervised tokens."""
        return [float(batch.weight.sum())]

    def sums(self, model: nn.Module, batch: Batch, whole: mx.array, key: mx.array) -> Sums:
        """Return the summed cross-entropy, nats."""
        return Sums(self.total(model, batch, key), {})

    def metrics(self, sums: Mapping[str, float], whole: Sequence[float]) -> Metrics:
        """Return nothing beside the loss."""
        return {}

    def total(self, model: nn.Module, batch: Batch, key: mx.array) -> mx.array:
        """Return the summed cross-entropy, nats."""
        embeddings = None
        if self.neftune_alpha and model.training:
            embeddings = noisy_embeddings(model, batch, self.neftune_alpha, key)
        run = self.stream.runner(batch, embeddings)
        return cross_entropy(self.head.logprobs(model, run, batch.targets), batch.weight)


class Preference:
    """Pairs of answers to one prompt: DPO and its family, ORPO, SimPO and CPO.

    Args:
        head: Of the model.
        stream: How the model is run.
        score: The loss a pair.
        sft_weight: Weight of cross-entropy on the chosen answers, a mean over their tokens.
        by_token: Whether the loss is made of means a token; `logps` are then too.
    """

    def __init__(
        self, head: Head, stream: Stream, score: PairLoss, *, sft_weight: float, by_token: bool = False
    ) -> None:
        self.head, self.stream = head, stream
        self.score, self.sft_weight, self.by_token = score, sft_weight, by_token

    def survey(self, model: nn.Module, batch: ResponseBatch) -> list[float]:
        """Return the number of pairs, and of tokens that the cross-entropy is taken over."""
        return [len(batch.lengths) / 2, float(batch.layout.weight[batch.layout.segment % 2 == 0].sum())]

    def sums(self, model: nn.Module, batch: ResponseBatch, whole: mx.array, key: mx.array) -> Sums:
        """Return the summed loss of the pairs, what people watch of them, and the cross-entropy of the chosen."""
        logprobs = target_logprobs(self.head, self.stream, model, batch.layout)
        summed = sum_responses(logprobs, batch)
        policy, reference, lengths = (Pair(part[::2], part[1::2]) for part in (summed, batch.reference, batch.lengths))
        scored = self.score(policy, reference, lengths)
        loss, margins = scored.loss.sum(), scored.chosen_rewards - scored.rejected_rewards
        logps = Pair(*(own / size for own, size in zip(policy, lengths, strict=True))) if self.by_token else policy
        metrics = {
            "rewards/chosen": scored.chosen_rewards.sum(),
            "rewards/rejected": scored.rejected_rewards.sum(),
            "rewards/margins": margins.sum(),
            "rewards/accuracies": (margins > 0).astype(mx.float32).sum(),
            "logps/chosen": logps.chosen.sum(),
            "logps/rejected": logps.rejected.sum(),
        }
        if self.sft_weight:
            is_chosen = mx.where(batch.layout.segment % 2 == 0, batch.layout.weight, 0.0)
            metrics["nll_loss"] = cross_entropy(logprobs, is_chosen)
            # A mean over the update's chosen tokens, in a sum that will be divided by its pairs.
            loss = loss + self.sft_weight * metrics["nll_loss"] * (whole[0] / whole[1])
        return Sums(loss, {name: mx.stop_gradient(value) for name, value in metrics.items()})

    def metrics(self, sums: Mapping[str, float], whole: Sequence[float]) -> Metrics:
        """Return means over the pairs, and of the cross-entropy over the chosen answers' tokens."""
        return {name: value / whole[name == "nll_loss"] for name, value in sums.items()}


class Labeled:
    """Single answers, good or bad: KTO."""

    def __init__(self, head: Head, stream: Stream, recipe: KtoRecipe) -> None:
        self.head, self.stream, self.recipe = head, stream, recipe

    def survey(self, model: nn.Module, batch: LabeledBatch) -> list[float]:
        """Return the number of answers, and the summed log-ratio of mismatched ones, which the KL is the mean of."""
        part = to_device(batch.mismatched)
        with evaluating(model):
            ratio = sum_responses(target_logprobs(self.head, self.stream, model, part.layout), part) - part.reference
            return [float(len(batch.desirable)), ratio.sum().item()]

    def sums(self, model: nn.Module, batch: LabeledBatch, whole: mx.array, key: mx.array) -> Sums:
        """Return the summed loss of the answers, and what people watch of the good and of the bad ones."""
        own, recipe, good = batch.own, self.recipe, batch.desirable
        policy = sum_responses(target_logprobs(self.head, self.stream, model, own.layout), own)
        scored = kto(
            policy,
            own.reference,
            good,
            mx.maximum(whole[1] / whole[0], 0.0),
            beta=recipe.beta,
            desirable_weight=recipe.desirable_weight,
            undesirable_weight=recipe.undesirable_weight,
        )
        metrics = {"count/chosen": good.astype(mx.float32).sum()}
        for name, mask in (("chosen", good), ("rejected", ~good)):
            metrics[f"rewards/{name}"] = mx.where(mask, scored.rewards, 0.0).sum()
            metrics[f"logps/{name}"] = mx.where(mask, policy, 0.0).sum()
        return Sums(scored.loss.sum(), {name: mx.stop_gradient(value) for name, value in metrics.items()})

    def metrics(self, sums: Mapping[str, float], whole: Sequence[float]) -> Metrics:
        """Return means over the good and over the bad answers, where there are any, and the KL."""
        counts = {"chosen": sums["count/chosen"], "rejected": whole[0] - sums["count/chosen"]}
        means = {
            f"{what}/{name}": sums[f"{what}/{name}"] / count
            for what in ("rewards", "logps")
            for name, count in counts.items()
            if count
        }
        if all(counts.values()):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means | {"kl": max(whole[1] / whole[0], 0.0)}


def target_logprobs(head: Head, stream: Stream, model: nn.Module, layout: Batch) -> mx.array:
    """Return the log-probability of each target [R], nats."""
    return head.logprobs(model, stream.runner(layout), layout.targets)


def sum_responses(logprobs: mx.array, batch: ResponseBatch) -> mx.array:
    """Return the log-probability of each response [P · K], nats."""
    return response_logprobs(logprobs, batch.share, batch.layout.segment, batch.lengths.shape[0])


def to_device(batch: Any) -> Any:
    """Return a micro-batch whose arrays are MLX's."""
    return tree_map(mx.array, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch noise and gradients' work off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
