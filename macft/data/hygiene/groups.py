"""Rows that say the same: doubles, leaks, one reply to many prompts, and answers that are labels.

The rule: two rows are the same when their normalized texts are; what they look like, and the columns that macft does
not read, make no difference.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.hygiene.gathered import Gathered

Places = npt.NDArray[np.int64]
_LABELS = 0.2
"""Share of the rows whose answer is not theirs alone, from which on answers are labels."""
_MANY = 5
_MANY_SHARE = 1 / 20_000
"""A reply counts as repeated when this many prompts get it, or this share of the rows."""


class Doubles(NamedTuple):
    """Rows that repeat an earlier one of their side: later and earlier [D], and the rows that are the first [M]."""

    later: Places
    earlier: Places
    first: Places


def find_doubles(gathered: Gathered) -> Doubles:
    """Find rows that repeat an earlier one; a held-out row and a training row are no doubles but a leak."""
    held_out = gathered.held_out
    key = gathered.hashes("row") ^ held_out.astype(np.uint64)
    order = np.argsort(key, kind="stable")
    at = np.arange(len(order))
    is_first = np.append(True, key[order][1:] != key[order][:-1])[: len(order)]
    starts = np.maximum.accumulate(np.where(is_first, at, 0)) if len(order) else at
    later = np.flatnonzero(~is_first)
    by_place = np.argsort(order[later], kind="stable")
    firsts = np.sort(order[is_first])
    firsts = np.concatenate([firsts[held_out[firsts]], firsts[~held_out[firsts]]])
    return Doubles(order[later][by_place], order[starts[later]][by_place], firsts)


def find_leaks(gathered: Gathered) -> Iterator[tuple[int, int]]:
    """Yield pairs of a training row and a held-out row with the same prompt; every such row is in one of them."""
    prompts, held_out = gathered.hashes("prompt"), gathered.held_out
    trained, asked = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    both = np.intersect1d(prompts[trained], prompts[asked])
    trained, asked = (rows[np.isin(prompts[rows], both)] for rows in (trained, asked))
    firsts = [dict(zip(prompts[rows][::-1].tolist(), rows[::-1].tolist(), strict=True)) for rows in (trained, asked)]
    for row in trained:
        yield int(row), firsts[1][int(prompts[row])]
    for row in asked:
        if (prompt := int(prompts[row])) and firsts[1][prompt] != row:
            yield firsts[0][prompt], int(row)


def count_answers(gathered: Gathered) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], bool]:
    """Count to how many different prompts each answer of the training rows is given.

    Returns:
        For each row [N] the number of prompts (0 for rows that are held out or repeat another), for each the first row
        with its answer, and whether the answers are labels.
    """
    prompts, first = np.zeros(len(gathered), np.intp), np.arange(len(gathered))
    rows = np.flatnonzero(~gathered.held_out & gathered.has_answer)
    rows = rows[np.sort(np.unique(gathered.hashes("row")[rows], return_index=True)[1])]
    if not len(rows):
        return prompts, first, False
    _, at, inverse, counts = np.unique(
        gathered.hashes("answer")[rows], return_index=True, return_inverse=True, return_counts=True
    )
    prompts[rows], first[rows] = counts[inverse], rows[at[inverse]]
    return prompts, first, bool((counts[inverse] > 1).mean() >= _LABELS)


def find_repeated(gathered: Gathered) -> Iterator[tuple[int, int, int]]:
    """Yield the rows whose answer many prompts get: row, the first with that answer, and how many get it."""
    prompts, first, are_labels = count_answers(gathered)
    many = max(_MANY, round(_MANY_SHARE * len(gathered)))
    for row in np.flatnonzero(prompts >= many) if not are_labels else ():
        yield int(row), int(first[row]), int(prompts[row])


def count_labels(gathered: Gathered) -> dict[str, int]:
    """Count the rows of each label, the most frequent first; empty when the answers are no labels."""
    _, _, are_labels = count_answers(gathered)
    if not are_labels:
        return {}
    rows = np.flatnonzero(~gathered.held_out & gathered.has_answer)
    hashes, counts = np.unique(gathered.hashes("answer")[rows], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {gathered.labels[int(hashes[at])]: int(counts[at]) for at in order if int(hashes[at]) in gathered.labels}
