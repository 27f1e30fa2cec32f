"""The page of `make bench-dpo`; the comparison itself is run by hand."""

import pytest

from macft.bench.sample import Estimate
from tests.benchmarks.memory import MIB
from tests.benchmarks.preference_page import OURS, Against, Peaks, judged, memory_lines, result_lines
from tests.benchmarks.table import Machine

MACHINE = Machine("A chip", 2, "Linux", {"macft": "1.0", "mlx": "0.32"})
CASE = Against(
    data="tone",
    batch_size=1,
    peer="mlx-lm-lora",
    batches=12,
    flops_a_token=5e8,
    reference_flops_a_token=2e8,
    their_flops_a_token=14e8,
    cpu_seconds=2.0,
    their_cpu_seconds=5.6,
    cpu_ratio=Estimate(2.7, 2.6, 2.8),
    epoch_ratio=Estimate(1.9, 1.6, 2.1),
)


def test_counters_come_before_seconds_and_both_say_what_flops_allow():
    lines = result_lines(MACHINE, [CASE], [], ["memory of macft, as it splits"])
    assert "macft 1.0, mlx 0.32; A chip, 2 cores, Linux; float32, OpenBLAS." in lines[2]
    counters = lines.index("| tone, 1 | mlx-lm-lora | 500 | 200 | 1,400 | 2.80 | 2.00 |")
    seconds = next(line for line in lines if "| 2.00 | 5.60 |" in line)
    assert lines.index(seconds) > counters
    assert "| 2.70 (2.60 … 2.80) | ≥ 2 ✔ | 2.80 | 96% | ≥ 0.95 open | 1.90 (1.60 … 2.10) | ≥ 1.7 open |" in seconds
    assert lines[-1] == "Not measured yet: memory of macft, as it splits."


@pytest.mark.parametrize(
    ("batches", "low", "high", "verdict"),
    [(12, 2.1, 2.5, "≥ 2 ✔"), (12, 1.5, 1.9, "≥ 2 ✘"), (12, 1.9, 2.5, "≥ 2 open"), (3, 3.9, 5.0, "≥ 2 open")],
)
def test_a_demand_is_judged_by_the_whole_interval_and_never_by_few_batches(batches, low, high, verdict):
    assert judged(Estimate((low + high) / 2, low, high), 2.0, batches) == verdict


def test_memory_is_held_against_macft_as_it_splits():
    peaks = [Peaks("macft, in one pass", 90 * MIB, 500 * MIB), Peaks(OURS, 50 * MIB, 500 * MIB)]
    peaks.append(Peaks("mlx-lm-lora", 800 * MIB, 900 * MIB))
    assert memory_lines(peaks)[2:] == [
        "| macft, in one pass | 90 | 500 | 1.8 | 0 | – |",
        "| macft, as it splits | 50 | 500 | 1.0 | 0 | – |",
        "| mlx-lm-lora | 800 | 900 | 16.0 | 400 | ≥ 15 ✔ |",
    ]
