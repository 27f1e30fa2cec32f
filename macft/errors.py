"""Every error that macft raises on purpose, drawn as one tree.

    MacftError                  1   something failed and macft knows why
    ├── RecipeError             2   the recipe or the command line asks for something impossible
    ├── DataError               3   rows that cannot be trained on, each with its file and line
    ├── ModelError              3   a model, tokenizer or adapter that is missing, damaged or unsupported
    ├── DoesNotFit              4   the plan exceeds this machine's memory or disk
    ├── RunCrashed              5   the training process died; said by whoever follows it
    ├── NeedsNetwork            6   only `macft pull` goes online
    ├── RunError                1   a run folder that cannot be used as asked
    │   ├── RunLocked               another process is training in it
    │   └── CheckpointDamaged       a checkpoint that does not verify
    └── Stopped           130/143   the user stopped the run; everything is saved

The rule: a message says what happened and where; `fix` says what to do. Both fit on one line each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_PROBLEMS = 20


class MacftError(Exception):
    """Something failed and macft knows why.

    Args:
        message: What happened and where, one line.
        fix: What to do about it, one line; empty when there is nothing to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}. {self.fix}" if self.fix else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        where: `file.jsonl:37` for a row, a dotted key for a recipe.
        what: What is wrong there and what was expected.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class _Problems(MacftError):
    """An error that lists all its problems at once and shows the first twenty."""

    def __init__(self, problems: Sequence[Problem], *, fix: str = "") -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(f"… and {more:,} more")
        super().__init__("\n".join(lines), fix=fix)

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}" if self.fix else self.message


class RecipeError(_Problems):
    """The recipe or the command line asks for something impossible."""

    exit_code = 2


class DataError(_Problems):
    """Rows that cannot be trained on; every one is named with its file and line."""

    exit_code = 3


class ModelError(MacftError):
    """A model, tokenizer or adapter that is missing, damaged or unsupported."""

    exit_code = 3


class DoesNotFit(MacftError):
    """The plan exceeds this machine's memory or disk."""

    exit_code = 4


class RunCrashed(MacftError):
    """The training process died; said by whoever follows it."""

    exit_code = 5


class NeedsNetwork(MacftError):
    """The model is not on this machine, and only `macft pull` goes online."""

    exit_code = 6


class RunError(MacftError):
    """A run folder that cannot be used as asked."""


class RunLocked(RunError):
    """Another process is training in the run folder."""


class CheckpointDamaged(RunError):
    """A checkpoint that is incomplete or does not verify."""


class Stopped(MacftError):
    """The user stopped the run; everything is saved.

    Args:
        message: What was saved.
        signal_number: The signal that asked for it; 2 (INT) exits 130, 15 (TERM) exits 143.
    """

    def __init__(self, message: str, *, signal_number: int = 15, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.exit_code = 128 + signal_number
