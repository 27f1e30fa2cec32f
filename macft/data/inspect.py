"""One row as the model sees it."""

from itertools import islice
from typing import NamedTuple

from macft.data.chat_template import Encoded, encode
from macft.data.examples import RowProblem, TextExample, parse_example
from macft.data.report import render_row
from macft.data.sources import read_rows
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.recipe import DataTable


class RowView(NamedTuple):
    """A row as the model sees it.

    Attributes:
        where: File and line.
        spans: Text and whether it is trained on, in order; together they are the whole row.
        encoded: Ids and loss mask.
    """

    where: str
    spans: list[tuple[str, bool]]
    encoded: Encoded


def view_row(data: DataTable, number: int, tokenizer: Tokenizer) -> RowView:
    """Read, render and tokenize one row.

    Args:
        data: Where the rows are (`train`), and how they are read.
        number: 1 for the first row, in the order of the files.
        tokenizer: The model's.

    Raises:
        DataError: There is no such row, or it cannot be trained on.
    """
    problems: list[Problem] = []
    row = next(islice(read_rows(data.train, problems), number - 1, None), None) if number > 0 else None
    if row is None:
        raise DataError(problems or [Problem(", ".join(data.train), f"has no row {number} (rows count from 1)")])
    try:
        example = parse_example(row, data.columns)
        train_on = "all" if isinstance(example, TextExample) else data.train_on
        encoded = encode(example, tokenizer, train_on=train_on, enable_thinking=data.enable_thinking)
    except RowProblem as problem:
        raise DataError([Problem(row.where, problem.what)]) from None
    return RowView(row.where, render_row(encoded, tokenizer), encoded)
