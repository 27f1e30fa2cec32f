"""What both doors call, without a model in memory."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from macft import api
from macft.errors import DataError, DoesNotFit, ModelError, NeedsNetwork, RecipeError, RunCrashed, RunError
from macft.events import RunEnded, RunResumed, RunStarted, StepDone
from macft.plan import Verdict
from macft.recipe import make_recipe
from macft.run import Run, make_run_path
from tests.benchmarks.plan_peaks import Point, make_folder
from tests.golden import load_case

LLAMA = load_case("llama").folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes."}]}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(6)))
    return path


def recipe_of(rows: Path, **changes: object):
    return make_recipe(
        {"model": str(LLAMA), "steps": 1, "evaluate": {"samples": 0}, "data": {"train": str(rows)}} | changes
    )


def test_what_is_missing_is_told_before_a_run_folder_is_made(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        api.launch(recipe_of(tmp_path / "nothing.jsonl"))
    with pytest.raises(NeedsNetwork, match="is not on this machine"):
        api.launch(recipe_of(rows, model="smollm2-135m"))
    with pytest.raises(ModelError):
        api.launch(recipe_of(rows, model=str(tmp_path)))
    with pytest.raises(RunError, match="no run is called"):
        api.launch(recipe_of(rows, start_from="latest"))
    assert not (tmp_path / "runs").exists()


HUGE = Point(layers=100, width=16384, inner=65536, heads=128, kv_heads=8, head_dim=128, vocabulary=128_000)
"""A terabyte of weights, on disk as a file of holes."""


def test_what_does_not_fit_is_refused_before_a_run_folder_is_made(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "huge").mkdir()
    recipe = recipe_of(rows, model=str(make_folder(HUGE, tmp_path / "huge")))
    with pytest.raises(DoesNotFit, match=r"GB of memory, and .* GB may be used") as caught:
        api.launch(recipe)
    assert caught.value.fix.count("--set") == 3
    with pytest.raises(RunError, match="no run is called"):  # past the plan, at the next thing that is wrong
        api.launch(recipe.model_copy(update={"start_from": "latest"}), force=True)
    assert not (tmp_path / "runs").exists()


def test_checkpoints_need_room_on_the_disk(rows: Path) -> None:
    recipe = recipe_of(rows, checkpoint={"keep": 10**9})
    with pytest.raises(DoesNotFit, match="GB of disk"):
        api.launch(recipe)


def test_a_config_is_enough_to_plan_and_fit(rows: Path, tmp_path: Path) -> None:
    small = Point(layers=32, width=4096, inner=12288, heads=32, kv_heads=8, head_dim=128, vocabulary=128_000)
    (make_folder(small, tmp_path) / "model.safetensors").unlink()
    recipe = recipe_of(rows, model=str(tmp_path))
    assert api.plan(recipe, mac="M2 Air 16GB").verdict == Verdict.DOES_NOT_FIT
    fitted = api.fit(recipe, mac="M2 Air 16GB")
    assert fitted.quantize == 8
    made = api.plan(fitted, mac="M2 Air 16GB")
    assert made.verdict != Verdict.DOES_NOT_FIT
    assert made.is_estimate
    with pytest.raises(NeedsNetwork, match="--config-only"):
        api.plan(recipe_of(rows, model="some/model"), mac="M1")


def test_runs_that_start_in_the_same_minute_have_folders_of_their_own(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(make_run_path(tmp_path, method="sft", model="m")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 8


def test_code_in_the_current_folder_is_not_run(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psutil", "rich", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    ended = list(api.follow(api.launch(recipe_of(rows))))[-1]
    assert isinstance(ended, RunEnded)
    assert ended.status == "done"
    assert not (tmp_path / "ran").exists()


def test_a_run_whose_process_died_is_told_and_not_taken_for_its_earlier_end(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs" / "one", "")
    run.append(RunStarted(method="sft", adapter="lora", model="m"))
    run.append(StepDone(step=1, epoch=0.1, metrics={}))
    run.log.write_text("[METAL] Command buffer execution failed: Insufficient Memory\n")
    with pytest.raises(RunCrashed, match="the GPU ran out of memory") as caught:
        list(api.follow(run))
    assert "macft resume one" in caught.value.fix
    run.append(RunEnded(status="stopped", step=1))
    _, end = run.read()
    assert list(api.follow(run, end)) == []
    run.append(RunResumed(step=1))
    with pytest.raises(RunCrashed):
        list(api.follow(run))


def test_a_child_that_cannot_start_is_a_crash(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RunCrashed, match="its process died"):
        api.launch(recipe_of(rows))


def test_only_a_run_that_lives_is_stopped_and_only_one_that_does_not_is_resumed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs" / "one", "")
    with pytest.raises(RunError, match="is not running"):
        api.stop("one")
    run.append(RunEnded(status="done", step=3))
    with pytest.raises(RunError, match="is done"):
        api.resume("one")
    assert [row.status for row in api.summarize_runs()] == ["done"]
    api.remove_run("one")
    assert api.summarize_runs() == []


def test_a_row_is_shown_as_the_model_sees_it(rows: Path) -> None:
    view = api.show_row(make_recipe({"model": "m", "data": {"train": str(rows)}}).data, 2, model=str(LLAMA))
    assert view.where == "rows.jsonl:2"
    assert [text for text, trained in view.spans if trained] == ["yes.<|im_end|>"]
    assert "".join(text for text, _ in view.spans).startswith("<|im_start|>user\nq?<|im_end|>")
    with pytest.raises(DataError, match="has no row 9"):
        api.show_row(make_recipe({"model": "m", "data": {"train": str(rows)}}).data, 9, model=str(LLAMA))


def test_a_recipe_is_read_by_its_gallery_name() -> None:
    assert api.read_recipe("quickstart", ["steps=3"]).steps == 3
    with pytest.raises(RecipeError, match="no such file"):
        api.read_recipe("quickstrat")


def test_a_dead_process_gets_no_signal(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs" / "one", "")
    (run.path / "run.lock").write_text(str(os.getpid()))
    api.send_signal(run, 9)  # nobody holds the lock: this process must survive
