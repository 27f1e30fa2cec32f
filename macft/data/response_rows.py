"""Rows of a prompt and responses to it: what DPO, ORPO, SimPO, CPO and KTO learn from.

The rule: tokens are those of TRL's trainers. A prompt is the same for all its responses and never empty, no response is
ever empty, and responses that are the same are left out: nothing could be learned from them.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from macft.data.chat_template import EncodedResponses, encode_responses
from macft.data.examples import Example, ResponseExample, RowProblem
from macft.data.preferences import SAME, parse_preferences
from macft.data.rows import ANSWER_CUT_OFF, TOO_LONG, Made, Settings
from macft.data.sources import Row
from macft.data.spool import Origins, Spool
from macft.data.token_rows import hash_arrays

SAME_WHEN_CUT = f"{SAME} within max_seq_length"
SCORED_AGAINST = "the rejected response has the higher score"
PLAIN_STRINGS = 'strings are trained on without the chat template (data.strings = "chat" puts them through it)'


@dataclass(frozen=True)
class ResponseRows:
    """Tokenized prompts with K responses each: 2 for pairs (chosen, then rejected), 1 for labeled rows.

    Attributes:
        ids: Each row's prompt and responses, one after the other, int32 [tokens].
        offsets: Where each part starts, and the last one ends, int64 [N · (K + 1) + 1].
        responses: K.
        labels: Whether each row's one response is desirable, bool [N]; None for pairs.
        margins: By how much the chosen response was scored better, float32 [N]; NaN where nothing is said.
        where: File and line of each row.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    responses: int
    labels: npt.NDArray[np.bool_] | None
    margins: npt.NDArray[np.float32]
    where: Sequence[str]

    def __len__(self) -> int:
        return len(self.where)

    def parts(self, index: int) -> list[npt.NDArray[np.int32]]:
        """Return the ids of a row's prompt and of its K responses, as views; none is empty."""
        first = index * (self.responses + 1)
        borders = self.offsets[first : first + self.responses + 2]
        return [self.ids[start:end] for start, end in pairwise(borders)]

    @cached_property
    def part_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row's prompt and responses [N, K + 1]."""
        return np.diff(self.offsets).reshape(-1, self.responses + 1)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens that each row lays into the stream [N]: the prompt once, and all responses."""
        return np.asarray(self.part_lengths.sum(axis=1))

    @cached_property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each row's longest attention row [N]: the prompt and the longest response."""
        return np.asarray(self.part_lengths[:, 0] + self.part_lengths[:, 1:].max(axis=1))

    @cached_property
    def supervised(self) -> npt.NDArray[np.int64]:
        """Tokens of each row's responses [N]."""
        return np.asarray(self.part_lengths[:, 1:].sum(axis=1))

    def summarize_responses(self) -> dict[str, dict[str, float]]:
        """Return the number and the mean tokens of each kind of response: chosen and rejected, or good and bad."""
        lengths = self.part_lengths[:, 1:]
        if self.labels is None:
            kinds = {"chosen": lengths[:, 0], "rejected": lengths[:, 1]}
        else:
            kinds = {"desirable": lengths[self.labels, 0], "undesirable": lengths[~self.labels, 0]}
        return {
            kind: {"rows": len(part), "mean_tokens": float(part.sum()) / max(1, len(part))}
            for kind, part in kinds.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of ids, borders and labels; equal fingerprints train alike."""
        labels = np.zeros(0, np.bool_) if self.labels is None else self.labels
        return hash_arrays(self.ids, self.offsets, labels, self.margins)


class _ResponseBuilder:
    """Grows rows on the disk."""

    def __init__(self, responses: int) -> None:
        self.responses = responses
        self.ids, self.offsets, self.labels, self.margins = Spool(), array("q", [0]), bytearray(), array("f")
        self.where = Origins()

    def __len__(self) -> int:
        return len(self.where)

    def add(self, row: EncodedResponses, example: Example) -> None:
        if not isinstance(example, ResponseExample):
            raise TypeError(f"{type(example).__name__} has no responses")
        for part in (row.prompt, *row.responses):
            self.ids.add(part)
            self.offsets.append(self.offsets[-1] + len(part))
        self.labels.append(bool(example.label))
        self.margins.append(float("nan") if example.margin is None else example.margin)
        self.where.append(example.where)

    def build(self) -> ResponseRows:
        labels = np.frombuffer(self.labels, np.bool_) if self.responses == 1 else None
        ids, offsets = self.ids.array(np.int32), np.frombuffer(self.offsets, np.int64)
        return ResponseRows(ids, offsets, self.responses, labels, np.frombuffer(self.margins, np.float32), self.where)


@dataclass(frozen=True)
class ResponseReader:
    """Reads pairs; for KTO single labeled responses, and a pair as two of them."""

    settings: Settings

    def parse(self, row: Row) -> Sequence[Example]:
        """Understand a row, which may hold several pairs."""
        data = self.settings.data
        return parse_preferences(row, data.columns, method=self.settings.method, strings=data.strings)

    def encode(self, example: Example) -> Made:
        """Make a row of a prompt and its responses."""
        if not isinstance(example, ResponseExample):
            raise TypeError(f"{type(example).__name__} has no responses")
        if len(example.responses) > 1 and example.responses[0] == example.responses[1]:
            return Made(dropped=SAME)
        settings = self.settings
        encoded, notes = encode_responses(example, settings.tokenizer, enable_thinking=settings.data.enable_thinking)
        settings.check_vocabulary(max(int(part.max()) for part in (encoded.prompt, *encoded.responses)))
        if example.margin is not None and example.margin < 0:
            notes.add(SCORED_AGAINST)
        if isinstance(example.prompt, str) and settings.tokenizer.has_chat_template:
            notes.add(PLAIN_STRINGS)
        return self._fit(encoded, Made(notes=frozenset(notes)))

    def _fit(self, encoded: EncodedResponses, made: Made) -> Made:
        """Cut the ends of responses off beyond the limit, as TRL does, or do what `data.too_long` asks for."""
        limit, policy = self.settings.max_seq_length, self.settings.data.too_long
        room = limit - len(encoded.prompt)
        longest = len(encoded.prompt) + max(map(len, encoded.responses))
        if longest > limit:
            if policy in {"error", "split"}:
                cannot = " and cannot be split" if policy == "split" else ""
                raise RowProblem(f"has {longest:,} tokens{cannot} (max_seq_length is {limit:,})")
            if policy == "drop":
                return made._replace(dropped=TOO_LONG)
            if room < 1:
                return made._replace(dropped=ANSWER_CUT_OFF)
            encoded = encoded._replace(responses=tuple(response[:room] for response in encoded.responses))
        if len(encoded.responses) > 1 and np.array_equal(encoded.responses[0], encoded.responses[1]):
            return made._replace(dropped=SAME if longest <= limit else SAME_WHEN_CUT)
        return made._replace(rows=[encoded], is_truncated=longest > limit)

    def builder(self) -> _ResponseBuilder:
        """Return an empty builder."""
        return _ResponseBuilder(1 if self.settings.method == "kto" else 2)
