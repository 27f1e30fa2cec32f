"""What llama.cpp calls things: families, tensors, and the order of rows in q and k.

The rule: only families whose conversion was compared with llama.cpp itself are named here; others are refused.
"""

import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from macft.errors import ModelError

Array = npt.NDArray[Any]


class Family(NamedTuple):
    """A family of models as llama.cpp knows it.

    Attributes:
        architecture: Its name there.
        interleaves: It stores the two halves of each head's rows of q and k interleaved.
    """

    architecture: str
    interleaves: bool


FAMILIES = {
    "llama": Family("llama", interleaves=True),
    "mistral": Family("llama", interleaves=True),
    "qwen2": Family("qwen2", interleaves=False),
    "qwen3": Family("qwen3", interleaves=False),
}
_LAYER = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj")


def find_family(model_type: str) -> Family:
    """Return what llama.cpp calls a family.

    Raises:
        ModelError: macft does not write it as GGUF.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"macft writes GGUF of the families {', '.join(FAMILIES)} (this one is {model_type})",
            fix="`--to mlx` writes a folder that llama.cpp's own convert_hf_to_gguf.py reads.",
        )
    return FAMILIES[model_type]


class Names:
    """Maps tensors' names for one model."""

    def __init__(self, family: Family, layers: int) -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
        self._map = get_tensor_name_map(architecture, layers)

    def __call__(self, name: str) -> str:
        """Return llama.cpp's name for a tensor.

        Raises:
            ModelError: It has none.
        """
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"llama.cpp has no place for the tensor {name}")
        return str(found)


def interleave(name: str, rows: Array, *, heads: int, kv_heads: int) -> Array:
    """Put the rows of q and k, weights or biases, into llama.cpp's order; others come back as they are.

    Each head's rows are two halves that RoPE turns together; llama.cpp's llama wants row i of both side by side.

    Args:
        name: The tensor's name in the model.
        rows: [heads · head_dim, …].
        heads: Of queries.
        kv_heads: Of keys.
    """
    if not (match := _LAYER.match(name)):
        return rows
    count = heads if match.group(1) == "q" else kv_heads
    halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
