"""Score answers against references: valid JSON, exact match, field F1 and token F1.

The rule: pure arithmetic on strings. A metric is only reported where it applies to every row: `valid_json` when all
references are JSON objects or lists, `field_f1` when all are objects. An answer in a code fence is not JSON.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{CHINESE}]|[^\W{CHINESE}]+")
_ARTICLES = {"a", "an", "the"}

Path = tuple[str | int, ...]
Fields = dict[Path, Hashable]
"""A JSON value as its leaves, each under the keys and list places that lead to it; what is empty is a leaf."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """How one answer compares with its reference.

    Attributes:
        is_json: Whether the answer is one JSON object or list and nothing else.
        is_exact: Equal but for white space around it, or equal as JSON.
        matched_fields: Fields of the answer that the reference has with the same value.
        answer_fields: Fields of the answer; 0 when it is not JSON.
        reference_fields: Fields of the reference.
        f1: Overlap of the tokens, 0 to 1.
    """

    answer: str
    reference: str
    is_json: bool
    is_exact: bool
    matched_fields: int
    answer_fields: int
    reference_fields: int
    f1: float

    @property
    def score(self) -> float:
        """Rank this row among others, 0 to 1: 1 when exact, else by its fields, else by its tokens."""
        if self.is_exact:
            return 1.0
        if not self.reference_fields:
            return self.f1
        return _f1(self.matched_fields, self.answer_fields, self.reference_fields)


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Scores of a set of answers.

    Attributes:
        metrics: Those of `valid_json`, `exact_match`, `field_f1`, `f1` that apply, in that order, each 0 to 1.
        rows: One a row, in the order of the answers.
    """

    metrics: dict[str, float]
    rows: tuple[RowScore, ...]


def score_answers(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Score every answer against the reference at the same place.

    Returns:
        Shares and means over the rows; `field_f1` counts the fields of all rows together (micro average).

    Raises:
        ValueError: There are more answers than references, or fewer.
    """
    rows = tuple(_score(answer, reference) for answer, reference in zip(answers, references, strict=True))
    if not rows:
        return AnswerScores({}, rows)
    parsed = [_parse(reference) for reference in references]
    metrics: dict[str, float] = {}
    if all(isinstance(value, dict | list) for value in parsed):
        metrics["valid_json"] = sum(row.is_json for row in rows) / len(rows)
    metrics["exact_match"] = sum(row.is_exact for row in rows) / len(rows)
    if all(isinstance(value, dict) for value in parsed):
        metrics["field_f1"] = _f1(
            sum(row.matched_fields for row in rows),
            sum(row.answer_fields for row in rows),
            sum(row.reference_fields for row in rows),
        )
    metrics["f1"] = sum(row.f1 for row in rows) / len(rows)
    return AnswerScores(metrics, rows)


def _score(answer: str, reference: str) -> RowScore:
    said, expected = _fields(_parse(answer)), _fields(_parse(reference))
    return RowScore(
        answer=answer,
        reference=reference,
        is_json=said is not None,
        is_exact=answer.strip() == reference.strip() or (said is not None and said == expected),
        matched_fields=len((said or {}).items() & (expected or {}).items()),
        answer_fields=len(said or {}),
        reference_fields=len(expected or {}),
        f1=_token_f1(answer, reference),
    )


def _parse(text: str) -> Any:
    """Read JSON, numbers as exact decimals; None when it is not JSON."""
    try:
        return json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _fields(value: Any) -> Fields | None:
    """Flatten an object or list; None for anything else. A stack, because a model can nest deeper than Python calls."""
    if not isinstance(value, dict | list):
        return None
    fields: Fields = {}
    stack: list[tuple[Path, Any]] = [((), value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, dict | list) and item:
            inner = item.items() if isinstance(item, dict) else enumerate(item)
            stack += [((*path, key), below) for key, below in inner]
        elif isinstance(item, dict | list | bool):
            fields[path] = (type(item), bool(item))  # in Python, True == 1
        else:
            fields[path] = item
    return fields


def _token_f1(answer: str, reference: str) -> float:
    said, expected = _tokens(answer), _tokens(reference)
    if not said or not expected:
        return float(answer.strip() == reference.strip())
    return _f1((said & expected).total(), said.total(), expected.total())


def _tokens(text: str) -> Counter[str]:
    """Count words without case, articles and punctuation; Chinese and Japanese characters count one by one."""
    found = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    return Counter(token for token in found if token not in _ARTICLES)


def _f1(matched: int, said: int, expected: int) -> float:
    """Combine precision and recall; nothing said where nothing was expected is right."""
    return 2 * matched / (said + expected) if said + expected else 1.0
