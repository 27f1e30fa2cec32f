"""Rows to micro-batches: which rows an update sees, and how they lie in memory.

The rule: the order is a function of (seed, epoch) alone, every row is seen exactly once an epoch, and the last, smaller
batch is kept. Everything here is NumPy; the training loop turns a batch into MLX arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]
Array = Any
"""NumPy on the host, MLX inside an objective; this room knows only NumPy."""

WINDOW_BATCHES = 16
"""Rows are sorted by length inside shuffled windows of this many batches: little padding, and still a random order."""
TARGET_BUCKET = 16
"""For a compiled step, numbers of targets are rounded up to a multiple of this: fewer shapes."""


class Counted(Protocol):
    """Tokenized rows of any kind, as training counts and names them."""

    def __len__(self) -> int: ...
    @property
    def lengths(self) -> Ints:
        """Tokens that each row lays into the stream [N]."""

    @property
    def longest(self) -> Ints:
        """Tokens of each row's longest attention row [N]."""

    @property
    def supervised(self) -> Ints:
        """Supervised tokens of each row [N]."""

    @property
    def where(self) -> Sequence[str]:
        """File and line of each row."""

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens."""


class Rows(Counted, Protocol):
    """Rows that can be trained on."""

    def batch(self, indices: Ints) -> "MicroBatch":
        """Lay some rows out as one micro-batch."""


class Masked(Protocol):
    """Rows of ids and a mask."""

    def row(self, index: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return the ids [T] and the loss mask [T] of a row."""


class Responses(Counted, Protocol):
    """Rows of a prompt and K responses to it, as `data.prepare` makes them."""

    @property
    def responses(self) -> int:
        """K: 2 for pairs, chosen first; 1 for labeled rows."""

    @property
    def labels(self) -> npt.NDArray[np.bool_] | None:
        """Whether each row's response is desirable [N]; None for pairs."""

    def parts(self, index: int) -> Sequence[Ints]:
        """Return the ids of a row's prompt and of its K responses; none is empty."""


class Batch(NamedTuple):
    """One micro-batch: S attention rows over a flat stream of T tokens.

    Everything but attention works on the stream, so padding costs nothing there, and a prompt that several rows begin
    with is computed once; attention sees rows of L tokens. R supervised positions; where there are none, one filler.

    Attributes:
        tokens: Token ids [T]; those that several rows share come first.
        gather: Places in the stream that make up the rows, right-padded [S, L].
        back: Place in the flattened rows whose output each token of the stream takes [T].
        taken: False where a row is padding, or repeats a token whose output another row gives, flattened [S · L].
        copies: Places in the flattened rows that hold the first tokens of the stream once more [K − 1, shared tokens];
            [0, 0] when nothing is shared.
        lengths: Real tokens of each row [S].
        positions: Places in the stream whose next token is trained on [R].
        targets: Those next tokens [R].
        weight: 1 for a real target, 0 for a filler [R].
        segment: The row that each target belongs to, 0 … S − 1 [R].
    """

    tokens: Array
    gather: Array
    back: Array
    taken: Array
    copies: Array
    lengths: Array
    positions: Array
    targets: Array
    weight: Array
    segment: Array

    def filled(self) -> "Batch":
        """Return the batch with fillers up to a multiple of `TARGET_BUCKET` targets; they count nothing."""
        fill = 0, -len(self.targets) % TARGET_BUCKET
        return self._replace(
            positions=np.pad(self.positions, fill),
            targets=np.pad(self.targets, fill),
            weight=np.pad(self.weight, fill),
            segment=np.pad(self.segment, fill),
        )


class ResponseBatch(NamedTuple):
    """One micro-batch of prompts with K responses each; a row of the layout is a prompt and one of its responses.

    Attributes:
        layout: Its segments are the responses, prompt by prompt, 0 … P · K − 1.
        share: What each target counts in its response's log-probability [R]; below 1 only with LD-DPO, 0 for fillers
            and for tokens of the prompt.
        lengths: Tokens of each response, float32 [P · K].
        reference: Log-probability of each response under the reference, nats [P · K]; 0 without one.
    """

    layout: Batch
    share: Array
    lengths: Array
    reference: Array

    def filled(self) -> "ResponseBatch":
        """Return the batch with fillers, as `Batch.filled` does."""
        layout = self.layout.filled()
        return self._replace(layout=layout, share=np.pad(self.share, (0, len(layout.weight) - len(self.share))))


class LabeledBatch(NamedTuple):
    """One micro-batch of prompts with one labeled response each, and with another prompt's response for the KL.

    Attributes:
        own: Each prompt and its response.
        mismatched: Each prompt and another's response.
        desirable: Whether the response is a good one [P].
    """

    own: ResponseBatch
    mismatched: ResponseBatch
    desirable: Array

    def filled(self) -> "LabeledBatch":
        """Return the batch with fillers, as `Batch.filled` does."""
        return self._replace(own=self.own.filled(), mismatched=self.mismatched.filled())


MicroBatch = Batch | ResponseBatch | LabeledBatch


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


