"""Data table and tokenizer to token rows, ready to train on.

The rule: everything is read, rendered and tokenized before a model loads. Every row that cannot be trained on is named,
all of them in one error; every row that is cut, split or left out is counted.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from macft.data.examples import COLUMNS, CompletionExample, Example, ResponseExample, RowProblem
from macft.data.mix import is_held_out
from macft.data.outcomes import Outcome, make_reader
from macft.data.pool import BY_LINE, RowPool, Workers
from macft.data.questions import Question, make_question
from macft.data.report import DataReport, sort_counts, summarize_lengths
from macft.data.response_rows import ResponseRows
from macft.data.rows import Builder, Made, Reader, Settings
from macft.data.sources import list_files, read_located
from macft.data.token_rows import TokenRows
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.plan import DataFacts
from macft.recipe import DataTable, EvaluateTable

ALL_HELD_OUT = "valid_fraction would hold out every row: none is held out"
NONE_HELD_OUT = "valid_fraction holds out no row: too few rows"
NOTHING_TO_ASK = "has nothing to ask with"
NO_ROOM = "leaves no room for an answer within max_seq_length"
TEST_NOT_ASKED = "a row of data.test is not asked: it"

Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 256


AnyRows = TokenRows | ResponseRows


class Prepared(NamedTuple):
    """The data of a run.

    Attributes:
        samples: Asked at every evaluation: `evaluate.prompts`, or the first of the held-out rows.
        test: Asked when the run ends: the first `evaluate.test_rows` rows of `data.test` that can be asked.
    """

    train: AnyRows
    valid: AnyRows
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
        longest=int(data.train.longest.max(initial=1)),
        p99=max(1, data.report.length_p99),
        valid_tokens=int(valid.sum()),
        widest=int(lengths.max(initial=1)),
    )


def prepare(
    data: DataTable,
    tokenizer: Tokenizer,
    *,
    method: str,
    max_seq_length: int,
    vocab_size: int,
    evaluate: EvaluateTable | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Prepared:
    """Read and tokenize the rows of a run, and what the model will be asked.

    Args:
        data: What to read, and how.
        tokenizer: The model's.
        method: `pretrain` reads whole documents and splits them, preference methods read pairs or labeled completions,
            `sft` reads chats and completions.
        max_seq_length: Longest row, in tokens.
        vocab_size: Rows of the model's embedding; ids beyond it are a problem.
        evaluate: How much is asked. Every row of `data.test` is checked, asked or not.
        progress: Called with rows done and rows in all; the latter is an estimate, 0 when nothing is known.
        workers: Processes that help with large files; the result is the same without.

    Raises:
        DataError: Any row cannot be trained on, or none is left; all problems at once.
    """
    data = with_siblings(data)
    problems = [
        Problem(f"data.columns.{name}", f"is not a column of macft's (expected one of {', '.join(COLUMNS)})")
        for name in data.columns
        if name not in COLUMNS
    ]
    if not data.train:
        problems.append(Problem("data.train", "names no file to learn from"))
    if problems:
        raise DataError(problems, fix="`macft data check` reads rows without training.")
    settings = Settings(data, tokenizer, method, max_seq_length, vocab_size)
    reader = make_reader(settings)
    helped = workers if workers and workers.pay_for([*data.train, *data.valid]) else None
    with RowPool(reader, helped) as pool:
        return _Preparation(reader, pool, evaluate or EvaluateTable(), progress).run()


def with_siblings(data: DataTable) -> DataTable:
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

    def __init__(self, reader: Reader, pool: RowPool, evaluate: EvaluateTable, progress: Progress | None) -> None:
        self.pool, self.evaluate, self.progress = pool, evaluate, progress
        self.settings, self.data = reader.settings, reader.settings.data
        self.train, self.valid = reader.builder(), reader.builder()
        self.samples, self.test = list[Question](), list[Question]()
        self.problems: list[Problem] = []
        self.dropped: dict[str, list[str]] = {}
        self.formats, self.notes = Counter[str](), Counter[str]()
        self.rows_read = self.test_rows = self.truncated = self.split = 0
        self.total = estimate_rows(self.data) if progress else 0
        self.trained, self.trained_places, self.asked_places = array("Q"), array("Q"), array("Q")

    def run(self) -> Prepared:
        fraction = 0.0 if self.data.valid else self.data.valid_fraction
        self._ask_prompts()
        for example, outcome in self._outcomes(self.data.train):
            self._read_train(example, outcome, fraction)
        for example, outcome in self._outcomes(self.data.valid):
            self.asked_places.append(outcome.place)
            self._hold_out(example, outcome)
        for example, outcome in self._outcomes(self.data.test, encode=False):
            self.asked_places.append(outcome.place)
            self._read_test(example)
        train, valid = self.train.build(), self.valid.build()
        if fraction and len(valid) and not len(train):
            train, valid = valid, train
            self.samples = self.samples if self.evaluate.prompts else []
            self.notes[ALL_HELD_OUT] += len(train)
        elif fraction and not len(valid):
            self.notes[NONE_HELD_OUT] += len(train)
        if not len(train) and not self.problems:
            why = ", ".join(f"{len(places)} {reason}" for reason, places in self.dropped.items()) or "no rows"
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

    def _read_train(self, example: Example, outcome: Outcome, fraction: float) -> None:
        if is_held_out(outcome.place, fraction):
            self._hold_out(example, outcome)
            return
        self.trained.append(outcome.content)
        self.trained_places.append(outcome.place)
        self._add(example, outcome, self.train)

    def _hold_out(self, example: Example, outcome: Outcome) -> None:
        is_kept = self._add(example, outcome, self.valid)
        wanted = 0 if self.evaluate.prompts else self.evaluate.samples
        if is_kept and len(self.samples) < wanted and (question := self._question(example, Counter())):
            self._ask(question, example, self.samples)

    def _read_test(self, example: Example) -> None:
        self.test_rows += 1
        unasked = Counter[str]()
        question = self._question(example, unasked)
        self.notes.update(f"{TEST_NOT_ASKED} {why}" for why in unasked)
        if question and len(self.test) < self.evaluate.test_rows:
            self._ask(question, example, self.test)

    @staticmethod
    def _ask(question: Question, example: Example, asked: list[Question]) -> None:
        """Add a question, but a prompt with several pairs only once."""
        if not isinstance(example, ResponseExample) or all(question.ids != other.ids for other in asked):
            asked.append(question)

    def _question(self, example: Example, unasked: Counter[str]) -> Question | None:
        """Make a question of a row; `unasked` counts why there is none, and what is wrong is a problem."""
        try:
            question = make_question(example, self.settings.tokenizer, enable_thinking=self.data.enable_thinking)
            self.settings.check_vocabulary(max(question.ids) if question else 0)
        except RowProblem as problem:
            self.problems.append(Problem(example.where, problem.what))
            return None
        if question and len(question.ids) < self.settings.max_seq_length:
            return question
        unasked[NO_ROOM if question else NOTHING_TO_ASK] += 1
        return None

    def _outcomes(self, paths: list[str], *, encode: bool = True) -> Iterator[tuple[Example, Outcome]]:
        for (row, problems), outcomes in self.pool.read(read_located(paths), encode=encode):
            self.problems += problems
            if row is None:
                break
            self.rows_read += 1
            if self.rows_read % _PROGRESS_EVERY == 0:
                self._tell()
            for outcome in outcomes:
                if outcome.problem:
                    self.problems.append(Problem(row.where, outcome.problem))
                if outcome.dropped:
                    self.dropped.setdefault(outcome.dropped, []).append(row.where)
                if outcome.example is not None:
                    self.formats[_name_kind(outcome.example)] += 1
                    yield outcome.example, outcome
        self._tell()

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.rows_read, max(self.total, self.rows_read) if self.total else 0)

    def _add(self, example: Example, outcome: Outcome, rows: Builder) -> bool:
        made = outcome.made or Made()
        self.notes.update(made.notes)
        self.truncated += made.is_truncated
        self.split += made.is_split
        for row in made.rows:
            rows.add(row, example)
        return bool(made.rows)

    def _report(self, train: AnyRows, valid: AnyRows) -> DataReport:
        return DataReport(
            rows_read=self.rows_read,
            train_rows=len(train),
            valid_rows=len(valid),
            test_rows=self.test_rows,
            tokens=len(train.ids),
            supervised_tokens=int(train.supervised.sum()),
            **summarize_lengths(train.lengths),
            dropped=sort_counts(Counter({reason: len(places) for reason, places in self.dropped.items()})),
            dropped_where=self.dropped,
            truncated_rows=self.truncated,
            split_rows=self.split,
            duplicate_rows=len(self.trained) - len(np.unique(np.array(self.trained, np.uint64))),
            leaked_rows=_count_known(self.asked_places, self.trained_places),
            formats=sort_counts(self.formats),
            notes=sort_counts(self.notes),
            responses=train.summarize_responses() if isinstance(train, ResponseRows) else {},
        )


def _count_known(places: "array[int]", known: "array[int]") -> int:
    return int(np.isin(np.array(places, np.uint64), np.array(known, np.uint64)).sum())


def _name_kind(example: Example) -> str:
    """Return what kind of row an example comes from, in a word."""
    if isinstance(example, ResponseExample):
        return "pair" if example.label is None else "labeled"
    return type(example).__name__.removesuffix("Example").lower()


def estimate_rows(data: DataTable) -> int:
    """Return the number of lines of the line-based files, and one for each other file."""
    total = 0
    for path in list_files([*data.train, *data.valid, *data.test]):
        if path.suffix.lower() not in BY_LINE:
            total += 1
            continue
        with path.open("rb") as file:
            total += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return total
