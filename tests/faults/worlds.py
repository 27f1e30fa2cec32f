"""Small runs of every kind that matter here, and what must be the same of two of them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from macft.recipe import dump_recipe, make_recipe
from macft.run import Run
from tests.golden import load_case

LLAMA = load_case("llama").folder
ANSWERS = ["yes.", "no.", "perhaps, but not before tomorrow.", "ask again"]
_TIMED = ("seconds", "per_second", "memory_bytes")


def write_rows(folder: Path, *, method: str = "sft", rows: int = 24) -> Path:
    """Write chats of several lengths, or pairs."""
    path = folder / f"{method}.jsonl"
    turns = [[{"role": "user", "content": f"q{n}?"}] for n in range(rows)]
    answers = [[{"role": "assistant", "content": ANSWERS[n % 4]}] for n in range(rows)]
    if method == "dpo":
        pairs = zip(turns, answers, [*answers[1:], answers[0]], strict=True)
        lines: list[dict[str, Any]] = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    else:
        lines = [{"messages": turn + answer} for turn, answer in zip(turns, answers, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe_values(rows: Path, *, method: str = "sft", **changes: Any) -> dict[str, Any]:
    """Return a recipe with everything on that could stand in the way of exact resume."""
    dropout = 0.1 if method == "sft" else 0.0  # a preference is measured against a reference without noise
    values: dict[str, Any] = {
        "model": str(LLAMA),
        "method": method,
        "steps": 12,
        "batch_size": 6,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "compile": True,
        "lora": {"rank": 4, "dropout": dropout},
        "evaluate": {"every": 4, "samples": 1, "max_tokens": 4, "patience": 9},
        "checkpoint": {"every": 2},
    }
    return values | changes | {"data": {"train": [str(rows)], "valid_fraction": 0.2} | changes.get("data", {})}


def make_run(folder: Path, rows: Path, **changes: Any) -> Run:
    """Make a run folder that nobody has trained yet."""
    return Run.create(folder, dump_recipe(make_recipe(recipe_values(rows, **changes))))


def outcome(run: Run) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on what happened to it on the way."""
    state = run.state()
    last = run.checkpoints / f"step-{state.step:06d}"
    files = [*sorted(run.adapter.glob("*")), last / "weights.safetensors", last / "optimizer.safetensors"]
    return {
        "status": state.status,
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "progress": json.loads((last / "state.json").read_text())["progress"],
        "steps": {event.step: _exact(event.metrics) for event in state.steps},
        "evaluations": {event.step: (_exact(event.metrics), event.is_best) for event in state.evaluations},
        "samples": {(event.step, event.index): event.text for event in state.samples},
    }


def leftovers(run: Run) -> list[str]:
    """Return what a run should not have left in its folder."""
    found = [*run.path.rglob(".*"), *run.path.rglob("*.tmp")]
    return sorted({os.path.relpath(path, run.path) for path in found})


def _exact(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(_TIMED)}
