"""The commands on rows as text: check, clean, split, mix, replay.

The rule: as in `main`, a command is one call of `macft.api`, and its answer shown.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from macft import api
from macft.chat.panes import Sampling
from macft.cli import tables
from macft.cli.arguments import STDIN, AsJson, Files, Method, Positive, Strings, TrainOn, choose_model, read_data_table
from macft.cli.compare import Sampled
from macft.cli.prepare import data, show_progress
from macft.cli.render import narrate
from macft.errors import DataError, Problem
from macft.format import one_line

if TYPE_CHECKING:
    from macft.data.hygiene.findings import HygieneReport

_NAMED_ROWS, _NAMED_LABELS = 5, 8
_MARKS = {"bad": "✘", "warn": "▲"}


@data.command(name="check")
def check_data(
    files: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    held_out: Files | None = None,
    near: Annotated[bool, Parameter(negative="--no-near")] = True,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    goal: str = "",
    model: str | None = None,
    method: Method | None = None,
    max_seq_length: Annotated[int, Parameter(validator=Number(gte=8))] = 2048,
    train_on: TrainOn = "assistant",
    strings: Strings = "text",
    json: AsJson = False,
    plain: bool = False,
) -> int:
    """Look for what is wrong with rows, and say what they are good for; with --model, tokenize them too.

    Args:
        files: Files or folders of rows; - reads JSONL from stdin.
        held_out: Files or folders that are not trained on; rows that stand on both sides are leaks.
        near: Compare rows for being nearly the same; --no-near leaves it out.
        all_: Print every finding, a line each.
        goal: What the model is to do, in your words, for the advice.
        model: Tokenize and count as training with this model would.
        method: With a model: what the rows are for; told by the first row when left out.
        max_seq_length: With a model: longest row in tokens; 2048 when left out.
        train_on: With a model: which tokens are trained on; assistant when left out.
        strings: Preferences written as strings are text as it stands, or a chat; text when left out.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    wanted = read_data_table(files, train_on=train_on, strings=strings)
    aside = read_data_table(held_out or []).train
    with show_progress(plain=plain) as tell:
        report = api.check_rows(wanted.train, aside, near=near, progress=tell)
        tokens, refused = None, None
        if model and wanted.train != ["-"]:
            count = partial(api.check_data, wanted, method=method, max_seq_length=max_seq_length)
            try:
                tokens = count(model=choose_model(model), progress=partial(tell, "tokenize"))
            except DataError as error:
                refused = error
    advice = api.advise(report, goal)
    if json:
        tables.print_json({**report.to_dict(), **(tokens.to_dict() if tokens else {}), "advice": advice})
    else:
        tables.print_lines(finding_lines(report) if all_ else hygiene_lines(report))
        tables.print_lines(["", *tables.report_lines(tokens)] if tokens else [])
        tables.print_lines(["", *(f"· {line}" for line in advice)])
    unreadable = [Problem(finding.where, finding.what) for finding in report.of("unreadable")]
    if refused or unreadable:
        raise refused or DataError(unreadable, fix="`macft data clean` leaves them out.")
    return 0


