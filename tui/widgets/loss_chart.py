"""The loss curve: raw faint, smoothed solid, evaluations as diamonds, the best as a star.

The rule: the x-axis is the whole run, so the curve fills towards the right; what is drawn is decimated to what the
cells can show.
"""

import math
from collections.abc import Sequence

from textual_plot import HiResMode, PlotWidget

from macft.curves import Curve, eval_curve, loss_curve, smoothed, thin
from macft.format import number
from macft.state import RunState

POINTS_A_CELL = 2


class LossChart(PlotWidget, can_focus=False):
    """A run's losses over its steps."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, allow_pan_and_zoom=False)
        self.is_logarithmic = False
        self._others: list[tuple[str, Curve]] = []

    def on_mount(self) -> None:
        """Name the axes."""
        self.margin_left, self.margin_bottom, self.margin_top = 7, 2, 0

    def show(self, state: RunState) -> None:
        """Draw a run's curves."""
        self.clear()
        cells = max(20, self.size.width - 10) * POINTS_A_CELL
        raw = thin(loss_curve(state), cells)
        smooth = thin(smoothed(loss_curve(state)), cells)
        evaluations = eval_curve(state)
        steps = max(1, state.total_steps or state.step)
        self.set_xlimits(0, steps)
        if raw.values:
            self._line(raw, "grey42")
            self._line(smooth, "bright_blue")
        if evaluations.values:
            self._dots(evaluations, "◆", "bright_green")
        if state.best and (best := state.best.metrics.get("eval_loss")) is not None:
            self._dots(Curve([state.best.step], [best]), "★", "bright_yellow")
        self._fit([*smooth.values, *evaluations.values] or raw.values)
        self.border_subtitle = caption(state, is_logarithmic=self.is_logarithmic)

    def overlay(self, curves: Sequence[tuple[str, Curve]], steps: int) -> None:
        """Draw the smoothed curves of several runs."""
        self.clear()
        self.set_xlimits(0, max(1, steps))
        styles = ("bright_blue", "bright_yellow")
        values: list[float] = []
        for (name, curve), style in zip(curves, styles, strict=False):
            drawn = thin(smoothed(curve), max(20, self.size.width) * POINTS_A_CELL)
            self._line(drawn, style, label=name)
            values += drawn.values
        self._fit(values)
        self.show_legend()

    def _line(self, curve: Curve, style: str, label: str | None = None) -> None:
        self.plot(curve.steps, self._scaled(curve.values), line_style=style, hires_mode=HiResMode.BRAILLE, label=label)

    def _dots(self, curve: Curve, marker: str, style: str) -> None:
        self.scatter(curve.steps, self._scaled(curve.values), marker=marker, marker_style=style)

    def _scaled(self, values: Sequence[float]) -> list[float]:
        if not self.is_logarithmic:
            return list(values)
        return [math.log10(value) if value > 0 else math.nan for value in values]

    def _fit(self, values: Sequence[float]) -> None:
        finite = [value for value in self._scaled(values) if math.isfinite(value)]
        if finite:
            low, high = min(finite), max(finite)
            room = max((high - low) * 0.08, 1e-6)
            self.set_ylimits(low - room, high + room)


def caption(state: RunState, *, is_logarithmic: bool = False) -> str:
    """Say the numbers that the curve is about."""
    parts = [f"train {number(state.loss)}"] if state.loss is not None else []
    if state.evaluations:
        parts.append(f"valid {number(state.evaluations[-1].metrics.get('eval_loss'))} ◆")
    if state.best:
        parts.append(f"best {number(state.best.metrics.get('eval_loss'))} @{state.best.step:,} ★")
    return " · ".join([*parts, *(["log"] if is_logarithmic else [])])
