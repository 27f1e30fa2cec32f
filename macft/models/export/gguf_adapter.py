"""A LoRA adapter as one GGUF file, which llama.cpp and Ollama put on a GGUF base.

The rule: A and B are written as they are, in float32, without torch; only the rows of B follow llama.cpp's order of q
and k, as those of the base do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macft.errors import ModelError
from macft.models.describe import ModelFacts
from macft.models.export.llamacpp import Names, find_family, interleave


def write_gguf_adapter(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, mx.array], facts: ModelFacts, *, name: str
) -> None:
    """Write an adapter for llama.cpp.

    Args:
        path: The file.
        config: From `read_adapter`.
        weights: From `read_adapter`.
        facts: Of the base.
        name: What the file calls itself.

    Raises:
        ModelError: The family is not known, or the adapter is no plain LoRA on linear layers.
    """
    from gguf import GGUFWriter

    if config["fine_tune_type"] != "lora":
        kind = config["fine_tune_type"]
        raise ModelError(f"llama.cpp reads no {kind} adapters", fix="`--to gguf` writes the fused model.")
    family = find_family(facts.family)
    rank, scale = config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]
    names = Names(family, facts.layers)
    writer = GGUFWriter(path, family.architecture)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank * scale)
    for module in sorted({key.rpartition(".")[0] for key in weights}):
        a, b = np.array(weights[f"{module}.lora_a"]), np.array(weights[f"{module}.lora_b"])
        if a.ndim != 2:
            raise ModelError(f"{module} adapts experts, which macft does not write", fix="`--to gguf` fuses them.")
        stored, rows = names(f"{module}.weight"), b.T
        if family.interleaves:
            rows = interleave(module, rows, heads=facts.heads, kv_heads=facts.kv_heads)
        writer.add_tensor(f"{stored}.lora_a", np.ascontiguousarray(a.T, np.float32))
        writer.add_tensor(f"{stored}.lora_b", np.ascontiguousarray(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
