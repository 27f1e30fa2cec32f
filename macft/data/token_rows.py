"""Rows of tokens and a loss mask: what SFT and continual pre-training learn from.

The rule: every token that is trained on is trained on once, and a row that is cut or split says so.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from macft.data.batches import Batch, Ints, make_batch
from macft.data.chat_template import Encoded, encode_with_notes
from macft.data.examples import Example, RowProblem, TextExample, parse_example
from macft.data.rows import ANSWER_CUT_OFF, TOO_LONG, Made, Settings
from macft.data.sources import Row
from macft.data.spool import Origins, Spool

NOTHING_TO_LEARN = "nothing to learn in it"


@dataclass(frozen=True)
class TokenRows:
    """Tokenized rows in flat arrays.

    Attributes:
        ids: Token ids of all rows, one after the other, int32 [tokens].
        mask: True where a token is trained on, bool [tokens].
        offsets: Where each row starts, and the last one ends, int64 [N + 1].
        where: File and line of each row.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    where: Sequence[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Encoded:
        """Return a row's ids [T] and mask [T], as views."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return Encoded(self.ids[start:end], self.mask[start:end])

    def batch(self, indices: Ints) -> Batch:
        """Lay some rows out as one micro-batch."""
        return make_batch(self, indices)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row [N]."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each row's longest attention row [N]: all of them."""
        return self.lengths

    @cached_property
    def supervised(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each row [N]."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.mask, self.offsets[:-1], dtype=np.int64)  # no row is empty

    @cached_property
    def fingerprint(self) -> str:
        """A hash of ids, masks and row borders; equal fingerprints train alike."""
        return hash_arrays(self.ids, self.mask, self.offsets)


def hash_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """Return a hash of what arrays hold."""
    digest = hashlib.blake2b(digest_size=16)
    for part in arrays:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


class _TokenBuilder:
    """Grows token rows on the disk."""

    def __init__(self) -> None:
        self.ids, self.mask, self.offsets, self.where = Spool(), Spool(), array("q", [0]), Origins()

    def __len__(self) -> int:
        return len(self.where)

    def add(self, row: Encoded, example: Example) -> None:
        self.ids.add(row.ids)
        self.mask.add(row.mask)
        self.offsets.append(self.mask.size)
        self.where.append(example.where)

    def build(self) -> TokenRows:
        offsets = np.frombuffer(self.offsets, np.int64)
        return TokenRows(self.ids.array(np.int32), self.mask.array(np.bool_), offsets, self.where)


@dataclass(frozen=True)
class TokenReader:
    """Reads chats, completions and texts; for pre-training whole documents, which are split."""

    settings: Settings

    def parse(self, row: Row) -> Sequence[Example]:
        """Understand a row."""
        data = self.settings.data
        if self.settings.method != "pretrain":
            example = parse_example(row, data.columns)
            if isinstance(example, TextExample) and data.train_on != "all":
                raise RowProblem(
                    'is plain text, which sft learns from only with train_on = "all" (or use method = "pretrain")'
                )
            return [example]
        name = data.columns.get("text", "text")
        if name not in row.value:
            raise RowProblem(f'has no column "{name}", which method = "pretrain" reads (found {", ".join(row.value)})')
        return [parse_example(row._replace(value={"text": row.value[name]}))]

    def encode(self, example: Example) -> Made:
        """Make a row of an example; several when it is split."""
        settings, data = self.settings, self.settings.data
        encoded, notes = encode_with_notes(
            example, settings.tokenizer, train_on=data.train_on, enable_thinking=data.enable_thinking
        )
        settings.check_vocabulary(int(encoded.ids.max(initial=0)))
        made = Made(notes=frozenset(notes))
        if not encoded.mask.any():
            return made._replace(dropped=NOTHING_TO_LEARN)
        if len(encoded.ids) <= settings.max_seq_length:
            return made._replace(rows=[encoded])
        return self._shorten(encoded, made)

    def _shorten(self, encoded: Encoded, made: Made) -> Made:
        length, limit = len(encoded.ids), self.settings.max_seq_length
        policy = "split" if self.settings.method == "pretrain" else self.settings.data.too_long
        if policy == "error":
            raise RowProblem(f"has {length:,} tokens (max_seq_length is {limit:,})")
        if policy == "drop":
            return made._replace(dropped=TOO_LONG)
        windows = split_windows(encoded, limit) if policy == "split" else [_window(encoded, 0, limit)]
        kept = [window for window in windows if window.mask.any()]
        return made._replace(
            rows=kept,
            dropped="" if kept else ANSWER_CUT_OFF,
            is_truncated=policy == "truncate" and bool(kept),
            is_split=policy == "split",
        )

    def builder(self) -> _TokenBuilder:
        """Return an empty builder."""
        return _TokenBuilder()


def split_windows(encoded: Encoded, length: int) -> list[Encoded]:
    """Cut a row into windows of at most `length` tokens.

    A window starts with the last token of the one before, which its second token is predicted from: so every token that
    is trained on is trained on once.
    """
    return [_window(encoded, start, length) for start in range(0, len(encoded.ids) - 1, length - 1)]


def _window(encoded: Encoded, start: int, length: int) -> Encoded:
    window = Encoded(encoded.ids[start : start + length], encoded.mask[start : start + length].copy())
    window.mask[:1] = False
    return window
