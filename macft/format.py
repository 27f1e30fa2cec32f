"""Values to short text for people.

The rule: text that macft did not write itself passes through `clean`, so that no row, answer or file name can steer
the terminal.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len

from macft.events import share_preferred
from macft.machine import GIB, MIB

_REPLACED = dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], 0xFFFD
)
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_UNSAFE = _REPLACED | _PICTURES

MISSING = "–"


def clean(text: str) -> str:
    """Make control characters visible, and harmless: escape becomes ␛; line ends and tabs stay."""
    return text.translate(_UNSAFE)


def one_line(text: str, longest: int = 10_000) -> str:
    """Return a clean text as one line, cut with … when it is longer."""
    line = clean(" ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def number(value: float | None) -> str:
    """Write a loss or a rate; a value that was not finite is a dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2e}"


def preference(metrics: Mapping[str, float], prefix: str = "") -> list[str]:
    """Say how well a preference run tells good answers from bad ones; nothing for a run of another kind."""
    margin = metrics.get(f"{prefix}rewards/margins")
    if margin is None:
        return []
    accuracy = share_preferred(metrics, prefix)
    return [f"margin {margin:.3f}", *([f"accuracy {accuracy:.0%}"] if accuracy is not None else [])]


def count(value: int) -> str:
    """Write a large count with three digits: 134_515_008 is 135 M."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {unit}"
    return str(value)


def gigabytes(size_bytes: float) -> str:
    """Write bytes as GB of 2^30."""
    return f"{size_bytes / GIB:.1f} GB"


def size(size_bytes: float) -> str:
    """Write bytes as GB, or as MB when they are fewer than one."""
    return gigabytes(size_bytes) if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MB"


def duration(seconds: float) -> str:
    """Write a time span in the one or two units that matter."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Align rows as lines; the first row is the head.

    Args:
        rows: Clean cells, as many in each row.
        right: Columns that are aligned to the right.
    """
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row[i], width, i in right) for i, width in enumerate(widths)).rstrip() for row in rows]


def _padded(cell: str, width: int, to_the_right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if to_the_right else cell + space
