"""What a job is to do, and from what.

The rule: everything is decided and found before the job's process starts; the job reads `job.json` and asks nobody.
This module loads neither MLX nor transformers.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macft.disk import write_atomic
from macft.errors import MacftError, ModelError, Problem, RecipeError, RunError
from macft.models.catalog import resolve
from macft.models.describe import describe
from macft.recipe import load_recipe
from macft.run import JOB, Run, find_adapter, find_run

TARGETS = ("mlx", "peft", "gguf-adapter", "gguf", "ollama", "lmstudio")
WITHOUT_BASE = ("peft", "gguf-adapter")
"""Targets that hold the adapter alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, with absolute paths.

    Attributes:
        kind: `fuse`, `export` or `merge`.
        to: What for, of `TARGETS`, or `adapter`.
        name: What the result calls itself.
        source: An adapter's folder, or a whole model's.
        base: The folder of the model that was tuned; empty when a whole model does not say.
        base_name: What people call that model.
        run: The run that made the source; empty when none did.
        out: The folder of the result; empty for one in the job's own folder.
        quantize: Bits of the result.
        dequantize: Fuse into the base as training saw it.
        dtype: Of floating-point weights; empty keeps the base's.
        gguf_type: Of a GGUF file's matrices.
        data: Rows to compare on, instead of the run's held-out ones.
        system: For Ollama, instead of the template's own.
        ollama_base: Ollama's name of the base, to write the adapter alone.
        lmstudio: Its folder of models.
        parts: Adapters to merge, each with its strength.
        way: Of merging, `concat` or `linear`.
        force: Write whatever is lost, or without comparing.
    """

    kind: str
    to: str = "mlx"
    name: str
    source: str
    base: str = ""
    base_name: str = ""
    run: str = ""
    out: str = ""
    quantize: int | None = None
    dequantize: bool = False
    dtype: str = ""
    gguf_type: str = "f16"
    data: list[str] = field(default_factory=list)
    system: str = ""
    ollama_base: str = ""
    lmstudio: str = ""
    parts: list[tuple[str, float]] = field(default_factory=list)
    way: str = "concat"
    force: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether the source is an adapter and no whole model."""
        return not (Path(self.source) / "config.json").is_file()

    def save(self, run: Run) -> None:
        """Write it into a run folder."""
        write_atomic(run.path / JOB, json.dumps({"schema": 1, **asdict(self)}, indent=2).encode())


def load_job(run: Run) -> Job:
    """Read a job from its folder.

    Raises:
        RunError: The file is damaged.
    """
    try:
        told: dict[str, Any] = json.loads((run.path / JOB).read_text(encoding="utf-8"))
        told.pop("schema")
        return Job(**told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.path / JOB} is damaged ({error})", fix="Start the job again.") from None


def plan_job(name: str, *, kind: str, to: str = "mlx", model: str | None, home: Path, runs: Path, **wishes: Any) -> Job:
    """Find what a name means and put a job together.

    Args:
        name: A run, an adapter folder (mlx-lm's or PEFT's), or a folder of a whole model.
        kind: `fuse` or `export`.
        to: Of `TARGETS`.
        model: The base of an adapter that does not name one that is here.
        home: macft's folder of models.
        runs: The folder of runs.
        wishes: More of `Job`.

    Raises:
        MacftError: Nothing has that name, its base is not here, or it cannot become what is asked for.
    """
    source, run = _find_result(name, runs)
    whole = (source / "config.json").is_file()
    told = _read_json(source / "macft.json" if whole else source / "adapter_config.json")
    trained = load_recipe(run.path / "recipe.toml").model if run and not run.is_job else ""
    base_name = model or trained or told.get("base_model") or told.get("base_model_name_or_path") or ""
    if not whole and not base_name:
        raise ModelError(f"{source.name} does not name its base", fix="Name it with --model.")
    _refuse_impossible(name, kind, to, whole)
    base = _find_base(str(base_name), home, required=not whole)
    named = run.name if run else source.name
    shown = describe(base, without_weights=True).name if base else Path(str(base_name)).name
    return Job(
        kind=kind,
        to=to,
        name=named,
        source=str(source),
        base=str(base or ""),
        base_name=shown,
        run=str(run.path) if run and not run.is_job else "",
        **wishes,
    )


def _find_result(name: str, runs: Path) -> tuple[Path, Run | None]:
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve(), _run_around(path.resolve())
    folder = find_adapter(name, runs)
    return folder, _run_around(folder) or _named_run(name, runs)


def _run_around(folder: Path) -> Run | None:
    try:
        return Run.open(folder.parent) if folder.name in {"adapter", "model"} else None
    except RunError:
        return None


def _named_run(name: str, runs: Path) -> Run | None:
    try:
        return find_run(name, runs)
    except RunError:
        return None


def _refuse_impossible(name: str, kind: str, to: str, whole: bool) -> None:
    if whole and kind == "fuse":
        raise RecipeError(
            [Problem(name, "is a whole model already: there is no adapter to fuse")],
            fix="`macft export` takes it to other tools.",
        )
    if whole and to in WITHOUT_BASE:
        raise RecipeError(
            [Problem(f"--to {to}", f"holds an adapter, and {name} is a whole model")],
            fix="`--to mlx` and `--to gguf` hold models.",
        )


def _find_base(name: str, home: Path, *, required: bool) -> Path | None:
    try:
        return resolve(name, home) if name else None
    except MacftError:
        if required:
            raise
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
