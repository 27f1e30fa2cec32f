"""The table of `make bench`; the comparison itself is run by hand."""

import pytest

from macft.bench.clock import Peak
from macft.bench.sample import Estimate
from tests.benchmarks.compare import share_of
from tests.benchmarks.memory import MIB, Memory
from tests.benchmarks.rows import BUNDLED, find_rows
from tests.benchmarks.speed import Speed
from tests.benchmarks.table import Machine, demand, result_lines

MACHINE = Machine("A chip", 2, "Linux", {"macft": "1.0", "mlx": "0.32"})
SPEED = Speed(
    "bench_mix", 4, 12, 1052, 120.4, 50.2, Estimate(2.4, 2.3, 2.5), Estimate(2.35, 2.2, 2.5), 2.38, None, 5e10, 0.6
)


def test_the_page_names_versions_and_says_what_was_not_measured():
    lines = result_lines(MACHINE, [SPEED], Peak(1e11, 1e11), [])
    assert "macft 1.0, mlx 0.32; A chip, 2 cores, Linux; float32, OpenBLAS." in lines[2]
    assert "Nothing here was measured on Metal" in lines[3]
    measured = "12 of 1,052 | 120 | 50 | 2.40 (2.30 … 2.50) | 2.35 (2.20 … 2.50)"
    assert f"| bench_mix, 4 | {measured} | 2.38 | ≥ 2.3 open | – | 60% | 50% |" in lines


@pytest.mark.parametrize(
    ("batches", "low", "high", "verdict"),
    [(12, 2.31, 2.5, "≥ 2.3 ✔"), (12, 1.9, 2.29, "≥ 2.3 ✘"), (12, 2.2, 2.5, "≥ 2.3 open"), (3, 3.9, 5.0, "≥ 2.3 open")],
)
def test_a_demand_is_judged_by_the_whole_interval_and_never_by_few_pairs(batches, low, high, verdict):
    ratio = Estimate((low + high) / 2, low, high)
    lines = result_lines(MACHINE, [SPEED._replace(batches=batches, cpu_ratio=ratio)], Peak(1e11, 1e11), [])
    row = next(line for line in lines if line.startswith("| bench_mix, 4"))
    assert f"| {verdict} |" in row
    assert row.count("too few") == (2 if batches == 3 else 0)


def test_memory_is_told_as_how_many_times_less():
    memory = Memory("smollm2-135m", "bench_mix", 4, True, False, 100 * MIB, 250 * MIB)
    lines = result_lines(MACHINE, [], Peak(1e11, 1e11), [memory])
    row = "| smollm2-135m, bench_mix, 4 | every layer | in one pass | 100 | 250 | 2.5 | ≥ 3 ✘ |"
    assert lines[-1] == row


def test_a_demand_that_nobody_made_is_not_judged():
    assert demand(0.1, None) == "–"


def test_time_is_shared_by_the_size_of_batches():
    assert share_of([("a", 1), ("b", 1), ("a", 4), ("b", 4)]) == pytest.approx(1 / 6)
    assert share_of([("b", 4)]) == 1.0


def test_without_the_shared_data_the_bundled_rows_are_taken(tmp_path):
    assert find_rows(None, tmp_path) == {"addresses": BUNDLED}
    assert BUNDLED.is_file()
