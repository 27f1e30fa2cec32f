"""Rows that are nearly the same, found without comparing every two.

The rule: MinHash only proposes; `likeness` decides. Of a row's pieces, those that stand in most rows are left out
before hashing, so that rows of one template do not propose each other.

Source: Broder 1997, "On the resemblance and containment of documents"; banding after Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4. Signatures are rensa's R-MinHash.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.hygiene.gathered import SpooledTexts
from macft.data.hygiene.likeness import BATCH, MIX, Comparison, Places, Rarity, cut_pieces

Progress = Callable[[int, int], None]

_BANDS, _BAND = 32, 4
"""A pair with half of its pieces in common is proposed with 87%, one with 0.7 of them with 99.98%."""
_SEED = 42
_PROMISING = 0.35
"""Share of equal values of two signatures, low bytes alone, below which a pair is not looked up."""


class Near(NamedTuple):
    """A row that is nearly the same as an earlier one, and the share of pieces that both have."""

    row: int
    earlier: int
    similarity: float


def find_near(
    texts: SpooledTexts,
    rows: Places,
    is_held_out: npt.NDArray[np.bool_],
    sharers: npt.NDArray[np.intp],
    progress: Progress | None = None,
) -> tuple[list[Near], list[Near]]:
    """Find rows that are nearly the same.

    Args:
        texts: Prompts and answers of all rows.
        rows: The rows to compare [N], no two of them the same; held-out ones first.
        is_held_out: Whether each of them is [N].
        sharers: To how many prompts the answer of each row of all is given.
        progress: Called with rows hashed and rows in all.

    Returns:
        Rows like an earlier one of their side, and training rows (`row`) like a held-out one (`earlier`).
    """
    if len(rows) < 2:
        return [], []
    rarity = Rarity(texts, rows)
    signatures, keys, places = _sign(texts, rows, rarity, progress)
    pairs = _propose(signatures, keys, is_held_out[places])
    crosses = is_held_out[places[pairs[:, 0]]] != is_held_out[places[pairs[:, 1]]]
    sides = (pairs[~crosses], pairs[crosses])
    comparison = Comparison(texts, rarity, sharers)
    same, cross = (_confirm(comparison, rows[places[side]]) for side in sides)
    return list(same), list(cross)


def _sign(
    texts: SpooledTexts, rows: Places, rarity: Rarity, progress: Progress | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], Places]:
    """Return signatures [M, 128], keys by band [32, M], and the places [M] in `rows` that have particular pieces."""
    from rensa import RMinHash

    signatures, keys, places = [], [], []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        pieces, bounds = cut_pieces([texts.whole(int(row)) for row in batch])
        kept = rarity.thin(pieces)
        before = np.concatenate([[0], np.cumsum(kept)])[bounds]
        some = np.flatnonzero(np.diff(before))
        if len(some):
            starts = np.append(before[some], before[-1])
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                pieces[kept].tolist(), starts.tolist(), _BANDS * _BAND, _SEED
            )
            digests = np.array(matrix.to_rows(), np.uint32)
            signatures.append(digests.astype(np.uint8))
            keys.append(_mix_bands(digests))
            places.append(start + some)
        if progress:
            progress(min(start + BATCH, len(rows)), len(rows))
    if not signatures:
        return np.empty((0, _BANDS * _BAND), np.uint8), np.empty((_BANDS, 0), np.uint32), np.empty(0, np.int64)
    return np.concatenate(signatures), np.concatenate(keys, axis=1), np.concatenate(places)


def _mix_bands(digests: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    mixed = np.zeros((len(digests), _BANDS), np.uint64)
    for values in np.moveaxis(digests.reshape(len(digests), _BANDS, _BAND), 2, 0):
        mixed = (mixed ^ values) * MIX
        mixed ^= mixed >> np.uint64(32)
    return np.ascontiguousarray(mixed.T.astype(np.uint32))


def _propose(
    signatures: npt.NDArray[np.uint8], keys: npt.NDArray[np.uint32], is_held_out: npt.NDArray[np.bool_]
) -> Places:
    """Return pairs (earlier, later) [P, 2] of places that share a band and enough of their signatures, each once."""
    found: list[Places] = [np.empty(0, np.int64)]
    total = len(signatures)
    for band in keys:
        order = np.argsort(band, kind="stable")
        links = list(_link(band[order], order, is_held_out))
        pairs = np.unique(np.concatenate(links))
        for start in range(0, len(pairs), 2**18):
            chunk = pairs[start : start + 2**18]
            equal = (signatures[chunk // total] == signatures[chunk % total]).mean(axis=1, dtype=np.float32)
            found.append(chunk[equal >= _PROMISING])
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs // total, pairs % total], axis=1) if total else np.empty((0, 2), np.int64)


def _link(band: npt.NDArray[np.uint32], order: Places, is_held_out: npt.NDArray[np.bool_]) -> Iterator[Places]:
    """Link each row to a few before it in its bucket: few, so that a template's bucket costs no square of its size.

    Yields:
        Pairs as one number each, earlier · N + later.
    """
    total, at = len(order), np.arange(len(order))
    starts = np.maximum.accumulate(np.where(np.append(True, band[1:] != band[:-1])[:total], at, 0))
    held = np.append(0, np.cumsum(is_held_out[order]))
    trained = starts + held[at] - held[starts]  # the first training row of the bucket: held-out rows stand first
    targets = (starts, trained, trained - 1, at - 1, at - 2, at - 3)
    for target in targets:
        ours = np.flatnonzero((target < at) & (target >= starts))
        yield order[target[ours]] * total + order[ours]


def _confirm(comparison: Comparison, pairs: Places) -> Iterator[Near]:
    """Compare pairs of rows; of each later row, the first that is nearly the same counts."""
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    for later, group in groupby(ordered.tolist(), key=itemgetter(1)):
        for earlier, _ in group:
            if similarity := comparison.compare(earlier, later):
                yield Near(later, earlier, similarity)
                break
