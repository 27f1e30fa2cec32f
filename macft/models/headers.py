"""The headers of safetensors files: names, types, shapes and places of tensors, read without loading any of them.

The rule: a header is checked in full before anything relies on it, so a damaged file is named here and never reaches
MLX.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from macft.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}


class TensorHeader(NamedTuple):
    """One tensor of a file: its type and shape, and the bytes of the file that hold it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Count the elements, 1 for a scalar."""
        return math.prod(self.shape)


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of all `model*.safetensors` of a folder, sorted by tensor name.

    Raises:
        ModelError: There is no such file, one that the index names is missing, or one is damaged.
    """
    files = sorted(folder.glob("model*.safetensors"))
    _check_index(folder, {file.name for file in files})
    if not files:
        raise ModelError(f"{folder} has no model*.safetensors{_other_weights(folder)}", fix=_PULL_AGAIN)
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        tensors.update(_read_header(file))
    return dict(sorted(tensors.items()))


_PULL_AGAIN = "Fetch the model again with `macft pull`, or point to a folder of safetensors."


def _other_weights(folder: Path) -> str:
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    return f", only {pickles[0]}: pickled weights can run code and are never opened" if pickles else ""


def _check_index(folder: Path, present: set[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is damaged (expected a `weight_map` of file names)", fix=_PULL_AGAIN) from None
    for name in sorted(named, key=str):
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index} names {name!r}, which is outside the model's folder")
        if name not in present:
            raise ModelError(f"{folder} lacks {name}, which {index.name} names", fix=_PULL_AGAIN)


def _read_header(file: Path) -> dict[str, TensorHeader]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the file is shorter than its header says")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        return {name: _tensor(file, name, entry, 8 + length, size) for name, entry in entries.items()}
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})", fix=_PULL_AGAIN) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({error})", fix=_PULL_AGAIN) from None


def _tensor(file: Path, name: str, entry: dict[str, Any], offset: int, size: int) -> TensorHeader:
    shape, dtype, (start, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name} has a shape or place that is no natural number")
    if not start <= end <= size - offset:
        raise ValueError(f"{name} ends beyond the file")
    if dtype in _ITEM_BITS and math.prod(shape) * _ITEM_BITS[dtype] != 8 * (end - start):
        raise ValueError(f"{name} has {end - start} bytes, which is not {dtype} {list(shape)}")
    return TensorHeader(file, dtype, shape, offset + start, offset + end)
