"""Scores of answers, each against a value worked by hand."""

import pytest

from macft.measure.answers import score_answers


def test_field_f1_by_hand():
    """Row 1 says 3 fields, 2 of the 3 expected; row 2 is no JSON and expects 2: 2·2 / (3 + 0 + 3 + 2) = 1/2.

    Valid JSON: one of two. Exact: none.
    """
    scores = score_answers(
        ['{"street": "Main St", "city": "Troy", "zip": "12180"}', "Sure! Here is the JSON:"],
        ['{"street": "Main St", "city": "Troy", "state": "NY"}', '{"city": "Kenai", "state": "AK"}'],
    )
    assert list(scores.metrics) == ["valid_json", "exact_match", "field_f1", "f1"]
    assert scores.metrics["field_f1"] == 0.5
    assert scores.metrics["valid_json"] == 0.5
    assert scores.metrics["exact_match"] == 0.0
    assert [row.score for row in scores.rows] == [pytest.approx(2 / 3), 0.0]


def test_nested_fields_by_hand():
    """The reference has a.b, a.c[0], a.c[1], d: 4 fields. The answer has 3 of them, right in a.b and a.c[0]: 2·2/7."""
    scores = score_answers(['{"a": {"b": 1, "c": [true]}, "d": null}'], ['{"a": {"b": 1, "c": [true, 2]}, "d": {}}'])
    assert scores.metrics["field_f1"] == pytest.approx(4 / 7)


def test_token_f1_by_hand():
    """Said {cat, sat}, expected {cat, sat, on, mat}, articles dropped: precision 1, recall 1/2, F1 2/3."""
    scores = score_answers(["The cat sat!"], ["the cat sat on a mat"])
    assert scores.metrics == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}


def test_chinese_is_counted_by_character():
    """Said 北京市 (3), expected 中国北京 (4), 2 in common: 2·2/7."""
    assert score_answers(["北京市。"], ["中国北京"]).metrics["f1"] == pytest.approx(4 / 7)


def test_repeated_tokens_count_once_each():
    """Said no no no (3), expected no (1), 1 in common: 2/4."""
    assert score_answers(["no no no"], ["No."]).metrics["f1"] == 0.5


@pytest.mark.parametrize(
    ("answer", "reference", "exact"),
    [
        (" yes\n", "yes", True),
        ("Yes", "yes", False),
        ('{"b": 2.0, "a": 1}', '{"a":1,"b":2}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": {}}', '{"a": []}', False),
        ("{}", "{}", True),
        ("[]", "{}", False),
        ("oops", "{}", False),
        ('{"a": 12345678901234567890123}', '{"a": 12345678901234567890124}', False),
        ('```json\n{"a": 1}\n```', '{"a": 1}', False),
        ('{"a": 1} ', '{"a": 1}', True),
        ("1.0", "1", False),
    ],
)
def test_exact_match(answer: str, reference: str, exact: bool):
    assert score_answers([answer], [reference]).rows[0].is_exact is exact


@pytest.mark.parametrize("text", ['{"a": NaN}', "[" * 100_000, '{"a": 1e99999999999999999999}', '{"a": 1} x', "42", ""])
def test_what_is_not_a_json_object_or_list(text: str):
    row = score_answers([text], ['{"a": 1}']).rows[0]
    assert not row.is_json
    assert row.answer_fields == 0


def test_only_metrics_that_apply():
    assert list(score_answers(["a"], ["a"]).metrics) == ["exact_match", "f1"]
    assert list(score_answers(["[1]"], ["[1]"]).metrics) == ["valid_json", "exact_match", "f1"]
    assert list(score_answers(["{}", "b"], ["{}", "b"]).metrics) == ["exact_match", "f1"]
    assert score_answers([], []).metrics == {}


def test_deep_answers_are_scored():
    deep = "[" * 900 + "]" * 900
    assert score_answers([deep], [f" {deep}"]).rows[0].score == 1.0
    assert score_answers([deep], ['{"a": 1}']).metrics["field_f1"] == 0.0


def test_perfect_answers_score_one_everywhere():
    references = ['{"a": "x"}', "{}", '{"b": [1, 2]}']
    assert set(score_answers(references, references).metrics.values()) == {1.0}


def test_answers_and_references_must_pair():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        score_answers(["a"], ["a", "b"])
