"""The run folder, its events and their fold."""

import dataclasses
import json
import multiprocessing
from pathlib import Path

import pytest

from macft.disk import write_atomic
from macft.errors import RunError, RunLocked
from macft.events import (
    EVENT_TYPES,
    CheckpointSaved,
    Evaluated,
    Paused,
    RunEnded,
    RunResumed,
    RunStarted,
    Sampled,
    StepDone,
    TrainingPlanned,
    WentOn,
    decode_event,
    encode_event,
)
from macft.run import Run, find_adapter, find_run, list_runs, make_run_path, read_lines
from macft.state import RunState, fold

STARTED = RunStarted(time=1.0, method="sft", adapter="lora", model="m")
PLANNED = TrainingPlanned(
    time=2.0,
    total_steps=10,
    steps_per_epoch=5,
    train_rows=40,
    valid_rows=4,
    trainable_parameters=1,
    parameters=2,
    micro_batch_tokens=512,
    device="cpu",
    head="supervised rows",
)


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(time=3.0 + number, step=number, epoch=number / 5, metrics={"loss": loss, "step_seconds": 2.0})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "one", 'model = "m"\n')


def hold_lock(path: Path, held: multiprocessing.Event, release: multiprocessing.Event) -> None:
    with Run(path).lock():
        held.set()
        release.wait(10)


def test_every_event_reads_back_as_itself() -> None:
    assert EVENT_TYPES["step"] is StepDone
    for event in (STARTED, PLANNED, step(1), Sampled(step=1, index=0, prompt="a\u2028b", text="ß\n🙂")):
        line = encode_event(event)
        assert "\n" not in line
        assert decode_event(line) == event


def test_unknown_types_keys_and_broken_lines_are_ignored() -> None:
    assert decode_event('{"type": "later_invention", "time": 1}') is None
    assert decode_event("not json") is None
    assert decode_event('{"type": "paused"}') is None
    assert decode_event('{"type": "paused", "time": 1, "step": 2, "mood": "calm"}') == Paused(time=1, step=2)


def test_a_number_that_is_not_finite_is_null_in_json() -> None:
    assert json.loads(encode_event(step(1, float("nan"))))["metrics"]["loss"] is None


def test_half_a_line_is_not_an_event_yet(run: Run) -> None:
    run.append(STARTED)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "step", "st')
    events, offset = run.read()
    assert events == [STARTED]
    with run.lock():
        run.append(PLANNED)  # the torn line is ended first, and only it is lost
    assert run.read(offset)[0] == [PLANNED]


def test_a_line_may_hold_any_character(run: Run) -> None:
    event = Sampled(step=1, index=0, prompt="a\u2028b\x85c", text="\u2029")
    run.append(event)
    assert run.read()[0] == [event]


def test_one_process_trains_a_run(run: Run) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    child = context.Process(target=hold_lock, args=(run.path, held, release))
    child.start()
    assert held.wait(10)
    assert run.is_live
    assert run.process_id() == child.pid
    with pytest.raises(RunLocked, match="another process"), run.lock():
        pass
    with pytest.raises(RunLocked):
        run.remove()
    release.set()
    child.join()
    assert not run.is_live
    run.remove()
    assert not run.path.exists()


def test_a_silent_run_without_a_lock_crashed(run: Run) -> None:
    assert run.status(run.state()) == "waiting"
    run.append(STARTED)
    assert run.status(run.state()) == "crashed"
    with run.lock():
        assert run.status(run.state()) == "preparing"
    run.append(RunEnded(status="done", step=3))
    assert run.status(run.state()) == "done"


def test_folders_and_files_are_private(run: Run) -> None:
    assert run.path.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in run.path.iterdir())


def test_a_folder_with_something_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty"):
        Run.create(tmp_path, "")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_runs_are_found_by_name_part_or_path(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = Run.create(runs / "2026-sft-a", "")
    second = Run.create(runs / "2026-sft-ab", "")
    second.append(STARTED)
    assert find_run("2026-sft-a", runs) == first  # the exact name wins
    assert find_run("-ab", runs) == second
    assert find_run("latest", runs) == second
    first.append(STARTED)  # what wrote last is not what was started last
    assert find_run("latest", runs) == second
    assert find_run(str(first.path), runs) == first
    assert {run.name for run in list_runs(runs)} == {"2026-sft-a", "2026-sft-ab"}
    with pytest.raises(RunError, match="could be"):
        find_run("2026", runs)
    with pytest.raises(RunError, match="no run is called"):
        find_run("dpo", runs)
    with pytest.raises(RunError, match="no result yet"):
        find_adapter("2026-sft-ab", runs)


def test_a_new_run_never_takes_an_old_name(tmp_path: Path) -> None:
    first = make_run_path(tmp_path, method="sft", model="org/Model")
    second = make_run_path(tmp_path, method="sft", model="org/Model")
    assert first.name.endswith("-sft-model")
    assert second != first


def test_requests_are_read_once_from_an_offset(run: Run) -> None:
    run.request("pause")
    actions, offset = run.read_requests(0)
    run.request("stop")
    assert actions == ["pause"]
    assert run.read_requests(offset)[0] == ["stop"]


def test_an_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"new")]
    assert read_lines(tmp_path / "file", 0) == ([], 0)


def test_the_fold_follows_a_run() -> None:
    events = [
        STARTED,
        PLANNED,
        Evaluated(step=0, metrics={"eval_loss": 3.0}, is_best=True),
        step(1),
        step(2, 0.5),
        Evaluated(step=2, metrics={"eval_loss": 2.0}, is_best=True),
        CheckpointSaved(step=2, name="step-000002"),
        Paused(step=2),
    ]
    state = fold(events)
    assert (state.status, state.step, state.total_steps, state.loss) == ("paused", 2, 10, 0.5)
    assert state.best == events[5]
    assert state.remaining_seconds == 16.0
    later = fold([WentOn(step=2), step(3), RunEnded(status="done", step=3)], state)
    assert (later.status, later.step, len(later.steps)) == ("done", 3, 3)
    assert len(state.steps) == 2  # the state before is left as it was
    assert fold([*events, WentOn(time=later.updated, step=2)]).steps == later.steps[:2]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint() -> None:
    before = [STARTED, PLANNED, step(1), step(2), Evaluated(step=2, metrics={"eval_loss": 2.0}, is_best=True), step(3)]
    state = fold([*before, RunResumed(step=1), PLANNED, step(2, 0.25)])
    assert [event.step for event in state.steps] == [1, 2]
    assert state.loss == 0.25
    assert state.evaluations == []
    assert state.best is None


def test_a_run_that_starts_over_forgets_everything() -> None:
    state = fold([STARTED, PLANNED, step(1), STARTED])
    assert dataclasses.replace(state, updated=0.0) == RunState(status="preparing", started=STARTED)
