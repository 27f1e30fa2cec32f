"""A disk that is full, over quota, read-only or gone: the last good checkpoint stands, it is said, and the run goes on.

Each disk fails from a certain moment on, for good; afterwards, on a sound disk, the run is resumed and must end as if
nothing had happened.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from macft.events import Warned
from macft.run import RESERVE, Run
from macft.training.checkpoint import Checkpoints
from macft.training.process import run_to_end
from tests.faults.disks import FULL, GONE, QUOTA, READ_ONLY, FaultyDisk, whole
from tests.faults.worlds import leftovers, make_run, outcome, write_rows

QUICK = {"steps": 4, "compile": False, "checkpoint": {"every": 1}, "evaluate": {"every": 2, "samples": 0}}
CHANGING = {"write", "make_folder", "rename", "remove"}
KINDS: dict[str, tuple[int, set[str]]] = {
    "full": (FULL, {"write", "make_folder"}),
    "quota": (QUOTA, {"write", "make_folder"}),
    "read-only": (READ_ONLY, CHANGING | {"open"}),
    "lost": (GONE, CHANGING | {"open", "sync", "list", "read"}),
}
MOMENTS: dict[str, tuple[str, int]] = {
    "before the first event": ("open run/events.jsonl", 0),
    "before the first checkpoint": ("make_folder checkpoints/.step-000001.tmp", 0),
    "amid a checkpoint": ("write .step-000002.tmp/optimizer.safetensors", 1),
    "before a checkpoint has its name": ("rename checkpoints/step-000003", 2),
    "between checkpoint and pointer": ("write checkpoints/.latest", 1),
    "at the result": ("make_folder run/.adapter.tmp", 4),
}
"""The first call that fails, and the step of the last good checkpoint."""
QUICKLY = list(zip(["full", "full", "lost", "read-only", "lost", "full"], MOMENTS, strict=True))
REST = [(kind, moment) for kind in KINDS for moment in MOMENTS if (kind, moment) not in QUICKLY]


class FailingAt(FaultyDisk):
    """Fails, for good, from the first call that a moment names; deleting the reserve makes room for a few lines."""

    def __init__(self, kind: str, moment: str) -> None:
        self.number, self.names = KINDS[kind]
        self.moment, self.is_bad, self.has_room = moment, False, False
        super().__init__(self._decide)

    def _decide(self, _: int, name: str, path: Path) -> OSError | None:
        self.is_bad = self.is_bad or f"{name} {path.parent.name}/{path.name}".startswith(self.moment)
        if not self.is_bad or name not in self.names:
            self.has_room = self.has_room or (self.is_bad and path.name == RESERVE)
            return None
        if self.has_room and path.name == "events.jsonl":
            return None
        return OSError(self.number, os.strerror(self.number))


@pytest.fixture
def untouched() -> Iterator[None]:
    """Put back what a training process changes for itself."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    mask = os.umask(0o077)
    yield
    os.umask(mask)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def expected(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("whole") / "run", rows, **QUICK)
    with_signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_to_end(run) == 0
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), with_signals, strict=True):
        signal.signal(number, handler)
    return outcome(run)


@pytest.mark.parametrize(
    ("kind", "moment"), [*QUICKLY, *(pytest.param(*rest, marks=pytest.mark.long) for rest in REST)]
)
@pytest.mark.usefixtures("untouched")
def test_a_disk_that_fails_loses_nothing_that_was_saved(
    kind: str, moment: str, rows: Path, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(tmp_path / "run", rows, **QUICK)
    call, last = MOMENTS[moment]
    last += call.startswith("rename") and "rename" not in KINDS[kind][1]  # a full disk still gives names
    code = run_to_end(Run(made.path, FailingAt(kind, call)))
    assert code == 1
    assert Checkpoints(made.checkpoints, keep=9, world={}).newest_whole() == (f"step-{last:06d}" if last else None)
    assert not made.adapter.exists()
    ended = made.state().ended
    said = capsys.readouterr().err + (f"{ended.reason}. {ended.fix}" if ended else "")
    assert os.strerror(KINDS[kind][0]) in said
    assert f"`macft resume {made.name}`" in said
    assert run_to_end(made) == 0
    assert outcome(made) == expected
    assert not leftovers(made)


@pytest.mark.usefixtures("untouched")
def test_when_there_is_room_again_everything_is_written(rows: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """Full for a while: a checkpoint is missing, a warning says so, and no event is."""
    made = make_run(tmp_path / "run", rows, **QUICK)
    is_full = {"now": False}

    def fails(_: int, name: str, path: Path) -> OSError | None:
        is_full["now"] = is_full["now"] or path.name == ".step-000002.tmp"
        is_full["now"] = is_full["now"] and path.name != ".step-000003.tmp"
        return OSError(FULL, os.strerror(FULL)) if is_full["now"] and name in KINDS["full"][1] else None

    assert run_to_end(Run(made.path, FaultyDisk(fails))) == 0
    assert [event.message for event in made.state().warnings if isinstance(event, Warned)] == [
        "checkpoint step-000002 could not be written ([Errno 28] No space left on device)"
    ]
    assert {**outcome(made), "progress": 0} == {**expected, "progress": 0}


@pytest.mark.usefixtures("untouched")
def test_a_disk_that_takes_a_part_of_each_write_holds_a_whole_run(
    rows: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    made = make_run(tmp_path / "run", rows, **QUICK)
    assert run_to_end(Run(made.path, whole(short=True))) == 0
    assert outcome(made) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real file system of a few hundred kilobytes; only root may mount one."""
    mounted = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "macft-test", str(place)]
        if os.name != "posix" or os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs root and the right to mount a small file system; the same is tested at a seam above")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.usefixtures("untouched")
def test_a_small_real_disk_fills_up(small_disk: Callable[[str], Path], rows: Path, expected: dict[str, Any]) -> None:
    """A checkpoint of this run takes 136 KB and its result 48: the first fits, and then no more."""
    run = make_run(small_disk("256k") / "run", rows, **QUICK)
    assert run_to_end(run) == 1
    ended = run.state().ended
    assert ended is not None
    assert "No space left on device" in ended.reason
    assert f"`macft resume {run.name}`" in ended.fix
    assert Checkpoints(run.checkpoints, keep=9, world={}).newest_whole() == "step-000001"
    subprocess.run(["mount", "-o", "remount,size=4m", str(run.path.parent)], check=True)
    assert run_to_end(run) == 0
    assert outcome(run) == expected
