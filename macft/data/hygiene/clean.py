"""Rows without what the checks found, in a new file, and a log of what is missing and why.

The rule: nothing is changed in place, and nothing goes missing without a line in the log. What is kept is kept as it
was written, byte for byte, when it comes from JSONL.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from macft.data.hygiene.findings import KINDS, LEAKS, Finding, HygieneReport
from macft.data.writing import dump_row, read_lines, write_rows
from macft.errors import DataError, Problem, RecipeError


class Cleaned(NamedTuple):
    """What cleaning did.

    Attributes:
        removed: Number of rows by the first of their reasons, the gravest reason first.
    """

    out: Path
    log: Path
    kept: int
    removed: Mapping[str, int]


def choose_kinds(keep: Collection[str], only: Collection[str]) -> list[str]:
    """Return the kinds of finding whose rows are left out.

    Args:
        keep: Kinds that are kept although they would be left out.
        only: Kinds that are left out, and no others; personal data is among them only when named.

    Raises:
        RecipeError: A name is none of the kinds.
    """
    if unknown := [name for name in (*keep, *only) if name not in KINDS]:
        raise RecipeError(
            [Problem(name, f"is not a kind of finding (expected {', '.join(KINDS)})") for name in unknown]
        )
    return [kind for kind, about in KINDS.items() if (kind in only if only else about.is_removed) and kind not in keep]


def clean_rows(files: Sequence[str], report: HygieneReport, kinds: Collection[str], *, out: Path, log: Path) -> Cleaned:
    """Write the rows that have no finding of some kinds, and the log of those that have.

    Args:
        files: What the report is about; rows from standard input cannot be read twice.
        report: What the checks found.
        kinds: Findings whose rows are left out.
        out: The new file, JSONL; none of `files`.
        log: Gets an object for each row left out: `where`, `line`, `file` and its `reasons`.

    Raises:
        DataError: No row is left.
    """
    reasons = _gather_reasons(report, kinds)
    if not report.trained - len(reasons):
        raise DataError([Problem(", ".join(files), "would have no row left")], fix="--keep KIND keeps what is meant.")
    write_rows(
        log, (_log_line(found) for found in sorted(reasons.values(), key=lambda found: (found[0].file, found[0].line)))
    )
    kept = write_rows(out, _kept_lines(files, reasons.keys()))
    firsts = [found[0].kind for found in reasons.values()]
    return Cleaned(out, log, kept, {kind: firsts.count(kind) for kind in KINDS if kind in firsts})


def _gather_reasons(report: HygieneReport, kinds: Collection[str]) -> dict[tuple[str, int], list[Finding]]:
    """Return the rows to leave out, as file and number (minus the line when it cannot be read), with findings."""
    held_out, reasons = set(report.held_out), dict[tuple[str, int], list[Finding]]()
    ours = [each for each in report.findings if each.kind not in LEAKS and each.file not in held_out]
    for finding in (*report.leaking, *ours):
        # The first row with a reply that is repeated stays: it is like itself.
        if finding.kind in kinds and not (finding.kind == "repeated_answer" and finding.other == finding.where):
            reasons.setdefault((finding.file, finding.number or -finding.line), []).append(finding)
    return reasons


def _log_line(found: Sequence[Finding]) -> bytes:
    told = [{"kind": each.kind, "what": each.what, **({"other": each.other} if each.other else {})} for each in found]
    values = {"where": found[0].where, "line": found[0].line, "file": found[0].file, "reasons": told}
    return dump_row(values)


def _kept_lines(files: Sequence[str], removed: Collection[tuple[str, int]]) -> Iterator[bytes]:
    for row, number, line in read_lines(files, []):
        if (row.file, number) not in removed:
            yield line
