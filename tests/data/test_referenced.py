"""Rows with what the reference says of them: which response a prompt is mismatched with, and where it is cut."""

import numpy as np

from macft.data.referenced import Mismatched
from tests.training.conftest import ResponseArrays


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def labeled(*rows: tuple[np.ndarray, np.ndarray]) -> ResponseArrays:
    return ResponseArrays([list(row) for row in rows], np.ones(len(rows), np.bool_))


def told(rows: Mismatched) -> list[list[list[int]]]:
    return [[part.tolist() for part in rows.parts(index)] for index in range(len(rows))]


def test_each_prompt_gets_the_response_before_it_and_the_first_one_the_last() -> None:
    """TRL's rotation: (x1, y3), (x2, y1), (x3, y2)."""
    rows = labeled((ids(1), ids(10)), (ids(2), ids(20, 21)), (ids(3), ids(30)))
    assert told(Mismatched(rows, 9)) == [[[1], [30]], [[2], [10]], [[3], [20, 21]]]


def test_a_response_to_the_same_prompt_is_no_mismatch() -> None:
    rows = labeled((ids(1), ids(10)), (ids(1), ids(11)), (ids(2), ids(20)))
    assert told(Mismatched(rows, 9)) == [[[1], [20]], [[1], [20]], [[2], [11]]]


def test_a_mismatched_row_is_cut_at_the_limit_and_keeps_one_token_at_least() -> None:
    rows = labeled((ids(1, 2, 3), ids(10)), (ids(2), ids(20, 21, 22)))
    found = Mismatched(rows, 4)
    assert told(found) == [[[1, 2, 3], [20]], [[2], [10]]]
    assert found.lengths.tolist() == found.longest.tolist() == [4, 2]
