"""What a run looks like now: a pure fold of its events.

The rule: `fold` sees events and nothing else, so every screen, command and test shows the same run for the same events.
Whether a silent run lives or crashed is the lock's to say (`Run.status`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    JobPlanned,
    MemoryRanOut,
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
)


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as its events tell it.

    Attributes:
        status: waiting | preparing | running | paused | done | stopped | failed.
        step: Optimizer updates made.
        steps: Every update that counts, oldest first; the lists are never changed after they are handed out.
        best: The best evaluation by the recipe's `evaluate.metric`.
        checkpoint_step: Step of the newest checkpoint, 0 when there is none.
        job: What a job is about to write, and `result` what it wrote.
        micro_batch_divisor: What a forward pass's rows and tokens are divided by, since memory ran out.
    """

    status: str = "waiting"
    started: RunStarted | None = None
    planned: TrainingPlanned | None = None
    phase: PhaseProgress | None = None
    step: int = 0
    steps: list[StepDone] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    samples: list[Sampled] = field(default_factory=list)
    skipped: list[StepSkipped] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    best: Evaluated | None = None
    checkpoint_step: int = 0
    scores: Scored | None = None
    job: JobPlanned | None = None
    result: ResultWritten | None = None
    micro_batch_divisor: int = 1
    ended: RunEnded | None = None
    updated: float = 0.0

    @property
    def total_steps(self) -> int:
        """Updates the run will make; 0 until the data is counted."""
        return self.planned.total_steps if self.planned else 0

    @property
    def loss(self) -> float | None:
        """Training loss of the last update, nats a supervised token."""
        return self.steps[-1].metrics.get("loss") if self.steps else None

    @property
    def remaining_seconds(self) -> float | None:
        """Time to the last step at the pace of the newest twenty, None before the first."""
        if not self.steps or not self.total_steps:
            return None
        pace = [event.metrics.get("step_seconds", 0.0) for event in self.steps[-20:]]
        return (self.total_steps - self.step) * sum(pace) / len(pace)


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState:
    """Return `state` after `events`; the given state is left as it was."""
    values = _values_of(state or RunState())
    for event in events:
        _apply(values, event)
    return RunState(**values)


_STATUS: dict[type[Event], str] = {
    RunResumed: "preparing",
    TrainingPlanned: "running",
    JobPlanned: "running",
    StepDone: "running",
    Paused: "paused",
    WentOn: "running",
}
_LATEST: dict[type[Event], str] = {
    TrainingPlanned: "planned",
    PhaseProgress: "phase",
    JobPlanned: "job",
    ResultWritten: "result",
    Scored: "scores",
    RunEnded: "ended",
}
_ALL: dict[type[Event], str] = {
    StepDone: "steps",
    Evaluated: "evaluations",
    Sampled: "samples",
    StepSkipped: "skipped",
    Warned: "warnings",
}
_NAMES = tuple(item.name for item in fields(RunState))


def _apply(values: dict[str, Any], event: Event) -> None:
    """Change the fields of a state as an event says; its lists are its own."""
    kind = type(event)
    if kind in _ALL:
        values[_ALL[kind]].append(event)
    elif kind in _LATEST:
        values[_LATEST[kind]] = event
    values["updated"] = event.time
    values["status"] = _STATUS.get(kind, values["status"])
    match event:
        case RunStarted():
            divisor = values["micro_batch_divisor"]
            fresh = RunState(status="preparing", started=event, updated=event.time, micro_batch_divisor=divisor)
            values.update(_values_of(fresh))
        case RunResumed():
            values.update(_rewound(values, event.step))
        case StepDone() | StepSkipped():
            values["step"] = event.step
        case Evaluated(is_best=True):
            values["best"] = event
        case CheckpointSaved():
            values["checkpoint_step"] = event.step
        case MemoryRanOut():
            values["micro_batch_divisor"] = event.micro_batch_divisor
        case RunEnded():
            values["status"] = event.status
        case _:
            pass


def _rewound(values: dict[str, Any], step: int) -> dict[str, Any]:
    kept = {name: [event for event in values[name] if event.step <= step] for name in _ALL.values()}
    best = next((event for event in reversed(kept["evaluations"]) if event.is_best), None)
    return {**kept, "step": step, "best": best, "ended": None, "scores": None}


def _values_of(state: RunState) -> dict[str, Any]:
    values = {name: getattr(state, name) for name in _NAMES}
    return values | {name: list(values[name]) for name in _ALL.values()}
