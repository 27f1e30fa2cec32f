"""What happened in a run, as lines with their time."""

import time
from collections.abc import Iterator

from macft.events import Evaluated, Event, StepSkipped, Warned
from macft.format import clean, number
from macft.state import RunState


def tell(state: RunState) -> list[str]:
    """Return what is worth knowing about a run, the oldest first."""
    lines = sorted(_lines(state), key=lambda pair: pair[0])
    return [f"{time.strftime('%H:%M', time.localtime(at))} {clean(text)}" for at, text in lines]


def _lines(state: RunState) -> Iterator[tuple[float, str]]:
    if state.started:
        yield state.started.time, f"start  {state.started.model}, {state.started.method} {state.started.adapter}"
    if state.planned:
        yield state.planned.time, f"plan   {state.planned.total_steps:,} steps on {state.planned.train_rows:,} rows"
    events: list[Event] = [*state.evaluations, *state.skipped, *state.warnings]
    for event in events:
        yield event.time, _line(event)
    if state.ended:
        yield state.ended.time, f"{state.ended.status}  at step {state.ended.step:,}"


def _line(event: Event) -> str:
    match event:
        case Evaluated(step=step, metrics=metrics, is_best=is_best):
            return f"valid  {number(metrics.get('eval_loss'))} @{step:,}" + (" ★ best" if is_best else "")
        case StepSkipped(step=step, reason=reason):
            return f"✘ step {step:,} changed nothing: {reason}"
        case Warned(message=message, fix=fix):
            return f"▲ {message}" + (f". {fix}" if fix else "")
        case _:
            return ""
