"""Tells what is wrong with this machine for macft, and packs what a bug report needs.

The rule: of a run, a bundle holds only what was allowed by name. Numbers pass; text passes only under the keys listed
here and only when it looks like a term, so no row, prompt or answer can leave with it.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from macft.disk import write_atomic
from macft.machine import GIB, MachineFacts, find_openblas, free_disk_bytes, home, runs_folder
from macft.run import list_runs

PACKAGES = ("mlx", "mlx-lm", "transformers", "tokenizers", "huggingface-hub", "numpy", "textual")
OLDEST_MACOS, WATCHDOG_MACOS = 14, 26
LOW_DISK_BYTES, LOW_MEMORY_BYTES = 10 * GIB, 8 * GIB

PROBE = """
import mlx.core as mx
mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
facts = mx.device_info()
print("the GPU" if mx.metal.is_available() else "the CPU", facts.get("max_recommended_working_set_size", 0), sep="|")
"""

VARIABLES = re.compile(
    r"MACFT_\w+|MLX_\w+|OPENBLAS_\w+|OMP_NUM_THREADS|LD_PRELOAD|AGX_\w+|TERM|COLORTERM|NO_COLOR|LANG|LC_ALL|COLUMNS|LINES"
    r"|HF_HUB_OFFLINE|HF_HUB_DISABLE_TELEMETRY|TRANSFORMERS_OFFLINE|TOKENIZERS_PARALLELISM"
)
"""The environment variables that a bundle tells."""

TEXT_KEYS = {
    *("type", "status", "phase", "name", "kind", "method", "adapter", "model", "device", "compute_dtype"),
    *("recompute", "targets", "too_long", "train_on"),
}
"""The keys whose text a bundle keeps, when it looks like a term and not like prose or a path."""

TABLE_KEYS = {
    *("metrics", "base", "tuned", "versions"),
    *("data", "lora", "optimizer", "schedule", "checkpoint", "evaluate"),
}
"""The keys whose tables a bundle looks into; of `data` only its numbers and terms are left."""

_TERM = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}(/[\w.-]{1,64})?")
_KEY = re.compile(r"[a-z][a-z0-9_/-]{0,63}")
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[a-z]-)[\w-]{4,}")
_FRAME = re.compile(r'^  File ".*?((?:macft|tui|site-packages)/[\w./-]+)", line (\d+), in (\w+|<\w+>)$')
_ERROR = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?::|$)")

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    fix: str = ""
    """What to do about it; empty when it is ok."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What happened when MLX was tried in a process of its own."""

    works: bool
    said: str
    """The device, or the last thing it said before it failed."""
    working_set_bytes: int = 0
    """What Metal itself recommends; 0 without Metal."""


def diagnose(
    machine: MachineFacts,
    *,
    models: Path | None = None,
    runs: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    probe: Callable[[], Probe] | None = None,
    openblas: Callable[[], Path | None] = find_openblas,
) -> list[Finding]:
    """Look at everything that macft depends on.

    Args:
        machine: As `read_machine` returns it.
        models: The folder of models; left out: `home()`.
        runs: The folder of runs; left out: `runs_folder()`.
        environ: The environment that training would have.
        probe: Tries MLX; left out: `probe_mlx`.
        openblas: Looks for OpenBLAS, on Linux.
    """
    models, runs = models or home(), runs or runs_folder()
    return [
        _python(machine),
        *_system(machine),
        _memory(machine),
        _disk(models),
        *_power(machine),
        *(_blas(environ, openblas) if machine.system == "Linux" else ()),
        *(_package(name) for name in PACKAGES[:3]),
        _mlx((probe or probe_mlx)()),
        _writable("models", models),
        _writable("runs", runs),
        _offline(environ),
    ]


