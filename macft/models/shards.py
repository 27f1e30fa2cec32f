"""Tensors to safetensors files, one tensor at a time.

The rule: arrays come unevaluated and leave evaluated, one after the other, so that writing a model of any size takes
the memory of its largest tensor. A folder is written aside, flushed to the disk and renamed: it is whole or not there.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from macft.disk import flush
from macft.errors import RunError

SHARD_BYTES = 5 * 10**9
"""Largest file; what mlx-lm and transformers cut at, too."""
INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
_TYPES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint16: "U16",
    mx.uint8: "U8",
    mx.int32: "I32",
    mx.int8: "I8",
    mx.int64: "I64",
    mx.uint64: "U64",
    mx.int16: "I16",
    mx.bool_: "BOOL",
}


class _Shard(NamedTuple):
    name: str
    tensors: list[str]


def write_shards(
    folder: Path, tensors: dict[str, mx.array], *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> int:
    """Write a model's tensors as `model*.safetensors` with their index.

    Args:
        folder: Where to; it exists.
        tensors: By name, in the order in which they are made; emptied, so that each is let go once it is written.
        shard_bytes: Largest file; a larger tensor has one for itself.
        progress: Told (bytes done, all bytes) after each tensor.

    Returns:
        The bytes of all tensors.
    """
    total, done = sum(value.nbytes for value in tensors.values()), 0
    place: dict[str, str] = {}
    for shard in _cut(tensors, shard_bytes):
        place |= dict.fromkeys(shard.tensors, shard.name)
        with (folder / shard.name).open("wb") as file:
            file.write(_header({name: tensors[name] for name in shard.tensors}))
            for name in shard.tensors:
                value = tensors.pop(name)
                file.write(tensor_bytes(value))
                done += value.nbytes
                del value
                mx.clear_cache()  # or buffers of every size would pile up beside the one in use
                if progress:
                    progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def tensor_chunks(tensors: dict[str, mx.array]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file; equal tensors make equal files, whatever order they come in."""
    ordered = dict(sorted(tensors.items()))
    yield _header(ordered)
    for value in ordered.values():
        yield tensor_bytes(value)


def tensor_bytes(value: mx.array) -> memoryview:
    """Evaluate an array and return its bytes, row after row."""
    flat = mx.contiguous(value).reshape(-1)
    mx.eval(flat)
    return np.array(flat.view(mx.uint8), copy=False).data


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        RunError: `path` is there and not empty, or cannot be written.
    """
    refuse_full(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})", fix="Name another folder with --out.") from None
    try:
        yield aside
        for file in [entry for entry in aside.rglob("*") if entry.is_file()]:
            flush(file)
        if path.is_dir():
            path.rmdir()
        aside.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_full(path: Path) -> None:
    """Raise when there is something at `path` already: nothing is ever written over.

    Raises:
        RunError: There is a file, or a folder that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunError(f"{path} is there already", fix="Name another folder with --out, or remove it.")


def _cut(tensors: dict[str, mx.array], shard_bytes: int) -> list[_Shard]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        if groups[-1] and size + value.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += value.nbytes
    count = len(groups)
    if count == 1:
        return [_Shard("model.safetensors", groups[0])]
    return [_Shard(f"model-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups, start=1)]


def _header(tensors: dict[str, mx.array]) -> bytes:
    """Return the head of a file, from shapes and types alone."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    start = 0
    for name, value in tensors.items():
        end = start + value.nbytes
        entries[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
