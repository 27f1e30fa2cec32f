"""Prompts and responses together with what the reference model says of them: the rows of preference training.

The rule: a response's reference log-probability is looked up by the row's index, so it belongs to the row and not to
the order in which rows come, and is the same number in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from macft.data.batches import Counted, Floats, Ints, LabeledBatch, ResponseBatch, Responses, make_response_batch


class _Counts:
    """What is counted and named is that of the rows below."""

    _counted: Counted

    def __len__(self) -> int:
        return len(self._counted)

    @property
    def lengths(self) -> Ints:
        """Tokens that each row lays into the stream [N]."""
        return self._counted.lengths

    @property
    def longest(self) -> Ints:
        """Tokens of each row's longest attention row [N]."""
        return self._counted.longest

    @property
    def supervised(self) -> Ints:
        """Tokens of the responses [N]."""
        return self._counted.supervised

    @property
    def where(self) -> Sequence[str]:
        """File and line of each row."""
        return self._counted.where

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens."""
        return self._counted.fingerprint


class ReferencedRows(_Counts):
    """Prompts and responses with their log-probabilities under the reference.

    Args:
        rows: Prompts with K responses each.
        reference: Of each response, nats [N, K]; zeros for a method without a reference.
        ld_alpha: Weight of the tokens beyond the length of a row's shortest response; None for 1.
        with_prompts: Supervise the prompts too.
    """

    def __init__(
        self, rows: Responses, reference: Floats, *, ld_alpha: float | None = None, with_prompts: bool = False
    ) -> None:
        self.rows, self.reference, self.ld_alpha, self.with_prompts = rows, reference, ld_alpha, with_prompts
        self._counted = rows

    def batch(self, indices: Ints) -> ResponseBatch:
        """Lay some rows out as one micro-batch."""
        return make_response_batch(
            self.rows,
            indices,
            reference=self.reference,
            ld_alpha=self.ld_alpha,
            with_prompts=self.with_prompts,
        )


class LabeledRows(_Counts):
    """Single responses with a label, and the mismatched ones that KTO estimates its KL from.

    Args:
        own: Prompts with their response, labeled.
        mismatched: The same prompts, each with the response to another one.
    """

    def __init__(self, own: ReferencedRows, mismatched: ReferencedRows) -> None:
        self.own, self.mismatched = own, mismatched
        self._counted = own
        self._desirable = np.asarray(own.rows.labels, np.bool_)

    def batch(self, indices: Ints) -> LabeledBatch:
        """Lay some rows out as one micro-batch, and their mismatched twins as another."""
        return LabeledBatch(self.own.batch(indices), self.mismatched.batch(indices), self._desirable[indices])


@dataclass(frozen=True)
class Mismatched:
    """Labeled rows with the responses moved on: each prompt with the response to the nearest earlier other prompt.

    The first rows take theirs from the end.

    Attributes:
        rows: Labeled rows.
        limit: Most tokens of a row; what is longer loses its end, as in TRL.
    """

    rows: Responses
    limit: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def responses(self) -> int:
        """One a row."""
        return 1

    @property
    def labels(self) -> npt.NDArray[np.bool_] | None:
        """Those of the prompts' own responses, which say nothing of these."""
        return self.rows.labels

    @property
    def where(self) -> Sequence[str]:
        """File and line of each prompt."""
        return self.rows.where

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens."""
        return f"{self.rows.fingerprint} mismatched {self.limit}"

    def parts(self, index: int) -> list[Ints]:
        """Return the ids of a row's prompt and of another one's response."""
        prompt, response = self.rows.parts(index)[0], self.rows.parts(int(self._others[index]))[1]
        return [prompt, response[: max(1, self.limit - len(prompt))]]

    @cached_property
    def supervised(self) -> Ints:
        """Tokens of each response [N]."""
        return np.array([len(self.parts(index)[1]) for index in range(len(self))], np.int64)

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each row [N]."""
        return np.array([len(self.rows.parts(index)[0]) for index in range(len(self))], np.int64) + self.supervised

    @property
    def longest(self) -> Ints:
        """Tokens of each row [N]."""
        return self.lengths

    @cached_property
    def _others(self) -> Ints:
        """Return the row whose response each row takes [N]: the one before, when all prompts are the same."""
        count = len(self)
        prompts = [self.rows.parts(index)[0].tobytes() for index in range(count)]
        others, nearest = np.arange(count) - 1, -1
        for index in [*range(count), *range(count)]:  # twice around, so that the first rows find theirs
            if prompts[index - 1] != prompts[index]:
                nearest = (index - 1) % count
            if nearest >= 0:
                others[index] = nearest
        return others % max(1, count)
