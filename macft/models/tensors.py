"""Safetensors files of adapters and checkpoints, written through the disk and read with suspicion.

The rule: a header is checked before MLX reads the file, and what was read is compared with what the model has.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx

from macft.disk import DISK, Bytes, Disk, write_file
from macft.errors import ModelError
from macft.models.headers import check_file
from macft.models.shards import tensor_chunks


def save_tensors(path: Path, tensors: dict[str, mx.array], disk: Disk = DISK) -> str:
    """Write a safetensors file to the disk and return its SHA-256; equal tensors make equal files."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[Bytes]:
        for chunk in tensor_chunks(tensors):
            digest.update(chunk)
            yield chunk

    write_file(path, hashed(), disk)
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, mx.array]:
    """Read a safetensors file.

    Raises:
        ModelError: It is missing or damaged.
    """
    check_file(path, fix="Name another checkpoint or adapter, or copy this one again.")
    try:
        loaded = mx.load(str(path), format="safetensors")
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    return cast(dict[str, mx.array], loaded)


def check_tensors(
    found: dict[str, mx.array],
    expected: dict[str, mx.array],
    *,
    where: Path,
    complete: bool = True,
    same_dtype: bool = False,
) -> None:
    """Compare names, shapes, types and finiteness of loaded tensors with the model's.

    Args:
        found: By name.
        expected: The model's own.
        where: The file, for the message.
        complete: Whether all of the model's must be there.
        same_dtype: Whether the types must be the model's; else it is enough that floating-point numbers stay such.

    Raises:
        ModelError: With the first three tensors that differ.
    """
    wrong = [f"{name} is missing" for name in expected if complete and name not in found]
    for name, value in found.items():
        if name not in expected:
            wrong.append(f"{name} has no place in the model")
        elif value.shape != expected[name].shape:
            wrong.append(f"{name} has shape {value.shape}, the model's is {expected[name].shape}")
        elif value.dtype != expected[name].dtype and (same_dtype or not mx.issubdtype(value.dtype, mx.floating)):
            wrong.append(f"{name} has type {_named(value.dtype)}, the model's is {_named(expected[name].dtype)}")
        elif not mx.isfinite(value).all().item():
            wrong.append(f"{name} holds NaN or infinity")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(f"{where} does not fit the model: {'; '.join(wrong[:3])}{more}")


def _named(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
