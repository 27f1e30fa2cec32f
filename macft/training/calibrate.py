"""How fast this machine trains: a matrix product, and one layer's forward and backward pass, timed once and kept.

The rule: under three seconds, kept by chip and version of MLX, and never part of what a plan decides; it gives times
only.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from macft.disk import write_atomic
from macft.losses.exponential import swiglu
from macft.plan import Calibration

FILE = "calibration.json"
ROUNDS, ROUND_SECONDS = 3, 0.4
TOKENS, WIDTH, INNER = 512, 576, 1536
"""A layer of SmolLM2-135M, with as many tokens as a CPU's micro-batch."""
SIDE = {"cpu": 1024, "gpu": 4096}


def calibrate(folder: Path, chip: str) -> Calibration:
    """Return this machine's speed: kept from before, or measured now and kept.

    Args:
        folder: macft's home.
        chip: What this machine is called.
    """
    if kept := read_calibration(folder, chip):
        return kept
    device = "gpu" if mx.default_device() == mx.gpu else "cpu"
    dtype = mx.bfloat16 if device == "gpu" else mx.float32
    measured = Calibration(chip, version("mlx"), _matmul_flops(SIDE[device], dtype), _layer_flops(dtype))
    everything = _read(folder)
    everything[_key(chip)] = asdict(measured)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(everything, indent=2).encode())
    return measured


def read_calibration(folder: Path, chip: str) -> Calibration | None:
    """Return what was measured here before, with this version of MLX; None when nothing was."""
    try:
        return Calibration(**_read(folder)[_key(chip)])
    except (KeyError, TypeError):
        return None


def _read(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # it can be measured again
    return values if isinstance(values, dict) else {}


def _key(chip: str) -> str:
    return f"{chip} · mlx {version('mlx')}"


def _matmul_flops(side: int, dtype: mx.Dtype) -> float:
    a = mx.random.normal((side, side), key=mx.random.key(0)).astype(dtype)
    mx.eval(a)
    return 2 * side**3 / _seconds(lambda: mx.eval(a @ a))


def _layer_flops(dtype: mx.Dtype) -> float:
    """Time the seven products of a frozen layer and its SwiGLU, forth and back: 4 FLOPs a weight and token."""
    sizes = [(WIDTH, WIDTH)] * 4 + [(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    weights = [
        mx.random.normal(size, key=mx.random.key(place)).astype(dtype) * 0.02 for place, size in enumerate(sizes)
    ]
    x = mx.random.normal((TOKENS, WIDTH), key=mx.random.key(9)).astype(dtype)
    mx.eval(weights, x)

    def layer(x: mx.array) -> mx.array:
        q, k, v, o, gate, up, down = weights
        x = x + mx.fast.rms_norm((x @ q.T) * (x @ k.T) + x @ v.T, None, 1e-5) @ o.T
        normed = mx.fast.rms_norm(x, None, 1e-5)
        return (x + swiglu(normed @ gate.T, normed @ up.T) @ down.T).sum()

    backward = mx.grad(layer)
    return 4 * TOKENS * sum(rows * columns for rows, columns in sizes) / _seconds(lambda: mx.eval(backward(x)))


def _seconds(work: Callable[[], object]) -> float:
    """Return the least time that the work took in a few short rounds, after a warm-up."""
    work()
    best = float("inf")
    for _ in range(ROUNDS):
        started, times = time.perf_counter(), 0
        while time.perf_counter() - started < ROUND_SECONDS:
            work()
            times += 1
        best = min(best, (time.perf_counter() - started) / times)
    return best
