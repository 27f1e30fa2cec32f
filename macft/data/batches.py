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
TARGET_BUCKET = 16
"""Numbers of targets are rounded up to a multiple of this."""


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
    """One micro-batch: S rows laid one after the other into a flat stream of T tokens.

    Everything but attention works on the stream, so padding costs nothing there; attention sees rows of L tokens. R
    supervised positions, filled up with weight 0.

    Attributes:
        tokens: Token ids [T].
        gather: Places in the stream that make up the rows, right-padded [S, L].
        back: Place in the flattened rows where each token of the stream lies [T].
        real: False where a row is padding, flattened [S · L].
        lengths: Real tokens of each row [S].
        positions: Places in the stream whose next token is trained on [R].
        targets: Those next tokens [R].
        weight: 1 for a real target, 0 for a filler [R].
        segment: The row that each target belongs to, 0 … S − 1 [R].
    """

    tokens: Array
    gather: Array
    back: Array
    real: Array
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


def shard_rows(indices: Ints, lengths: Ints, shards: int) -> list[Ints]:
    """Share an update's rows out: the longest first, each to the shard that has the fewest tokens so far.

    Args:
        indices: The update's rows.
        lengths: Tokens of all rows [N].
        shards: How many; with one, the rows stay as they are.

    Returns:
        A part of the indices a shard; some are empty when rows are fewer than shards.
    """
    if shards == 1:
        return [indices]
    loads, parts = np.zeros(shards, np.int64), [list[int]() for _ in range(shards)]
    for index in indices[np.argsort(-lengths[indices], kind="stable")]:
        lightest = int(loads.argmin())
        parts[lightest].append(int(index))
        loads[lightest] += lengths[index]
    return [np.array(part, np.int64) for part in parts]


def split_micro_batches(indices: Ints, lengths: Ints, *, tokens: int, rows: int) -> list[Ints]:
    """Cut an update's rows into micro-batches of similar lengths, longest first.

    Args:
        indices: The update's rows.
        lengths: Tokens of all rows [N].
        tokens: Most tokens a micro-batch, padding of its attention rows counted; a longer row is alone in one.
        rows: Most rows a micro-batch.
    """
    ordered = indices[np.argsort(-lengths[indices], kind="stable")]
    parts, start = [], 0
    while start < len(ordered):
        size = max(1, min(rows, tokens // int(lengths[ordered[start]])))
        parts.append(ordered[start : start + size])
        start += size
    return parts


def make_batch(rows: Rows, indices: Ints) -> Batch:
    """Lay rows out as one micro-batch."""
    picked = [rows.row(int(index)) for index in indices]
    lengths = np.array([len(ids) for ids, _ in picked], np.int32)
    starts = np.cumsum(lengths) - lengths
    column = np.arange(lengths.max())
    real = column < lengths[:, None]
    gather = np.where(real, starts[:, None] + column, 0)
    mask = np.concatenate([trained for _, trained in picked])
    mask[starts] = False  # nothing precedes the first token of a row
    tokens = np.concatenate([ids for ids, _ in picked])
    supervised = np.flatnonzero(mask)
    fill = _round_up(len(supervised), TARGET_BUCKET) - len(supervised)
    return Batch(
        tokens=tokens.astype(np.int32),
        gather=gather.astype(np.int32),
        back=np.flatnonzero(real).astype(np.int32),
        real=real.reshape(-1),
        lengths=lengths,
        positions=np.pad(supervised - 1, (0, fill)).astype(np.int32),
        targets=np.pad(tokens[supervised], (0, fill)).astype(np.int32),
        weight=np.pad(np.ones(len(supervised), np.float32), (0, fill)),
        segment=np.pad(np.repeat(np.arange(len(picked)), lengths)[supervised], (0, fill)).astype(np.int32),
    )


def _round_up(number: int, multiple: int) -> int:
    return max(multiple, -(-number // multiple) * multiple)
