"""One set of rows to train, valid and test.

The rule: a row's part depends on its prompt alone, or on its group: it never moves when other rows come or go, and rows
that share a prompt or a group are never on two sides.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from macft.data.examples import RowProblem
from macft.data.hygiene.texts import hash_text, normalize, read_texts
from macft.data.sources import Row
from macft.data.writing import check_target, new_file, read_lines
from macft.errors import DataError, Problem, RecipeError

PARTS = ("train", "valid", "test")
_HASHES = float(2**64)


class Split(NamedTuple):
    """What splitting did: the files, and the number of rows in each part and of groups in all."""

    files: Mapping[str, str]
    rows: Mapping[str, int]
    groups: int


def split_rows(
    files: Sequence[str], *, out: Path, valid: float = 0.05, test: float = 0.0, group: str = "", seed: int = 0
) -> Split:
    """Write train.jsonl, valid.jsonl and test.jsonl into a folder, which a recipe can name as it is.

    Args:
        files: Files or folders; they stay as they are.
        out: The folder.
        valid: Share of the prompts, or of the groups, that is held out for evaluation.
        test: Share that is held out for the end; without one there is no test.jsonl.
        group: The column whose value keeps rows together, like `customer` or `metadata.customer`.
        seed: Another number is another split.

    Raises:
        RecipeError: The shares leave nothing to train on.
        DataError: A row cannot be understood or has no group, or `out` is among the files. Nothing is written then.
    """
    if min(valid, test) < 0 or valid + test >= 1:
        raise RecipeError(
            [Problem("--valid, --test", f"are {valid:g} and {test:g} (expected shares below 1 together)")]
        )
    names = [part for part, share in zip(PARTS, (1.0, valid, test), strict=True) if share]
    for part in names:
        check_target(files, out / f"{part}.jsonl")
    problems, rows, groups = list[Problem](), Counter[str](), set[int]()
    with ExitStack() as stack:
        targets = {part: stack.enter_context(new_file(out / f"{part}.jsonl")) for part in names}
        for row, _, line in read_lines(files, problems):
            try:
                place = hash_text(f"{seed or ''}{_key(row, group)}")
            except RowProblem as problem:
                problems.append(Problem(row.where, problem.what))
                continue
            groups.add(place)
            share = place / _HASHES
            part = "test" if share < test else "valid" if share < test + valid else "train"
            targets[part].write(line)
            rows[part] += 1
        if problems or not rows["train"]:
            raise DataError(problems or [Problem(", ".join(files), "leaves no row to train on")])
    written = {part: str(out / f"{part}.jsonl") for part in names}
    return Split(written, {part: rows[part] for part in names}, len(groups))


def _key(row: Row, group: str) -> str:
    """Return what decides a row's part: its group, or else its prompt (of a document, its text).

    Raises:
        RowProblem: There is no such group, or no prompt.
    """
    if not group:
        texts = read_texts(row, {})
        return normalize(texts.prompt or texts.answer)
    value: Any = row.value
    for name in group.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None or isinstance(value, list | dict) or value == "":
        raise RowProblem(f'has no group in "{group}" (expected text or a number)')
    return f"{type(value).__name__} {value}"
