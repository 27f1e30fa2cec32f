"""The job that makes one adapter of several, and says how near it came.

The rule: what is written is compared with the sum that was asked for, layer by layer, before it is handed over.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from macft.errors import DoesNotFit, Stopped
from macft.events import JobPlanned, PhaseProgress, ResultWritten, RunStarted
from macft.jobs.job import Job
from macft.machine import GIB, free_disk_bytes
from macft.models.adapters import read_adapter
from macft.models.merge import Part, merge_adapters
from macft.models.shards import new_folder
from macft.run import Run
from macft.training.process import Requests

_Loaded = tuple[dict[str, Any], dict[str, Any]]


def merge_parts(job: Job, run: Run, requests: Requests) -> None:
    """Merge a job's adapters; events say how far it is.

    Raises:
        MacftError: They do not fit together, or there is no room.
    """
    versions = {name: version(name) for name in ("macft", "mlx", "mlx-lm")}
    run.append(RunStarted(kind="merge", method="merge", adapter="lora", model=job.base_name, versions=versions))
    parts = [Part(Path(folder), strength) for folder, strength in job.parts]
    size = sum(file.stat().st_size for part in parts for file in part.folder.glob("*.safetensors"))
    out = Path(job.out)
    free = free_disk_bytes(out.parent)
    source = " + ".join(f"{part.folder.parent.name or part.folder.name} × {part.strength:g}" for part in parts)
    run.append(JobPlanned(to="adapter", source=source, dtype="float32", size_bytes=size, free_bytes=free))
    if free < size:
        needed = f"{size / GIB:.1f} GB of disk, and {free / GIB:.1f} GB are free"
        raise DoesNotFit(f"this needs {needed}", fix="Name a folder on another disk.")
    with new_folder(out) as aside:
        merge_adapters(parts, aside, way="linear" if job.way == "linear" else "concat")
        kept = measure_merge([read_adapter(part.folder) for part in parts], parts, read_adapter(aside), run, requests)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    notes = ["mlx-lm loads it with --adapter-path; fuse and export take it like any other"]
    run.append(ResultWritten(to="adapter", path=str(out), size_bytes=size, metrics={"kept": kept}, notes=notes))


def measure_merge(loaded: list[_Loaded], parts: list[Part], merged: _Loaded, run: Run, requests: Requests) -> float:
    """Return the share of the wanted sum of updates that the merged adapter has: 1 less the relative error.

    Norms are those of the updates as matrices (Frobenius), over all layers; they are made from products of rank size.
    """
    modules = sorted({name.rpartition(".")[0] for _, weights in loaded for name in weights})
    error = wanted = 0.0
    for done, module in enumerate(modules, start=1):
        if requests.wants_stop():
            raise Stopped("stopped while the job was at: compare", fix="Nothing is left behind; start it again.")
        sides = [_factors(one, module, part.strength) for one, part in zip(loaded, parts, strict=True)]
        there = [side for side in sides if side is not None]
        got = _factors(merged, module, -1.0)
        wanted += _square(there)
        error += _square([*there, *([got] if got else [])])
        run.append(PhaseProgress(name="compare", done=done, total=len(modules)))
    return max(0.0, 1.0 - float(np.sqrt(max(0.0, error) / wanted))) if wanted else 1.0


_Factors = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _factors(one: _Loaded, module: str, strength: float) -> _Factors | None:
    config, weights = one
    if f"{module}.lora_a" not in weights:
        return None
    a, b = (np.array(weights[f"{module}.lora_{side}"].astype(mx.float32), np.float64) for side in "ab")
    return a * (strength * float(config["lora_parameters"]["scale"])), b


def _square(factors: list[_Factors]) -> float:
    """Return the squared norm of the sum of A·B, from Gram matrices of the ranks' size."""
    a = np.concatenate([side for side, _ in factors], axis=1)
    b = np.concatenate([side for _, side in factors], axis=0)
    return float(((a.T @ a) * (b @ b.T)).sum())
