"""Numbers as a few lines of bars."""

import math
from collections.abc import Sequence

from macft.curves import shrink

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], *, width: int, height: int = 1, lowest: float | None = None) -> list[str]:
    """Return lines of bars, the newest value on the right.

    Args:
        values: Longer series are averaged down to the width; values that are not finite are gaps.
        width: Cells of a line.
        height: Lines.
        lowest: Where the bars stand; left out, a little below the lowest value.
    """
    points = shrink(values, width)
    finite = [point for point in points if math.isfinite(point)]
    if not finite:
        return [" " * width] * height
    bottom = min(finite) if lowest is None else lowest
    span = max(finite) - bottom
    levels = [_level(point, bottom, span, height) for point in points]
    lines = []
    for line in reversed(range(height)):
        cells = "".join(BLOCKS[max(0, min(8, level - 8 * line))] for level in levels)
        lines.append(cells.rjust(width))
    return lines


def _level(value: float, bottom: float, span: float, height: int) -> int:
    if not math.isfinite(value):
        return 0
    share = (value - bottom) / span if span > 0 else 0.5
    return max(1, round(share * 8 * height))
