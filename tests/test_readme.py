"""What the README says is so: its commands run, its rows are read, its tables are complete."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import pytest

from macft.cli.diagnostics import READER_GONE
from macft.cli.main import EPILOGUE, app, run
from macft.data.examples import ChatExample, CompletionExample, TextExample, parse_example
from macft.data.sources import Row
from macft.events import EVENT_TYPES, decode_event
from macft.recipe import make_recipe
from macft.run import Run, list_runs
from tests.conftest import REPOSITORY
from tests.golden import load_case
from tests.reference import README, list_keys, make_reference, read_reference

TEXT = README.read_text(encoding="utf-8")
KINDS = [ChatExample, ChatExample, CompletionExample, CompletionExample, TextExample]
"""What the README's rows are, in its order."""
SHORT = ["steps=2", "batch_size=2", "evaluate.samples=0", "evaluate.test_rows=2", "evaluate.max_tokens=4"]
SHORT += ["learning_rate=0.01"]
"""What a command that trains is cut down to; what two steps change must show above the rounding of bf16."""
NOWHERE = "http://127.0.0.1:9"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The README's commands, without their comments."""
    return [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]


def rows() -> list[str]:
    """The README's rows of data."""
    return [row for block in blocks("jsonl") for row in block.splitlines()]


class Desk:
    """A folder with what the README's commands name, and a tiny model in the place of SmolLM2."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.environment = {"MACFT_HOME": "home", "MACFT_RUNS": "runs", "HF_HUB_CACHE": "hub", "HF_ENDPOINT": NOWHERE}
        model = folder / "home" / "models" / "smollm2-135m"
        shutil.copytree(load_case("llama").folder, model)
        # The addresses are longer than the 64 tokens that the tiny model was made for.
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
        repository = folder / "hub" / "models--Qwen--Qwen3-0.6B"
        shutil.copytree(model, repository / "snapshots" / "0123")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123")
        (folder / "my.jsonl").write_text("\n".join(row for row in rows() if "text" not in json.loads(row)))
        (folder / "prompts.txt").write_text("What is 2 + 2?\nWho?\n")
        (folder / "recipes").symlink_to(REPOSITORY / "recipes")
        assert self.macft("train quickstart").returncode == 0

    def macft(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command, cut down when it trains."""
        arguments = shlex.split(line)
        short = [word for setting in SHORT for word in ("--set", setting)] if arguments[0] == "train" else []
        short = ["--max-tokens", "4"] if arguments[0] in {"compare", "eval"} else short
        return subprocess.run(
            [sys.executable, "-m", "macft", *arguments, *short],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def latest(self) -> Run:
        return list_runs(self.runs)[0]

    def wait(self) -> None:
        """Wait for the last run to end; `--detach` leaves it going."""
        while self.latest.is_live:
            time.sleep(0.05)

    def stop_early(self) -> None:
        """Leave a run that was stopped before its end."""
        assert self.macft("train quickstart --detach --set steps=50").returncode == 0
        self.latest.request("stop")
        self.wait()
        assert self.latest.state().status == "stopped"

    @contextmanager
    def going(self) -> Iterator[None]:
        """Make the last run look as if it still trained."""
        with self.latest.lock():
            yield


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.parametrize("line", commands())
def test_a_command_runs(line: str, desk: Desk) -> None:
    program, word, *_ = shlex.split(line)
    assert program == "macft"
    if word == "resume":
        desk.stop_early()
    with desk.going() if word == "stop" else nullcontext():
        done = desk.macft(line.removeprefix("macft "))
    assert done.returncode == 0, done.stderr
    desk.wait()


def test_every_command_of_the_table_is_there_with_its_options_and_no_other() -> None:
    table = TEXT.partition("| command | what it does |")[2].partition("\n\n")[0]
    named = set()
    for line in table.splitlines()[2:]:
        words = re.findall(r"\w+", line.partition("`macft ")[2])
        command = tuple(word for word in words[:2] if word in app or (words[0] in app and word in app[words[0]]))
        named.add(command)
        assert set(re.findall(r"--[a-z-]+\b", line)) <= set(re.findall(r"--[a-z-]+\b", _help(*command))), line
    there = set[tuple[str, ...]]()
    for name in [name for name in app if name[0] not in "-_"]:
        inner = [word for word in app[name] if word[0] != "-"]
        there |= {(name, word) for word in inner} or {(name,)}
    assert named == there


def _help(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert run([*words, "--help"]) == 0
    return out.getvalue()


def test_the_exit_codes_are_those_of_the_help() -> None:
    table = TEXT.partition("| exit code | meaning |")[2].partition("\n\n")[0]
    codes = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in cell.split(",")}
    said = {int(code) for code in re.findall(r"\b(\d+) [a-z]", EPILOGUE.partition("Exit codes:")[2])}
    assert codes == said | {READER_GONE}


@pytest.mark.parametrize(("row", "kind"), list(zip(rows(), KINDS, strict=True)))
def test_a_row_is_read(row: str, kind: type) -> None:
    assert isinstance(parse_example(Row(json.loads(row), "README.md:1", "README.md", 1)), kind)


def test_the_event_is_one_and_all_types_are_named() -> None:
    assert all(decode_event(line) for block in blocks("json") for line in block.splitlines())
    paragraph = TEXT.partition("The types are ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", paragraph)) == set(EVENT_TYPES)


def test_the_smallest_recipe_is_one() -> None:
    (block,) = blocks("toml")
    assert make_recipe(tomllib.loads(block)).data.train == ["my.jsonl"]


def test_the_reference_is_the_models() -> None:
    shown = read_reference(TEXT)
    assert shown == make_reference(), "the README's recipe reference is old: `make reference` writes it again"
    keys = re.findall(r"^\| `([a-z_.]+)` \|", shown, flags=re.MULTILINE)
    assert set(keys) == list_keys()


def test_nothing_links_to_a_file_that_is_not_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (REPOSITORY / target).exists(), target
