"""Files to rows, each with the place it came from.

The rule: reading never stops at the first bad row. Whatever cannot be read becomes a `Problem` with its file and line,
and the next row is read; nothing is repaired in silence. JSONL and CSV are streamed: a file may be larger than memory.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from macft.data.strict_json import (
    Unreadable,
    decode,
    decode_at,
    explain,
    find_value,
    has_lone_surrogate,
    iterate_elements,
    line_of,
)
from macft.errors import Problem

STDIN = "-"
_LONGEST_CELL = 2**27
_BOM = b"\xef\xbb\xbf"
_ABOUT = re.compile(r"(readme|licen[cs]e|changelog).*\.(md|txt)", re.IGNORECASE)
"""Files about the data in a folder of data; they are read when they are named themselves."""
_LINE_BASED = {".jsonl", ".ndjson", ".csv", ".tsv"}
_EXAMPLE_KEYS = {"messages", "conversations", "prompt", "instruction", "text"}


class Row(NamedTuple):
    """One object read from a file.

    Attributes:
        value: The object, column name to value.
        where: `file.jsonl:37`, as shown to the user.
        file: The path as it was given.
        line: The line it starts on, from 1; the row's number in a Parquet file.
    """

    value: dict[str, Any]
    where: str
    file: str
    line: int


class LocatedRow(NamedTuple):
    """A row, or the end of the files, and the problems that lie between it and the row before."""

    row: Row | None
    problems: list[Problem]


Reader = Callable[[Path, list[Problem]], Iterator[Row]]


def read_rows(paths: Sequence[str], problems: list[Problem]) -> Iterator[Row]:
    """Read rows from files, folders and standard input (`-`), in order.

    Args:
        paths: A folder stands for every supported file in it, sorted, but not for what is about it, such as README.md;
            `-` is JSONL on standard input.
        problems: Gets everything that could not be read.

    Returns:
        Rows, streamed; `problems` is complete when the iterator is exhausted.
    """
    for name in paths:
        if name == STDIN:
            yield from _counted(name, problems, _json_lines(sys.stdin.buffer, "stdin", STDIN, problems))
            continue
        for path in _files(Path(name), problems):
            try:
                yield from _counted(path.name, problems, READERS[path.suffix.lower()](path, problems))
            except OSError as error:
                problems.append(Problem(str(path), f"cannot be read: {error.strerror or error}"))


def read_located(paths: Sequence[str]) -> Iterator[LocatedRow]:
    """Do what `read_rows` does, with each problem in its place, so that rows may be read ahead."""
    problems, told = list[Problem](), 0
    for row in read_rows(paths, problems):
        yield LocatedRow(row, problems[told:])
        told = len(problems)
    yield LocatedRow(None, problems[told:])


def list_files(paths: Sequence[str]) -> list[Path]:
    """Return the files that `read_rows` would open, without standard input."""
    return [path for name in paths if name != STDIN for path in _files(Path(name), [])]


def count_lines(paths: Sequence[str]) -> int:
    """Return the number of lines of the line-based files, and one for each other file: about as many as rows."""
    total = 0
    for path in list_files(paths):
        if path.suffix.lower() not in _LINE_BASED:
            total += 1
            continue
        with path.open("rb") as file:
            total += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return total


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    if not path.exists():
        problems.append(Problem(str(path), "no such file or folder"))
    elif path.is_dir():
        found = sorted(
            child
            for child in path.rglob("*")
            if child.is_file()
            and child.suffix.lower() in READERS
            and not _ABOUT.fullmatch(child.name)
            and not any(part.startswith(".") for part in child.relative_to(path).parts)
        )
        if not found:
            problems.append(Problem(str(path), f"holds no data (looked for {', '.join(READERS)})"))
        return found
    elif path.suffix.lower() not in READERS:
        kind = f"files that end in {path.suffix!r}" if path.suffix else "files without an ending"
        problems.append(Problem(str(path), f"{kind} are not read (expected {', '.join(READERS)})"))
    else:
        return [path]
    return []


def _counted(name: str, problems: list[Problem], rows: Iterator[Row]) -> Iterator[Row]:
    """Pass rows on, and say so when a file has neither rows nor problems."""
    before, empty = len(problems), True
    for row in rows:
        empty = False
        yield row
    if empty and len(problems) == before:
        problems.append(Problem(name, "is empty (expected at least one row)"))


def _read_jsonl(path: Path, problems: list[Problem]) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _json_lines(file, path.name, str(path), problems)


def _json_lines(file: BinaryIO, shown: str, name: str, problems: list[Problem]) -> Iterator[Row]:
    for number, line in _lines(file, shown, problems):
        if line.strip():
            yield from parse_line(line, f"{shown}:{number}", name, number, problems)


def parse_line(text: str, where: str, name: str, number: int, problems: list[Problem]) -> Iterator[Row]:
    """Yield the row that a line of JSONL holds; nothing when that is a problem."""
    try:
        value = decode(text.strip())
    except (ValueError, RecursionError) as error:
        problems.append(Problem(where, explain(error)))
        return
    # Decoded bytes hold no half of a pair; only an escape can.
    yield from _row(value, where, name, number, problems, may_be_torn="\\u" in text)


def _lines(file: Iterable[bytes], shown: str, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    """Decode a file line by line; a line that is not UTF-8 text is a problem, not an end."""
    for number, raw in enumerate(file, start=1):
        if number == 1 and raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
            problems.append(Problem(f"{shown}:1", "is UTF-16 text (expected UTF-8)"))
            return
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if b"\0" in line:
            problems.append(Problem(f"{shown}:{number}", "holds a NUL byte (expected UTF-8 text)"))
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            problems.append(
                Problem(f"{shown}:{number}", f"is not UTF-8 text: byte 0x{byte:02x} at position {error.start + 1}")
            )


def _row(
    value: object, where: str, name: str, line: int, problems: list[Problem], *, may_be_torn: bool = True
) -> Iterator[Row]:
    if not isinstance(value, dict):
        problems.append(Problem(where, f"is {kind_of(value)} (expected an object)"))
    elif may_be_torn and has_lone_surrogate(value):
        problems.append(
            Problem(where, "holds half of a surrogate pair, like \\ud83d alone (expected whole characters)")
        )
    else:
        yield Row(value, where, name, line)


def kind_of(value: object) -> str:
    """Name the JSON type of a value, with its article: `null`, `a number`, `text`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = ((int | float, "a number"), (str, "text"), (list | tuple, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _read_json(path: Path, problems: list[Problem]) -> Iterator[Row]:
    """Read an array of objects, an object that holds one, a single example, or JSONL with the wrong ending."""
    text = _whole_text(path, problems)
    if not text.strip():
        return
    at = len(text) - len(text.lstrip())
    try:
        if text[at] == "[":
            yield from _elements(text, at, path, problems)
            return
        value, end = decode_at(text, at)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else line_of(text, at)
        problems.append(Problem(f"{path.name}:{line}", explain(error)))
        return
    if text[end:].lstrip().startswith("{"):
        yield from _read_jsonl(path, problems)
        return
    if text[end:].strip():
        problems.append(Problem(f"{path.name}:{line_of(text, end)}", "goes on after the end of its JSON"))
        return
    yield from _object(value, text, at, path, problems)


def _object(value: object, text: str, at: int, path: Path, problems: list[Problem]) -> Iterator[Row]:
    line = line_of(text, at)
    if not isinstance(value, dict) or _EXAMPLE_KEYS & value.keys():
        yield from _row(value, f"{path.name}:{line}", str(path), line, problems)
        return
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    candidates = [key for key, item in lists.items() if any(isinstance(part, dict) for part in item)] or list(lists)
    if len(candidates) != 1:
        what = f"is an object with {len(lists)} lists (expected a list of rows, or an object that holds one list)"
        problems.append(Problem(f"{path.name}:{line}", what))
        return
    yield from _elements(text, find_value(text, at, candidates[0]), path, problems, whole=False)


def _elements(text: str, at: int, path: Path, problems: list[Problem], *, whole: bool = True) -> Iterator[Row]:
    for line, value in iterate_elements(text, at, whole=whole):
        if isinstance(value, Unreadable):
            problems.append(Problem(f"{path.name}:{line}", str(value)))
        else:
            yield from _row(value, f"{path.name}:{line}", str(path), line, problems)


def _whole_text(path: Path, problems: list[Problem]) -> str:
    """Return a file's text, empty when any line of it is a problem."""
    before = len(problems)
    with path.open("rb") as file:
        text = "".join(line for _, line in _lines(file, path.name, problems))
    return text if len(problems) == before else ""


def _read_csv(path: Path, problems: list[Problem]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open("rb") as file:
        header: list[str] = []
        for line, cells in csv_records(file, path, problems):
            where = f"{path.name}:{line}"
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    problems.append(Problem(where, "has a header with an empty or a repeated name"))
                    return
            elif len(cells) != len(header):
                problems.append(Problem(where, f"has {len(cells)} cells (expected {len(header)}, as in the header)"))
            else:
                yield Row(dict(zip(header, cells, strict=True)), where, str(path), line)


def csv_records(file: BinaryIO, path: Path, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line it starts on; a quoted cell may span several."""
    consumed: list[int] = []

    def feed() -> Iterator[str]:
        for number, line in _lines(file, path.name, problems):
            consumed.append(number)
            yield line

    reader = csv.reader(feed(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    while True:
        consumed.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(Problem(f"{path.name}:{consumed[0]}", f"is not valid CSV: {error}"))
            continue
        if cells:
            yield consumed[0], cells


def _read_text(path: Path, problems: list[Problem]) -> Iterator[Row]:
    text = _whole_text(path, problems)
    if text.strip():
        yield Row({"text": text.replace("\r\n", "\n")}, f"{path.name}:1", str(path), 1)


def _read_parquet(path: Path, problems: list[Problem]) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        problems.append(Problem(path.name, 'Parquet needs pyarrow, which is an extra: pip install "macft[parquet]"'))
        return
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield from _row(value, f"{path.name}:{number}", str(path), number, problems)
    except pa.ArrowException as error:
        problems.append(Problem(path.name, f"is not readable as Parquet: {str(error).splitlines()[0]}"))


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".md": _read_text,
    ".parquet": _read_parquet,
}
"""What reads a file, by its ending."""
