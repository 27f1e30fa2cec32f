"""Adapter folders for tests, made of golden tensors."""

from pathlib import Path

import mlx.core as mx

from macft.models.adapters import write_adapter_files
from tests.golden import TARGETS, load_case

TOKENS = mx.array([[5, 80, 120, 7, 33, 101, 66, 2, 90, 41]])


def write_golden_adapter(
    folder: Path, case: str = "llama", kind: str = "lora", *, times: float = 1.0, **provenance: object
) -> Path:
    """Write a golden adapter as mlx-lm reads it; `times` strengthens or weakens its B."""
    adapter = load_case(case).adapters[kind]
    config = {
        "fine_tune_type": "dora" if kind == "dora" else "lora",
        "num_layers": 3,
        "lora_parameters": {"rank": adapter.rank, "scale": adapter.scale, "dropout": 0.0, "keys": list(TARGETS)},
    }
    weights = {
        name: mx.array(value) * (times if name.endswith("lora_b") else 1.0) for name, value in adapter.weights.items()
    }
    folder.mkdir(parents=True)
    write_adapter_files(folder, weights, config, {"base_model": case, **provenance})
    return folder