def probe_mlx(command: Sequence[str] = (sys.executable, "-P", "-c", PROBE)) -> Probe:
    """Multiply two matrices in a child process, so that a crash of MLX is only a finding."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Probe(False, "no answer in two minutes")
    if done.returncode < 0:
        return Probe(False, f"killed by signal {-done.returncode}")
    if done.returncode:
        return Probe(False, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    device, _, working_set = done.stdout.strip().partition("|")
    return Probe(True, device, int(working_set))


def bundle(
    path: Path,
    runs: Path,
    *,
    machine: MachineFacts,
    findings: Sequence[Finding],
    environ: Mapping[str, str] = os.environ,
    user: str = "",
) -> Path:
    """Write a zip for a bug report: findings, versions, environment, and the last run without any of its text.

    Args:
        path: The zip to write; one that is there is replaced.
        runs: The folder of runs; the one that wrote last is told about.
        machine: As `read_machine` returns it.
        findings: As `diagnose` returns them.
        environ: Only the variables in `VARIABLES` are told.
        user: The name to redact; left out: the home folder's.

    Raises:
        OSError: `path` cannot be written.
    """
    told = {
        "findings.txt": "\n".join(f"{finding.level:4} {finding.what} {finding.fix}".rstrip() for finding in findings),
        "machine.json": _json(asdict(machine)),
        "versions.json": _json({"python": sys.version, "platform": platform.platform(), **_versions()}),
        "environment.json": _json({name: environ[name] for name in sorted(environ) if VARIABLES.fullmatch(name)}),
        **_last_run(runs),
    }
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in told.items():
            archive.writestr(name, redact(text, home_folder=Path.home(), user=user or Path.home().name) + "\n")
    write_atomic(path, buffer.getvalue())
    return path


def redact(text: str, *, home_folder: Path, user: str) -> str:
    """Replace the home folder by ~, the user's name by <user> and anything that looks like an access token."""
    text = _TOKEN.sub("<token>", text)
    if home_folder != home_folder.parent:
        text = text.replace(str(home_folder), "~")
    return re.sub(rf"(?<![^\W_]){re.escape(user)}(?![^\W_])", "<user>", text, flags=re.IGNORECASE) if user else text


