"""A run's numbers over its steps, as whoever draws them wants them.

The rule: pure functions of a `RunState`; values that are not finite are no points.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from macft.events import Evaluated, StepDone, share_preferred
from macft.state import RunState

SMOOTHING = 0.9
"""Decay of the running mean, corrected at its start like Adam's."""


class Curve(NamedTuple):
    """Points of one kind: steps and values."""

    steps: list[float]
    values: list[float]


def step_curve(state: RunState, metric: str) -> Curve:
    """Return a metric of every update that has it."""
    return _curve(state.steps, metric)


def eval_curve(state: RunState, metric: str = "eval_loss") -> Curve:
    """Return a metric of the held-out rows."""
    return _curve(state.evaluations, metric)


def loss_curve(state: RunState) -> Curve:
    """Return the training loss of every step that has one."""
    return step_curve(state, "loss")


def smoothed(curve: Curve) -> Curve:
    """Return the running mean of a curve."""
    mean, weight, values = 0.0, 0.0, []
    for value in curve.values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        values.append(mean / weight)
    return Curve(curve.steps, values)


def thin(curve: Curve, points: int) -> Curve:
    """Return a curve of at most so many points."""
    return Curve(shrink(curve.steps, points), shrink(curve.values, points))


def shrink(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` values, each the mean of its share."""
    if len(values) <= width:
        return list(values)
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    parts = [[value for value in values[a:b] if math.isfinite(value)] for a, b in pairwise(edges)]
    return [sum(part) / len(part) if part else math.nan for part in parts]


def _curve(events: Iterable[StepDone | Evaluated], metric: str) -> Curve:
    prefix, is_share, _ = metric.partition("rewards/accuracies")
    found = [
        (float(event.step), share_preferred(event.metrics, prefix) if is_share else event.metrics.get(metric))
        for event in events
    ]
    kept = [(step, value) for step, value in found if value is not None and math.isfinite(value)]
    return Curve([step for step, _ in kept], [value for _, value in kept])
