"""A run's figures beside its curve: each with its newest value and its course."""

from collections.abc import Sequence
from typing import NamedTuple

from textual.content import Content
from textual.widgets import Static

from macft.format import gigabytes, number
from macft.state import RunState
from tui.widgets.sparkline import sparkline

SHOWN_STEPS = 400
"""The newest steps that a gauge looks back on."""


class Gauge(NamedTuple):
    """One figure: its title, its newest value in words, and its values over the steps."""

    title: str
    text: str
    values: list[float]


class Gauges(Static):
    """Speed, memory, and what the method is about."""

    def show(self, state: RunState) -> None:
        """Draw the gauges, as many as fit."""
        width, height = max(10, self.size.width - 1), max(3, self.size.height)
        lines = 2 if height >= 16 else 1
        parts: list[Content | tuple[str, str]] = []
        for gauge in gauges(state)[: height // (lines + 2) or 1]:
            parts.append((f"{gauge.title}  ", "bold"))
            parts.append(Content(f"{gauge.text}\n"))
            parts.append(("\n".join(sparkline(gauge.values, width=width, height=lines)) + "\n\n", "$primary"))
        self.update(Content.assemble(*parts) if parts else Content("Nothing is measured yet."))


def gauges(state: RunState) -> list[Gauge]:
    """Return the gauges of a run; a preference run shows margins and accuracy where others show rate and gradient."""
    steps = state.steps[-SHOWN_STEPS:]
    if not steps:
        return []

    def series(name: str) -> list[float]:
        return [step.metrics[name] for step in steps if step.metrics.get(name) is not None]

    found = []
    if speeds := series("tokens_per_second"):
        found.append(Gauge("Speed", f"{speeds[-1]:,.0f} tok/s · mean {mean(speeds):,.0f}", speeds))
    if peaks := series("peak_memory_bytes"):
        active = series("active_memory_bytes") or peaks
        found.append(Gauge("Memory", f"{gigabytes(active[-1])} · peak {gigabytes(peaks[-1])}", peaks))
    if margins := series("rewards/margins"):
        found.append(Gauge("Margin", f"{margins[-1]:+.3f} chosen over rejected", margins))
        if accuracies := series("rewards/accuracies"):
            found.append(Gauge("Accuracy", f"{accuracies[-1]:.0%} of pairs · mean {mean(accuracies):.0%}", accuracies))
        return found
    if rates := series("learning_rate"):
        found.append(Gauge("Learning rate", number(rates[-1]), rates))
    if norms := series("grad_norm"):
        found.append(Gauge("Gradient norm", number(norms[-1]), norms))
    return found


def mean(values: Sequence[float]) -> float:
    """Return the mean of values, of which there is one at least."""
    return sum(values) / len(values)
