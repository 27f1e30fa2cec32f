"""The page of `make bench`, and what it counts; the comparison itself is run by hand."""

from itertools import combinations

import numpy as np
import pytest

from macft.bench.clock import Peak
from macft.bench.sample import Estimate
from tests.benchmarks.counters import Counters, least_padding
from tests.benchmarks.curves import Curves, Point
from tests.benchmarks.kept import find, keep
from tests.benchmarks.memory import MIB, Memory
from tests.benchmarks.rows import BUNDLED, find_rows
from tests.benchmarks.speed import Side, Speed
from tests.benchmarks.table import Machine, demand, result_lines

MACHINE = Machine("A chip", 2, "Linux", {"macft": "1.0", "mlx": "0.32"})
SPEED = Speed(
    data="bench_mix",
    batch_size=4,
    batches=12,
    all_batches=1052,
    rate=120.4,
    their_rate=50.2,
    ratio=Estimate(2.4, 2.3, 2.5),
    cpu_ratio=Estimate(2.35, 2.2, 2.5),
    flops_allow=2.38,
    repaired=None,
    useful_per_cpu_second=5e10,
    peak=Peak(1e11, 1e11),
)
COUNTED = Counters("bench_mix", 4, 1052, 2612, 0.0, 0.0106, 2500, 0.0703, 0.6)


def test_the_page_names_versions_and_says_what_was_not_measured():
    lines = result_lines(MACHINE, [COUNTED], [SPEED], [], None)
    assert "macft 1.0, mlx 0.32; A chip, 2 cores, Linux; float32, OpenBLAS." in lines[2]
    assert "Nothing here was measured on Metal" in lines[3]
    measured = "12 of 1,052 | 120 | 50 | 2.40 (2.30 … 2.50) | 2.35 (2.20 … 2.50)"
    assert f"| bench_mix, 4 | {measured} | 2.38 | ≥ 2.3 open | – | 50.0 | 100.0 | 50% ✔ |" in lines
    assert "| bench_mix, 4 | 1,052 | 2,612 | 0.0% | 1.1% | 60% | 0 | 2,500 | 7.0% |" in lines
    assert lines.index("## Counters") < lines.index("## Speed")
    assert lines[-1]


@pytest.mark.parametrize(
    ("batches", "low", "high", "verdict"),
    [(12, 2.31, 2.5, "≥ 2.3 ✔"), (12, 1.9, 2.29, "≥ 2.3 ✘"), (12, 2.2, 2.5, "≥ 2.3 open"), (3, 3.9, 5.0, "≥ 2.3 open")],
)
def test_a_demand_is_judged_by_the_whole_interval_and_never_by_few_pairs(batches, low, high, verdict):
    ratio = Estimate((low + high) / 2, low, high)
    lines = result_lines(MACHINE, [], [SPEED._replace(batches=batches, cpu_ratio=ratio)], [], None)
    row = next(line for line in lines if line.startswith("| bench_mix, 4"))
    assert f"| {verdict} |" in row
    assert row.count("too few") == (2 if batches == 3 else 0)


def test_memory_is_told_as_how_many_times_less():
    memory = Memory("smollm2-135m", "bench_mix", 4, True, False, 100 * MIB, 250 * MIB)
    lines = result_lines(MACHINE, [], [], [memory], None)
    row = "| smollm2-135m, bench_mix, 4 | every layer | in one pass | 100 | 250 | 2.5 | ≥ 3 ✘ |"
    assert lines[-1] == row


def test_growth_is_told_beside_what_operations_allow():
    sequences = [Point(256, 256.0, 1.0, 1.0), Point(512, 768.0, 3.5, 3.5)]
    curves = Curves(
        sequences, [Point(1000, 1000.0, 2.0, 2.0), Point(10_000, 1e4, 22.0, 11.0)], [3.0, 2.9], Peak(1, 512)
    )
    lines = result_lines(MACHINE, [], [], [], curves)
    assert "| 512 tokens | 6.8 ms | 1.75 | 1.50 | 43% |" in lines
    assert "| 10,000 rows | 2.20 ms | 1.10 |" in lines
    assert lines[-1] == "Twelve lengths, each updated twice: 3.0 CPU seconds at first sight, 2.9 at second."


@pytest.mark.parametrize(
    ("sizes", "lengths", "share"),
    [([2, 3, 10], 2, 1 / 16), ([2, 3, 10], 3, 0.0), ([2, 3, 10], 9, 0.0), ([2, 3], 1, 1 / 6)],
)
def test_the_least_padding_of_a_few_lengths(sizes, lengths, share):
    assert least_padding(sizes, lengths) == pytest.approx(share)


def test_the_least_padding_is_that_of_trying_all_lengths():
    sizes = np.random.default_rng(0).integers(1, 40, 30)
    tried = []
    for chosen in combinations(np.unique(sizes), 3):
        if chosen[-1] == sizes.max():
            filled = np.array(chosen)[np.searchsorted(chosen, sizes)]
            tried.append(1 - sizes.sum() / filled.sum())
    assert least_padding(sizes, 3) == pytest.approx(min(tried))


def test_what_was_measured_is_found_again(tmp_path):
    curves = Curves([Point(256, 1.0, 2.0, 3.0)], [], [1.0, 2.0], Peak(1.0, 2.0))
    for name, value in (
        ("speed", SPEED),
        ("counters", COUNTED),
        ("curves", curves),
        ("memory", [Memory("m", "d", 4, True, False, 1, 2)]),
    ):
        keep(name, value, tmp_path)
        assert find(name, tmp_path) == value
    assert find("nothing", tmp_path) is None


class Counting:
    """A worker whose first step of a shape takes half a second longer, and which counts its steps."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.steps = seconds, [0] * len(seconds)

    def step(self, name: str, batch: int) -> dict[str, float]:
        self.steps[batch] += 1
        took = self.seconds[batch] + (0.5 if self.steps[batch] == 1 else 0.0)
        return {"seconds": took, "cpu_seconds": took}


def test_what_compiling_takes_is_not_timed_whether_a_step_is_short_or_long():
    worker = Counting([1.0, 2.0, 3.0, 50.0])
    side = Side(worker, "plan", [10, 20, 30, 500], [1, 2, 3, 50])
    side.warm_up(compiles=True)
    for batch in (2, 3, 3):
        side.step(batch, compiles=True)
    assert [timed.seconds for timed in side.cpu_seconds] == [3.0, 50.0, 50.0]
    assert worker.steps == [1, 2, 2, 2]


def test_a_demand_that_nobody_made_is_not_judged():
    assert demand(0.1, None) == "–"


def test_without_the_shared_data_the_bundled_rows_are_taken(tmp_path):
    assert find_rows(None, tmp_path) == {"addresses": BUNDLED}
    assert BUNDLED.is_file()
