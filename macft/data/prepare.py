"""Data table and tokenizer to token rows, ready to train on.

The rule: everything is read, rendered and tokenized before a model loads. Every row that cannot be trained on is named,
all of them in one error; every row that is cut, split or left out is counted.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.batches import Batch, Ints, make_batch
from macft.data.chat_template import Encoded, encode_with_notes
from macft.data.examples import COLUMNS, CompletionExample, Example, RowProblem, TextExample, parse_example
from macft.data.mix import hash_example, is_held_out
from macft.data.questions import Question, make_question
from macft.data.report import DataReport, sort_counts, summarize_lengths
from macft.data.sources import Row, list_files, read_rows
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.plan import DataFacts
from macft.recipe import DataTable, EvaluateTable

NOTHING_TO_LEARN = "nothing to learn in it"
ANSWER_CUT_OFF = "answer beyond max_seq_length"
TOO_LONG = "longer than max_seq_length"
ALL_HELD_OUT = "valid_fraction would hold out every row: none is held out"
NONE_HELD_OUT = "valid_fraction holds out no row: too few rows"
NOTHING_TO_ASK = "has nothing to ask with"
NO_ROOM = "leaves no room for an answer within max_seq_length"
TEST_NOT_ASKED = "a row of data.test is not asked: it"

Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 256


@dataclass(frozen=True)
class TokenRows:
    """Tokenized rows in flat arrays.

    Attributes:
        ids: Token ids of all rows, one after the other, int32 [tokens].
        mask: True where a token is trained on, bool [tokens].
        offsets: Where each row starts, and the last one ends, int64 [N + 1].
        where: File and line of each row.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    where: list[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Encoded:
        """Return a row's ids [T] and mask [T], as views."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return Encoded(self.ids[start:end], self.mask[start:end])

    def batch(self, indices: Ints) -> Batch:
        """Lay some rows out as one micro-batch."""
        return make_batch(self, indices)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row [N]."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each row [N], which is one attention row."""
        return self.lengths

    @cached_property
    def supervised(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each row [N]."""
        return np.diff(np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])[self.offsets])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of ids, masks and row borders; equal fingerprints train alike."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.ids, self.mask, self.offsets):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


AnyRows = TokenRows


class Prepared(NamedTuple):
    """The data of a run.

    Attributes:
        samples: Asked at every evaluation: `evaluate.prompts`, or the first of the held-out rows.
        test: Asked when the run ends: the first `evaluate.test_rows` rows of `data.test` that can be asked.
    """

    train: TokenRows
    valid: TokenRows
    samples: list[Question]
    test: list[Question]
    report: DataReport


def data_facts(data: Prepared) -> DataFacts:
    """Return what a plan needs to know of prepared rows."""
    lengths, valid = data.train.lengths, data.valid.lengths
    return DataFacts(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        supervised_tokens=int(data.train.supervised.sum()),
        longest=int(lengths.max(initial=1)),
        p99=max(1, data.report.length_p99),
        valid_tokens=int(valid.sum()),
    )


class _Builder:
    """Grows token rows without a Python object a token."""

    def __init__(self) -> None:
        self.ids, self.mask, self.offsets = array("i"), bytearray(), array("q", [0])
        self.where: list[str] = []

    def __len__(self) -> int:
        return len(self.where)

    def add(self, encoded: Encoded, where: str) -> None:
        self.ids.frombytes(encoded.ids.tobytes())
        self.mask.extend(encoded.mask.tobytes())
        self.offsets.append(len(self.ids))
        self.where.append(where)

    def build(self) -> TokenRows:
        ids, mask = np.frombuffer(self.ids, np.int32), np.frombuffer(self.mask, np.bool_)
        return TokenRows(ids, mask, np.frombuffer(self.offsets, np.int64), self.where)


def prepare(
    data: DataTable,
    tokenizer: Tokenizer,
    *,
    method: str,
    max_seq_length: int,
    vocab_size: int,
    evaluate: EvaluateTable | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Read and tokenize the rows of a run, and what the model will be asked.

    Args:
        data: What to read, and how.
        tokenizer: The model's.
        method: `pretrain` reads whole documents and splits them; the others read chats and completions.
        max_seq_length: Longest row, in tokens.
        vocab_size: Rows of the model's embedding; ids beyond it are a problem.
        evaluate: How much is asked. Every row of `data.test` is checked, asked or not.
        progress: Called with rows done and rows in all; the latter is an estimate, 0 when nothing is known.

    Raises:
        DataError: Any row cannot be trained on, or none is left; all problems at once.
    """
    data = _with_siblings(data)
    problems = [
        Problem(f"data.columns.{name}", f"is not a column of macft's (expected one of {', '.join(COLUMNS)})")
        for name in data.columns
        if name not in COLUMNS
    ]
    if not data.train:
        problems.append(Problem("data.train", "names no file to learn from"))
    if problems:
        raise DataError(problems, fix="`macft data check` reads rows without training.")
    preparation = _Preparation(
        data,
        tokenizer,
        method=method,
        max_seq_length=max_seq_length,
        vocab_size=vocab_size,
        evaluate=evaluate or EvaluateTable(),
        progress=progress,
    )
    return preparation.run()


def _with_siblings(data: DataTable) -> DataTable:
    """Let a folder with train.jsonl stand for that file, and for its valid.jsonl and test.jsonl when none are given."""
    if len(data.train) != 1 or not (Path(data.train[0]) / "train.jsonl").is_file():
        return data
    folder = Path(data.train[0])
    found = {
        name: [str(folder / f"{name}.jsonl")] for name in ("valid", "test") if (folder / f"{name}.jsonl").is_file()
    }
    given = {name: getattr(data, name) for name in found if getattr(data, name)}
    return data.model_copy(update={"train": [str(folder / "train.jsonl")], **found, **given})


class _Preparation:
    """One pass over all rows, and what it counts."""

    def __init__(
        self,
        data: DataTable,
        tokenizer: Tokenizer,
        *,
        method: str,
        max_seq_length: int,
        vocab_size: int,
        evaluate: EvaluateTable,
        progress: Progress | None,
    ) -> None:
        self.data, self.tokenizer, self.method, self.evaluate = data, tokenizer, method, evaluate
        self.max_seq_length, self.vocab_size, self.progress = max_seq_length, vocab_size, progress
        self.too_long = "split" if method == "pretrain" else data.too_long
        self.train, self.valid = _Builder(), _Builder()
        self.samples, self.test = list[Question](), list[Question]()
        self.problems: list[Problem] = []
        self.dropped, self.formats, self.notes = Counter[str](), Counter[str](), Counter[str]()
        self.rows_read = self.test_rows = self.truncated = self.split = self.duplicates = self.leaked = 0
        self.total = _estimate_rows(data) if progress else 0
        self.trained: set[int] = set()

    def run(self) -> Prepared:
        fraction = 0.0 if self.data.valid else self.data.valid_fraction
        self._ask_prompts()
        self._read_train(fraction)
        for example in self._examples(self.data.valid):
            self.leaked += hash_example(example) in self.trained
            self._hold_out(example)
        for example in self._examples(self.data.test):
            self.leaked += hash_example(example) in self.trained
            self._read_test(example)
        train, valid = self.train.build(), self.valid.build()
        if fraction and len(valid) and not len(train):
            train, valid = valid, train
            self.samples = self.samples if self.evaluate.prompts else []
            self.notes[ALL_HELD_OUT] += len(train)
        elif fraction and not len(valid):
            self.notes[NONE_HELD_OUT] += len(train)
        if not len(train) and not self.problems:
            why = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "no rows"
            self.problems.append(Problem("data.train", f"leaves nothing to train on: {why}"))
        if self.problems:
            raise DataError(self.problems)
        return Prepared(train, valid, self.samples, self.test, self._report(train, valid))

    def _ask_prompts(self) -> None:
        for index, prompt in enumerate(self.evaluate.prompts):
            unasked = Counter[str]()
            example = CompletionExample(prompt, "", f"evaluate.prompts[{index}]")
            if question := self._question(example, unasked):
                self.samples.append(question)
            self.problems += [Problem(example.where, why) for why in unasked]

    def _read_train(self, fraction: float) -> None:
        for example in self._examples(self.data.train):
            content = hash_example(example)
            if is_held_out(content, fraction):
                self._hold_out(example)
                continue
            self.duplicates += content in self.trained
            self.trained.add(content)
            self._add(example, self.train)

    def _hold_out(self, example: Example) -> None:
        before = len(self.valid)
        self._add(example, self.valid)
        wanted = 0 if self.evaluate.prompts else self.evaluate.samples
        is_kept = len(self.valid) > before
        if is_kept and len(self.samples) < wanted and (question := self._question(example, Counter())):
            self.samples.append(question)

    def _read_test(self, example: Example) -> None:
        self.test_rows += 1
        unasked = Counter[str]()
        question = self._question(example, unasked)
        self.notes.update(f"{TEST_NOT_ASKED} {why}" for why in unasked)
        if question and len(self.test) < self.evaluate.test_rows:
            self.test.append(question)

    def _question(self, example: Example, unasked: Counter[str]) -> Question | None:
        """Make a question of a row; `unasked` counts why there is none, and what is wrong is a problem."""
        try:
            question = make_question(example, self.tokenizer, enable_thinking=self.data.enable_thinking)
            self._check_vocabulary(max(question.ids) if question else 0)
        except RowProblem as problem:
            self.problems.append(Problem(example.where, problem.what))
            return None
        if question and len(question.ids) < self.max_seq_length:
            return question
        unasked[NO_ROOM if question else NOTHING_TO_ASK] += 1
        return None

    def _examples(self, paths: list[str]) -> Iterator[Example]:
        for row in read_rows(paths, self.problems):
            self.rows_read += 1
            if self.progress and self.rows_read % _PROGRESS_EVERY == 0:
                self.progress(self.rows_read, max(self.total, self.rows_read) if self.total else 0)
            try:
                example = self._parse(row)
            except RowProblem as problem:
                self.problems.append(Problem(row.where, problem.what))
                continue
            self.formats[type(example).__name__.removesuffix("Example").lower()] += 1
            yield example
        if self.progress:
            self.progress(self.rows_read, max(self.total, self.rows_read) if self.total else 0)

    def _parse(self, row: Row) -> Example:
        if self.method != "pretrain":
            example = parse_example(row, self.data.columns)
            if isinstance(example, TextExample) and self.data.train_on != "all":
                raise RowProblem(
                    'is plain text, which sft learns from only with train_on = "all" (or use method = "pretrain")'
                )
            return example
        name = self.data.columns.get("text", "text")
        if name not in row.value:
            raise RowProblem(f'has no column "{name}", which method = "pretrain" reads (found {", ".join(row.value)})')
        return parse_example(row._replace(value={"text": row.value[name]}))

    def _add(self, example: Example, rows: _Builder) -> None:
        try:
            encoded, notes = encode_with_notes(
                example, self.tokenizer, train_on=self.data.train_on, enable_thinking=self.data.enable_thinking
            )
            self._check_vocabulary(int(encoded.ids.max(initial=0)))
        except RowProblem as problem:
            self.problems.append(Problem(example.where, problem.what))
            return
        self.notes.update(notes)
        if not encoded.mask.any():
            self.dropped[NOTHING_TO_LEARN] += 1
        elif len(encoded.ids) <= self.max_seq_length:
            rows.add(encoded, example.where)
        else:
            self._add_long(encoded, example.where, rows)

    def _check_vocabulary(self, largest: int) -> None:
        if largest >= self.vocab_size:
            raise RowProblem(f"has the token id {largest}, beyond the model's vocabulary of {self.vocab_size}")

    def _add_long(self, encoded: Encoded, where: str, rows: _Builder) -> None:
        length, limit = len(encoded.ids), self.max_seq_length
        if self.too_long == "error":
            self.problems.append(Problem(where, f"has {length:,} tokens (max_seq_length is {limit:,})"))
        elif self.too_long == "drop":
            self.dropped[TOO_LONG] += 1
        else:
            windows = split_windows(encoded, limit) if self.too_long == "split" else [_window(encoded, 0, limit)]
            kept = [window for window in windows if window.mask.any()]
            for window in kept:
                rows.add(window, where)
            self.truncated += self.too_long == "truncate" and bool(kept)
            self.split += self.too_long == "split"
            self.dropped[ANSWER_CUT_OFF] += not kept

    def _report(self, train: TokenRows, valid: TokenRows) -> DataReport:
        return DataReport(
            rows_read=self.rows_read,
            train_rows=len(train),
            valid_rows=len(valid),
            test_rows=self.test_rows,
            tokens=len(train.ids),
            supervised_tokens=int(train.mask.sum()),
            **summarize_lengths(train.lengths),
            dropped=sort_counts(+self.dropped),
            truncated_rows=self.truncated,
            split_rows=self.split,
            duplicate_rows=self.duplicates,
            leaked_rows=self.leaked,
            formats=sort_counts(self.formats),
            notes=sort_counts(self.notes),
        )


def split_windows(encoded: Encoded, length: int) -> list[Encoded]:
    """Cut a row into windows of at most `length` tokens.

    A window starts with the last token of the one before, which its second token is predicted from: so every token that
    is trained on is trained on once.
    """
    return [_window(encoded, start, length) for start in range(0, len(encoded.ids) - 1, length - 1)]


def _window(encoded: Encoded, start: int, length: int) -> Encoded:
    window = Encoded(encoded.ids[start : start + length], encoded.mask[start : start + length].copy())
    window.mask[:1] = False
    return window


def _estimate_rows(data: DataTable) -> int:
    """Return the number of lines of the line-based files, and one for each other file."""
    total = 0
    for path in list_files([*data.train, *data.valid, *data.test]):
        if path.suffix.lower() not in {".jsonl", ".ndjson", ".csv", ".tsv"}:
            total += 1
            continue
        with path.open("rb") as file:
            total += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return total
