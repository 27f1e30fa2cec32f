"""What a job will write, where, and how long it may take, before it starts: arithmetic on headers.

The rule: no weight is read. A time is told only when this machine did such work before; nothing is guessed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from macft.jobs.job import Job
from macft.models.adapter_facts import describe_adapter
from macft.models.describe import ModelFacts, describe

_VALUE_BITS = {"f32": 32.0, "float32": 32.0, "q8_0": 8.5}
"""Of a number in a result; 16 of every other type. Q8_0 keeps a scale of 16 bits for 32 values."""
_GROUP_BITS = 0.5
"""A scale and an offset of 16 bits for 64 values."""
_MEANWHILE_BITS = {"f32": 32.0, "q8_0": 32.0}
_STORED_AS_FLOAT32 = 24


class Done(NamedTuple):
    """A job that this machine did."""

    to: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """A job's plan.

    Attributes:
        job: What would be done.
        what: The result, for people.
        where: Its folder.
        size_bytes: Of the result, about.
        needed_bytes: With what is only needed meanwhile.
        free_bytes: On that disk.
        seconds: None when this machine never did such a job.
        notes: What a person should know first.
    """

    job: Job
    what: str
    where: str
    size_bytes: int
    needed_bytes: int
    free_bytes: int
    seconds: float | None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is room on the disk."""
        return self.needed_bytes <= self.free_bytes


def estimate_job(job: Job, *, where: Path, free_bytes: int, done: Iterable[Done] = ()) -> JobEstimate:
    """Plan a job.

    Args:
        job: What to do.
        where: The folder of its result.
        free_bytes: On that disk.
        done: Jobs of this machine, whose pace tells the time.
    """
    facts = describe(Path(job.base or job.source), without_weights=not job.base and job.is_adapter)
    size, meanwhile, what = _sizes(job, facts)
    past = list(done)
    paces = [one.seconds / one.size_bytes for one in past if one.to == job.to and one.size_bytes]
    seconds = median(paces) * size if paces else None
    return JobEstimate(job, what, str(where), size, size + meanwhile, free_bytes, seconds, tuple(_notes(job, facts)))


def _sizes(job: Job, facts: ModelFacts) -> tuple[int, int, str]:
    """Return the result's bytes, those needed meanwhile, and what it is."""
    if job.kind == "merge":
        size = sum(describe_adapter(Path(folder)).size_bytes for folder, _ in job.parts)
        return size, 0, f"one adapter of {len(job.parts)}, {job.way}"
    if job.to in {"peft", "gguf-adapter"} or job.ollama_base:
        return describe_adapter(Path(job.source)).size_bytes, 0, "the adapter alone, in float32"
    values = facts.parameters
    if job.to in {"gguf", "ollama"}:
        bits = _VALUE_BITS.get(job.gguf_type, 16.0)
        meanwhile = values * _MEANWHILE_BITS.get(job.gguf_type, 16.0) / 8
        return int(values * bits / 8), int(meanwhile), f"a GGUF file of type {job.gguf_type}"
    wide = job.dtype == "float32" or (not job.dtype and not facts.is_quantized and facts.bits > _STORED_AS_FLOAT32)
    if job.quantize:
        bits = job.quantize + _GROUP_BITS * (2 if wide else 1)
        size = max(int(values * bits / 8), _twin_bytes(facts))
        return size, 0, f"a whole model of {job.quantize} bits"
    return values * (4 if wide else 2), 0, f"a whole model in {job.dtype or ('float32' if wide else '16-bit floats')}"


def _twin_bytes(facts: ModelFacts) -> int:
    """Return the size of the codes that a model came with and that its layers keep, 0 when it came without."""
    twin = facts.path / "quantized"
    there = not facts.is_quantized and (twin / "config.json").is_file()
    return describe(twin).weight_bytes if there else 0


def _notes(job: Job, facts: ModelFacts) -> Iterable[str]:
    trained = describe_adapter(Path(job.source)).quantize if job.is_adapter and job.kind != "merge" else None
    if trained and not job.dequantize and job.to == "mlx":
        yield f"trained over {trained} bits: what the original weights add is measured, and d takes those bits instead"
    if job.quantize == 4 and (job.is_adapter or job.base):
        yield "4 bits often lose what a weak adapter changed; under 95 % it is taken away again"
    if not job.is_adapter and not job.base and not job.data:
        yield "without rows, the copy is not compared with the original"
    if job.kind == "merge":
        yield "concat is exact: ranks add up" if job.way == "concat" else "linear keeps the rank and only comes near"
    if job.to == "peft":
        yield f"transformers asks for the base as {facts.name or job.base_name}"
