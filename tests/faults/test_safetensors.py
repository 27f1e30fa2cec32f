"""Damaged safetensors files: accepted or refused as the format's own library does, and never a crash."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors import SafetensorError, deserialize

from macft.errors import ModelError
from macft.models.headers import check_file
from macft.models.tensors import load_tensors, save_tensors

SMALL = [0, 1, 2, 3, 4, 6, 8, 16, 48, 96]
NUMBERS = [*SMALL, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 2**70, -1, 1.0, 1e2, True, None, "4"]
DTYPES = ["F32", "F16", "BF16", "I8", "U8", "F4", "F6_E2M3", "F64", "C64", "F8_E4M3", "F8_E8M0"]
NO_DTYPES = ["f32", "", None, 4, "F128"]
NAMES = ["a", "", "__metadata__", "../a", "\ud800", "\x00", "\x1b[31m", "é", "a" * 300, "b.weight"]


def parts_of(content: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole_of(header: Any, data: bytes, draw: random.Random) -> bytes:
    text = json.dumps(header, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    text += b" " * (draw.random() < 0.5) * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(draw.choice([8, 40, len(content)]))
        changed[place] = draw.choice([0, 0x22, 0x30, 0x7B, 0xFF, draw.randrange(256)])
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def grow(content: bytes, draw: random.Random) -> bytes:
    at = draw.choice([8, len(content), draw.randrange(len(content))])
    return content[:at] + draw.randbytes(draw.choice([1, 4, 8])) + content[at:]


def relength(content: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    told = draw.choice([0, 1, 2, length - 1, length + 1, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
    return told.to_bytes(8, "little") + content[8:]


def edit(content: bytes, draw: random.Random) -> bytes:
    header, data = parts_of(content)
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    entry = draw.choice(entries)
    match draw.randrange(9):
        case 0:
            entry["dtype"] = draw.choice(DTYPES + NO_DTYPES)
        case 1:
            entry["shape"] = [draw.choice(NUMBERS) for _ in range(draw.randrange(4))]
        case 2:
            entry["data_offsets"][draw.randrange(2)] = draw.choice(NUMBERS)
        case 3:
            other = draw.choice(entries)
            entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
        case 4:
            del entry[draw.choice(list(entry))]
        case 5:
            entry[draw.choice(["extra", "dtype ", "shape"])] = draw.choice(NUMBERS)
        case 6:
            header[draw.choice(NAMES)] = draw.choice([entry, draw.choice(NUMBERS), [], {}])
        case 7:
            header["__metadata__"] = draw.choice([None, {}, {"a": "b"}, {"a": 1}, {"a": None}, [], "a", 1])
        case 8:
            del header[draw.choice(list(header))]
    return whole_of(header, data, draw)


def respell(content: bytes, draw: random.Random) -> bytes:
    """Write the same JSON otherwise, or almost JSON."""
    header, data = parts_of(content)
    text = json.dumps(header)
    old, new = draw.choice(
        [
            ("0", "-0"),
            ("0", "0.0"),
            ("0", "00"),
            ("4", "4e0"),
            ("4", "NaN"),
            ("4", "Infinity"),
            ('"', "'"),
            ("{", "{\n\t"),
            ("{", "{{"),
            ("}", ",}"),
            ("}", "}}"),
            ("}", '}, "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}'),
            ("F32", "\\u0046\\u0033\\u0032"),
            ("F32", "F\x01"),
            ("[", "[" * 200),
        ]
    )
    at = [place for place in range(len(text)) if text.startswith(old, place)]
    place = draw.choice(at)
    text = text[:place] + new + text[place + len(old) :]
    encoded = text.encode(draw.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]))
    return len(encoded).to_bytes(8, "little") + encoded + data


WAYS: list[Callable[[bytes, random.Random], bytes]] = [flip, cut, grow, relength, edit, edit, edit, respell]


def make_seeds(folder: Path) -> list[bytes]:
    """Return sound files: of several types, with a scalar, with an empty tensor, and one without any."""
    tensors = {
        "a": mx.ones((2, 3)),
        "b.weight": mx.ones((4,), mx.bfloat16),
        "c": mx.array(3, mx.uint64),
        "empty": mx.zeros((0, 4)),
        "d": mx.ones((5,), mx.uint8),
    }
    for number, chosen in enumerate([tensors, {"a": tensors["a"]}, {}]):
        save_tensors(folder / f"{number}.safetensors", chosen)
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def check(mutant: bytes, path: Path) -> bool:
    """Compare what macft says of a file with what the library says; load what both accept."""
    path.write_bytes(mutant)
    try:
        deserialize(mutant)
        theirs, why = True, ""
    except SafetensorError as error:
        theirs, why = False, str(error)
    try:
        check_file(path, fix="-")
        ours = True
    except ModelError as error:
        ours, why = False, why or error.message
    assert ours == theirs, f"macft {ours}, library {theirs}: {why}: {mutant[:400]!r}"
    try:
        mx.eval(load_tensors(path))
    except ModelError:
        return False  # refused, or of a type that MLX does not have
    assert ours
    return True


def mutate(count: int, seed: int, folder: Path) -> int:
    draw, seeds, accepted = random.Random(seed), make_seeds(folder), 0
    for number in range(count):
        mutant = seeds[draw.choice([0, 0, 0, 1, 2])]
        for _ in range(draw.choice([1, 1, 1, 2])):
            try:
                mutant = draw.choice(WAYS)(mutant, draw)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError):  # no longer a file that can be edited
                break
        accepted += check(mutant, folder / f"mutant-{number % 7}")
    return accepted


def test_some_hundred_mutants_are_judged_as_the_library_judges_them(tmp_path: Path) -> None:
    assert 0 < mutate(600, 1, tmp_path) < 300


@pytest.mark.long
def test_ten_thousand_mutants_are_judged_as_the_library_judges_them(tmp_path: Path) -> None:
    assert 0 < mutate(10_000, 2, tmp_path) < 5_000
