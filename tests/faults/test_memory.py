"""Memory does not grow with the steps, and few shapes are compiled."""

import gc
import sys
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from macft.events import Event, StepDone
from macft.run import Run
from tests.faults.sessions import WatchedSession
from tests.faults.worlds import make_run, write_rows

MOST_BYTES_A_STEP, MOST_SHAPES = 1024, 12
BLOCK_BYTES = 100
"""An object of Python's takes about that much; counted, so that a few steps tell what thousands will do."""


class Meter:
    """Reads the process's memory after some steps."""

    def __init__(self, run: Run, steps: tuple[int, int], *, by_object: bool) -> None:
        self.run, self.steps, self.by_object = run, steps, by_object
        self.python: list[int] = []
        self.mlx: list[int] = []
        self.session = WatchedSession(run, emit=self.hear)

    def hear(self, event: Event) -> None:
        self.run.append(event)
        if isinstance(event, StepDone) and event.step in self.steps:
            gc.collect()
            self.python.append(
                sys.getallocatedblocks() * BLOCK_BYTES if self.by_object else psutil.Process().memory_info().rss
            )
            self.mlx.append(mx.get_active_memory())

    def growth(self) -> tuple[float, float]:
        """Return how much Python's and MLX's memory grew, in bytes a step."""
        steps = self.steps[1] - self.steps[0]
        return (self.python[1] - self.python[0]) / steps, (self.mlx[1] - self.mlx[0]) / steps


def _run(folder: Path, method: str, steps: int, **changes: object) -> Run:
    often = {"evaluate": {"every": steps // 8, "samples": 0}, "checkpoint": {"every": steps // 8}}
    return make_run(folder / "run", write_rows(folder, method=method), method=method, steps=steps, **often, **changes)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_objects_do_not_pile_up_and_few_shapes_are_compiled(method: str, tmp_path: Path) -> None:
    cheap = {"sft": {}, "dpo": {"compile": False, "batch_size": 1}}[method]
    meter = Meter(_run(tmp_path, method, 88, **cheap), (44, 86), by_object=True)
    meter.session.run()
    python, arrays = meter.growth()
    assert python <= MOST_BYTES_A_STEP
    assert arrays <= MOST_BYTES_A_STEP
    assert method == "dpo" or 0 < meter.session.objective.traces <= MOST_SHAPES


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_process_does_not_grow_over_five_thousand_steps(method: str, tmp_path: Path) -> None:
    meter = Meter(_run(tmp_path, method, 5_000), (500, 4_990), by_object=False)
    meter.session.run()
    process, arrays = meter.growth()
    print(f"{method}: {process:.0f} bytes a step, MLX {arrays:.0f}, {meter.session.objective.traces} traces")
    assert process <= MOST_BYTES_A_STEP
    assert arrays <= MOST_BYTES_A_STEP
    assert 0 < meter.session.objective.traces <= MOST_SHAPES
