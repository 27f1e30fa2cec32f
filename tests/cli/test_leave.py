"""The commands that take a result away, from their arguments to what they print."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from macft.cli.main import run
from tests.conftest import REPOSITORY
from tests.golden import HERE


class Shell:
    """A folder with the tiny llama as a model, and PEFT's adapters beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home" / "models").mkdir(parents=True)
        (folder / "home" / "models" / "llama").symlink_to(HERE / "llama")
        shutil.copytree(HERE / "peft", folder / "peft")
        row = {"prompt": "2 + 2?", "completion": "4, and that is all there is to it."}
        (folder / "rows.jsonl").write_text(json.dumps(row))
        self.environment = {"MACFT_HOME": "home", "MACFT_RUNS": "runs", "PYTHONPATH": str(REPOSITORY)}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "macft", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("shell"))


def test_fuse_prints_the_folder_and_says_what_was_kept(shell: Shell) -> None:
    done = shell("fuse", "peft/lora", "--data", "rows.jsonl", "--out", "fused")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shell.folder / 'fused'}\n"
    said = done.stderr.splitlines()
    assert said[0] == "fuse · lora on llama"
    assert said[1].startswith("mlx from the original weights · float32 · 0.3 MB of ")
    assert any(line.startswith("kept 100.0% of what training changed · KL ") for line in said)
    assert any("mlx_lm.generate --model" in line for line in said)
    assert said[-1] == "✔ done"
    listed = json.loads(shell("runs", "--json").stdout)["runs"]
    assert [run["method"] for run in listed] == ["fuse"]
    refused = shell("resume", listed[0]["name"])
    assert refused.returncode == 1
    assert "trains nothing" in refused.stderr


def test_json_is_one_object_with_a_schema(shell: Shell) -> None:
    done = shell("export", "peft/lora", "--to", "peft", "--out", "again", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == 1
    assert told["result"]["path"] == str(shell.folder / "again")
    assert told["result"]["kept"] is None
    theirs = (HERE / "peft" / "lora" / "adapter_model.safetensors").read_bytes()
    assert (shell.folder / "again" / "adapter_model.safetensors").read_bytes() == theirs


def test_merge_adds_up(shell: Shell) -> None:
    done = shell("merge", "peft/lora:0.7", "peft/patterns", "--out", "merged")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shell.folder / 'merged'}\n"
    told = json.loads((shell.folder / "merged" / "adapter_config.json").read_text())["macft"]
    assert told["merged"] == [{"adapter": "lora", "strength": 0.7}, {"adapter": "patterns", "strength": 1.0}]


def test_what_a_job_finds_out_is_said_in_a_line(shell: Shell) -> None:
    done = shell("fuse", "peft/lora")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("macft: there are no held-out rows to compare on")
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fuse peft/lora --out peft", 1, "is there already"),
        ("fuse nothing", 1, "no run is called 'nothing'"),
        ("fuse peft/lora --model nothing", 3, "'nothing' is no model"),
        ("fuse home/models/llama", 2, "is a whole model already"),
        ("merge peft/lora --out m", 2, "takes two adapters or more"),
        ("merge peft/lora:x peft/lora --out m", 2, "'x' is no strength"),
        ("merge peft/lora peft/dora --out m", 3, "whose update is no sum"),
        ("export peft/lora --to gguf --quantize 3", 2, "quantize"),
        ("export peft/lora --to tensorflow", 2, "--to"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_job_starts(
    line: str, code: int, said: str, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shell.folder)
    for name in ("MACFT_HOME", "MACFT_RUNS"):
        monkeypatch.setenv(name, shell.environment[name])
    before = list((shell.folder / "runs").glob("*"))
    assert run(line.split()) == code
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out
    assert list((shell.folder / "runs").glob("*")) == before
