"""Two processes of a real `mlx.launch` on this machine, over its ring: one run, as one process would train it."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
import pytest

from macft.events import RunEnded
from macft.models.adapters import WEIGHTS
from macft.models.tensors import load_tensors
from macft.recipe import dump_recipe, load_recipe, make_recipe
from macft.run import Run
from macft.training.checkpoint import LATEST, Checkpoints
from macft.training.distributed import ALONE
from macft.training.session import Session
from tests.golden import load_case
from tests.training.two_ranks import METHODS, UPDATES, make_updates

REPOSITORY = Path(__file__).parents[2]
ANSWERS = ["yes.", "no.", "perhaps, but not before tomorrow.", "ask again"]


@contextmanager
def launched(command: list[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Two local ranks of a command; whatever is left of them is killed at the end."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    arguments = [sys.executable, str(launcher), "-n", "2", "-p", str(_two_free_ports()), "--", sys.executable, *command]
    # An open stdin: mlx.launch spins on one that is at its end, and takes a core.
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environ,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.communicate()


def output_of(command: list[str], **environ: str) -> str:
    with launched(command, **environ) as process:
        return process.communicate(timeout=120)[0]


def _two_free_ports() -> int:
    for port in range(20_000 + os.getpid() % 20_000, 60_000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two ports are free")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left that ran `two_ranks`."""
    folder = tmp_path_factory.mktemp("ranks")
    said = output_of(["-m", "tests.training.two_ranks", str(folder)])
    assert (folder / "rank-1.json").is_file(), said
    return folder


def told_by(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"rank-{rank}.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_make_the_gradients_and_metrics_of_one_process(folder: Path, method: str) -> None:
    theirs, (ours, seen) = load_tensors(folder / f"{method}.safetensors"), make_updates(ALONE, method)
    assert theirs.keys() == ours.keys()
    assert {name.partition(".")[0] for name in ours} == {str(step) for step in range(1, len(UPDATES) + 1)}
    for step in range(1, len(UPDATES) + 1):
        names = [name for name in ours if name.startswith(f"{step}.")]
        norm = math.sqrt(sum(mx.square(ours[name]).sum().item() for name in names))
        off = math.sqrt(sum(mx.square(ours[name] - theirs[name]).sum().item() for name in names))
        assert off <= 1e-6 * norm
    assert told_by(folder, 0)["seen"] == told_by(folder, 1)["seen"]
    for found, expected in zip(told_by(folder, 0)["seen"][method], seen, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_what_is_gathered_is_the_same_on_each_rank(folder: Path) -> None:
    first, second = told_by(folder, 0), told_by(folder, 1)
    expected = [
        {"rank": 0, "numbers": [0.1, math.inf], "text": "é"},
        {"rank": 1, "numbers": [1.1, math.inf], "text": "é" * 3000},
    ]
    assert first["gathered"] == second["gathered"] == expected
    assert first["from_leader"] == second["from_leader"] == 10


def test_the_leaders_arrays_are_copied_bit_for_bit(folder: Path) -> None:
    own = np.array(mx.array([-0.0, math.nan, 1.5]) * 1).tobytes().hex()
    assert told_by(folder, 0)["copied"] == told_by(folder, 1)["copied"] == [own, [7]]


def test_arrays_are_summed_in_float32(folder: Path) -> None:
    assert told_by(folder, 0)["summed"] == told_by(folder, 1)["summed"] == [[[3.0] * 5] * 3, [4.0]]


def test_ranks_do_not_draw_the_same_noise(folder: Path) -> None:
    assert told_by(folder, 0)["key"] != told_by(folder, 1)["key"]


def test_a_rank_of_another_world_is_refused_by_both(folder: Path) -> None:
    refusal = "rank 1 would train something else than rank 0: mlx (0.1, rank 0: 0.0), rows"
    assert told_by(folder, 0)["refusal"] == told_by(folder, 1)["refusal"] == refusal


def test_alone_everything_is_as_it_was() -> None:
    tree = {"a": mx.array([1.0], mx.bfloat16)}
    assert ALONE.all_sum(tree) is tree
    assert ALONE.copy_leader(tree) is tree
    assert ALONE.gather((1, "x")) == [(1, "x")]
    assert ALONE.leads


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}?"}, {"role": "assistant", "content": ANSWERS[n % 4]}]}
        for n in range(24)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    recipe = make_recipe(
        {
            "model": str(load_case("llama").folder),
            "steps": 20,
            "batch_size": 5,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "lora": {"rank": 4},
            "data": {"train": str(folder / "rows.jsonl"), "valid_fraction": 0.2},
            "evaluate": {"every": 5, "samples": 1, "max_tokens": 8},
            "checkpoint": {"every": 4},
        }
    )
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    return folder / "recipe.toml"


def test_a_run_of_two_ranks_that_lost_one_goes_on_and_ends_as_one_process_does(
    recipe_path: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "two")
    with launched(["-m", "macft", "train", str(recipe_path), "--out", str(run.path)]) as process:
        _wait(lambda: (run.path / "events.jsonl").is_file() and run.state().step >= 4)
        run.request("pause")
        _wait(lambda: run.state().status == "paused")
        _rank_1(process).kill()
        said = process.communicate(timeout=60)[0]
    ended = run.last_event()
    assert isinstance(ended, RunEnded)
    assert (ended.status, ended.exit_code, ended.reason) == ("failed", 5, "rank 1: its process is gone")
    assert f"macft: {ended.reason}. `macft resume two`" in said
    checkpoints = Checkpoints(run.checkpoints, keep=3, world={})
    assert checkpoints.newest_whole() == (checkpoints.folder / LATEST).read_text()

    said = output_of(["-m", "macft", "resume", str(run.path), "--plain"], MACFT_RUNS=str(tmp_path))
    assert run.state().status == "done", said
    assert "2 ranks" in said
    assert said.count("saved step-000020") == 1  # rank 0 alone speaks
    assert _off(run.adapter, _adapter_of_one_process(recipe_path, tmp_path / "one")) <= 1e-4


def _adapter_of_one_process(recipe_path: Path, folder: Path) -> Path:
    recipe = load_recipe(recipe_path)
    run = Run.create(folder, dump_recipe(recipe))
    Session(recipe, run, emit=run.append, requests=Nothing()).run()
    return run.adapter


class Nothing:
    """Nobody asks for anything."""

    def __call__(self) -> list[str]:
        return []

    def wants_stop(self) -> bool:
        return False


def _off(one: Path, other: Path) -> float:
    first, second = load_tensors(one / WEIGHTS), load_tensors(other / WEIGHTS)
    return max(mx.abs(first[name] - second[name]).max().item() for name in first)


def _rank_1(launcher: subprocess.Popen[str]) -> psutil.Process:
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("MLX_RANK") == "1")


def _wait(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
