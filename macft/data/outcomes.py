"""A row, and what came of it.

The rule: it depends on nothing but the row and the reader's settings, so rows can be read in any order, anywhere.
"""

from typing import NamedTuple

from macft.data.examples import Example, NothingToLearn, ResponseExample, RowProblem
from macft.data.mix import hash_example, hash_place
from macft.data.preferences import PREFERENCE_METHODS
from macft.data.response_rows import ResponseReader
from macft.data.rows import Made, Reader, Settings
from macft.data.sources import Row
from macft.data.token_rows import TokenReader


class Outcome(NamedTuple):
    """What came of an example of a row; at least one of `made`, `dropped` and `problem` is there.

    Attributes:
        example: None when the row could not even be read; the two hashes are then 0.
        made: None unless it was encoded.
        dropped: Why it is left out.
        problem: Why it cannot be used.
        place: Hash that decides whether it is held out.
        content: Hash of all it says.
    """

    example: Example | None
    made: Made | None = None
    dropped: str = ""
    problem: str = ""
    place: int = 0
    content: int = 0


def make_reader(settings: Settings) -> Reader:
    """Return what reads rows for a method."""
    return ResponseReader(settings) if settings.method in PREFERENCE_METHODS else TokenReader(settings)


def read_row(row: Row, reader: Reader, *, encode: bool = True) -> list[Outcome]:
    """Parse a row and encode its examples; the result depends on nothing but the row and the reader's settings."""
    leaves_out = reader.settings.method in PREFERENCE_METHODS

    def fail(problem: RowProblem, example: Example | None) -> Outcome:
        if leaves_out and isinstance(problem, NothingToLearn):
            return Outcome(example, dropped=problem.reason)
        return Outcome(example, problem=problem.what)

    try:
        examples = reader.parse(row)
    except RowProblem as problem:
        return [fail(problem, None)]
    if not encode:
        return [Outcome(example, place=hash_place(example)) for example in examples]
    outcomes = []
    for example in examples:
        try:
            made = reader.encode(example)
            outcome = Outcome(example, made, dropped=made.dropped)
        except RowProblem as problem:
            outcome = fail(problem, example)
        content = hash_example(example)
        place = hash_place(example) if isinstance(example, ResponseExample) else content
        outcomes.append(outcome._replace(place=place, content=content))
    return outcomes
