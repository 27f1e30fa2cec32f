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
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_LARGEST = 2**64 - 1


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
        tensors.update(_read_header(file, _PULL_AGAIN))
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


def check_file(file: Path, *, fix: str) -> None:
    """Check the header of a safetensors file, as the format's own library does.

    Args:
        file: The file.
        fix: What to do when it is damaged.

    Raises:
        ModelError: It is damaged.
    """
    _read_header(file, fix)


def _read_header(file: Path, fix: str) -> dict[str, TensorHeader]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the file is shorter than its header says")
            # Decoded here: json would take bytes for UTF-16 if they looked like it.
            entries = json.loads(stream.read(length).decode(), parse_constant=_refuse, parse_int=_natural)
        _check_strings(entries.pop("__metadata__", None))
        json.dumps(list(entries), ensure_ascii=False).encode()  # half of a surrogate pair is no name
        tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in entries.items()}
        _check_places(tensors, 8 + length, size)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})", fix=fix) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({error})", fix=fix) from None
    return tensors


def _tensor(file: Path, name: str, entry: dict[str, Any], offset: int) -> TensorHeader:
    shape, dtype, (start, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    if not all(type(number) is int and 0 <= number <= _LARGEST for number in (*shape, start, end)):
        raise ValueError(f"{name} has a shape or place that is no natural number")
    if dtype not in _ITEM_BITS:
        raise ValueError(f"{name} has the unknown type {dtype!r}")
    elements = 1
    for length in shape:  # in this order, and a zero after an overflow does not mend it
        elements *= length
        if elements > _LARGEST:
            raise ValueError(f"{name} has a shape beyond all bounds")
    bits = elements * _ITEM_BITS[dtype]
    if bits > _LARGEST or bits != 8 * (end - start):
        raise ValueError(f"{name} has {end - start} bytes, which is not {dtype} {list(shape)}")
    return TensorHeader(file, dtype, shape, offset + start, offset + end)


def _check_places(tensors: dict[str, TensorHeader], start: int, size: int) -> None:
    """Refuse tensors that overlap or leave gaps: they lie one after the other, and the last ends with the file."""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][3:]):
        if tensor.start != start:
            raise ValueError(f"{name} does not start where the tensor before it ends")
        start = tensor.end
    if start != size:
        raise ValueError(f"its tensors take {start} bytes, and the file has {size}")


def _check_strings(metadata: Any) -> None:
    values = {} if metadata is None else dict(metadata.items())
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError("its metadata is not text")


def _natural(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)  # the library takes -0 for no natural number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
