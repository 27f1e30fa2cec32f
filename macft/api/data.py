"""Rows: looked at, checked, cleaned, split and mixed."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from macft.machine import home
from macft.recipe import DataTable

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from macft.data.hygiene.clean import Cleaned
    from macft.data.hygiene.findings import HygieneReport
    from macft.data.inspect import RowView
    from macft.data.mixture import Mixed
    from macft.data.report import DataReport
    from macft.data.split import Split
    from macft.models.describe import ModelFacts


def check_data(
    data: DataTable,
    *,
    model: str,
    method: str | None = None,
    max_seq_length: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> "DataReport":
    """Read, render and tokenize rows for a model and report on them.

    Args:
        data: The rows, and how they are read.
        model: Whose tokenizer and template.
        method: What the rows are for; told by the first of them when left out.
        max_seq_length: Longest row, in tokens.
        progress: Called with rows done and rows in all.

    Raises:
        DataError: With every bad row.
    """
    from macft.data.inspect import detect
    from macft.data.pool import Workers
    from macft.data.prepare import prepare
    from macft.models.load import load_tokenizer

    tokenizer, facts = _tokenizer(model)
    return prepare(
        data,
        tokenizer,
        method=method or detect(data),
        max_seq_length=min(max_seq_length, facts.context or max_seq_length),
        vocab_size=facts.vocab_size,
        progress=progress,
        workers=Workers(partial(load_tokenizer, facts.path)),
    ).report


def check_rows(
    files: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    near: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> "HygieneReport":
    """Look for what is wrong with rows as text; nothing is tokenized.

    Args:
        files: Files or folders that are trained on; `-` is JSONL on standard input.
        held_out: Files or folders that are not.
        columns: Maps macft's column names to the user's.
        near: Compare rows for being nearly the same.
        progress: Called with a phase, rows done and rows in all.

    Raises:
        DataError: There is nothing to read. Rows that cannot be understood are findings.
    """
    from macft.data.hygiene.check import check_rows as check

    return check(files, held_out, columns=columns, near=near, progress=progress)


def clean_rows(
    files: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    out: Path,
    log: Path | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    near: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> "Cleaned":
    """Write a new file of the rows that have nothing wrong with them, and a log of those that have.

    Args:
        files: Files or folders; they stay as they are.
        held_out: Rows that must not be trained on; what asks the same is left out.
        out: The new file, JSONL.
        log: Where each row left out gets a line; beside `out` when left out.
        keep: Kinds of finding whose rows are kept.
        only: Kinds of finding whose rows are left out, and no others.
        near: Leave out rows that are nearly the same as others.
        progress: Called with a phase, rows done and rows in all.

    Raises:
        DataError: There is nothing to read, nothing would be left, or `out` is among the files.
        RecipeError: A kind is none.
    """
    from macft.data.hygiene.clean import choose_kinds
    from macft.data.hygiene.clean import clean_rows as clean
    from macft.data.writing import check_target

    log = log or out.with_name(f"{out.stem}.removed.jsonl")
    kinds = choose_kinds(keep, only)
    for target in (out, log):
        check_target([*files, *held_out], target)
    report = check_rows(files, held_out, near=near, progress=progress)
    return clean(files, report, kinds, out=out, log=log)


def split_rows(
    files: Sequence[str], *, out: Path, valid: float = 0.05, test: float = 0.0, group: str = "", seed: int = 0
) -> "Split":
    """Write train, valid and test rows into a folder, by a hash of the prompt or by group.

    Raises:
        RecipeError: The shares leave nothing to train on.
        DataError: A row cannot be understood or has no group, or `out` is among the files.
    """
    from macft.data.split import split_rows as split

    return split(files, out=out, valid=valid, test=test, group=group, seed=seed)


def mix_rows(
    parts: Sequence[str], *, out: Path, rows: int | None = None, repeat: bool = False, seed: int = 0
) -> "Mixed":
    """Write one file of several, `FILE:WEIGHT:CAP` each, in which each has the share of its weight.

    Raises:
        RecipeError: A part or its weight makes no sense.
        DataError: A row cannot be read, a part has too few rows, or `out` is among the parts.
    """
    from macft.data.mixture import mix_rows as mix
    from macft.data.mixture import parse_part

    return mix([parse_part(part) for part in parts], out=out, rows=rows, repeat=repeat, seed=seed)


def advise(report: "HygieneReport", goal: str = "") -> list[str]:
    """Say in plain words what rows and a goal speak for: prompting or tuning, which model and which method."""
    from macft.data.hygiene.advice import advise as say

    return say(report, goal)


def show_row(data: DataTable, number: int, *, model: str, method: str | None = None) -> "RowView":
    """Return one row as the model sees it; rows count from 1 in the order of the files.

    Raises:
        DataError: The row is bad, or there is none with this number.
    """
    from macft.data.inspect import view_row

    return view_row(data, number, _tokenizer(model)[0], method)


def start_rows() -> "subprocess.Popen[str]":
    """Start a child that reads and tokenizes rows, for a program that must not load transformers.

    A JSON line in is a request and a line out its answer, as `macft.cli.row_worker` says. It ends when its stdin does.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "macft", "_rows"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _tokenizer(model: str) -> "tuple[TokenizerWrapper, ModelFacts]":
    from macft.models.catalog import resolve
    from macft.models.describe import describe
    from macft.models.load import load_tokenizer

    folder = resolve(model, home())
    return load_tokenizer(folder), describe(folder)
