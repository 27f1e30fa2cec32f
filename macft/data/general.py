"""General rows beside a task's own, against forgetting.

The rule: general rows are trained on and never held out, so that a score is the task's alone; and none is trained on
twice, so that a small set gives a smaller share rather than rows learned by heart.

Source: rehearsal, Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal".
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from macft.data.examples import RowProblem, parse_example
from macft.data.mix import hash_example, hash_place, is_held_out
from macft.data.sources import count_lines, read_rows
from macft.data.writing import dump_row, read_lines, write_rows
from macft.errors import DataError, Problem
from macft.gallery import find_data
from macft.recipe import DataTable

_BY_LINE = {".jsonl", ".ndjson", ".csv", ".tsv"}


class WithGeneral(NamedTuple):
    """A data table with general rows.

    Attributes:
        rows: How many general rows it has.
        wanted: How many `keep_general` asks for.
    """

    data: DataTable
    rows: int
    wanted: int


def add_general(data: DataTable, folder: Path) -> WithGeneral:
    """Return a data table whose training rows include the share of general rows that it asks for.

    Args:
        data: `keep_general` is the share of all training rows, `general` where they are from; macft's own when empty.
        folder: Where the chosen rows are kept, in a file that is named after what it says.

    Raises:
        DataError: A general row cannot be read.
    """
    if not data.keep_general:
        return WithGeneral(data, 0, 0)
    held_out = 0.0 if data.valid else data.valid_fraction
    trained = (1 - held_out) * _count_rows(data.train)
    wanted = round(data.keep_general / (1 - data.keep_general) * trained)
    files = data.general or [str(find_data("general") / "train.jsonl")]
    found = sorted(_rank_rows(files, data, held_out))[:wanted]
    digest = hashlib.blake2b(b"".join(line for _, line in found), digest_size=12).hexdigest()
    path = folder / f"{digest}.jsonl"
    if not path.is_file():
        write_rows(path, (line for _, line in found))
    train = [*data.train, str(path)] if found else data.train
    return WithGeneral(data.model_copy(update={"train": train}), len(found), wanted)


def _rank_rows(files: list[str], data: DataTable, held_out: float) -> Iterator[tuple[int, bytes]]:
    """Yield the general rows that would not be held out, each once, with a hash to choose by."""
    problems, seen = list[Problem](), set[int]()
    for row, _, line in read_lines(files, problems):
        try:
            example = parse_example(row)
        except RowProblem as problem:
            problems.append(Problem(row.where, problem.what))
            continue
        content = hash_example(example)
        if content not in seen and not is_held_out(hash_place(example), held_out):
            seen.add(content)
            yield content, dump_row(_name_columns(row.value, data.columns)) if data.columns else line
    if problems:
        raise DataError(problems, fix="data.general needs rows as data.train does.")


def _name_columns(value: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Give a row's columns the user's names, as all training rows are read by them."""
    return {key: item for key, item in value.items() if key not in columns} | {
        theirs: value.get(ours) for ours, theirs in columns.items()
    }


def _count_rows(files: list[str]) -> int:
    paths = [path for path in files if Path(path).suffix.lower() in _BY_LINE]
    return count_lines(paths) + sum(1 for _ in read_rows([path for path in files if path not in paths], []))
