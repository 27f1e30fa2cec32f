"""The hygiene checks: one pass over the files, then what only all rows together can tell.

The rule: nothing is tokenized and no model is needed. Every row that is wrong is named by file and line, and every row
is counted.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from macft.data.examples import COLUMNS, RowProblem
from macft.data.hygiene.findings import Finding, HygieneReport, Lengths, sort_findings
from macft.data.hygiene.gathered import Gathered
from macft.data.hygiene.groups import count_answers, count_labels, find_doubles, find_leaks, find_repeated
from macft.data.hygiene.near import find_near
from macft.data.hygiene.norms import find_odd_answers
from macft.data.hygiene.row_checks import check_row
from macft.data.hygiene.texts import Texts, has_empty_answer, read_texts
from macft.data.sources import Row, count_lines, list_files, read_rows
from macft.errors import DataError, Problem

Progress = Callable[[str, int, int], None]
_TELL_EVERY = 1024
_USUAL_LANGUAGE = 0.1
"""Share of a file's rows from which on answers in another language are what the file is for."""


@dataclass(slots=True)
class _Counts:
    """What is counted beside the findings."""

    rows: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    lengths: "dict[str, array[int]]" = field(default_factory=dict)

    def add(self, texts: Texts) -> None:
        self.kinds[texts.kind] += 1
        self.turns[len(texts.turns)] += 1
        for turn in texts.turns:
            self.lengths.setdefault(turn.role, array("I")).append(len(turn.text))

    def summarize(self) -> dict[str, Lengths]:
        levels = {
            role: np.percentile(np.frombuffer(lengths, np.uint32), (50, 90, 99, 100), method="higher")
            for role, lengths in self.lengths.items()
        }
        return {role: Lengths(len(self.lengths[role]), *map(int, found)) for role, found in levels.items()}


def check_rows(
    files: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    near: bool = True,
    progress: Progress | None = None,
) -> HygieneReport:
    """Check rows as text.

    Args:
        files: Files or folders that are trained on; `-` is JSONL on standard input.
        held_out: Files or folders that are not.
        columns: Maps macft's column names to the user's.
        near: Look for rows that are nearly the same.
        progress: Called with a phase, rows done and rows in all (0 when nothing is known).

    Raises:
        DataError: A file is missing, `columns` is wrong, or there is no row at all.
    """
    if unknown := [Problem(f"data.columns.{name}", "is not a column") for name in columns or {} if name not in COLUMNS]:
        raise DataError(unknown, fix=f"Columns are {', '.join(COLUMNS)}.")
    with Gathered() as gathered:
        return _Check(gathered, columns or {}, near, progress or (lambda *_: None)).run(files, held_out)


