"""Bases, what was trained on them, and what became of that, as one tree.

The rule: a run's place is its base, a job's the run it took; what cannot be placed stands under a base of that name, or
under "base not named".
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from macft import api
from macft.format import MISSING, number, one_line, preference, size
from macft.state import RunState
from tui.messages import RunRow
from tui.theme import GLYPHS

if TYPE_CHECKING:
    from macft.api import AdapterFacts

BASE, RUN, CHECKPOINT, ADAPTER, JOB = "base", "run", "checkpoint", "adapter", "job"
NOT_NAMED = "base not named"


@dataclass(frozen=True, slots=True)
class Leaf:
    """Something in the tree.

    Attributes:
        kind: BASE, RUN, CHECKPOINT, ADAPTER or JOB.
        name: As `macft` commands take it, like `RUN@600`.
        shown: As the tree shows it.
        size_bytes: Of its weights, 0 when there are none.
        metric: What a person compares it by; empty when nothing was measured.
        is_best: By the recipe's metric.
        facts: Of its adapter folder.
        row: Its run.
    """

    kind: str
    name: str
    shown: str
    size_bytes: int = 0
    metric: str = ""
    is_best: bool = False
    path: Path | None = None
    facts: "AdapterFacts | None" = None
    row: RunRow | None = None
    below: tuple["Leaf", ...] = field(default=())


def grow(rows: Iterable[RunRow], adapters: "Iterable[AdapterFacts]") -> list[Leaf]:
    """Return the bases with all that hangs on them, in the order of the rows."""
    rows = list(rows)
    bases: dict[str, list[Leaf]] = {}
    jobs = _jobs_by_source(row for row in rows if row.run.is_job)
    for row in rows:
        if not row.run.is_job and (row.run.adapter.is_dir() or any(row.run.checkpoints.glob("step-*"))):
            leaf = _run(row, jobs.pop(row.path, []))
            bases.setdefault(_base_of(row, leaf), []).append(leaf)
    for facts in adapters:
        below = tuple(_job(row) for row in jobs.pop(facts.path.resolve(), []))
        leaf = Leaf(ADAPTER, str(facts.path), facts.name, facts.size_bytes, path=facts.path, facts=facts, below=below)
        bases.setdefault(facts.base or NOT_NAMED, []).append(leaf)
    for rest in jobs.values():
        for row in rest:
            bases.setdefault(row.state.started.model if row.state.started else NOT_NAMED, []).append(_job(row))
    return [Leaf(BASE, base, base, below=tuple(leaves)) for base, leaves in bases.items()]


def walk(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    """Yield all leaves, those below right after theirs."""
    for leaf in leaves:
        yield leaf
        yield from walk(leaf.below)


def _base_of(row: RunRow, leaf: Leaf) -> str:
    if row.state.started:
        return row.state.started.model
    return (leaf.facts.base if leaf.facts else "") or NOT_NAMED


def _run(row: RunRow, jobs: list[RunRow]) -> Leaf:
    folder = row.run.adapter
    facts = api.describe_adapter(folder, row.name) if (folder / "adapter_config.json").is_file() else None
    best = row.state.best
    metric = f"{_metric(best.metrics)} @{best.step}" if best else MISSING
    below = [*_checkpoints(row), *map(_job, jobs)]
    sign = f"{GLYPHS.get(row.status, '✘')} "
    return Leaf(
        RUN,
        str(row.path),
        sign + row.name,
        row.size_bytes,
        metric,
        path=folder if folder.is_dir() else None,
        facts=facts,
        row=row,
        below=tuple(below),
    )


def _checkpoints(row: RunRow) -> Iterator[Leaf]:
    best = _read(row.run.checkpoints / "best")
    for folder in sorted(row.run.checkpoints.glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        weights = folder / "weights.safetensors"
        yield Leaf(
            CHECKPOINT,
            f"{row.path}@{step}",
            f"step {step:,}",
            weights.stat().st_size if weights.is_file() else 0,
            _metric_at(row.state, step),
            is_best=folder.name == best,
            path=folder,
            row=row,
        )


def _job(row: RunRow) -> Leaf:
    started, result = row.state.started, row.state.result
    kept = result.metrics.get("kept") if result else None
    what = f"{started.kind if started else JOB} → {result.to if result else ''}".rstrip(" →")
    metric = f"kept {kept:.1%}" if kept is not None else row.status if not result else ""
    weight, path = (result.size_bytes, Path(result.path)) if result else (0, None)
    return Leaf(JOB, str(row.path), f"{GLYPHS.get(row.status, '✘')} {what}", weight, metric, path=path, row=row)


def _jobs_by_source(rows: Iterable[RunRow]) -> dict[Path, list[RunRow]]:
    found: dict[Path, list[RunRow]] = {}
    for row in rows:
        told = json.loads(_read(row.path / "job.json") or "{}")
        source = told.get("run") or told.get("source") or row.path
        found.setdefault(Path(source), []).append(row)
    return found


def _metric_at(state: RunState, step: int) -> str:
    found = [one for one in state.evaluations if one.step == step]
    return _metric(found[-1].metrics) if found else MISSING


def _metric(metrics: "dict[str, float]") -> str:
    return (preference(metrics, "eval_") or [f"loss {number(metrics.get('eval_loss'))}"])[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def label(leaf: Leaf, width: int) -> str:
    """Return a leaf as a line of `width` cells: its name, size and metric."""
    if leaf.kind == BASE:
        return one_line(leaf.shown, width)
    weight = size(leaf.size_bytes) if leaf.size_bytes else MISSING
    tail = f"{weight:>9}  {leaf.metric:<16}{'★' if leaf.is_best else ' '}"
    room = max(12, width - len(tail) - 1)
    return f"{one_line(leaf.shown, room):<{room}} {tail}"
