"""What is said of a training process that died, and that memory that ran out is tried once more."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from macft import api
from macft.errors import RunLocked
from macft.events import RunEnded, StepDone, TrainingPlanned
from macft.keeper import crashed, explain, keep
from macft.run import Run
from macft.training.process import run_to_end
from tests.conftest import REPOSITORY
from tests.faults.test_disk import untouched  # noqa: F401
from tests.faults.worlds import make_run, outcome, write_rows

SAID = {
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution "
    "failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": "the GPU ran out of memory",
    "RuntimeError: [metal::malloc] Attempting to allocate 9437184000 bytes which is greater than the maximum allowed "
    "buffer size of 8589934592 bytes.": "the GPU ran out of memory",
    "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackError"
    "ImpactingInteractivity)": "macOS ended the GPU's work",
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackError"
    "Timeout)": "macOS ended the GPU's work",
    "RuntimeError: [metal::malloc] Resource limit (499000) exceeded.": "too many buffers",
    "RuntimeError: [malloc_or_wait] Unable to allocate 137438953472 bytes.": "memory ran out",
    "MemoryError": "memory ran out",
    "OSError: [Errno 24] Too many open files: 'x'": "too many files",
}


@pytest.mark.parametrize("log", SAID)
def test_a_death_is_explained_from_its_log(log: str) -> None:
    death = explain(f"loading\n{log}\n", -signal.SIGABRT)
    assert SAID[log] in death.reason
    assert death.fix


@pytest.mark.parametrize(
    ("code", "part"),
    [(-9, "killed"), (-24, "processor time"), (-25, "size of files"), (-11, "MLX crashed"), (-7, "became shorter")],
)
def test_a_death_is_explained_from_its_exit(code: int, part: str) -> None:
    assert part in explain("", code).reason
    assert explain("", 3).reason == "its process died"


def test_a_folder_that_is_gone_is_the_reason(tmp_path: Path) -> None:
    assert "its folder is gone" in crashed(Run(tmp_path / "run")).message


class Mortal:
    """A training process that dies in the way it is told, life after life; it keeps the lock that it was given."""

    SCRIPT = """
import os, sys
from pathlib import Path
from macft.events import RunEnded, RunResumed, RunStarted, StepDone
from macft.run import Run
run, deaths, descriptor = Run(Path(sys.argv[1])), sys.argv[2].split(","), int(sys.argv[4])
lives = run.path / "lives"
life = len(lives.read_bytes()) if lives.exists() else 0
lives.open("ab").write(b".")
with run.lock(descriptor):
    run.append(RunResumed(step=2) if life else RunStarted(method="sft", adapter="lora", model="m"))
    run.append(StepDone(step=3, epoch=1.0, metrics={}))
    if deaths[life] == "memory":
        print("[METAL] Command buffer execution failed: Insufficient Memory", flush=True)
        os.abort()
    if deaths[life].isdecimal():
        os._exit(int(deaths[life]))
    if deaths[life] == "kill":
        os.kill(os.getpid(), 9)
    run.append(RunEnded(status="done", step=3))
"""

    def __init__(self, run: Run, *deaths: str) -> None:
        self.command = [sys.executable, "-c", self.SCRIPT, str(run.path), ",".join(deaths)]


def kept(run: Run, *deaths: str, may_retry: bool = True) -> int:
    """Keep a mortal's run, in a process of its own, as it is done."""
    call = f"keep(Run.open(Path({str(run.path)!r})), {Mortal(run, *deaths).command!r}, may_retry={may_retry})"
    imports = "import sys; from pathlib import Path; from macft.keeper import keep; from macft.run import Run"
    command = [sys.executable, "-c", f"{imports}; sys.exit({call})"]
    with run.log.open("ab") as log:
        return subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=log, check=False).returncode


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", 'model = "m"\n')


def test_memory_that_ran_out_is_tried_once_more_with_half_the_micro_batch(run: Run) -> None:
    assert kept(run, "memory", "end") == 0
    state = run.state()
    assert (state.status, state.micro_batch_divisor) == ("done", 2)
    assert "trying once more" in state.warnings[0].message
    assert (run.path / "lives").read_bytes() == b".."


def test_and_only_once(run: Run) -> None:
    assert kept(run, "memory", "memory", "end") == 5
    state = run.state()
    assert state.ended is not None
    assert (state.status, state.ended.exit_code) == ("failed", 5)
    assert "the GPU ran out of memory" in state.ended.reason
    assert "`macft resume run`" in state.ended.fix
    assert not run.is_live
    assert kept(run, "-", "-", "memory", "end") == 5, "it was tried with half before"


@pytest.mark.parametrize(
    ("death", "code", "status"), [("kill", 5, "failed"), ("131", 131, "stopped"), ("7", 5, "failed")]
)
def test_the_keeper_has_the_last_word(death: str, code: int, status: str, run: Run) -> None:
    assert kept(run, death) == code
    state = run.state()
    assert state.ended is not None
    assert (state.status, state.ended.exit_code) == (status, code)
    assert "`macft resume run`" in state.ended.fix
    assert run.process_id() == 0, "its number may be another's by now"


def test_a_run_that_somebody_has_is_not_kept(run: Run) -> None:
    with run.lock(), pytest.raises(RunLocked):
        keep(run, [sys.executable, "-c", "raise SystemExit(0)"])


def test_a_killed_training_is_said_by_its_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: keeper, training process, follower."""
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path))
    run = make_run(tmp_path / "killed", write_rows(tmp_path), steps=100_000, compile=False)
    api.resume("killed")
    for event in api.follow(run):
        if isinstance(event, StepDone):
            api.send_signal(run, signal.SIGKILL)
            break
    ended = list(api.follow(run))[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.exit_code, ended.reason) == (5, "it was killed, by somebody or by the system when memory ran short")


@pytest.mark.usefixtures("untouched")
def test_half_the_micro_batch_makes_the_same_updates(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    values = {"steps": 3, "micro_batch_size": 4, "compile": False, "evaluate": {"every": 3, "samples": 0}}
    values |= {"lora": {"rank": 4}}
    one, two = make_run(tmp_path / "whole", rows, **values), make_run(tmp_path / "halved", rows, **values)
    assert run_to_end(one) == 0
    (two.path / "events.jsonl").write_text('{"type": "memory_ran_out", "step": 0, "micro_batch_divisor": 2}\n')
    assert run_to_end(two) == 0
    first, second = outcome(one)["steps"], outcome(two)["steps"]
    for step in first:
        assert second[step]["loss"] == pytest.approx(first[step]["loss"], rel=1e-5)
        assert second[step]["grad_norm"] == pytest.approx(first[step]["grad_norm"], rel=1e-4)
    planned = [
        next(event.micro_batch_tokens for event in run.read()[0] if isinstance(event, TrainingPlanned))
        for run in (one, two)
    ]
    assert planned[0] == 2 * planned[1]
