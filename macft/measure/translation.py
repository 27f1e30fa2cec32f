"""BLEU and chrF of a set of answers, as sacrebleu computes them with its defaults, from 0 to 1.

The rule: each row only counts n-grams, and the figure is made of their sums, so that rows can be drawn anew. Chinese
and Japanese characters are words of their own, as under sacrebleu's `zh`.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from macft.measure.answers import CHINESE
from macft.measure.resampling import Figure, Floats

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2
_CHARACTER = re.compile(rf"([{CHINESE}])")
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def bleu(answers: Sequence[str], references: Sequence[str]) -> Figure:
    """Return BLEU with the 13a tokenizer and exponential smoothing.

    Source: Papineni et al. 2002, BLEU: a method for automatic evaluation of machine translation; Post 2018, A call for
    clarity in reporting BLEU scores.
    """
    return Figure(np.array([_bleu_counts(*pair) for pair in zip(answers, references, strict=True)]), _bleu)


def chrf(answers: Sequence[str], references: Sequence[str]) -> Figure:
    """Return chrF2 over n-grams of one to six characters, without white space.

    Source: Popović 2015, chrF: character n-gram F-score for automatic MT evaluation.
    """
    return Figure(np.array([_chrf_counts(*pair) for pair in zip(answers, references, strict=True)]), _chrf)


def _bleu_counts(answer: str, reference: str) -> list[float]:
    said, expected = _words(answer), _words(reference)
    counts: list[float] = [len(said), len(expected)]
    for n in range(1, BLEU_ORDER + 1):
        ours, theirs = _grams(said, n), _grams(expected, n)
        counts += [(ours & theirs).total(), ours.total()]
    return counts


def _bleu(sums: Floats) -> Floats:
    ours, theirs, matched, total = sums[..., 0], sums[..., 1], sums[..., 2::2], sums[..., 3::2]
    missed = np.cumsum((matched == 0) & (total > 0), axis=-1)  # the n-th order without a match counts 1 / 2ⁿ of one
    smoothed = np.where(matched > 0, matched, 0.5**missed)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(total > 0, smoothed / total, 0.0)).mean(axis=-1)
        brevity = np.where(ours < theirs, 1 - theirs / ours, 0.0)
        return np.where(matched.any(axis=-1), np.exp(logs + brevity), 0.0)


def _chrf_counts(answer: str, reference: str) -> list[float]:
    said, expected = "".join(answer.split()), "".join(reference.split())
    counts: list[float] = []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = _grams(said, n), _grams(expected, n)
        counts += [(ours & theirs).total(), ours.total() if theirs else 0, theirs.total()]
    return counts


def _chrf(sums: Floats) -> Floats:
    matched, ours, theirs = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    there = (ours > 0) & (theirs > 0)
    orders = np.maximum(1, there.sum(axis=-1))
    precision = (matched / np.where(there, ours, 1) * there).sum(axis=-1) / orders
    recall = (matched / np.where(there, theirs, 1) * there).sum(axis=-1) / orders
    below = CHRF_BETA**2 * precision + recall
    return np.where(below > 0, (1 + CHRF_BETA**2) * precision * recall / np.where(below > 0, below, 1), 0.0)


def _words(text: str) -> list[str]:
    """Cut a text as mteval-v13a does."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _CHARACTER.sub(r" \1 ", f" {text} ")
    for pattern, split in _SPLITS:
        text = pattern.sub(split, text)
    return text.split()


def _grams(items: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(items[k:] for k in range(n)), strict=False))
