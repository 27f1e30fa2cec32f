"""Rows to micro-batches: which rows an update sees, and how they lie in memory.

The rule: the order is a function of (seed, epoch) alone, every row is seen exactly once an epoch, and the last, smaller
batch is kept. Everything here is NumPy; the training loop turns a batch into MLX arrays.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Array = Any
"""NumPy on the host, MLX inside an objective; this room knows only NumPy."""

WINDOW_BATCHES = 16
"""Rows are sorted by length inside shuffled windows of this many batches: little padding, and still a random order."""
LENGTH_BUCKET, TARGET_BUCKET = 16, 64
"""Lengths and numbers of targets are rounded up to multiples of these, so that few shapes are ever seen."""


class Rows(Protocol):
    """Tokenized rows, as `data.prepare` makes them."""

    def __len__(self) -> int: ...
    @property
    def lengths(self) -> Ints:
        """Tokens of each row [N]."""

    @property
    def supervised(self) -> Ints:
        """Supervised tokens of each row [N]."""

    def row(self, index: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return the ids [T] and the loss mask [T] of a row."""


class Batch(NamedTuple):
    """One micro-batch of B rows, right-padded to L; R supervised positions, padded with weight 0.

    Attributes:
        tokens: Token ids [B, L].
        lengths: Real tokens of each row [B].
        positions: Places in the flattened tokens whose next token is trained on [R].
        targets: Those next tokens [R].
        weight: 1 for a real target, 0 for a filler [R].
        segment: The row that each target belongs to, 0 … B − 1 [R].
    """

    tokens: Array
    lengths: Array
    positions: Array
    targets: Array
    weight: Array
    segment: Array


def plan_epoch(lengths: Ints, *, batch_size: int, seed: int, epoch: int) -> list[Ints]:
    """Return the row indices of each update of an epoch.

    Rows are shuffled, sorted by length inside windows, cut into batches, and the batches are shuffled again; the one
    batch that may be smaller comes last.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    window = batch_size * WINDOW_BATCHES
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    whole = len(order) // batch_size
    return [batches[index] for index in generator.permutation(whole)] + batches[whole:]


class Order:
    """Which rows each update sees: `plan_epoch` of the epoch that a step falls into, made once an epoch.

    Args:
        lengths: Tokens of each row [N].
        batch_size: Rows an update.
        seed: With the epoch, fixes the order.
    """

    def __init__(self, lengths: Ints, *, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self._epoch, self._plan = -1, list[Ints]()

    def rows_of(self, step: int) -> Ints:
        """Return the row indices of an update; the first step is 1."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._plan = plan_epoch(self.lengths, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
            self._epoch = epoch
        return self._plan[place]


def split_micro_batches(indices: Ints, lengths: Ints, *, micro_batch_size: int) -> list[Ints]:
    """Cut an update's rows into micro-batches of similar lengths, longest first."""
    ordered = indices[np.argsort(-lengths[indices], kind="stable")]
    return [ordered[start : start + micro_batch_size] for start in range(0, len(ordered), micro_batch_size)]


def make_batch(rows: Rows, indices: Ints) -> Batch:
    """Lay rows out as one right-padded micro-batch."""
    picked = [rows.row(int(index)) for index in indices]
    lengths = np.array([len(ids) for ids, _ in picked], np.int32)
    width = _round_up(int(lengths.max()), LENGTH_BUCKET)
    tokens = np.zeros((len(picked), width), np.int32)
    mask = np.zeros((len(picked), width), np.bool_)
    for place, (ids, trained) in enumerate(picked):
        tokens[place, : len(ids)] = ids
        mask[place, : len(ids)] = trained
    segment, column = np.nonzero(mask[:, 1:])
    fill = _round_up(len(segment), TARGET_BUCKET) - len(segment)
    return Batch(
        tokens=tokens,
        lengths=lengths,
        positions=np.pad(segment * width + column, (0, fill)).astype(np.int32),
        targets=np.pad(tokens[segment, column + 1], (0, fill)),
        weight=np.pad(np.ones(len(segment), np.float32), (0, fill)),
        segment=np.pad(segment, (0, fill)).astype(np.int32),
    )


def _round_up(number: int, multiple: int) -> int:
    return max(multiple, -(-number // multiple) * multiple)
