"""Events to what a person or a script reads while a run goes on.

The rule: a view gets an event and the state after it, and knows no engine, no run folder and no clock of its own; so a
recorded list of events shows the same text again.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    JobPlanned,
    Paused,
    PhaseProgress,
    ResultWritten,
    RunEnded,
    RunResumed,
    RunStarted,
    Sampled,
    Scored,
    StepDone,
    StepSkipped,
    TrainingPlanned,
    Warned,
    WentOn,
    encode_event,
)
from macft.format import clean, count, duration, gigabytes, number, one_line, preference, size
from macft.state import RunState, fold

if TYPE_CHECKING:
    from rich.console import Console

Write = Callable[[str], None]

REPORT_SECONDS, REPORTS = 10.0, 10
"""Without a terminal: a line after this many seconds, and at least this many a run."""
SHOWN_PROMPT, SHOWN_ANSWER, SHOWN_ROWS = 60, 100, 4
PHASES = {
    "tokenize": "reading rows",
    "load": "loading the model",
    "write": "writing the model",
    "compare": "comparing tuned, Base and the result",
    "convert": "writing the GGUF file",
    "reference": "asking the reference",
    "answer": "answering test rows",
}
_MARKS = {"done": "✔", "stopped": "■", "failed": "✘"}


class View(Protocol):
    """Shows a run as it goes on."""

    def show(self, event: Event, state: RunState) -> None:
        """Show an event; `state` already knows it."""

    def say(self, text: str) -> None:
        """Show a line of macft's own; called from another thread too."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def render(events: Iterable[Event], view: View, state: RunState | None = None) -> RunState:
    """Show events as they come and return the state after the last."""
    state = state or RunState()
    for event in events:
        state = fold([event], state)
        view.show(event, state)
    return state


def open_view(*, json: bool = False, plain: bool = False, quiet: bool = False) -> View:
    """Choose how to show a run: event lines, nothing, a bar on a terminal, or lines."""
    if json:
        return JsonView(_to_stdout, narrate)
    if quiet:
        return PlainView(lambda _: None)
    can_move = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return LiveView() if can_move and not plain else PlainView(narrate)


class JsonView:
    """The event lines as they are."""

    def __init__(self, write: Write, narrate: Write) -> None:
        self._write, self.say = write, narrate

    def show(self, event: Event, state: RunState) -> None:
        """Write the event's line."""
        self._write(encode_event(event))

    def close(self) -> None:
        """Nothing is open."""


