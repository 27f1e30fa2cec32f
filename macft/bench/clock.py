"""Two clocks, and the fastest matrix product of this machine.

The rule: the limit is measured beside what is held against it, in the same process, type and run. On a CPU that others
use too, seconds that were really computed are the fairer clock.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

CPU_SIZES, GPU_SIZES = (512, 1024, 2048), (2048, 4096)
"""Sizes of square products; the fastest counts."""
REPEATS = 3


class Cost(NamedTuple):
    """What something took: seconds on the clock, and seconds of all CPU cores together."""

    seconds: float
    cpu_seconds: float


class Peak(NamedTuple):
    """Operations a second of the fastest product seen."""

    per_second: float = 0.0
    per_cpu_second: float = 0.0

    def or_better(self, other: "Peak") -> "Peak":
        """Return the better of both, clock by clock."""
        return Peak(*map(max, self, other))


def timed(work: Callable[[], Any]) -> Cost:
    """Run something that evaluates its own results, and return what it took."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


def measure_peak(dtype: mx.Dtype) -> Peak:
    """Return the speed of the fastest of some square products."""
    on_cpu, best = mx.default_device() == mx.cpu, Peak()
    for size in CPU_SIZES if on_cpu else GPU_SIZES:
        matrix = mx.random.normal((size, size), key=mx.random.key(size)).astype(dtype)
        mx.eval(matrix @ matrix)
        repeats = max(1, (4096 if on_cpu else 16384) // size)

        def multiply(matrix: mx.array = matrix, repeats: int = repeats) -> None:
            mx.eval([matrix @ matrix for _ in range(repeats)])

        for _ in range(REPEATS):
            cost = timed(multiply)
            flops = 2.0 * size**3 * repeats
            best = best.or_better(Peak(flops / cost.seconds, flops / max(cost.cpu_seconds, 1e-9) if on_cpu else 0.0))
    return best
