"""The two sides: an environment with stock mlx-lm from the registry, and how either side's process is started."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from macft.machine import openblas_preload
from tests.benchmarks.worker import Worker

ROOT = Path(__file__).parents[2]
BENCH = ROOT / ".bench"
OPTIONS: dict[str, Any] = {
    "rank": 8,
    "scale": 2.0,
    "learning_rate": 1e-5,
    "max_seq_length": 2048,
    "recompute": False,
}
"""What both sides train with: a LoRA on every linear layer of every layer."""


def install_peer(name: str = "peer", *packages: str) -> Path:
    """Return the Python of an environment that holds stock mlx-lm, made once, with this environment's versions.

    Args:
        name: Of the environment's folder.
        packages: What it holds beside mlx-lm.
    """
    python = BENCH / name / "bin" / "python"
    extra = "" if platform.system() == "Darwin" else "[cpu]"
    wanted = [f"mlx{extra}=={version('mlx')}", *(f"{name}=={version(name)}" for name in ("mlx-lm", "transformers"))]
    wanted += packages
    stamp = BENCH / name / "installed"
    if not stamp.is_file() or stamp.read_text() != " ".join(wanted):
        print(f"Installing {', '.join(wanted)} for the other side", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(BENCH / name)], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([str(python), "-m", "pip", "install", *quiet, *wanted], check=True)
        stamp.write_text(" ".join(wanted))
    return python


def start_ours(model: Path, *, module: str = "ours", **options: Any) -> Worker:
    """Start macft's side."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}"]
    return Worker(command, {**OPTIONS, "model": str(model), **options}, _environ(), BENCH / f"{module}.log")


def start_peer(python: Path, model: Path, *, script: str = "peer.py", **options: Any) -> Worker:
    """Start another side: a script of this folder, in an environment that has no macft."""
    command = [str(python), str(Path(__file__).with_name(script))]
    log = BENCH / f"{python.parents[1].name}.log"
    return Worker(command, {**OPTIONS, "model": str(model), **options}, _environ(), log)


def _environ() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"LD_PRELOAD": openblas_preload(), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
