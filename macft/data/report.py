"""What is in the data: counts for the plan and the screens, and a row as the model sees it.

The rule: nothing that was left out, cut or changed goes uncounted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from macft.data.chat_template import Encoded, decode
from macft.data.turns import Tokenizer

_BARS = 16
LENGTH_BIAS = 1.25
"""Chosen responses longer by this factor, or shorter, teach length as well."""
_NAMED_ROWS = 5
LEFT_OUT_FIX = "`macft data show` shows a row as the model sees it; max_seq_length bounds its length."
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class DataReport:
    """Facts about the rows of a run; all lengths in tokens.

    Attributes:
        rows_read: Rows of all files, before anything was left out.
        train_rows: Rows trained on, after splitting.
        tokens: Tokens of the training rows.
        supervised_tokens: Those of them that are trained on.
        histogram: Upper bound of a length and the number of training rows up to it, from the last bound on.
        dropped: Reason to number of rows left out.
        dropped_where: Reason to file and line of each of them.
        truncated_rows: Rows whose end was cut off.
        split_rows: Rows that became several.
        duplicate_rows: Rows that say the same as an earlier training row.
        leaked_rows: Validation and test rows that also stand in the training rows.
        formats: Kind of example to number of rows.
        notes: What was done to rows that their author should know, to number of rows.
        responses: Kind of response (chosen and rejected, or desirable and undesirable) to `rows` and `mean_tokens`;
            empty without preferences.
    """

    rows_read: int
    train_rows: int
    valid_rows: int
    test_rows: int
    tokens: int
    supervised_tokens: int
    length_p50: int
    length_p90: int
    length_p99: int
    length_max: int
    histogram: tuple[tuple[int, int], ...]
    dropped: Mapping[str, int]
    dropped_where: Mapping[str, Sequence[str]]
    truncated_rows: int
    split_rows: int
    duplicate_rows: int
    leaked_rows: int
    formats: Mapping[str, int]
    notes: Mapping[str, int]
    responses: Mapping[str, Mapping[str, float]]

    @property
    def supervised_share(self) -> float:
        """The share of the training tokens that is trained on."""
        return self.supervised_tokens / max(1, self.tokens)

    def list_warnings(self) -> list[tuple[str, str]]:
        """List what was cut, left out or stands twice, a line each, with what to do about it."""
        longer = "Raise max_seq_length, or choose another data.too_long."
        # Documents lose nothing when they are split; chats lose what an answer stands on.
        split = self.split_rows if self.formats.keys() - {"text"} else 0
        counts = [
            (self.truncated_rows, "longer than max_seq_length, so their end is cut off", longer),
            (split, "longer than max_seq_length, so they are split", longer),
            *(
                (rows, f"left out: {reason}", f"{self.name_dropped(reason)}. {LEFT_OUT_FIX}")
                for reason, rows in self.dropped.items()
            ),
            (self.duplicate_rows, "repeat an earlier training row", "Remove them, unless they should weigh more."),
            (self.leaked_rows, "in data.valid or data.test are also trained on", "Remove them from data.train."),
        ]
        bias = [(self.length_bias, "Shorten them, or set ld_alpha (dpo).")] if self.length_bias else []
        return [(f"{what} (rows: {rows:,})", fix) for rows, what, fix in counts if rows] + bias

    @property
    def length_bias(self) -> str:
        """What the lengths of good and bad responses will teach; empty when they are alike."""
        if len(self.responses) != 2:
            return ""
        (good, ours), (_, theirs) = ((kind, counts["mean_tokens"]) for kind, counts in self.responses.items())
        if min(ours, theirs) == 0 or max(ours, theirs) < LENGTH_BIAS * min(ours, theirs):
            return ""
        way = "longer" if ours > theirs else "shorter"
        return f"{good} is {max(ours, theirs) / min(ours, theirs):.1f} times {way}: expect {way} answers"

    def name_dropped(self, reason: str) -> str:
        """Name the first rows that were left out for a reason, by file and line."""
        places = self.dropped_where.get(reason, ())
        more = len(places) - _NAMED_ROWS
        return ", ".join(places[:_NAMED_ROWS]) + (f" and {more:,} more" if more > 0 else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"schema": 1, **asdict(self), "supervised_share": self.supervised_share}


def summarize_lengths(lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the length fields of a report for the lengths of the training rows [N]."""
    if not len(lengths):
        return {"length_p50": 0, "length_p90": 0, "length_p99": 0, "length_max": 0, "histogram": ()}
    names = ("length_p50", "length_p90", "length_p99", "length_max")
    levels = np.percentile(lengths, (50, 90, 99, 100), method="higher")
    edges = np.unique(np.ceil(np.linspace(0, lengths.max(), _BARS + 1)).astype(np.int64))
    counts = np.histogram(lengths - 1, bins=edges)[0]  # a bar holds (edge, next edge]
    bars = tuple((int(edge), int(count)) for edge, count in zip(edges[1:], counts, strict=True))
    return {**{name: int(level) for name, level in zip(names, levels, strict=True)}, "histogram": bars}


def sort_counts(counts: Counter[str]) -> dict[str, int]:
    """Return counts as a plain mapping, the most frequent first."""
    return dict(counts.most_common())


def render_row(encoded: Encoded, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Return a row's text in runs that are trained on or not; a character is never torn between two runs."""
    ids, mask = encoded
    runs: list[tuple[str, bool]] = []
    start, done = 0, ""
    for end in range(1, len(ids) + 1):
        if end < len(ids) and mask[end] == mask[end - 1]:
            continue
        text = decode(tokenizer, ids[:end])
        if end < len(ids) and text.endswith(REPLACEMENT):  # the last character goes on in the next token
            continue
        piece = text[len(done) :] if text.startswith(done) else decode(tokenizer, ids[start:end])
        runs.append((piece, bool(mask[end - 1])))
        start, done = end, text
    return runs