class _Check:
    """One check, and what it has found so far."""

    def __init__(self, gathered: Gathered, columns: Mapping[str, str], near: bool, progress: Progress) -> None:
        self.gathered, self.columns, self.near, self.progress = gathered, columns, near, progress
        self.findings, self.leaking = list[Finding](), list[Finding]()
        self.counts = _Counts()
        self.near_rows = 0
        self.read = Counter[str]()

    def run(self, files: Sequence[str], held_out: Sequence[str]) -> HygieneReport:
        self.total = count_lines([*files, *held_out])
        self._read(files, is_held_out=False)
        self._read(held_out, is_held_out=True)
        if not len(self.gathered) and not self.findings:
            raise DataError([Problem(", ".join(files), "holds no rows")])
        self._look_at_files()
        self._look_at_groups()
        return HygieneReport(
            rows=dict(self.counts.rows),
            held_out=list(dict.fromkeys(source.path for source in self.gathered.sources if source.is_held_out)),
            findings=sort_findings(self.findings),
            leaking=self.leaking,
            kinds=dict(self.counts.kinds.most_common()),
            lengths=self.counts.summarize(),
            turns=dict(sorted(self.counts.turns.items())),
            labels=count_labels(self.gathered),
            near_rows=self.near_rows,
        )

    def _read(self, paths: Sequence[str], *, is_held_out: bool) -> None:
        for path in self._list(paths):
            problems: list[Problem] = []
            for row in read_rows([path], problems):
                self._take(row, is_held_out=is_held_out)
            for problem in problems:
                place, _, line = problem.where.rpartition(":")
                if not (place and line.isdigit()):
                    raise DataError([problem])
                self.counts.rows[path] += 1
                self.findings.append(Finding("unreadable", problem.where, problem.what, file=path, line=int(line)))
        self.progress("check rows", self.counts.rows.total(), max(self.total, self.counts.rows.total()))

    @staticmethod
    def _list(paths: Sequence[str]) -> list[str]:
        """List files one by one; what is missing or is no data stays as it is, for the reader to complain about."""
        return [file for path in paths for file in (map(str, list_files([path])) if Path(path).is_dir() else [path])]

    def _take(self, row: Row, *, is_held_out: bool) -> None:
        self.counts.rows[row.file] += 1
        self.read[row.file] += 1
        place = (row.file, row.line, self.read[row.file])
        done = self.counts.rows.total() if len(self.gathered) % _TELL_EVERY == 0 else 0
        if done:
            self.progress("check rows", done, max(self.total, done))
        try:
            texts = read_texts(row, self.columns)
        except RowProblem as problem:
            kind = "empty_answer" if has_empty_answer(row.value, self.columns) else "unreadable"
            self.findings.append(Finding(kind, row.where, problem.what, "", None, *place))
            return
        self.counts.add(texts)
        found = [Finding(kind, row.where, what, "", None, *place) for kind, what in check_row(texts)]
        self.findings += found
        if not any(finding.kind == "empty_answer" for finding in found):  # or it would be like all other empty ones
            self.gathered.add(row, texts, number=self.read[row.file], is_held_out=is_held_out)

    def _look_at_files(self) -> None:
        """Judge answers by the other answers of their file."""
        for rows, words, endings in self.gathered.list_answers():
            for place, kind, what in find_odd_answers(words, endings):
                self._find(kind, int(rows[place]), what)
        rows_of = self.counts.rows
        abroad = Counter(finding.file for finding in self.findings if finding.kind == "wrong_language")
        usual = {file for file, count in abroad.items() if count > max(2, _USUAL_LANGUAGE * rows_of[file])}
        self.findings = [each for each in self.findings if each.kind != "wrong_language" or each.file not in usual]

    def _look_at_groups(self) -> None:
        """Compare all rows with each other."""
        gathered = self.gathered
        later, earlier, first = find_doubles(gathered)
        for row, other in zip(later.tolist(), earlier.tolist(), strict=True):
            self._find(self._pair_kind("duplicate", row, other), row, "says the same as an earlier row", other)
        for row, other, count in find_repeated(gathered):
            self._find("repeated_answer", row, f"gives a reply that {count:,} different prompts get", other)
        self._look_for_leaks([(int(row), int(other), None) for row, other in find_leaks(gathered)], "leak")
        if not self.near:
            return
        self.near_rows = len(first)
        same, cross = find_near(
            gathered.open_texts(),
            first,
            gathered.held_out[first],
            count_answers(gathered)[0],
            lambda done, of: self.progress("compare rows", done, of),
        )
        for row, other, similarity in same:
            what = f"shares {similarity:.0%} of its text with an earlier row"
            self._find(self._pair_kind("near_duplicate", row, other), row, what, other, similarity)
        known = {(each.file, each.number) for each in self.leaking}
        pairs = [(row, other, similarity) for row, other, similarity in cross if gathered.where(row)[1::2] not in known]
        self._look_for_leaks(pairs, "near_leak")

    def _look_for_leaks(self, pairs: Sequence[tuple[int, int, float | None]], kind: str) -> None:
        """Tell of each held-out row once, and keep all training rows for `clean`."""
        told = {(each.file, each.number) for each in self.findings if each.kind == "leak"}
        for row, other, similarity in pairs:
            what = f"shares {similarity:.0%} of its text with" if similarity else "asks the same as"
            self.leaking.append(self._make(kind, row, f"{what} a held-out row", other, similarity))
            if (place := self.gathered.where(other)[1::2]) not in told:
                told.add(place)
                self.findings.append(self._make(kind, other, f"{what} a training row", row, similarity))

    def _find(self, kind: str, row: int, what: str, other: int | None = None, similarity: float | None = None) -> None:
        self.findings.append(self._make(kind, row, what, other, similarity))

    def _make(self, kind: str, row: int, what: str, other: int | None, similarity: float | None) -> Finding:
        where, file, line, number = self.gathered.where(row)
        like = self.gathered.where(other)[0] if other is not None else ""
        return Finding(kind, where, what, like, similarity, file, line, number)

    def _pair_kind(self, kind: str, row: int, other: int) -> str:
        source = self.gathered.source
        return kind if source[row] == source[other] else f"{kind}_between"
