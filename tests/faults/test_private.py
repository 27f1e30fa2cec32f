"""What is private stays private: no network, no file for others, no text where it does not belong."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from macft import api
from macft.__main__ import OFFLINE, QUIET
from macft.events import RunEnded
from tests.conftest import REPOSITORY
from tests.faults.network import GUARD, Breach, is_local
from tests.faults.worlds import make_run, write_rows

ALONE = ["unshare", "-n", "--map-root-user"] if os.geteuid() else ["unshare", "-n"]
CUT = [
    "tests/training/test_session.py::test_a_run_from_recipe_to_adapter",
    "tests/training/test_session.py::test_chat_answers_with_the_adapter_and_without",
    "tests/test_plan.py",
    "tests/faults/test_hostile.py::test_a_mistyped_path_is_sent_nowhere",
]


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        (b"127.0.0.9", True),
        ("10.0.0.1", False),
        ("a.b", False),
    ],
)
def test_what_is_this_machine(name: str | bytes, here: bool) -> None:
    assert is_local(name) == here


def test_the_guard_of_this_test_session_sees_a_look_up_and_a_connection() -> None:
    before = list(GUARD.breaches)
    with pytest.raises(Breach):
        socket.getaddrinfo("example.invalid", 443)
    with socket.socket() as connection, pytest.raises(Breach):
        connection.connect(("192.0.2.1", 443))
    assert len(GUARD.breaches) == len(before) + 2
    GUARD.breaches[:] = before  # these two were meant


def test_libraries_are_offline_before_they_are_imported() -> None:
    """Each variable is set when the first library that reads it is loaded, in every process of macft's."""
    script = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"huggingface_hub", "transformers", "tokenizers", "mlx_lm"}:
            print(name, {key: os.environ.get(key) for key in sorted(%r)}, file=sys.stderr)
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
sys.argv = ["macft", "models"]
from macft.__main__ import main
main()
"""
    names = [*OFFLINE, *QUIET]
    environ = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", script % names], env=environ, capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stderr
    assert "None" not in done.stderr.splitlines()[0]


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the usual way, on rows whose words are known, for a person whose other files are open to all."""
    folder = tmp_path_factory.mktemp("private")
    rows = write_rows(folder)
    rows.write_text(rows.read_text().replace("perhaps", "xylophone"))
    quick = {"steps": 4, "compile": False, "checkpoint": {"every": 2}, "evaluate": {"every": 4, "samples": 0}}
    before, runs = os.umask(0o000), os.environ.get("MACFT_RUNS")
    os.environ["MACFT_RUNS"] = str(folder)
    try:
        run = make_run(folder / "run", rows, **quick)
        run.write_note("mine")
        ended = list(api.follow(api.resume("run")))[-1]
    finally:
        os.umask(before)
        os.environ.pop("MACFT_RUNS") if runs is None else os.environ.update(MACFT_RUNS=runs)
    assert isinstance(ended, RunEnded)
    assert ended.status == "done"
    return run.path


def test_a_run_is_its_owners_alone(private_run: Path) -> None:
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [private_run, *private_run.rglob("*")]}
    assert len(found) > 10
    assert {path.name for path in found} >= {"train.log", "adapters.safetensors", "state.json", "note.txt", "plan.json"}
    wrong = {path.name: oct(mode) for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)}
    assert not wrong


def test_no_words_of_rows_are_in_logs_or_metadata(private_run: Path) -> None:
    for path in private_run.rglob("*"):
        if path.is_file():
            assert b"xylophone" not in path.read_bytes(), path.name
    config = json.loads((private_run / "adapter" / "adapter_config.json").read_text())
    assert str(private_run.parent) not in json.dumps(config)
    assert "HOME" not in os.environ or os.environ["HOME"] not in json.dumps(config)


@pytest.mark.long
def test_a_cut_of_the_suite_passes_without_any_network(tmp_path: Path) -> None:
    """With `unshare -n` there is not even a way to this machine's own network."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs `unshare -n`, which this system does not allow")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", *CUT]
    done = subprocess.run([*ALONE, *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
