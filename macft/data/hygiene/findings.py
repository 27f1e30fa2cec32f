"""What the hygiene checks can find, and how it is told.

The rule: a finding names a row by file and line and says why in one line; it never repeats a secret.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LEAKS = ("leak", "near_leak")


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        level: `bad` when training or its score would be wrong, `warn` when a person should look.
        title: What is wrong with such rows.
        fix: What to do about them.
        is_removed: Whether `macft data clean` leaves such rows out unless told otherwise.
    """

    level: str
    title: str
    fix: str
    is_removed: bool = True


KINDS: Mapping[str, Kind] = {
    "unreadable": Kind("bad", "cannot be read", "Correct them; training refuses the file until then."),
    "leak": Kind("bad", "held out, and trained on too", "Their score would flatter: clean with --held-out."),
    "near_leak": Kind("bad", "held out, and nearly the same as a trained row", "Clean with --held-out."),
    "empty_answer": Kind("bad", "empty answer", "Answer them or leave them out."),
    "mojibake": Kind("bad", "garbled characters", "Read the source again with the encoding it was written in."),
    "control_token": Kind("bad", "control tokens or characters", "Export the text without its chat template."),
    "duplicate": Kind(
        "warn", "the same as an earlier row of the file", "Leave them out, unless they should weigh more."
    ),
    "duplicate_between": Kind(
        "warn", "the same as a row of another file", "Leave them out, or lower one file's weight."
    ),
    "near_duplicate": Kind("warn", "nearly the same as an earlier row of the file", "Keep the best of each."),
    "near_duplicate_between": Kind("warn", "nearly the same as a row of another file", "Keep the best of each."),
    "truncated_answer": Kind("warn", "an answer that breaks off", "Finish the answers or leave the rows out."),
    "one_word_answer": Kind("warn", "a one-word answer among longer ones", "See whether they are answers."),
    "repeated_answer": Kind("warn", "a reply that many other prompts get", "Keep a few: it is learned fast."),
    "wrong_language": Kind("warn", "answered in another language than asked", "Leave out what is not meant."),
    "personal_data": Kind("warn", "may hold personal data or keys", "A tuned model can repeat them: look.", False),
}
"""Every kind of finding, the gravest first."""


class Finding(NamedTuple):
    """One thing that is wrong with one row.

    Attributes:
        where: `file.jsonl:37`.
        other: The row it is like, in the same form; empty when there is none.
        similarity: The share of 8-byte pieces that both rows have, 0 to 1; None unless the rows are nearly the same.
        file: The path as it was given.
        line: The line it starts on.
        number: Its place among the rows of its file that can be read, from 1; 0 for the others.
    """

    kind: str
    where: str
    what: str
    other: str = ""
    similarity: float | None = None
    file: str = ""
    line: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are, in characters."""

    texts: int
    p50: int
    p90: int
    p99: int
    longest: int


@dataclass(frozen=True, slots=True)
class HygieneReport:
    """What the checks found in rows as text.

    Attributes:
        rows: Rows by file, readable or not.
        held_out: Which of the files are held out.
        findings: In the order of the files and lines, kind by kind.
        leaking: The other side of the leaks: every training row that a held-out row is like.
        kinds: Number of rows by kind of example.
        lengths: By role: `system`, `user`, `assistant`, `tool`, `text`, and the kinds of response.
        turns: Number of rows by number of turns.
        labels: Number of rows by answer when the answers are labels, the most frequent first; else empty.
        near_rows: Rows that were compared for being nearly the same.
    """

    rows: Mapping[str, int]
    held_out: Sequence[str]
    findings: Sequence[Finding]
    leaking: Sequence[Finding]
    kinds: Mapping[str, int]
    lengths: Mapping[str, Lengths]
    turns: Mapping[int, int]
    labels: Mapping[str, int]
    near_rows: int

    @property
    def total(self) -> int:
        """Rows of all files."""
        return sum(self.rows.values())

    @property
    def trained(self) -> int:
        """Rows of the files that are not held out."""
        return sum(rows for file, rows in self.rows.items() if file not in self.held_out)

    def count(self) -> dict[str, int]:
        """Return the number of findings by kind, the gravest first; kinds without any are left out."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "rows": dict(self.rows),
            "held_out": list(self.held_out),
            "counts": self.count(),
            "findings": [write_finding(finding) for finding in self.findings],
            "formats": dict(self.kinds),
            "lengths": {
                role: {name: getattr(lengths, name) for name in Lengths.__slots__}
                for role, lengths in self.lengths.items()
            },
            "near_rows": self.near_rows,
            "turns": {str(turns): rows for turns, rows in self.turns.items()},
            "labels": dict(self.labels),
        }


def write_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values, without what it does not have."""
    values: dict[str, Any] = {"kind": finding.kind, "level": KINDS[finding.kind].level, "where": finding.where}
    values |= {"file": finding.file, "line": finding.line, "what": finding.what}
    if finding.other:
        values["other"] = finding.other
    return values | ({"similarity": round(finding.similarity, 3)} if finding.similarity is not None else {})


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by kind, the gravest first; findings of a kind stay in their order."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: order[finding.kind])