def without_text(values: Mapping[str, Any], *, any_term: bool = False) -> dict[str, Any]:
    """Return what may be told of an event or a recipe: numbers, and terms under the keys that are listed.

    Args:
        values: The event's, recipe's or table's keys; lists are left out, since token ids are text too.
        any_term: Keep terms under every key, as in a table of versions.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            continue
        if isinstance(value, dict):
            if key in TABLE_KEYS:
                kept[key] = without_text(value, any_term=key == "versions")
        elif isinstance(value, str):
            if (any_term or key in TEXT_KEYS) and _TERM.fullmatch(value):
                kept[key] = value
        elif value is None or isinstance(value, bool | int | float):
            kept[key] = value
    return kept


def frames_of(log: str) -> str:
    """Return the tracebacks of a log as places in code and error types, without their messages."""
    lines = []
    for line in log.splitlines():
        if frame := _FRAME.match(line):
            lines.append(f"{frame[1]}:{frame[2]} in {frame[3]}")
        elif error := _ERROR.match(line):
            lines.append(error[1])
    return "\n".join(lines)


def _python(machine: MachineFacts) -> Finding:
    if machine.rosetta:
        return Finding(
            "bad",
            f"Python {machine.python} is an Intel build that runs under Rosetta; MLX has no Intel build",
            "Install an arm64 Python (brew install python@3.12, or uv), then `make clean quickstart`.",
        )
    return Finding("ok", f"Python {machine.python} on {machine.chip}, {machine.cores} cores")


def _system(machine: MachineFacts) -> list[Finding]:
    if machine.system != "Darwin":
        return [Finding("ok", f"{machine.system}: MLX computes on the CPU")]
    if not machine.is_apple_silicon:
        return [Finding("bad", f"{machine.chip} is not Apple silicon, which MLX needs", "Use a Mac with an M chip.")]
    if not machine.macos_version:
        return [Finding("warn", "the version of macOS is unknown", f"MLX needs macOS {OLDEST_MACOS} or newer.")]
    major = int(machine.macos_version.split(".")[0])
    if major < OLDEST_MACOS:
        return [Finding("bad", f"macOS {machine.macos_version} is too old for MLX", f"Update to macOS {OLDEST_MACOS}.")]
    found = [Finding("ok", f"macOS {machine.macos_version}")]
    if major >= WATCHDOG_MACOS:
        found.append(
            Finding(
                "warn",
                f"macOS {WATCHDOG_MACOS} may kill a training step while the display is on («Impacting Interactivity»)",
                "If it happens: a smaller micro_batch_size, AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1, or the display off.",
            )
        )
    return found


def _memory(machine: MachineFacts) -> Finding:
    what = f"{_gb(machine.memory_bytes)} memory, of which training may use {_gb(machine.working_set_bytes)}"
    if machine.memory_bytes < LOW_MEMORY_BYTES:
        return Finding("warn", what, "Train models up to 0.5B, with quantize = 4.")
    return Finding("ok", what)


def _disk(models: Path) -> Finding:
    free = free_disk_bytes(models)
    if free < LOW_DISK_BYTES:
        return Finding(
            "warn", f"{_gb(free)} free where models are kept", "Make room, or move MACFT_HOME to a larger disk."
        )
    return Finding("ok", f"{_gb(free)} free where models are kept")


def _power(machine: MachineFacts) -> list[Finding]:
    if machine.battery_percent is None:
        return []
    if machine.on_battery:
        return [
            Finding("warn", f"on battery, {machine.battery_percent}%", "Plug in the power adapter before a long run.")
        ]
    return [Finding("ok", f"plugged in, battery at {machine.battery_percent}%")]


def _blas(environ: Mapping[str, str], openblas: Callable[[], Path | None]) -> list[Finding]:
    if "openblas" in environ.get("LD_PRELOAD", ""):
        return [Finding("ok", "OpenBLAS is preloaded")]
    if openblas():
        return [Finding("ok", "OpenBLAS is installed; macft preloads it")]
    fix = "Debian: apt install libopenblas0-pthread · Fedora: dnf install openblas · Arch: pacman -S openblas"
    return [Finding("warn", "no OpenBLAS, so MLX computes about 25 times slower", fix)]


def _package(name: str) -> Finding:
    version = _versions().get(name)
    return (
        Finding("ok", f"{name} {version}") if version else Finding("bad", f"{name} is missing", "Install macft again.")
    )


def _mlx(probe: Probe) -> Finding:
    if not probe.works:
        return Finding("bad", f"MLX does not work: {probe.said}", "Install macft again, in a new environment.")
    metal = f"; Metal recommends at most {_gb(probe.working_set_bytes)}" if probe.working_set_bytes else ""
    return Finding("ok", f"MLX works on {probe.said}{metal}")


def _writable(what: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("ok", f"{what} are kept in {folder}")
    return Finding("bad", f"{folder} cannot be written", f"Set MACFT_{'HOME' if what == 'models' else 'RUNS'}.")


def _offline(environ: Mapping[str, str]) -> Finding:
    if environ.get("HF_HUB_OFFLINE") == "1" and environ.get("TRANSFORMERS_OFFLINE") == "1":
        return Finding("ok", "offline: only `macft pull` uses the network")
    return Finding("warn", "the Hugging Face libraries may go online", "Start macft by its command, not from Python.")


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("macft", *PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _last_run(runs: Path) -> dict[str, str]:
    if not (found := list_runs(runs)):
        return {}
    folder = found[0].path
    events = (_table(line, json.loads) for line in _read(folder / "events.jsonl").split("\n") if line)
    recipe = _table(_read(folder / "recipe.toml"), tomllib.loads)
    plan = _table(_read(folder / "plan.json"), json.loads)
    return {
        "run/events.jsonl": "\n".join(json.dumps(without_text(event)) for event in events if event),
        "run/recipe.json": _json(without_text(recipe)),
        "run/plan.json": _json(without_text(plan)),
        "run/tracebacks.txt": frames_of(_read(folder / "train.log")),
    }


def _table(text: str, loads: Callable[[str], Any]) -> dict[str, Any]:
    try:
        values = loads(text)
    except ValueError:  # torn, damaged or empty
        return {}
    return values if isinstance(values, dict) else {}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1)


def _gb(count: int) -> str:
    return f"{count / GIB:.1f} GB"
