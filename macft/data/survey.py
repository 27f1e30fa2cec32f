"""Every row of a data set with what a person should know of it before training, a few at a time.

The rule: nothing is left out. What cannot be read or trained on is a row as well, with the reason, in the place where
it stands; rows count from 1 in the order of the files.
"""

import re
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from macft.data.chat_template import Encoded, EncodedResponses
from macft.data.examples import ChatExample, CompletionExample, Example, Message, ResponseExample, RowProblem
from macft.data.inspect import Piece, encode_row
from macft.data.mix import hash_example
from macft.data.outcomes import make_reader, read_row
from macft.data.places import Place, Places
from macft.data.prepare import estimate_rows
from macft.data.rows import Settings
from macft.data.sources import Row, list_files, read_rows
from macft.data.turns import Tokenizer
from macft.errors import Problem
from macft.recipe import DataTable

FLAGS = ("unusable", "nothing", "too_long", "duplicate", "odd_roles")
"""What may be the matter with a row: bit i of `Seen.flags` is the i-th of these."""
UNUSABLE, NOTHING, TOO_LONG, DUPLICATE, ODD_ROLES = (1 << bit for bit in range(len(FLAGS)))
_ANY_LENGTH = 2**31 - 1
_LINE = re.compile(r":(\d+)$")


class Seen(NamedTuple):
    """A row in short; lengths in tokens.

    Attributes:
        file: Index into `Survey.files`.
        line: Where it starts, 0 when the whole file is meant.
        turns: Of a chat; a prompt and its completion are two, of a pair the prompt's and the answer.
        tokens: As the model sees it, uncut.
        supervised: Those of them that are trained on.
        flags: Bits as in `FLAGS`.
        same_as: The number of the earlier row that says the same, 0 when there is none.
    """

    file: int
    line: int
    turns: int = 0
    tokens: int = 0
    supervised: int = 0
    flags: int = 0
    same_as: int = 0


class Survey:
    """One pass over the rows, which goes on when it is asked to.

    Args:
        data: Names the rows (`train`), and how they are read.
        tokenizer: The model's.
        method: What the rows are for.
        max_seq_length: Longest row, in tokens; longer ones are flagged, and seen as a whole.
        vocab_size: Rows of the model's embedding.
    """

    def __init__(
        self, data: DataTable, tokenizer: Tokenizer, *, method: str, max_seq_length: int, vocab_size: int
    ) -> None:
        self.data, self.limit = data, max_seq_length
        self.reader = make_reader(Settings(data, tokenizer, method, _ANY_LENGTH, vocab_size))
        self.files: list[str] = []
        self.problems: dict[int, str] = {}
        self.places = Places()
        self.is_done = False
        self.total = estimate_rows(DataTable(train=data.train))
        self._files, self._lines, self._ordinals = array("I"), array("I"), array("I")
        self._first: dict[int, int] = {}
        self._rows = self.read()

    def __len__(self) -> int:
        return len(self._lines)

    def read(self) -> Iterator[tuple[Place, Row | Problem]]:
        """Yield all rows from the first on, and what cannot be read in its place; not those of standard input."""
        for name in self.data.train:
            for file in [str(path) for path in list_files([name])] or [name]:
                problems: list[Problem] = []
                rows, ordinal, told = read_rows([file], problems), 0, 0
                while True:
                    row = next(rows, None)
                    for problem in problems[told:]:
                        line = _LINE.search(problem.where)
                        yield Place(file, int(line[1]) if line else 0, ordinal), problem
                    told = len(problems)
                    if row is None:
                        break
                    yield Place(file, row.line, ordinal), row
                    ordinal += 1

    def go_on(self, seconds: float, *, now: Callable[[], float] = time.monotonic) -> list[Seen]:
        """Look at the next rows for about this long; at least one, and none when all have been seen."""
        deadline, seen = now() + seconds, list[Seen]()
        while not seen or now() < deadline:
            found = next(self._rows, None)
            if found is None:
                self.is_done = True
                break
            seen.append(self._add(*found))
        return seen

    def place(self, number: int) -> Place:
        """Return where a row stands that has been seen; rows count from 1."""
        at = number - 1
        return Place(self.files[self._files[at]], self._lines[at], self._ordinals[at])

    def look(self, row: Row, *, file: int = 0, number: int = 0) -> tuple[Seen, str]:
        """Return a row in short, and why it cannot be used; with a `number` it counts among those it may repeat."""
        outcomes = read_row(row, self.reader)
        why = next((outcome.problem for outcome in outcomes if outcome.problem), "")
        flags = UNUSABLE * bool(why)
        parts = [part for outcome in outcomes if outcome.made for part in outcome.made.rows]
        if not parts and not why:
            flags |= NOTHING
        flags |= self._judge_lengths(parts)
        examples = [outcome.example for outcome in outcomes if outcome.example]
        roles = roles_of(examples[0]) if examples else ()
        flags |= ODD_ROLES * bool(describe_oddness(roles))
        same_as = self._find_same(examples, number) if number and examples else 0
        seen = Seen(
            file,
            row.line,
            turns=len(roles),
            tokens=sum(map(_count, parts)),
            supervised=sum(map(_count_supervised, parts)),
            flags=flags | DUPLICATE * bool(same_as),
            same_as=same_as,
        )
        if not parts and not why:
            seen = seen._replace(tokens=self._count_uncut(row))
        return seen, why or next((outcome.dropped for outcome in outcomes if outcome.dropped), "")

    def pieces(self, row: Row) -> list[Piece]:
        """Return a row in tokens.

        Raises:
            RowProblem: It cannot be trained on.
        """
        settings = self.reader.settings
        return encode_row(row, self.data, settings.tokenizer, settings.method)

    def _add(self, place: Place, row: Row | Problem) -> Seen:
        if place.file not in self.files:
            self.files.append(place.file)
        file, number = self.files.index(place.file), len(self) + 1
        if isinstance(row, Row):
            seen, why = self.look(row, file=file, number=number)
        else:
            seen, why = Seen(file, place.line, flags=UNUSABLE), row.what
        if why:
            self.problems[number] = why
        for kept, value in ((self._files, file), (self._lines, place.line), (self._ordinals, place.ordinal)):
            kept.append(value)
        return seen

    def _count_uncut(self, row: Row) -> int:
        try:
            return sum(len(piece.encoded.ids) for piece in self.pieces(row))
        except RowProblem:
            return 0

    def _judge_lengths(self, parts: Sequence[Encoded | EncodedResponses]) -> int:
        """Flag rows that are cut, and those of which nothing is left to learn from then."""
        if all(_longest(part) <= self.limit for part in parts):
            return 0
        cut = self.data.too_long == "truncate" and self.reader.settings.method != "pretrain"
        is_left = any(_is_left(part, self.limit) for part in parts)
        return TOO_LONG | NOTHING * (cut and not is_left)

    def _find_same(self, examples: Sequence[Example], number: int) -> int:
        said = hash(tuple(map(hash_example, examples)))
        first = self._first.setdefault(said, number)
        return first if first != number else 0


