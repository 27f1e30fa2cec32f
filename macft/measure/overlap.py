"""Overlap of an answer with its reference in runs of words: ROUGE-1, ROUGE-2 and ROUGE-L.

The rule: words are runs of letters and digits without case; Chinese and Japanese characters count one by one. On
English this is what the package rouge-score computes without stemming.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from macft.measure.answers import CHINESE

_WORD = re.compile(rf"[{CHINESE}]|[^\W_{CHINESE}]+")


class Rouge(NamedTuple):
    """F-measures, each 0 to 1.

    Attributes:
        rouge1: Of words.
        rouge2: Of pairs of words.
        rouge_l: Of the longest common subsequence.
    """

    rouge1: float
    rouge2: float
    rouge_l: float


def score_rouge(answer: str, reference: str) -> Rouge:
    """Compare an answer with a reference.

    By hand: "the cat sat" against "the cat ran off" shares 2 words of 3 and 4, so ROUGE-1 is 2 · 2 / 7; one pair of 2
    and 3, so ROUGE-2 is 2 / 5; and the subsequence "the cat", so ROUGE-L is 4 / 7.

    Source: Lin 2004, ROUGE: A package for automatic evaluation of summaries.
    """
    said, expected = _words(answer), _words(reference)
    return Rouge(
        _overlap(said, expected, 1),
        _overlap(said, expected, 2),
        _f_measure(_longest_common(said, expected), len(said), len(expected)),
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _overlap(said: Sequence[str], expected: Sequence[str], n: int) -> float:
    ours, theirs = (Counter(zip(*(words[k:] for k in range(n)), strict=False)) for words in (said, expected))
    return _f_measure((ours & theirs).total(), ours.total(), theirs.total())


def _longest_common(said: Sequence[str], expected: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time."""
    row = [0] * (len(expected) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(expected, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def _f_measure(matched: int, said: int, expected: int) -> float:
    return 2 * matched / (said + expected) if matched else 0.0
