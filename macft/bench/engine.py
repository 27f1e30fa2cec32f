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
from macft.data.batches import Batch, Ints, LabeledBatch, MicroBatch, Rows, plan_epoch, split_micro_batches
from macft.data.prepare import AnyRows, prepare
from macft.machine import runs_folder
from macft.models.adapters import ADAPTED, adapter_parameters, count_values
from macft.models.describe import ModelFacts, describe
from macft.models.head import find_head
from macft.models.load import load_tokenizer
from macft.models.recompute import recompute
from macft.models.stream import prepare_stream
from macft.plan import CPU_TOKENS, GPU_TOKENS
from macft.recipe import Recipe, dump_recipe
from macft.training.objectives import make_objective
from macft.training.optimizers import make_optimizer
from macft.training.reference import ReferencePass, as_reference, refer
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
        self.recipe, self.facts, self.longest = recipe, describe(folder), longest
        self.model, _ = make_trainable(recipe, folder, runs_folder())
        self.shape = read_shape(self.model, self.facts)
        self.on_cpu = mx.default_device() == mx.cpu
        self.micro_batch_tokens = micro_batch_tokens or (CPU_TOKENS if self.on_cpu else GPU_TOKENS)
        self.head, self.stream = find_head(self.model), prepare_stream(self.model, longest=longest)
        recompute(self.model, "none" if recipe.recompute == "auto" else recipe.recompute, self.stream)
        self.objective = make_objective(recipe, self.head, self.stream)
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

    def refer(self, rows: AnyRows, cache: Path, progress: Progress | None = None) -> Rows:
        """Return rows with what the reference says of them; the model is at its start.

        Args:
            rows: As `read_rows` gives them.
            cache: A folder that the reference's log-probabilities are kept in; an empty one makes the pass happen.
            progress: Told rows done, and rows in all.
        """
        stands_on = {"model": self.facts.path, "recipe": dump_recipe(self.recipe)}
        score = ReferencePass(
            self.model, self.head, self.stream, tokens=self.micro_batch_tokens, folder=cache, stands_on=stands_on
        )
        with as_reference(self.model, self.recipe):
            return refer(self.recipe, [rows], score, progress or (lambda *_: None), limit=self.longest)[0]

    def split(self, rows: Rows, indices: Ints) -> list[MicroBatch]:
        """Lay an update's rows out as micro-batches."""
        parts = split_micro_batches(indices, rows.lengths, tokens=self.micro_batch_tokens, rows=len(indices))
        return [rows.batch(part) for part in parts]

    def work(self, rows: Rows, indices: Ints) -> int:
        """Return the useful operations of an update."""
        return sum(batch_flops(self.shape, batch) for batch in self.split(rows, indices))

    def update(self, rows: Rows, indices: Ints) -> Cost:
        """Make one update, from rows to new weights, and return what it took."""
        self.steps += 1
        return timed(lambda: self.updater(self.steps, self.split(rows, indices), self.recipe.learning_rate))

    def peak_bytes(self, rows: Rows, indices: Ints) -> int:
        """Return the memory that one update takes beside weights, adapter and optimizer."""
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        self.update(rows, indices)
        return mx.get_peak_memory() - before


def read_rows(recipe: Recipe, folder: Path, progress: Progress | None = None) -> AnyRows:
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


def plan_rows(rows: Rows | AnyRows, *, batch_size: int, seed: int) -> list[Ints]:
    """Return the first epoch's updates, as training would take them."""
    return plan_epoch(rows.lengths, batch_size=batch_size, seed=seed, epoch=0)


def batch_flops(shape: Shape, batch: MicroBatch) -> int:
    """Return the useful operations of a micro-batch in an update; KTO's mismatched rows have no gradient."""
    without_gradient = [batch.mismatched.layout] if isinstance(batch, LabeledBatch) else []
    return layout_flops(shape, layout_of(batch)) + sum(
        layout_flops(shape, layout, backward=False) for layout in without_gradient
    )


def layout_flops(shape: Shape, layout: Batch, *, backward: bool = True) -> int:
    """Return the useful operations on rows as they lie: of an update, or of a forward pass alone."""
    taken = layout.taken.reshape(layout.gather.shape).sum(axis=1)
    return useful_flops(
        shape,
        layout.lengths.tolist(),
        supervised=int(layout.weight.sum()),
        shared=(layout.lengths - taken).tolist(),
        backward=backward,
    )


def layout_of(batch: MicroBatch) -> Batch:
    """Return how the rows lie that a micro-batch trains on."""
    if isinstance(batch, Batch):
        return batch
    return batch.own.layout if isinstance(batch, LabeledBatch) else batch.layout


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
