"""The table of Base against tuned, and which rows are shown."""

from macft.measure.answers import score_answers
from macft.measure.table import ScoreRow, pick_examples, render_scores

REFERENCES = ["red", "green", "blue", "black", "white"]
BASE = score_answers(["no", "no", "blue", "no", "white"], REFERENCES)
TUNED = score_answers(["no", "green", "no", "black", "white"], REFERENCES)
PROMPTS = ["p0", "p1", "p2", "p3", "p4"]


def test_rows_hold_both_sides_in_order():
    """Base has 2 of 5 right, tuned 3 of 5; one-word answers have the same F1."""
    assert render_scores(BASE.metrics, TUNED.metrics) == [
        ScoreRow("exact_match", 0.4, 0.6),
        ScoreRow("f1", 0.4, 0.6),
    ]


def test_a_metric_of_one_side_only_is_kept():
    assert render_scores({"f1": 0.5}, {"f1": 0.5, "field_f1": 1.0}) == [
        ScoreRow("f1", 0.5, 0.5),
        ScoreRow("field_f1", None, 1.0),
    ]


def test_the_first_of_each_kind_is_shown():
    examples = pick_examples(BASE, TUNED, PROMPTS)
    assert [(example["prompt"], example["change"]) for example in examples] == [
        ("p1", "better"),
        ("p2", "worse"),
        ("p0", "unchanged"),
    ]
    assert examples[0] == {"prompt": "p1", "reference": "green", "base": "no", "tuned": "green", "change": "better"}


def test_more_of_a_kind_fill_the_places():
    shown = pick_examples(BASE, BASE, PROMPTS)
    assert [example["prompt"] for example in shown] == ["p0", "p1", "p2"]
    assert len(pick_examples(BASE, TUNED, PROMPTS, count=9)) == 5
    assert pick_examples(score_answers([], []), score_answers([], []), []) == []