class PlainView:
    """Lines without colour: everything that is rare, and now and then where the run stands."""

    def __init__(self, write: Write) -> None:
        self._write = self.say = write
        self._phase, self._reported_step, self._reported_time = "", 0, 0.0

    def show(self, event: Event, state: RunState) -> None:
        """Write the event's line, when it is time for one."""
        if self._is_due(event, state):
            self._reported_time = event.time
            for line in tell(event, state):
                self._write(line)

    def close(self) -> None:
        """Nothing is open."""

    def _is_due(self, event: Event, state: RunState) -> bool:
        late = event.time - self._reported_time >= REPORT_SECONDS
        match event:
            case RunEnded(status="failed"):
                return False  # said as an error
            case PhaseProgress(name=name):
                is_new, self._phase = name != self._phase, name
                return is_new or late
            case StepDone(step=step):
                share = max(1, state.total_steps // REPORTS)
                if due := late or step // share > self._reported_step // share or step == state.total_steps:
                    self._reported_step = step
                return due
            case _:
                return True


class LiveView:
    """A bar a phase at the bottom of a terminal, with everything that is rare above it.

    Args:
        console: Where to draw; left out, standard error.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("starting", total=None, note="")
        self._name = ""
        self._progress.start()

    def show(self, event: Event, state: RunState) -> None:
        """Move the bar, or write the event's line above it."""
        match event:
            case PhaseProgress(name=name, done=done, total=total, note=note):
                amount = f"{done:,}/{total:,}" if total else ""
                self._move(PHASES.get(name, name), done, total, f"{amount} {note}".strip())
            case StepDone(step=step):
                self._move("training", step, state.total_steps, where(event, state))
            case RunEnded(status="failed"):
                pass  # said as an error
            case _:
                for line in tell(event, state):
                    self.say(line, _STYLES.get(type(event), ""))

    def say(self, text: str, style: str = "dim") -> None:
        """Write a line above the bar."""
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def _move(self, name: str, done: int, total: int, note: str) -> None:
        if name != self._name:
            self._name = name
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(one_line(name, 40), total=total or None, note="")
        self._progress.update(self._task, completed=done, total=total or None, note=clean(note))


_STYLES: dict[type[Event], str] = {
    RunStarted: "bold",
    Evaluated: "cyan",
    Warned: "yellow",
    StepSkipped: "red",
    Sampled: "dim",
    CheckpointSaved: "dim",
}


def tell(event: Event, state: RunState) -> list[str]:
    """Say an event in one or two clean lines."""
    return [clean(line) for line in _lines(event, state)]


def where(event: StepDone, state: RunState) -> str:
    """Say where training stands: step, loss, speed, memory, time left."""
    metrics = event.metrics
    parts = [f"{event.step:,}/{state.total_steps:,}", f"loss {number(metrics.get('loss'))}", *preference(metrics)]
    if speed := metrics.get("tokens_per_second"):
        parts.append(f"{speed:,.0f} tok/s")
    if peak := metrics.get("peak_memory_bytes"):
        parts.append(gigabytes(peak))
    if state.remaining_seconds is not None:
        parts.append(f"ETA {duration(state.remaining_seconds)}")
    return " · ".join(parts)


def _lines(event: Event, state: RunState) -> list[str]:
    match event:
        case RunStarted(method=method, adapter=adapter, model=model, quantize=bits):
            return [f"{method} · {adapter} on {model}" + (f", quantized to {bits} bits" if bits else "")]
        case RunResumed(step=step):
            return [f"goes on from step {step:,}"]
        case TrainingPlanned():
            return [_plan(event)]
        case PhaseProgress(name=name, done=done, total=total, note=note):
            amount = f" {done:,}/{total:,}" if total and done else ""
            return [f"{PHASES.get(name, one_line(name))}{amount} {note}".rstrip()]
        case Paused(step=step):
            return [f"paused at step {step:,}"]
        case WentOn(step=step):
            return [f"goes on at step {step:,}"]
        case Scored(rows=rows):
            return [f"Base and tuned answered {rows:,} test rows"]
        case RunEnded():
            return [_end(event, state)]
        case JobPlanned() | ResultWritten():
            return _job_lines(event)
        case _:
            return _training_lines(event, state)


def _training_lines(event: Event, state: RunState) -> list[str]:
    match event:
        case StepDone():
            return [f"step {where(event, state)}"]
        case StepSkipped(step=step, rows=rows, reason=reason):
            more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
            return [f"✘ step {step:,} changed nothing: {reason}", f"  rows {', '.join(rows[:SHOWN_ROWS])}{more}"]
        case Evaluated(step=step, metrics=metrics, is_best=is_best):
            parts = [f"eval @{step:,}", f"eval_loss {number(metrics.get('eval_loss'))}", *preference(metrics, "eval_")]
            return [" · ".join(parts) + (" ★ best" if is_best else "")]
        case Sampled(step=step, prompt=prompt, text=text):
            return [f"sample @{step:,} · {one_line(prompt, SHOWN_PROMPT)} → {one_line(text, SHOWN_ANSWER)}"]
        case CheckpointSaved(name=name, is_best=is_best):
            return [f"saved {name}" + (" ★ best" if is_best else "")]
        case Warned(message=message, fix=fix):
            return [f"▲ {message}", *([f"  {fix}"] if fix else [])]
        case _:
            return []


def _plan(event: TrainingPlanned) -> str:
    share = event.trainable_parameters / max(1, event.parameters)
    rows = f"{event.train_rows:,} training and {event.valid_rows:,} validation rows"
    trained = f"{count(event.trainable_parameters)} of {count(event.parameters)} parameters ({share:.2%})"
    engine = f"{event.micro_batch_tokens:,} tokens a pass, {event.rows.partition(':')[0]}"
    ranks = f" · {event.ranks} ranks" if event.ranks > 1 else ""
    return f"{event.total_steps:,} steps · {rows} · {trained} · {engine} · {event.device}{ranks}"


def _same(metrics: Mapping[str, float]) -> str:
    return f"{round(metrics['agreement'] * metrics['tokens']):,} of {metrics['tokens']:,.0f} greedy tokens equal"


def _job_lines(event: JobPlanned | ResultWritten) -> list[str]:
    if isinstance(event, JobPlanned):
        form = f"{event.bits} bits, {event.dtype} scales" if event.bits else event.dtype
        room = f"{size(event.size_bytes)} of {gigabytes(event.free_bytes)} free disk"
        return [f"{event.to} from {event.source} · {form} · {room}"]
    lines, metrics = [], event.metrics
    if "kept" in metrics:
        lost = f"KL {metrics['kl']:.2g} of {metrics['kl_base']:.2g} nats a token"
        lines.append(f"kept {metrics['kept']:.1%} of what training changed · {lost} · {_same(metrics)}")
    elif "kl" in metrics:
        lines.append(f"beside the original: KL {metrics['kl']:.2g} nats a token · {_same(metrics)}")
    return [*lines, f"wrote {event.path} · {size(event.size_bytes)}", *(f"  {note}" for note in event.notes)]


def _end(event: RunEnded, state: RunState) -> str:
    reason = f": {event.reason}" if event.reason else ""
    fix = f". {event.fix}" if event.fix else ""
    place = f" at step {event.step:,}" if not state.started or state.started.kind == "train" else ""
    return f"{_MARKS.get(event.status, '·')} {event.status}{place}{reason}{fix}"


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def narrate(line: str) -> None:
    """Write a line for the person, beside the data: to stderr."""
    print(clean(line), file=sys.stderr, flush=True)
