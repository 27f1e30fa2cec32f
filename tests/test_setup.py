"""The set-up is run on machines that lack things: a PATH with only what such a machine has."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "rm", "mkdir", "touch", "cp", "uname", "id")
TOO_OLD = "#!/bin/sh\nexit 1\n"
GOOD_BUT_NO_VENV = """#!/bin/sh
case "$*" in *"-m venv"*) echo "ensurepip is not available"; exit 1;; esac
"""
GOOD = """#!/bin/sh
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin && cp environment .venv/bin/python
"""
ENVIRONMENT = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@" >> calls
"""


class Machine:
    """A folder with the Makefile, and a PATH of the usual tools and of the programs given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def program(self, name: str, text: str) -> None:
        self.script(f"bin/{name}", text)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        make = shutil.which("make")
        assert make
        return subprocess.run(
            [make, *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_make_alone_lists_the_targets(machine):
    said = machine.make().stdout
    targets = ["quickstart", "test", "check", "long", "faults", "bench", "bench-dpo", "screenshots", "clean"]
    assert re.findall(r"^make ([\w-]+)", said, re.M) == targets


@pytest.mark.parametrize(
    ("system", "way_out"),
    [("Linux", "apt install python3 python3-venv"), ("Darwin", "brew install python@3.12")],
)
def test_a_python_that_is_too_old_is_said_plainly(machine, system, way_out):
    machine.program("python3", TOO_OLD)
    machine.program("uname", f"#!/bin/sh\necho {system}\n")
    done = machine.make("quickstart")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert way_out in done.stderr
    assert "uv" in done.stderr


def test_a_debian_without_venv_is_told_which_package(machine):
    machine.program("python3", GOOD_BUT_NO_VENV)
    done = machine.make("quickstart")
    assert done.returncode != 0
    assert "ensurepip is not available" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (machine.folder / ".venv").exists()


def test_a_shim_that_is_on_the_path_but_does_not_work_is_passed_over(machine):
    machine.program("python3.13", TOO_OLD)
    machine.program("python3.12", GOOD_BUT_NO_VENV)
    assert "Making .venv with python3.12" in machine.make("quickstart").stdout


def test_the_environment_is_made_once_and_again_when_the_project_changes(machine):
    machine.program("python3", GOOD)
    machine.script("environment", ENVIRONMENT)

    def installs() -> list[str]:
        return [line for line in (machine.folder / "calls").read_text().splitlines() if " install " in line]

    assert machine.make(".venv/user").returncode == 0
    assert installs() == ["-m pip install --quiet --disable-pip-version-check -e ."]
    machine.make(".venv/user")
    assert len(installs()) == 1
    now = (machine.folder / ".venv" / "user").stat().st_mtime
    os.utime(machine.folder / "pyproject.toml", (now + 5, now + 5))
    machine.make(".venv/user")
    assert len(installs()) == 2


def test_uv_makes_the_environment_when_it_is_there(machine):
    machine.program("python3", TOO_OLD)
    machine.program("uv", '#!/bin/sh\necho "$@" >> calls\n')
    assert machine.make(".venv/user").returncode != 0  # this uv makes no folder for the stamp
    assert (machine.folder / "calls").read_text().splitlines() == [
        "venv --quiet --python 3.12 .venv",
        "pip install --quiet --python .venv/bin/python -e .",
    ]


def test_a_slow_blas_is_said_and_does_not_stop_the_set_up(machine):
    machine.program("uname", "#!/bin/sh\necho Linux\n")
    machine.program("python3", GOOD)
    machine.script("environment", ENVIRONMENT)
    done = machine.make(".venv/openblas")
    assert done.returncode == 0
    assert "25 times slower" in done.stderr
    assert machine.make(".venv/openblas").stderr == ""


def test_the_makefile_keeps_to_what_a_mac_ships():
    text = (ROOT / "Makefile").read_text()
    # GNU make 3.81 knows none of these; /bin/sh none of the last three.
    for newer in (".ONESHELL", ".SHELLFLAGS", ".RECIPEPREFIX", "$(file ", "&:", "[[", "<<<", "pipefail"):
        assert newer not in text


def test_ci_runs_the_checks_and_ends_with_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script
    assert script.splitlines()[-2:] == ["make check", "make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
