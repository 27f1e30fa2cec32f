"""Several sets of rows to one, by weights.

The rule: a weight is a share of the mixture, and no row stands in it twice unless that is asked for. Which rows are
taken, and in which order, depends on what they say and the seed alone.
"""

import math
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.hygiene.texts import hash_bytes
from macft.data.writing import check_target, read_lines, write_rows
from macft.errors import DataError, Problem, RecipeError


class Part(NamedTuple):
    """A file or folder in a mixture; its weight (None: as many as it has) and the most rows that are taken of it."""

    path: str
    weight: float | None = None
    cap: int | None = None


class Mixed(NamedTuple):
    """What mixing did: the file, and of each part how many rows were taken of how many."""

    out: Path
    rows: int
    parts: Sequence[Mapping[str, object]]


def parse_part(text: str) -> Part:
    """Read `FILE`, `FILE:WEIGHT` or `FILE:WEIGHT:CAP`; the weight may be empty.

    Raises:
        RecipeError: A weight is no number above 0, or a cap no whole one.
    """
    path, *numbers = text.split(":") if not Path(text).exists() else [text]
    try:
        weight = float(numbers[0]) if numbers and numbers[0] else None
        cap = int(numbers[1]) if len(numbers) > 1 else None
    except ValueError:
        weight, cap = -1.0, None
    if len(numbers) > 2 or (weight is not None and not 0 < weight < math.inf) or (cap is not None and cap < 1):
        raise RecipeError([Problem(text, "is no part of a mixture (expected FILE, FILE:WEIGHT or FILE:WEIGHT:CAP)")])
    return Part(path, weight, cap)


def mix_rows(
    parts: Sequence[Part], *, out: Path, rows: int | None = None, repeat: bool = False, seed: int = 0
) -> Mixed:
    """Write a shuffled file in which each part has the share of its weight.

    Args:
        parts: Where rows come from. Without any weight, all rows are taken, up to the caps.
        out: The new file, JSONL.
        rows: Rows of the mixture; as many as can be had without repeating any when left out.
        repeat: Take rows of a part again when it has too few.
        seed: Another number takes other rows, in another order.

    Raises:
        RecipeError: Some parts have weights and others none, or `rows` are asked for without weights.
        DataError: A row cannot be read, a part has too few rows, or `out` is among the parts.
    """
    weighted = [part for part in parts if part.weight is not None]
    if weighted and len(weighted) < len(parts):
        raise RecipeError([Problem("", "some parts have weights and others none")], fix="Give each a weight, or none.")
    check_target([part.path for part in parts], out)
    with tempfile.TemporaryFile() as spool:
        pools = [_read_pool(part, spool, seed) for part in parts]
        had = [min(len(pool.hashes), part.cap or len(pool.hashes)) for part, pool in zip(parts, pools, strict=True)]
        wanted = _count(parts, had, rows, repeat=repeat)
        taken = [pool.take(count, seed) for pool, count in zip(pools, wanted, strict=True)]
        order = np.argsort(np.concatenate([hashes for hashes, _, _ in taken]), kind="stable")
        starts, ends = (np.concatenate([each[at] for each in taken])[order] for at in (1, 2))
        written = write_rows(out, _read_lines(spool, starts, ends))
    told = [
        {"path": part.path, "weight": part.weight, "rows": count, "available": len(pool.hashes)}
        for part, pool, count in zip(parts, pools, wanted, strict=True)
    ]
    return Mixed(out, written, told)


class _Pool(NamedTuple):
    """The rows of a part, spooled: a hash of each, and where it starts and ends."""

    hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.uint64]

    def take(self, count: int, seed: int) -> tuple[npt.NDArray[np.uint64], ...]:
        """Return a hash for the order, the start and the end of the rows with the lowest hashes, again and again."""
        order = np.argsort(self.hashes, kind="stable")
        places = np.resize(order, count) if len(order) else order
        again = (np.arange(count, dtype=np.uint64) // np.uint64(max(1, len(order)))) * np.uint64(0x9E3779B97F4A7C15)
        # Another hash than the one rows were chosen by, or the parts would stand one behind the other.
        shuffled = (self.hashes[places] ^ again) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(seed)
        return shuffled ^ (shuffled >> np.uint64(31)), self.starts[places], self.ends[places]


def _read_pool(part: Part, spool: BinaryIO, seed: int) -> _Pool:
    problems, hashes, bounds = list[Problem](), array("Q"), array("Q", [spool.tell()])
    for _, _, line in read_lines([part.path], problems):
        digest = hash_bytes(line, key=str(seed).encode()).digest()
        hashes.append(int.from_bytes(digest, "big"))
        bounds.append(bounds[-1] + spool.write(line))
    if problems or not hashes:
        raise DataError(problems or [Problem(part.path, "holds no rows")])
    at = np.frombuffer(bounds, np.uint64)
    return _Pool(np.frombuffer(hashes, np.uint64), at[:-1], at[1:])


def _count(parts: Sequence[Part], had: Sequence[int], rows: int | None, *, repeat: bool) -> list[int]:
    """Return how many rows of each part make the mixture."""
    if parts[0].weight is None:
        if rows is not None:
            raise RecipeError([Problem("--rows", "needs weights")], fix="Write FILE:WEIGHT.")
        return list(had)
    total = sum(part.weight or 0.0 for part in parts)
    shares = [(part.weight or 0.0) / total for part in parts]
    if rows is None:
        rows = math.floor(min(count / share for count, share in zip(had, shares, strict=True)) + 1e-9)
    wanted = _round_to(rows, shares)
    short = [
        Problem(part.path, f"has {have:,} rows to take, and {want:,} are wanted")
        for part, have, want in zip(parts, had, wanted, strict=True)
        if want > have and not repeat
    ]
    if short or not rows:
        fix = "Lower --rows or its weight, or --repeat."
        raise DataError(
            short or [Problem("", "the mixture would be empty: a part is too small for its weight")], fix=fix
        )
    return wanted


def _round_to(rows: int, shares: Sequence[float]) -> list[int]:
    """Return whole numbers near the shares that add up to `rows`; what is left goes to the largest remainders."""
    exact = [rows * share for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_rest = sorted(range(len(shares)), key=lambda at: counts[at] - exact[at])
    for at in by_rest[: rows - sum(counts)]:
        counts[at] += 1
    return counts


def _read_lines(spool: BinaryIO, starts: npt.NDArray[np.uint64], ends: npt.NDArray[np.uint64]) -> Iterator[bytes]:
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        spool.seek(start)
        yield spool.read(end - start)
