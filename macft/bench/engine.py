"""A model in training that is driven one update at a time.

The rule: everything is what `macft train` uses, in the same order; only the loop is not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macft.bench.clock import Cost, timed
from macft.bench.flops import Shape, useful_flops
from macft.data.batches import Batch, Ints, make_batch, plan_epoch, split_micro_batches
from macft.data.prepare import TokenRows, prepare
from macft.machine import runs_folder
from macft.models.adapters import ADAPTED, adapter_parameters, count_values
from macft.models.describe import ModelFacts, describe
from macft.models.head import find_head
from macft.models.load import load_tokenizer
from macft.models.recompute import recompute
from macft.models.stream import prepare_stream
from macft.plan import CPU_TOKENS, GPU_TOKENS
from macft.recipe import Recipe
from macft.training.objectives import Supervised
from macft.training.optimizers import make_optimizer
from macft.training.trainable import make_trainable
from macft.training.update import Updater

Progress = Callable[[int, int], None]


class Engine:
    """A recipe's model, ready for updates on whatever rows it is given.

    Args:
        recipe: Its model, adapter, optimizer and precision are used.
        folder: The model.
        longest: Most tokens of any row to come.
        micro_batch_tokens: Most tokens a forward pass; left out: what a run takes when memory is plenty.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, longest: int, micro_batch_tokens: int | None = None) -> None:
        self.recipe, self.facts = recipe, describe(folder)
        self.model, _ = make_trainable(recipe, folder, runs_folder())
        self.shape = read_shape(self.model, self.facts)
        self.on_cpu = mx.default_device() == mx.cpu
        self.micro_batch_tokens = micro_batch_tokens or (CPU_TOKENS if self.on_cpu else GPU_TOKENS)
        stream = prepare_stream(self.model, longest=longest)
        recompute(self.model, "none" if recipe.recompute == "auto" else recipe.recompute, stream)
        self.objective = Supervised(find_head(self.model), stream)
        self.updater = Updater(
            self.model,
            self.objective,
            make_optimizer(recipe.optimizer, recipe.learning_rate),
            max_grad_norm=recipe.optimizer.max_grad_norm,
            seed=recipe.seed,
            compiled=recipe.compile,
        )
        self.model.train()
        self.steps = 0

    @property
    def dtype(self) -> mx.Dtype:
        """The type that activations have."""
        return self.model.model.norm.weight.dtype if hasattr(self.model.model, "norm") else mx.float32

    def split(self, rows: TokenRows, indices: Ints) -> list[Batch]:
        """Lay an update's rows out as micro-batches."""
        parts = split_micro_batches(indices, rows.lengths, tokens=self.micro_batch_tokens, rows=len(indices))
        return [make_batch(rows, part) for part in parts]

    def work(self, rows: TokenRows, indices: Ints) -> int:
        """Return the useful operations of an update."""
        lengths, supervised = rows.lengths[indices].tolist(), int(rows.supervised[indices].sum())
        return useful_flops(self.shape, lengths, supervised=supervised)

    def update(self, rows: TokenRows, indices: Ints) -> Cost:
        """Make one update, from rows to new weights, and return what it took."""
        self.steps += 1
        return timed(lambda: self.updater(self.steps, self.split(rows, indices), self.recipe.learning_rate))

    def peak_bytes(self, rows: TokenRows, indices: Ints) -> int:
        """Return the memory that one update takes beside weights, adapter and optimizer."""
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        self.update(rows, indices)
        return mx.get_peak_memory() - before


def read_rows(recipe: Recipe, folder: Path, progress: Progress | None = None) -> TokenRows:
    """Tokenize a recipe's training rows for a model."""
    facts = describe(folder)
    longest = min(recipe.max_seq_length, facts.context or recipe.max_seq_length)
    return prepare(
        recipe.data,
        load_tokenizer(folder),
        method=recipe.method,
        max_seq_length=longest,
        vocab_size=facts.vocab_size,
        progress=progress,
    ).train


def plan_rows(rows: TokenRows, *, batch_size: int, seed: int) -> list[Ints]:
    """Return the first epoch's updates, as training would take them."""
    return plan_epoch(rows.lengths, batch_size=batch_size, seed=seed, epoch=0)


def read_shape(model: nn.Module, facts: ModelFacts) -> Shape:
    """Count what a loaded model multiplies a token with; of experts, those that a token visits."""
    body = sum(_weights(module, model) for layer in model.layers for module in layer.modules())
    return Shape(
        body=body,
        head=facts.hidden_size * facts.vocab_size,
        adapters=count_values(adapter_parameters(model))[0],
        layers=facts.layers,
        attention_width=facts.heads * facts.head_dim,
    )


def _weights(module: Any, model: nn.Module) -> int:
    weight = module.get("weight") if isinstance(module, nn.Module) and not isinstance(module, ADAPTED) else None
    if weight is None or weight.ndim < 2:
        return 0
    values = int(weight.size) * (32 // module.bits if "scales" in module else 1)
    if weight.ndim == 2:
        return values
    visited = int(getattr(getattr(model, "args", None), "num_experts_per_tok", weight.shape[0]))
    return values * visited // int(weight.shape[0])
