"""Merging as a job, and plans of jobs: what they say is what comes."""

from pathlib import Path

import numpy as np
import pytest

from macft import api
from macft.errors import RunError, Stopped
from macft.events import JobPlanned, PhaseProgress, ResultWritten, RunEnded
from macft.jobs.estimate import Done, estimate_job
from macft.jobs.job import load_job, plan_job
from macft.jobs.merging import merge_parts
from macft.models.adapters import read_adapter
from macft.models.describe import describe
from macft.recipe import dump_recipe, make_recipe
from macft.run import Run
from tests.jobs.conftest import Desk, Willing
from tests.shelf import Shelf


def merge(shelf: Shelf, *, way: str = "concat", requests: object = None) -> tuple[Run, Path]:
    parts = [(str(run.adapter), strength) for run, strength in zip(two(shelf), (0.7, -0.3), strict=True)]
    out = shelf.home / "adapters" / way
    job = plan_job(
        parts[0][0],
        kind="merge",
        to="adapter",
        model=None,
        home=shelf.home,
        runs=shelf.runs,
        out=str(out),
        parts=parts,
        way=way,
    )
    run = Run.create(shelf.runs / f"merge-{way}", dump_recipe(make_recipe({"model": "tiny"})))
    job.save(run)
    merge_parts(load_job(run), run, requests or Willing())  # type: ignore[arg-type]
    return run, out


def two(shelf: Shelf) -> list[Run]:
    runs = [Run(shelf.runs / name) for name in ("one", "two")]
    return [run if run.path.exists() else shelf.add_run(run.name, seed=seed) for seed, run in enumerate(runs, start=1)]


def update(folder: Path) -> dict[str, np.ndarray]:
    config, weights = read_adapter(folder)
    names = {name.rpartition(".")[0] for name in weights}
    scale = config["lora_parameters"]["scale"]
    return {name: scale * np.array(weights[f"{name}.lora_a"]) @ np.array(weights[f"{name}.lora_b"]) for name in names}


@pytest.mark.parametrize("way", ["concat", "linear"])
def test_a_merge_says_how_near_it_came(shelf: Shelf, way: str) -> None:
    run, out = merge(shelf, way=way)
    events = run.read()[0]
    result = events[-1]
    assert isinstance(result, ResultWritten)
    first, second, found = (update(folder) for folder in (*(run.adapter for run in two(shelf)), out))
    wanted = {name: 0.7 * first[name] - 0.3 * second[name] for name in first}
    error = np.sqrt(sum(((wanted[name] - found[name]) ** 2).sum() for name in wanted))
    whole = np.sqrt(sum((one**2).sum() for one in wanted.values()))
    assert result.metrics["kept"] == pytest.approx(max(0.0, 1 - error / whole), abs=1e-4)
    assert (result.metrics["kept"] > 0.999) == (way == "concat")
    assert any(isinstance(event, PhaseProgress) for event in events)
    planned = next(event for event in events if isinstance(event, JobPlanned))
    assert planned.size_bytes > 0


def test_a_merge_that_is_cancelled_leaves_nothing(shelf: Shelf) -> None:
    class Unwilling(Willing):
        def wants_stop(self) -> bool:
            return True

    with pytest.raises(Stopped):
        merge(shelf, requests=Unwilling())
    assert list((shelf.home / "adapters").iterdir()) == []


def test_a_merge_runs_as_a_job_of_its_own(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    parts = [(str(run.path), 0.5) for run in two(shelf)]
    out = shelf.home / "adapters" / "mix"
    planned = api.plan_merge(parts, out=out)
    assert planned.seconds is None
    run = api.start_merge(parts, out=out)
    events = list(api.follow(run))
    assert isinstance(events[-1], RunEnded)
    assert events[-1].status == "done"
    assert events[-1].time >= events[0].time
    assert run.state().result is not None
    assert [facts.name for facts in api.list_adapters() if facts.path.parent == out.parent] == ["mix"]
    assert planned.size_bytes == pytest.approx(sum(file.stat().st_size for file in out.iterdir()), rel=0.2)
    again = api.plan_merge(parts, out=out.with_name("mix-2"))
    assert again.seconds is not None
    assert again.seconds > 0
    with pytest.raises(RunError, match="is there already"):
        api.plan_merge(parts, out=out)


@pytest.mark.parametrize(
    ("kind", "wishes"),
    [
        ("fuse", {}),
        ("export", {"to": "gguf"}),
        ("export", {"to": "gguf", "gguf_type": "q8_0"}),
        ("export", {"to": "peft"}),
        ("export", {"to": "gguf-adapter"}),
    ],
)
def test_a_plan_is_what_comes(desk: Desk, kind: str, wishes: dict[str, object]) -> None:
    job = plan_job(str(desk.run.path), kind=kind, model=None, home=desk.home, runs=desk.runs, **wishes)  # type: ignore[arg-type]
    planned = estimate_job(job, where=desk.out, free_bytes=2**40, done=[Done(job.to, 1000, 2.0), Done("other", 1, 9.0)])
    events, _ = desk.do(kind, **wishes)
    result = events[-1]
    assert isinstance(result, ResultWritten)
    weights = [path for path in Path(result.path).rglob("*") if path.suffix in {".safetensors", ".gguf"}]
    assert planned.size_bytes == pytest.approx(sum(path.stat().st_size for path in weights), rel=0.25)
    assert planned.seconds == pytest.approx(planned.size_bytes * 2.0 / 1000)
    assert planned.fits
    assert not estimate_job(job, where=desk.out, free_bytes=planned.needed_bytes - 1).fits


def test_a_whole_model_is_quantized_into_a_copy_and_compared_with_itself(desk: Desk, tiny_model: Path) -> None:
    rows = desk.run.path.parent.parent / "private-rows.jsonl"
    wishes = {"to": "mlx", "quantize": 8, "data": [str(rows)]}
    job = plan_job(str(tiny_model), kind="export", model=None, home=desk.home, runs=desk.runs, **wishes)  # type: ignore[arg-type]
    planned = estimate_job(job, where=desk.out, free_bytes=2**40)
    assert planned.notes == ()
    result = desk.result("export", str(tiny_model), **wishes)
    assert "kept" not in result.metrics, "nothing was trained"
    assert 0 < result.metrics["kl"] < 0.01
    assert result.metrics["agreement"] > 0.9
    assert describe(Path(result.path)).is_quantized
    plain = desk.result("export", str(tiny_model), to="mlx", quantize=8, out=str(desk.out / "plain"))
    assert plain.metrics == {}


def test_a_model_without_a_past_is_exported_as_a_job(
    desk: Desk, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(desk.runs))
    run = api.export(str(tiny_model), to="mlx", quantize=8, out=desk.out)
    assert [event.status for event in api.follow(run) if isinstance(event, RunEnded)] == ["done"]
    started = run.state().started
    assert started is not None
    assert started.model == "tiny"
