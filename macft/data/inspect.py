"""One row as the model sees it, whole or a window of its tokens."""

from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.chat_template import Encoded, decode, encode, encode_responses
from macft.data.examples import ResponseExample, RowProblem, TextExample, parse_example
from macft.data.preferences import PREFERENCE_METHODS, detect_method, parse_preferences
from macft.data.report import REPLACEMENT, render_row
from macft.data.sources import STDIN, Row, read_rows
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.recipe import DataTable

_LONGEST_CHARACTER = 8
"""Tokens that one character may take; an emoji of four bytes takes at most four, a few more do no harm."""


class RowPart(NamedTuple):
    """A prompt or a response of a row of preferences.

    Attributes:
        kind: `prompt`, `chosen`, `rejected`, `desirable` or `undesirable`.
        margin: By how much the chosen response was scored better than the rejected one that follows.
    """

    kind: str
    text: str
    margin: float | None = None


class Piece(NamedTuple):
    """A row, or a part of a row of preferences, in tokens.

    Attributes:
        kind: As of `RowPart`; empty for a whole row.
        encoded: Its ids, and which of them are trained on.
    """

    kind: str
    encoded: Encoded


class Token(NamedTuple):
    """Text that one token stands for, or several that only together make whole characters."""

    text: str
    ids: list[int]
    is_trained: bool


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


def encode_row(row: Row, data: DataTable, tokenizer: Tokenizer, method: str) -> list[Piece]:
    """Render and tokenize a row, uncut; of preferences the prompt and then each response.

    Raises:
        RowProblem: It cannot be trained on.
    """
    thinking = data.enable_thinking
    if method not in PREFERENCE_METHODS:
        value = {"text": row.value.get(data.columns.get("text", "text"))} if method == "pretrain" else None
        example = parse_example(row._replace(value=value), {}) if value else parse_example(row, data.columns)
        train_on = "all" if isinstance(example, TextExample) else data.train_on
        return [Piece("", encode(example, tokenizer, train_on=train_on, enable_thinking=thinking))]
    pieces = list[Piece]()
    for example in parse_preferences(row, data.columns, method=method, strings=data.strings):
        prompt, responses = encode_responses(example, tokenizer, enable_thinking=thinking)[0]
        if not pieces:
            pieces.append(Piece("prompt", Encoded(prompt, np.zeros(len(prompt), np.bool_))))
        pieces += [
            Piece(kind, Encoded(ids, np.ones(len(ids), np.bool_)))
            for kind, ids in zip(_kinds(example), responses, strict=True)
        ]
    return pieces


def list_tokens(encoded: Encoded, tokenizer: Tokenizer, start: int, count: int) -> list[Token]:
    """Return the text of `count` tokens from `start` on, as they read after the tokens before them.

    Characters are never torn: tokens that hold a part of one are taken together, and counted one by one.
    """
    ids, mask = encoded
    tokens, before, at = list[Token](), list[int](), start
    if start:
        before = [int(ids[start - 1])]
    while at < min(len(ids), start + count):
        end = at + 1
        context = decode(tokenizer, before)
        text = decode(tokenizer, [*before, *ids[at:end]])
        while text.endswith(REPLACEMENT) and end < min(len(ids), at + _LONGEST_CHARACTER):
            end += 1
            text = decode(tokenizer, [*before, *ids[at:end]])
        new = list(map(int, ids[at:end]))
        piece = text[len(context) :] if text.startswith(context) else decode(tokenizer, new)
        tokens.append(Token(piece, new, bool(mask[end - 1])))
        before, at = new, end
    return tokens


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