def make_batch(rows: Masked, indices: Ints) -> Batch:
    """Lay rows out as one micro-batch."""
    picked = [rows.row(int(index)) for index in indices]
    lengths = np.array([len(ids) for ids, _ in picked], np.int32)
    starts = np.cumsum(lengths) - lengths
    column = np.arange(lengths.max())
    real = column < lengths[:, None]
    mask = np.concatenate([trained for _, trained in picked])
    mask[starts] = False  # nothing precedes the first token of a row
    supervised = np.flatnonzero(mask)
    return _batch(
        tokens=np.concatenate([ids for ids, _ in picked]),
        gather=np.where(real, starts[:, None] + column, 0),
        taken=real,
        copies=np.zeros((0, 0)),
        back=np.flatnonzero(real),
        lengths=lengths,
        targets=supervised,
        before=supervised - 1,
        segment=np.repeat(np.arange(len(picked)), lengths)[supervised],
    )


def make_response_batch(
    rows: Responses, indices: Ints, *, reference: Floats, ld_alpha: float | None, with_prompts: bool = False
) -> ResponseBatch:
    """Lay prompts with their responses out as one micro-batch: each prompt once, then all responses.

    Args:
        rows: Prompts and responses.
        indices: Which rows.
        reference: Log-probabilities of all rows' responses under the reference [N, K].
        ld_alpha: Weight of the tokens beyond the length of a row's shortest response; None for 1.
        with_prompts: Supervise the prompts too, as part of the first response's segment, but with no share in its
            log-probability: what ORPO's cross-entropy is taken over.

    Source: Liu et al. 2024, arXiv:2409.06411, eq. 9, for `ld_alpha`.
    """
    picked = [rows.parts(int(index)) for index in indices]
    kinds = rows.responses
    responses = [response for parts in picked for response in parts[1:]]
    prompt_sizes = np.array([len(parts[0]) for parts in picked])
    sizes = np.array([len(response) for response in responses])
    shared = int(prompt_sizes.sum())
    before = np.repeat(prompt_sizes, kinds)[:, None]  # tokens of the prompt before each response
    lengths = before[:, 0] + sizes
    prompt_starts = np.repeat(np.cumsum(prompt_sizes) - prompt_sizes, kinds)[:, None]
    starts = shared + np.cumsum(sizes) - sizes
    column = np.arange(lengths.max())
    of_prompt, real = column < before, column < lengths[:, None]
    gather = np.where(of_prompt, prompt_starts + column, starts[:, None] + column - before)
    places = np.arange(gather.size).reshape(gather.shape)
    first = np.arange(len(sizes)) % kinds == 0
    prompt_places = [places[kind::kinds][of_prompt[kind::kinds]] for kind in range(kinds)]
    place_in_response = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    targets = shared + np.arange(sizes.sum())
    last_of_prompt = np.repeat(prompt_starts[:, 0] + before[:, 0] - 1, sizes)
    preceded = np.setdiff1d(np.arange(shared), prompt_starts) if with_prompts else np.arange(0)
    row_of_token = np.repeat(np.arange(len(picked)), prompt_sizes)
    layout = _batch(
        tokens=np.concatenate([*(parts[0] for parts in picked), *responses]),
        gather=np.where(real, gather, 0),
        taken=real & (first[:, None] | ~of_prompt),
        copies=np.array(prompt_places[1:]).reshape(kinds - 1, -1) if kinds > 1 else np.zeros((0, 0)),
        back=np.concatenate([prompt_places[0], places[real & ~of_prompt]]),
        lengths=lengths,
        targets=np.concatenate([targets, preceded]),
        before=np.concatenate([np.where(place_in_response == 0, last_of_prompt, targets - 1), preceded - 1]),
        segment=np.concatenate([np.repeat(np.arange(len(sizes)), sizes), row_of_token[preceded] * kinds]),
    )
    shortest = np.repeat(sizes.reshape(-1, kinds).min(axis=1), kinds)
    share = np.where(place_in_response < np.repeat(shortest, sizes), 1.0, 1.0 if ld_alpha is None else ld_alpha)
    return ResponseBatch(
        layout=layout,
        share=np.pad(share, (0, len(layout.weight) - len(share))).astype(np.float32),
        lengths=sizes.astype(np.float32),
        reference=reference[indices].reshape(-1).astype(np.float32),
    )


def _batch(
    *,
    tokens: Ints,
    gather: Ints,
    taken: npt.NDArray[np.bool_],
    copies: npt.NDArray[Any],
    back: Ints,
    lengths: Ints,
    targets: Ints,
    before: Ints,
    segment: Ints,
) -> Batch:
    """Make a batch from places in the stream, with a filler where nothing is supervised.

    Args:
        targets: Places of the supervised tokens.
        before: Places that each of them is predicted from.
    """
    fill = int(len(targets) == 0)
    return Batch(
        tokens=tokens.astype(np.int32),
        gather=gather.astype(np.int32),
        back=back.astype(np.int32),
        taken=taken.reshape(-1),
        copies=copies.astype(np.int32),
        lengths=lengths.astype(np.int32),
        positions=np.pad(before, (0, fill)).astype(np.int32),
        targets=np.pad(tokens[targets], (0, fill)).astype(np.int32),
        weight=np.pad(np.ones(len(targets), np.float32), (0, fill)),
        segment=np.pad(segment, (0, fill)).astype(np.int32),
    )
