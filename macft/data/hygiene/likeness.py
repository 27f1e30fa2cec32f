"""Whether two texts are nearly the same, by the pieces they are made of.

The rule: rows are nearly the same when they share 70% of their pieces, and prompt and answer each share what is
particular to them: rows of one template differ in little, but in all that matters. A piece is 8 bytes in a row, so
eight letters or nearly three Chinese characters.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from macft.data.hygiene.gathered import SpooledTexts

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SIMILAR, ALL_BUT_EQUAL = 0.7, 0.9
"""Share of pieces that nearly equal rows have in common; with other numbers in them, rows must be all but equal."""
PARTICULAR, ALSO_PARTICULAR = 0.65, 0.4
"""Share of the particular pieces that two parts have in common, of those in the smaller of both; the lower one is for
prompts whose answer is theirs alone, and says most."""
BATCH = 4096
MIX, _THIN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_NUMBER = re.compile(rb"\d+")
_PIECE = 8
_SAMPLE, _BUCKET_BITS = 20_000, 22
_RARE_ROWS, _RARE_SHARE = 10, 0.01
"""A piece in no more rows than this, of the sample or of a hundred, is particular to its row."""
_FEWEST = 4.0
"""Particular pieces below which a part is too short to have a character of its own."""


def cut_pieces(texts: Sequence[bytes]) -> tuple[Hashes, Places]:
    """Return hashes of every 8 bytes in a row of each text, and where those of a text begin [N + 1]."""
    padded = [text.ljust(_PIECE, b"\0") for text in texts]
    lengths = np.array([len(text) for text in padded], np.int64)
    ends = np.cumsum(lengths)
    flat = np.frombuffer(b"".join(padded) + b"\0" * _PIECE, np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(flat, _PIECE)[: int(ends[-1])]
    is_whole = np.ones(len(windows), bool)
    for back in range(1, _PIECE):
        is_whole[ends - back] = False
    pieces = np.ascontiguousarray(windows[is_whole]).view("<u8").ravel()
    pieces = (pieces ^ (pieces >> np.uint64(32))) * MIX
    return pieces ^ (pieces >> np.uint64(29)), np.concatenate([[0], np.cumsum(lengths - _PIECE + 1)])


def distinct(values: Hashes) -> Hashes:
    """Return the different values in their order; three times as fast as `np.unique` on short arrays."""
    ordered = np.sort(values)
    is_new = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    return np.extract(is_new, ordered)


class Rarity:
    """How particular pieces are to their row: 1 when in few rows, 0 when in nearly all; counted on a sample."""

    def __init__(self, texts: SpooledTexts, rows: Places) -> None:
        sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)]
        counts = np.zeros(2**_BUCKET_BITS, np.float32)
        for start in range(0, len(sample), BATCH):
            pieces, bounds = cut_pieces([texts.whole(int(row)) for row in sample[start : start + BATCH]])
            owner = np.repeat(np.arange(len(bounds) - 1, dtype=np.uint64), np.diff(bounds))
            once = distinct(owner << np.uint64(_BUCKET_BITS) | self._bucket(pieces))
            counts += np.bincount((once & np.uint64(2**_BUCKET_BITS - 1)).astype(np.int64), minlength=len(counts))
        weights = np.log(len(sample) / np.maximum(counts, 1.0)) / -np.log(_RARE_SHARE)
        self._weights = np.where(counts <= _RARE_ROWS, 1.0, np.clip(weights, 0.0, 1.0)).astype(np.float32)

    @staticmethod
    def _bucket(pieces: Hashes) -> Hashes:
        return pieces >> np.uint64(64 - _BUCKET_BITS)

    def weigh(self, pieces: Hashes) -> npt.NDArray[np.float32]:
        """Return the weight of each piece, 0 to 1."""
        weights: npt.NDArray[np.float32] = self._weights[self._bucket(pieces)]
        return weights

    def thin(self, pieces: Hashes) -> npt.NDArray[np.bool_]:
        """Tell which pieces to keep so that each is kept as often as it weighs, the same one always or never."""
        return (pieces * _THIN >> np.uint64(40)).astype(np.float32) < self.weigh(pieces) * np.float32(2**24)


class Comparison:
    """Compares rows by their texts.

    Args:
        sharers: To how many prompts the answer of each row is given [N].
    """

    def __init__(self, texts: SpooledTexts, rarity: Rarity, sharers: npt.NDArray[np.intp]) -> None:
        self._texts, self._rarity, self._sharers = texts, rarity, sharers

    def compare(self, one: int, other: int) -> float:
        """Return the share of pieces that two rows have in common, or 0 when they are not nearly the same."""
        texts = self._texts
        whole = [texts.whole(row) for row in (one, other)]
        similarity = _share(*(distinct(cut_pieces([text])[0]) for text in whole))
        if similarity < SIMILAR:
            return 0.0
        if similarity < ALL_BUT_EQUAL and set(_NUMBER.findall(whole[0])) != set(_NUMBER.findall(whole[1])):
            return 0.0
        is_label = max(self._sharers[one], self._sharers[other]) > 2
        is_near = self._is_like(texts.prompt(one), texts.prompt(other), PARTICULAR if is_label else ALSO_PARTICULAR)
        return similarity if is_near and self._is_like(texts.answer(one), texts.answer(other), PARTICULAR) else 0.0

    def _is_like(self, one: bytes, other: bytes, enough: float) -> bool:
        """Tell whether a prompt or an answer shares what is particular to it, or is the same when it is too short."""
        if one == other:
            return True
        if min(len(one), len(other)) < _PIECE:
            return False
        ours, theirs = (distinct(cut_pieces([text])[0]) for text in (one, other))
        least = min(float(self._rarity.weigh(ours).sum()), float(self._rarity.weigh(theirs).sum()))
        if least < _FEWEST:
            return _share(ours, theirs) >= SIMILAR
        both = np.intersect1d(ours, theirs, assume_unique=True)
        return float(self._rarity.weigh(both).sum()) >= enough * least


def _share(one: Hashes, other: Hashes) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
