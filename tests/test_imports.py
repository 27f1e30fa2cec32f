"""Light rooms load neither MLX nor transformers, and no room imports what lies above it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"mlx", "mlx_lm", "transformers", "torch"}
STUDIO = {"textual", "tui"}
LIGHT = [
    "macft",
    "macft.__main__",
    "macft.api",
    "macft.bench.flops",
    "macft.bench.sample",
    "macft.chat.panes",
    "macft.chat.preferences",
    "macft.cli.bench",
    "macft.cli.diagnostics",
    "macft.cli.main",
    "macft.cli.render",
    "macft.data.prompts",
    "macft.data.sources",
    "macft.cli.leave",
    "macft.disk",
    "macft.doctor",
    "macft.errors",
    "macft.events",
    "macft.gallery",
    "macft.launcher",
    "macft.jobs.job",
    "macft.keeper",
    "macft.machine",
    "macft.macs",
    "macft.memory",
    "macft.models.catalog",
    "macft.models.describe",
    "macft.models.headers",
    "macft.models.sizes",
    "macft.plan",
    "macft.recipe",
    "macft.run",
    "macft.state",
]


def is_there(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("module", [module for module in LIGHT if is_there(module)])
def test_a_light_module_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & (HEAVY | STUDIO)


def test_rooms_import_only_what_lies_below_them():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