def roles_of(example: Example) -> tuple[str, ...]:
    """Return whose turns a row has, in order; none for a document."""
    match example:
        case ChatExample():
            return tuple(message.role for message in example.messages)
        case CompletionExample():
            return ("user", "assistant")
        case ResponseExample(prompt=prompt, responses=responses):
            answers = responses[0]
            return (*_roles(prompt, "user"), *_roles(answers, "assistant"))
        case _:
            return ()


def describe_oddness(roles: Sequence[str]) -> str:
    """Say what is unusual in the order of a chat's turns; empty when nothing is."""
    turns = list(roles)
    if turns[:1] == ["system"]:
        turns = turns[1:]
    if not turns:
        return "it has nothing but a system text" if roles else ""
    if "system" in turns:
        return "a system text stands amid the turns"
    if turns[0] != "user":
        return f"the first turn is the {turns[0]}'s"
    for before, role in pairwise(turns):
        if before == role != "tool":
            return f"two turns of the {role} follow each other"
        if role == "tool" and before not in {"assistant", "tool"}:
            return f"a tool answers the {before}"
    return "" if turns[-1] == "assistant" else f"the last turn is the {turns[-1]}'s: nothing is learned from it"


def contains(row: Row | Problem, words: Sequence[str]) -> bool:
    """Return whether a row's texts have all of some words in lower case; what cannot be read is known by its reason."""
    text = row.what.lower() if isinstance(row, Problem) else "\n".join(_texts(row.value)).lower()
    return all(word in text for word in words)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)


def _roles(turns: str | tuple[Message, ...], role: str) -> tuple[str, ...]:
    return (role,) if isinstance(turns, str) else tuple(message.role for message in turns)


def _count(part: Encoded | EncodedResponses) -> int:
    return len(part.ids) if isinstance(part, Encoded) else len(part.prompt) + sum(map(len, part.responses))


def _count_supervised(part: Encoded | EncodedResponses) -> int:
    return int(part.mask.sum()) if isinstance(part, Encoded) else sum(map(len, part.responses))


def _longest(part: Encoded | EncodedResponses) -> int:
    return len(part.ids) if isinstance(part, Encoded) else len(part.prompt) + max(map(len, part.responses))


def _is_left(part: Encoded | EncodedResponses, limit: int) -> bool:
    if isinstance(part, Encoded):
        return bool(part.mask[:limit].any())
    kept = [response[: limit - len(part.prompt)] for response in part.responses]
    return len(part.prompt) < limit and (len(kept) < 2 or not np.array_equal(kept[0], kept[1]))