@data.command(name="clean")
def clean_data(
    files: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    out: Path,
    log: Path | None = None,
    held_out: Files | None = None,
    keep: Files | None = None,
    only: Files | None = None,
    near: Annotated[bool, Parameter(negative="--no-near")] = True,
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Write a new file without the rows that have something wrong with them, and a log of what was left out.

    Args:
        files: Files or folders of rows; they are not changed.
        out: The new file, JSONL.
        log: A line for each row left out, with its place and reason; OUT.removed.jsonl when left out.
        held_out: Files that must not be trained on; rows that ask the same, or nearly, are left out.
        keep: Kinds of finding whose rows stay, as `macft data check --json` names them.
        only: Kinds of finding whose rows go, and no others.
        near: Leave out rows that are nearly the same as others; --no-near keeps them.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    rows, aside = (read_data_table(paths).train for paths in (files, held_out or []))
    with show_progress(plain=plain) as tell:
        done = api.clean_rows(rows, aside, out=out, log=log, keep=keep or [], only=only or [], near=near, progress=tell)
    if json:
        tables.print_json({**done._asdict(), "removed": dict(done.removed)})
        return
    print(done.out)
    left_out = ", ".join(f"{rows:,} {kind}" for kind, rows in done.removed.items()) or "nothing"
    narrate(f"kept {done.kept:,} rows; left out: {left_out}; each is named in {done.log}")


@data.command(name="split")
def split_data(
    files: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    out: Path,
    valid: float = 0.05,
    test: float = 0.0,
    group: str = "",
    seed: int = 0,
    json: AsJson = False,
) -> None:
    """Write train, valid and test rows into a folder that a recipe can name; a row's part never moves.

    Args:
        files: Files or folders of rows; they are not changed.
        out: The folder.
        valid: Share held out for evaluation; 0.05 when left out.
        test: Share held out for the end; none when left out.
        group: The column whose rows stay together, like customer or metadata.customer; rows with one prompt always do.
        seed: Another number is another split.
        json: Print JSON.
    """
    done = api.split_rows(read_data_table(files).train, out=out, valid=valid, test=test, group=group, seed=seed)
    if json:
        tables.print_json(done._asdict())
        return
    print(out)
    parts = ", ".join(f"{rows:,} {part}" for part, rows in done.rows.items())
    narrate(f"{parts}; {done.groups:,} {'groups' if group else 'prompts'}, none on two sides")
    for part in (part for part, rows in done.rows.items() if not rows):
        narrate(f"▲ {part} is empty: its share is too small for so few {'groups' if group else 'prompts'}")


@data.command(name="mix")
def mix_data(
    parts: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    out: Path,
    rows: Positive | None = None,
    repeat: bool = False,
    seed: int = 0,
    json: AsJson = False,
) -> None:
    """Write one shuffled file of several, each with the share of its weight.

    Args:
        parts: FILE, FILE:WEIGHT or FILE:WEIGHT:CAP; a cap is the most rows that are taken of a file.
        out: The new file, JSONL.
        rows: Rows of the mixture; as many as there are without taking any twice when left out.
        repeat: Take rows again where a file has too few.
        seed: Another number takes other rows, in another order.
        json: Print JSON.
    """
    done = api.mix_rows(parts, out=out, rows=rows, repeat=repeat, seed=seed)
    if json:
        tables.print_json(done._asdict())
        return
    print(done.out)
    shares = ", ".join(f"{part['rows']:,} of {part['available']:,} from {part['path']}" for part in done.parts)
    narrate(f"{done.rows:,} rows: {shares}")


@data.command(name="replay")
def replay_data(
    model: str,
    /,
    *,
    prompts: str,
    out: Path,
    sampling: Sampled = Sampling(),  # noqa: B008 — frozen
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Write the base model's own answers as rows, for data.general: rehearsing them keeps what it knows.

    Args:
        model: A model; of a run or an adapter, its base.
        prompts: A file with a prompt a line, or rows; - reads stdin.
        out: The new file, JSONL.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    sampling.check()
    asked = "-" if prompts == STDIN else prompts
    with show_progress(plain=plain) as tell:
        done = api.replay(model, asked, out=out, sampling=sampling, progress=partial(tell, "answering prompts"))
    if json:
        tables.print_json(done._asdict())
        return
    print(done.out)
    left_out = f"; left out: {done.cut:,} cut at {sampling.max_tokens} tokens, {done.empty:,} empty"
    narrate(f"{done.rows:,} rows{left_out if done.cut or done.empty else ''}")


def hygiene_lines(report: "HygieneReport") -> list[str]:
    """Return what is in the rows, and a line for each kind of finding."""
    from macft.data.hygiene.findings import KINDS

    kinds = ", ".join(f"{rows:,} {kind}" for kind, rows in report.kinds.items())
    lines = [f"rows      {report.total:,} ({kinds}) in {len(report.rows):,} files"]
    lines += [
        f"{role:<9} {lengths.texts:,} texts: p50 {lengths.p50:,} · p90 {lengths.p90:,} · p99 {lengths.p99:,} · "
        f"longest {lengths.longest:,} characters"
        for role, lengths in report.lengths.items()
    ]
    if report.labels:
        lines.append(f"labels    {_balance(report)}")
    for kind, rows in report.count().items():
        about, found = KINDS[kind], report.of(kind)
        places = ", ".join(one_line(finding.where) for finding in found[:_NAMED_ROWS])
        more = f" and {rows - _NAMED_ROWS:,} more" if rows > _NAMED_ROWS else ""
        noun = "row" if rows == 1 else "rows"
        lines.append(f"{_MARKS[about.level]} {rows:,} {noun}: {about.title} ({places}{more}). {about.fix}")
    return lines if report.findings else [*lines, "✔ nothing to complain about"]


def finding_lines(report: "HygieneReport") -> Iterator[str]:
    """Yield a line for each finding."""
    for kind, where, what, other, *_ in report.findings:
        yield one_line(f"{where}: {kind}: {what}{f' ({other})' if other else ''}")


def _balance(report: "HygieneReport") -> str:
    rows, first = sum(report.labels.values()), list(report.labels.items())[:_NAMED_LABELS]
    named = [f"{one_line(label, 40)} {count / rows:.0%}" for label, count in first]
    rest = len(report.labels) - len(named)
    return f"{len(report.labels):,}: {', '.join(named)}{f', and {rest:,} more' if rest else ''}"
