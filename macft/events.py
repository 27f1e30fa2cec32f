"""The vocabulary of a run: what the training process says, one JSON object a line.

The rule: an event is a fact that happened, complete in itself. Followers ignore types and keys they do not know,
so a newer run can be read by an older macft. Numbers of a step or an evaluation sit in `metrics` under TRL's names.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic_core import from_json

SCHEMA = 1
"""Version of the event lines; written in `run_started`."""

STILL_MARGIN = 1e-4
"""Rewards that differ by less are equal but for rounding, and which of two is higher says nothing."""

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    type: ClassVar[str] = ""
    time: float = field(default_factory=time.time)
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The first event of a run: what is about to be done."""

    type: ClassVar[str] = "run_started"
    schema: int = SCHEMA
    kind: str = "train"
    method: str
    adapter: str
    model: str
    quantize: int | None = None
    """Bits of the base, when it was quantized while loading."""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed(Event):
    """The run goes on from a checkpoint; what an earlier life wrote beyond `step` no longer counts."""

    type: ClassVar[str] = "run_resumed"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseProgress(Event):
    """How far a phase is: tokenize, load, train, answer."""

    type: ClassVar[str] = "phase"
    name: str
    done: int = 0
    total: int = 0
    """0 when the amount of work is not known."""
    note: str = ""
    per_second: float = 0.0
    """What is done in a second, over the whole phase; 0 where it is not told."""
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlanned(Event):
    """Data and model are ready: the sizes of what follows."""

    type: ClassVar[str] = "training_planned"
    total_steps: int
    steps_per_epoch: int
    train_rows: int
    valid_rows: int
    trainable_parameters: int
    parameters: int
    micro_batch_tokens: int
    """Most tokens in one forward pass."""
    device: str
    head: str
    """Where logits are made: `supervised rows`, or `all rows` for a family that macft cannot split."""
    rows: str = "padded"
    """How rows lie in memory: `stream`, or `padded` and why."""
    ranks: int = 1
    """Processes that share each update's rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """One optimizer update was made."""

    type: ClassVar[str] = "step"
    step: int
    epoch: float
    """Passes over the data so far, with a fraction."""
    metrics: Metrics
    """loss (nats a supervised token, or a preference), rewards/ and logps/ of preferences, grad_norm, learning_rate,
    tokens, supervised_tokens, tokens_per_second, step_seconds, active_memory_bytes, cache_memory_bytes,
    peak_memory_bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped(Event):
    """A loss or gradient was not finite: no weight was changed."""

    type: ClassVar[str] = "step_skipped"
    step: int
    rows: list[str]
    """Where the update's rows stand, as file:line."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """The whole validation set was scored."""

    type: ClassVar[str] = "evaluation"
    step: int
    metrics: Metrics
    """eval_loss (as in a step), eval_rewards/ and eval_logps/ of preferences, eval_supervised_tokens, eval_seconds."""
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Event):
    """The model answered a sample prompt."""

    type: ClassVar[str] = "sample"
    step: int
    index: int
    prompt: str
    text: str
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """Everything that exact resume needs is on disk."""

    type: ClassVar[str] = "checkpoint_saved"
    step: int
    name: str
    """Folder below the run's `checkpoints/`."""
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something deserves attention; training goes on."""

    type: ClassVar[str] = "warning"
    message: str
    fix: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRanOut(Event):
    """The process died for want of memory; from here on a forward pass takes less at once."""

    type: ClassVar[str] = "memory_ran_out"
    step: int
    micro_batch_divisor: int
    """Rows and tokens of a forward pass are divided by this; an update's are what they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """Training waits for `go_on`."""

    type: ClassVar[str] = "paused"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WentOn(Event):
    """Training goes on after a pause."""

    type: ClassVar[str] = "went_on"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Event):
    """Base and tuned answered held-back test rows."""

    type: ClassVar[str] = "scores"
    rows: int
    base: Metrics
    tuned: Metrics
    examples: list[dict[str, str]]
    """A few side by side: prompt, reference, base, tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlanned(Event):
    """Fusing or exporting is about to write: how much, from what, and how much room there is."""

    type: ClassVar[str] = "job_planned"
    to: str
    """mlx, peft, gguf-adapter, gguf, ollama or lmstudio."""
    source: str
    """What the numbers come from, for people."""
    dtype: str
    bits: int | None = None
    size_bytes: int
    """What will be written, files that are only needed meanwhile included."""
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultWritten(Event):
    """A fused or exported model is on the disk."""

    type: ClassVar[str] = "result"
    to: str
    path: str
    size_bytes: int
    metrics: Metrics = field(default_factory=dict)
    """kept (share of what training changed), kl (tuned ‖ result, nats a token), kl_base (tuned ‖ base), agreement
    (share of equal greedy tokens), tokens (compared); empty when nothing was compared."""
    notes: list[str] = field(default_factory=list)
    """What the receiving tool will and won't do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The last event of a life: done, stopped by the user, or failed with a reason."""

    type: ClassVar[str] = "run_ended"
    status: str
    """done | stopped | failed."""
    step: int
    reason: str = ""
    fix: str = ""
    exit_code: int = 0


EVENT_TYPES: dict[str, type[Event]] = {
    kind.type: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Event) and kind.type
}
"""Every kind of event by the name it has on disk."""
_KNOWN_KEYS = {kind: frozenset(item.name for item in dataclasses.fields(kind)) for kind in EVENT_TYPES.values()}


def share_preferred(metrics: Mapping[str, float], prefix: str = "") -> float | None:
    """Return the accuracy of rewards, None where there is none: no pairs, or all rewards are still the same."""
    is_told = abs(metrics.get(f"{prefix}rewards/margins") or 0.0) >= STILL_MARGIN
    return metrics.get(f"{prefix}rewards/accuracies") if is_told else None


def encode_event(event: Event) -> str:
    """Return the event as one JSON line without its newline; numbers that are not finite become null."""
    values = {"type": event.type} | dataclasses.asdict(event)
    return json.dumps(_finite(values), ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def decode_event(line: str) -> Event | None:
    """Return the event of a line, or None when its type is unknown or the line is not an event."""
    try:
        values = from_json(line)  # four times as fast as json.loads, felt when a screen opens a run of many steps
        kind = EVENT_TYPES[values.pop("type")]
        for unknown in values.keys() - _KNOWN_KEYS[kind]:
            del values[unknown]
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
