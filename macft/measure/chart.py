"""Curves as SVG.

The rule: a chart is a picture and its numbers; it says in words what it shows, for whoever does not see it.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from macft.curves import Curve, thin

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 220, 56, 28, 8, 12
POINTS = 600
"""A curve has at most so many points; a chart is no wider."""
COLORS = ("--one", "--two", "--three")
_TICKS = 5


class Series(NamedTuple):
    """One curve of a chart.

    Attributes:
        name: Empty for a curve that goes with a named one of its colour.
        place: Which of the chart's colours it has.
        is_faint: Drawn thin, behind the others.
        has_dots: Drawn with a dot a point.
    """

    name: str
    curve: Curve
    place: int = 0
    is_faint: bool = False
    has_dots: bool = False


def draw(title: str, series: Sequence[Series]) -> str:
    """Return a chart over the steps of a run; nothing when no curve has a point.

    Args:
        title: What the values are, with their unit.
        series: Curves; those without a point are left out.
    """
    drawn = [one._replace(curve=thin(one.curve, POINTS)) for one in series if one.curve.values]
    if not drawn:
        return ""
    low, high = _span([value for one in drawn for value in one.curve.values])
    last = max(1.0, *(one.curve.steps[-1] for one in drawn))
    ticks = nice_ticks(low, high)

    def x(step: float) -> float:
        return round(LEFT + step / last * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    parts = []
    for tick in ticks:
        parts.append(f'<path class="axis" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for tick in nice_ticks(0, last):
        parts.append(f'<text x="{x(tick)}" y="{HEIGHT - 8}" text-anchor="middle">{tick:,g}</text>')
    for one in sorted(drawn, key=lambda one: not one.is_faint):
        points = [(x(step), y(value)) for step, value in zip(*one.curve, strict=True)]
        color = _color(one)
        path = "M" + "L".join(f"{across} {down}" for across, down in points)
        parts.append(f'<path class="line{" faint" * one.is_faint}" stroke="{color}" d="{path}"/>')
        if one.has_dots:
            parts += [f'<circle cx="{across}" cy="{down}" r="3" fill="{color}"/>' for across, down in points]
    named = [one for one in drawn if one.name]
    said = "; ".join(f"{one.name}: {one.curve.values[0]:.4g} to {one.curve.values[-1]:.4g}" for one in named)
    label = escape(f"{title} over steps. {said}", quote=True)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    key = "".join(f' <span style="color:{_color(one)}">●</span> {escape(one.name)}' for one in named)
    return f"<figure><figcaption><b>{escape(title)}</b>{key}</figcaption>{picture}</figure>"


def nice_ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers from `low` to `high`."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _color(one: Series) -> str:
    return f"var({COLORS[one.place % len(COLORS)]})"
