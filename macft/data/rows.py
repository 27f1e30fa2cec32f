"""What one example becomes, whatever the method: training rows, or the reason why there are none.

The rule: what a row becomes depends on the row and the settings alone, so that rows can be read in any order, anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from macft.data.examples import Example, RowProblem
from macft.data.sources import Row
from macft.data.turns import Tokenizer
from macft.recipe import DataTable

TOO_LONG = "longer than max_seq_length"
ANSWER_CUT_OFF = "answer beyond max_seq_length"


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides how rows become tokens.

    Attributes:
        max_seq_length: Longest row, in tokens.
        vocab_size: Rows of the model's embedding; ids beyond it are a problem.
    """

    data: DataTable
    tokenizer: Tokenizer
    method: str
    max_seq_length: int
    vocab_size: int

    def check_vocabulary(self, largest: int) -> None:
        """Refuse an id that the model has no embedding for.

        Raises:
            RowProblem: It is too large.
        """
        if largest >= self.vocab_size:
            raise RowProblem(f"has the token id {largest}, beyond the model's vocabulary of {self.vocab_size}")


class Made(NamedTuple):
    """What an example became.

    Attributes:
        rows: Training rows, as the method's builder takes them.
        notes: What was done to them that their author should know.
        dropped: Why there are none; empty when there are.
        is_truncated: The end was cut off.
        is_split: It became several rows.
    """

    rows: Sequence[Any] = ()
    notes: frozenset[str] = frozenset()
    dropped: str = ""
    is_truncated: bool = False
    is_split: bool = False


class Builder(Protocol):
    """Grows the rows of one side of the split."""

    def __len__(self) -> int: ...

    def add(self, row: Any, example: Example) -> None:
        """Append a row that `Reader.encode` made of an example."""

    def build(self) -> Any:
        """Return the rows."""


class Reader(Protocol):
    """How a method reads rows."""

    @property
    def settings(self) -> Settings:
        """What decides how rows become tokens."""

    def parse(self, row: Row) -> Sequence[Example]:
        """Understand a row; it may hold several examples.

        Raises:
            RowProblem: It cannot be understood.
        """

    def encode(self, example: Example) -> Made:
        """Make training rows of an example.

        Raises:
            RowProblem: It cannot be trained on.
        """

    def builder(self) -> Builder:
        """Return an empty builder for the rows that `encode` makes."""
