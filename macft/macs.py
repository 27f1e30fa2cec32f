"""Published figures of Macs, so that a run can be planned for a machine that is not here.

The rule: only what Apple publishes, for the largest GPU of each chip; nothing here was measured, and every time made
from it is an estimate.
"""

import difflib
import platform
import re
from dataclasses import dataclass

from macft.errors import Problem, RecipeError
from macft.machine import GIB, MachineFacts, estimate_working_set
from macft.plan import Calibration

TRAINING_SHARE = 0.25
"""Useful share of the published FLOP/s in a training step: 99 tokens/s of Qwen3-8B on an M1 Max (ENGINE §6)."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip as published.

    Attributes:
        tflops: Of the GPU in float32.
        bandwidth: Of memory, GB/s.
        memory: Sizes that it is sold with, GB.
    """

    cpu_cores: int
    gpu_cores: int
    tflops: float
    bandwidth: float
    memory: tuple[int, ...]


CHIPS = {
    "M1": Chip(8, 8, 2.6, 68, (8, 16)),
    "M1 Pro": Chip(10, 16, 5.2, 200, (16, 32)),
    "M1 Max": Chip(10, 32, 10.4, 400, (32, 64)),
    "M1 Ultra": Chip(20, 64, 20.8, 800, (64, 128)),
    "M2": Chip(8, 10, 3.6, 100, (8, 16, 24)),
    "M2 Pro": Chip(12, 19, 6.8, 200, (16, 32)),
    "M2 Max": Chip(12, 38, 13.6, 400, (32, 64, 96)),
    "M2 Ultra": Chip(24, 76, 27.2, 800, (64, 128, 192)),
    "M3": Chip(8, 10, 3.5, 100, (8, 16, 24)),
    "M3 Pro": Chip(12, 18, 6.4, 150, (18, 36)),
    "M3 Max": Chip(16, 40, 14.2, 400, (36, 48, 64, 96, 128)),
    "M3 Ultra": Chip(32, 80, 28.4, 819, (96, 256, 512)),
    "M4": Chip(10, 10, 4.3, 120, (16, 24, 32)),
    "M4 Pro": Chip(14, 20, 8.5, 273, (24, 48, 64)),
    "M4 Max": Chip(16, 40, 17.0, 546, (36, 48, 64, 128)),
}
_CASES = {"Air": ("",), "mini": ("", " Pro"), "iMac": ("",), "Studio": (" Max", " Ultra")}
"""Cases and the chips that they are sold with; a MacBook Pro and a bare chip take any."""
_NAME = re.compile(r"(?:macbook |mac )?(.+?)(?:[ ,]+(\d+) ?gb)?", re.IGNORECASE)


def find_mac(name: str) -> tuple[MachineFacts, Calibration]:
    """Return facts and speed of a Mac by name, like `M2 Air 16GB`; without memory, the least that it is sold with.

    Raises:
        RecipeError: No such Mac, or not with this memory; the nearest is named.
    """
    match = _NAME.fullmatch(" ".join(name.split()))
    known = _known_names()
    said = match[1].lower() if match else ""
    chip_name = known.get(said)
    if match is None or chip_name is None:
        near = difflib.get_close_matches(said or name.lower(), known, n=1, cutoff=0.3)
        hint = f"The nearest is '{_titled(near[0])}'." if near else "Like 'M2 Air 16GB'."
        raise RecipeError([Problem("--for", f"{name!r} is no Mac that macft knows")], fix=hint)
    chip = CHIPS[chip_name]
    memory = int(match[2]) if match[2] else chip.memory[0]
    if memory not in chip.memory:
        near_memory = min(chip.memory, key=lambda size: abs(size - memory))
        sold = ", ".join(map(str, chip.memory))
        problem = Problem("--for", f"an {chip_name} has {sold} GB of memory (got {memory})")
        raise RecipeError([problem], fix=f"The nearest is '{_titled(said)} {near_memory}GB'.")
    flops = chip.tflops * 1e12
    return _facts(chip_name, chip, memory), Calibration(
        f"Apple {chip_name}", "", flops, TRAINING_SHARE * flops, is_estimate=True
    )


def _known_names() -> dict[str, str]:
    """Return every way to name a Mac, in lower case, and its chip."""
    names = {chip.lower(): chip for chip in CHIPS} | {f"pro {chip}".lower(): chip for chip in CHIPS}
    for case, kinds in _CASES.items():
        for chip in CHIPS:
            generation, _, kind = chip.partition(" ")
            if (f" {kind}" if kind else "") in kinds:
                names |= {f"{chip} {case}".lower(): chip, f"{case} {chip}".lower(): chip}
                names |= {f"{generation} {case}".lower(): f"{generation}{kinds[0]}"}
    return names


def _titled(name: str) -> str:
    words = {word.lower(): word for word in (*_CASES, "Pro", "Max", "Ultra")}
    return " ".join(words.get(word, word.upper()) for word in name.split())


def _facts(name: str, chip: Chip, memory: int) -> MachineFacts:
    memory_bytes = memory * GIB
    return MachineFacts(
        system="Darwin",
        chip=f"Apple {name}",
        cores=chip.cpu_cores,
        memory_bytes=memory_bytes,
        working_set_bytes=estimate_working_set(memory_bytes),
        on_battery=False,
        battery_percent=None,
        macos_version="",
        rosetta=False,
        python=platform.python_version(),
    )
