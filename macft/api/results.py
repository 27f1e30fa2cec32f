"""What becomes of a result: fused, merged, exported, each with a plan first and a job after."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macft.api.runs import start_process
from macft.errors import RunError
from macft.machine import free_disk_bytes, home, runs_folder
from macft.recipe import dump_recipe
from macft.run import Run, find_adapter, list_runs, make_run_path

if TYPE_CHECKING:
    from macft.jobs.estimate import JobEstimate
    from macft.jobs.job import Job


def fuse(
    name: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    quantize: int | None = None,
    dequantize: bool = False,
    dtype: str = "",
    data: Sequence[str] = (),
    force: bool = False,
) -> Run:
    """Start a job that makes an adapter part of its base, and compares the two.

    Args:
        name: A run or an adapter folder.
        out: Where the model goes; left out, `model/` in the job's folder.
        model: The base of an adapter that does not name one.
        quantize: Bits of the result, 4 or 8.
        dequantize: Add to the base as training saw it, when it was quantized while loading.
        dtype: Of floating-point weights; empty keeps the base's.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost.

    Raises:
        MacftError: There is no such adapter or base, or something is at `out` already.
    """
    wishes = {"quantize": quantize, "dequantize": dequantize, "dtype": dtype, "data": list(data), "force": force}
    return _start_job(name, {"kind": "fuse", "to": "mlx", **wishes}, out=out, model=model)


def export(
    name: str,
    *,
    to: str,
    out: Path | None = None,
    model: str | None = None,
    gguf_type: str = "f16",
    quantize: int | None = None,
    ollama_base: str = "",
    system: str = "",
    data: Sequence[str] = (),
    force: bool = False,
) -> Run:
    """Start a job that writes a result for another tool.

    Args:
        name: A run, an adapter folder (mlx-lm's or PEFT's) or a model's folder.
        to: mlx, peft, gguf-adapter, gguf, ollama or lmstudio.
        out: Where it goes; for lmstudio, its folder of models.
        model: The base of an adapter that does not name one.
        gguf_type: Of a GGUF file's matrices: f16, bf16, f32 or q8_0.
        quantize: Bits of an MLX model, 4 or 8.
        ollama_base: Ollama's name of the base, to write the adapter alone.
        system: A system message for Ollama, instead of the template's own.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost.

    Raises:
        MacftError: There is no such result or base, or something is at `out` already.
    """
    wishes: dict[str, object] = {"gguf_type": gguf_type, "quantize": quantize, "ollama_base": ollama_base}
    wishes |= {"system": system, "data": list(data), "force": force}
    if to == "lmstudio":
        from macft.models.export.lmstudio import find_lmstudio

        wishes["lmstudio"] = str(out.expanduser().resolve() if out else find_lmstudio(Path.home()))
        out = None
    return _start_job(name, {"kind": "export", "to": to, **wishes}, out=out, model=model)


def merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> Path:
    """Write the weighted sum of adapters as one adapter folder.

    Args:
        parts: Runs or adapter folders of the same base, each with its strength.
        out: The new folder.
        way: `concat`, exact, or `linear`, which keeps the rank.

    Raises:
        MacftError: They do not fit together, or something is at `out` already.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.models.merge import Part, merge_adapters
    from macft.models.shards import new_folder

    found = [Part(find_adapter(name, runs_folder()), strength) for name, strength in parts]
    folder = out.expanduser().resolve()
    with new_folder(folder) as aside:
        merge_adapters(found, aside, way="linear" if way == "linear" else "concat")
    return folder


def start_merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> Run:
    """Start a job that does what `merge` does, and says how near it came.

    Raises:
        MacftError: There is no such adapter or base, or something is at `out` already.
    """
    return _run_job(plan_merge(parts, out=out, way=way).job)


def plan_merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> "JobEstimate":
    """Say what merging will write, where and how long it may take."""
    found = [(str(find_adapter(name, runs_folder())), strength) for name, strength in parts]
    where, wishes = out.expanduser().resolve(), {"kind": "merge", "to": "adapter", "parts": found, "way": way}
    return _estimate(_find_job(found[0][0], wishes, out=where, model=None), where)


def plan_fuse(name: str, **wishes: Any) -> "JobEstimate":
    """Say what `fuse` with the same arguments will write, where and how long it may take; nothing is started."""
    return _plan_leaving(name, {"kind": "fuse", "to": "mlx", **wishes})


def plan_export(name: str, *, to: str, **wishes: Any) -> "JobEstimate":
    """Say what `export` with the same arguments will write, where and how long it may take; nothing is started."""
    return _plan_leaving(name, {"kind": "export", "to": to, **wishes})


def _start_job(name: str, wishes: dict[str, Any], *, out: Path | None, model: str | None) -> Run:
    return _run_job(_find_job(name, wishes, out=out, model=model))


def _find_job(name: str, wishes: dict[str, Any], *, out: Path | None, model: str | None) -> "Job":
    from macft.jobs.job import plan_job

    folder = str(out.expanduser().resolve()) if out else ""
    if out:
        _refuse_full(Path(folder))
    return plan_job(name, model=model, home=home(), runs=runs_folder(), out=folder, **wishes)


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already", fix="Name another folder with --out, or remove it.")


def _run_job(job: "Job") -> Run:
    from macft.recipe import make_recipe

    trained = Path(job.run) / "recipe.toml"
    recipe = (
        trained.read_text(encoding="utf-8")
        if job.run
        else dump_recipe(make_recipe({"model": job.base_name or job.name}))
    )
    run = Run.create(make_run_path(runs_folder(), method=job.kind, model=job.base_name or job.name), recipe)
    job.save(run)
    start_process(run)
    return run


def _plan_leaving(name: str, wishes: dict[str, Any]) -> "JobEstimate":
    out, model = wishes.pop("out", None), wishes.pop("model", None)
    if wishes["to"] == "lmstudio":
        from macft.models.export.lmstudio import find_lmstudio

        wishes["lmstudio"] = str(find_lmstudio(Path.home()))
        where: Path | None = Path(wishes["lmstudio"])
    else:
        where = out
    job = _find_job(name, wishes, out=out, model=model)
    return _estimate(job, where or runs_folder() / "…" / ("model" if job.to == "mlx" else "export"))


def _estimate(job: "Job", where: Path) -> "JobEstimate":
    from macft.jobs.estimate import Done, estimate_job

    done = []
    for run in list_runs(runs_folder()):
        if run.is_job and (state := run.state()).result and state.started:
            done.append(Done(state.result.to, state.result.size_bytes, state.result.time - state.started.time))
    return estimate_job(job, where=where, free_bytes=free_disk_bytes(Path(job.out or runs_folder())), done=done)
