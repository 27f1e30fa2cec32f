"""What a run looks like now: a pure fold of its events.

The rule: `fold` sees events and nothing else, so every screen, command and test shows the same run for the same events.
Whether a silent run lives or crashed is the lock's to say (`Run.status`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Paused,
    PhaseProgress,
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
        best: The evaluation with the lowest `eval_loss`.
        checkpoint_step: Step of the newest checkpoint, 0 when there is none.
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
    current = _with_own_lists(state or RunState())
    for event in events:
        current = _after(current, event)
    return current


_STATUS: dict[type[Event], str] = {
    RunResumed: "preparing",
    TrainingPlanned: "running",
    StepDone: "running",
    Paused: "paused",
    WentOn: "running",
}
_LATEST: dict[type[Event], str] = {
    TrainingPlanned: "planned",
    PhaseProgress: "phase",
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


def _after(state: RunState, event: Event) -> RunState:
    kind = type(event)
    if kind in _ALL:
        getattr(state, _ALL[kind]).append(event)
    changes: dict[str, Any] = {"updated": event.time, "status": _STATUS.get(kind, state.status)}
    if kind in _LATEST:
        changes[_LATEST[kind]] = event
    match event:
        case RunStarted():
            return RunState(status="preparing", started=event, updated=event.time)
        case RunResumed():
            changes |= _rewound(state, event.step)
        case StepDone() | StepSkipped():
            changes["step"] = event.step
        case Evaluated(is_best=True):
            changes["best"] = event
        case CheckpointSaved():
            changes["checkpoint_step"] = event.step
        case RunEnded():
            changes["status"] = event.status
        case _:
            pass
    return replace(state, **changes)


def _rewound(state: RunState, step: int) -> dict[str, Any]:
    kept = {name: [event for event in getattr(state, name) if event.step <= step] for name in _ALL.values()}
    best = next((event for event in reversed(kept["evaluations"]) if event.is_best), None)
    return {**kept, "step": step, "best": best, "ended": None, "scores": None}


def _with_own_lists(state: RunState) -> RunState:
    lists: dict[str, Any] = {name: list(getattr(state, name)) for name in _ALL.values()}
    return replace(state, **lists)
