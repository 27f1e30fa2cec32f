"""Prompts from a file: a line each, or a row each.

The rule: what is asked is what a row says before its last answer; a row that ends with a person's turn is asked whole.
"""

import sys
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, cast

from macft.data.examples import (
    ChatExample,
    CompletionExample,
    Message,
    Role,
    RowProblem,
    TextExample,
    parse_example,
    question_of,
)
from macft.data.sources import STDIN, Row, read_rows
from macft.errors import DataError, Problem

ROWS = {".jsonl", ".json", ".csv", ".tsv", ".parquet"}
"""Endings of files with rows; every other file has a prompt a line."""
_ANSWER = {"role": "assistant", "content": "?"}
"""Put after a row without an answer, since rows are understood as things to learn from."""


class Prompt(NamedTuple):
    """What is asked, and where it stands."""

    turns: tuple[tuple[Role, str], ...]
    where: str


def read_prompts(name: str) -> list[Prompt]:
    """Read the prompts of a file; `-` is standard input, a line or a JSON object each.

    Raises:
        DataError: With everything that cannot be understood, or because there is nothing.
    """
    path, problems = Path(name), list[Problem]()
    begins = cast(BufferedReader, sys.stdin.buffer).peek(1)[:1] if name == STDIN else b""
    is_rows = path.suffix.lower() in ROWS or begins == b"{"
    prompts = _from_rows(read_rows([name], problems), problems) if is_rows else _from_lines(name, problems)
    if not prompts and not problems:
        problems.append(Problem(name, "holds no prompt"))
    if problems:
        raise DataError(problems)
    return prompts


def _from_lines(name: str, problems: list[Problem]) -> list[Prompt]:
    shown = "stdin" if name == STDIN else Path(name).name
    try:
        content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        problems.append(Problem(name, f"cannot be read: {error.strerror or error}"))
        return []
    except UnicodeDecodeError:
        problems.append(Problem(shown, "is not UTF-8 text"))
        return []
    return [
        Prompt((("user", line.strip()),), f"{shown}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _from_rows(rows: Iterable[Row], problems: list[Problem]) -> list[Prompt]:
    prompts = []
    for row in rows:
        try:
            prompts.append(Prompt(_read(row), row.where))
        except RowProblem as problem:
            problems.append(Problem(row.where, problem.what))
    return prompts


def _read(row: Row) -> tuple[tuple[Role, str], ...]:
    messages = _messages(row)
    if any(message.content is None for message in messages):
        raise RowProblem("has tool calls (expected turns of text)")
    if not messages or not (messages[-1].content or "").strip():
        raise RowProblem("asks nothing (expected a prompt, or messages that end with a person's turn)")
    return tuple((message.role, message.content or "") for message in messages)


def _messages(row: Row) -> tuple[Message, ...]:
    prompt, turns = row.value.get("prompt"), row.value.get("messages")
    if isinstance(prompt, str):
        system = row.value.get("system")
        opening = (Message("system", system),) if isinstance(system, str) and system else ()
        return (*opening, Message("user", prompt))
    if isinstance(prompt, list):
        turns = prompt
    if isinstance(turns, list):
        ends = bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
        row = row._replace(value={"messages": turns if ends and turns is not prompt else [*turns, _ANSWER]})
    example = parse_example(row)
    if isinstance(example, ChatExample | CompletionExample):
        return question_of(example)[0]
    return (Message("user", example.text),) if isinstance(example, TextExample) else ()
