"""A run that is killed with -9 at a random moment, and resumed, ends as if nothing had happened, bit for bit."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macft.run import Run
from tests.faults.worlds import leftovers, make_run, outcome, write_rows
from tests.faults.zygote import Zygote

KILLED, METHODS = -9, ("sft", "dpo")
HASTE = {"checkpoint": {"every": 1, "keep": 2}, "evaluate": {"every": 2, "samples": 1, "max_tokens": 4, "patience": 9}}
"""A run that saves all the time: most moments are amid a checkpoint, an evaluation, or between the two."""


class Killer:
    """Runs that differ in nothing but the moments at which they are killed."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.made = folder, zygote, 0
        self.rows = {method: write_rows(folder, method=method) for method in METHODS}
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        for method in METHODS:
            self.run(method)  # warms what is cached between runs: rows, references, compiled kernels
            run, self.seconds[method] = self.run(method)
            self.expected[method] = outcome(run)

    def run(self, method: str) -> tuple[Run, float]:
        self.made += 1
        run = make_run(self.folder / f"{method}-{self.made}", self.rows[method], method=method, **HASTE)
        code, seconds = self.zygote.live(run.path)
        assert code == 0, run.log.read_text()
        return run, seconds

    def kill(self, method: str, draw: random.Random) -> tuple[Run, list[int]]:
        """Kill a new run at a random moment, and half of them again when they are resumed; then let it end."""
        self.made += 1
        run = make_run(self.folder / f"{method}-{self.made}", self.rows[method], method=method, **HASTE)
        steps: list[int] = []
        while len(steps) < 1 + draw.randrange(2):
            code, seconds = self.zygote.live(run.path, kill_after=draw.uniform(0.0, self.seconds[method]))
            if code == KILLED:
                steps.append(run.state().step)
            else:  # this one was faster than the one that was measured
                self.seconds[method] = min(self.seconds[method], seconds)
                assert code == 0, run.log.read_text()
                if not steps:
                    return self.kill(method, draw)
                return run, steps
        code, _ = self.zygote.live(run.path)
        assert code == 0, run.log.read_text()
        return run, steps


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    with Zygote() as zygote:
        yield Killer(tmp_path_factory.mktemp("kill"), zygote)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_if_nothing_had_happened(method: str, seed: int, killer: Killer) -> None:
    run, steps = killer.kill(method, random.Random(seed))
    assert outcome(run) == killer.expected[method], f"killed at {steps}"
    assert not leftovers(run)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_hundred_killed_runs_end_as_if_nothing_had_happened(method: str, killer: Killer) -> None:
    killed_at = []
    for seed in range(100, 200):
        run, steps = killer.kill(method, random.Random(seed))
        killed_at += steps
        assert outcome(run) == killer.expected[method], f"seed {seed}, killed at {steps}"
        assert not leftovers(run), f"seed {seed}, killed at {steps}"
    assert len({*killed_at}) > 6, "the moments were not spread"
