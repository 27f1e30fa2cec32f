"""One row as the model sees it."""

from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.chat_template import Encoded, encode, encode_responses
from macft.data.examples import ResponseExample, RowProblem, TextExample, parse_example
from macft.data.preferences import PREFERENCE_METHODS, detect_method, parse_preferences
from macft.data.report import render_row
from macft.data.sources import STDIN, Row, read_rows
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.recipe import DataTable


class RowPart(NamedTuple):
    """A prompt or a response of a row of preferences.

    Attributes:
        kind: `prompt`, `chosen`, `rejected`, `desirable` or `undesirable`.
        margin: By how much the chosen response was scored better than the rejected one that follows.
    """

    kind: str
    text: str
    margin: float | None = None


class RowView(NamedTuple):
    """A row as the model sees it.

    Attributes:
        where: File and line.
        spans: Text and whether it is trained on, in order; together they are the whole row.
        encoded: Ids and loss mask; of preferences the prompt and then all responses.
        parts: What a row of preferences consists of.
    """

    where: str
    spans: list[tuple[str, bool]]
    encoded: Encoded
    parts: tuple[RowPart, ...] = ()


def detect(data: DataTable) -> str:
    """Return the method that the first row is for; `sft` when it cannot be told, as of rows from stdin."""
    if STDIN in data.train[:1]:
        return "sft"
    return next((detect_method(row.value, data.columns) for row in read_rows(data.train, [])), "sft")


def view_row(data: DataTable, number: int, tokenizer: Tokenizer, method: str | None = None) -> RowView:
    """Read, render and tokenize one row.

    Args:
        data: Where the rows are (`train`), and how they are read.
        number: 1 for the first row, in the order of the files.
        tokenizer: The model's.
        method: What the row is for; told by its columns when left out.

    Raises:
        DataError: There is no such row, or it cannot be trained on.
    """
    problems: list[Problem] = []
    row = next(islice(read_rows(data.train, problems), number - 1, None), None) if number > 0 else None
    if row is None:
        raise DataError(problems or [Problem(", ".join(data.train), f"has no row {number} (rows count from 1)")])
    try:
        method = method or detect_method(row.value, data.columns)
        if method in PREFERENCE_METHODS:
            return _view_responses(row, data, tokenizer, method)
        example = parse_example(row, data.columns)
        train_on = "all" if isinstance(example, TextExample) else data.train_on
        encoded = encode(example, tokenizer, train_on=train_on, enable_thinking=data.enable_thinking)
    except RowProblem as problem:
        raise DataError([Problem(row.where, problem.what)]) from None
    return RowView(row.where, render_row(encoded, tokenizer), encoded)


def _view_responses(row: Row, data: DataTable, tokenizer: Tokenizer, method: str) -> RowView:
    parts, ids = list[RowPart](), list[npt.NDArray[np.int32]]()
    for example in parse_preferences(row, data.columns, method=method, strings=data.strings):
        encoded = encode_responses(example, tokenizer, enable_thinking=data.enable_thinking)[0]
        for response, kind in zip(encoded.responses, _kinds(example), strict=True):
            whole = np.concatenate([encoded.prompt, response])
            prompt, *texts = render_row(Encoded(whole, np.arange(len(whole)) >= len(encoded.prompt)), tokenizer)
            if not parts:
                parts.append(RowPart("prompt", prompt[0]))
                ids.append(encoded.prompt)
            parts.append(
                RowPart(kind, "".join(text for text, _ in texts), example.margin if kind == "chosen" else None)
            )
            ids.append(response)
    mask = np.arange(sum(map(len, ids))) >= len(ids[0])
    return RowView(
        row.where,
        [(part.text, part.kind != "prompt") for part in parts],
        Encoded(np.concatenate(ids), mask),
        tuple(parts),
    )


def _kinds(example: ResponseExample) -> tuple[str, ...]:
    if example.label is None:
        return ("chosen", "rejected")
    return ("desirable",) if example.label else ("undesirable",)
