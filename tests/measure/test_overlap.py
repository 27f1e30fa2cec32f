"""ROUGE, BLEU and chrF are those of the packages that people quote."""

import json

import pytest

from macft.measure.overlap import score_rouge
from macft.measure.translation import bleu, chrf
from tests.golden import HERE

GOLDEN = json.loads((HERE / "overlap.json").read_text(encoding="utf-8"))


def test_bleu_and_chrf_are_sacrebleus_and_rouge_is_rouge_scores() -> None:
    assert len(GOLDEN) > 60
    for case in GOLDEN:
        answers, references = zip(*case["pairs"], strict=True)
        assert bleu(answers, references).value == pytest.approx(case["bleu"], abs=1e-9)
        assert chrf(answers, references).value == pytest.approx(case["chrf"], abs=1e-9)
        for (answer, reference), expected in zip(case["pairs"], case["rouge"], strict=False):
            assert list(score_rouge(answer, reference)) == pytest.approx(expected, abs=1e-9)


def test_rouge_by_hand_and_chinese_by_character() -> None:
    assert score_rouge("the cat sat", "The cat ran off.") == pytest.approx((4 / 7, 2 / 5, 4 / 7))
    assert score_rouge("我喜欢猫", "我喜欢狗") == pytest.approx((3 / 4, 2 / 3, 3 / 4))
    assert score_rouge("", "") == (0, 0, 0)


def test_a_figure_can_be_drawn_anew_row_by_row() -> None:
    answers, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "the dog ran"]
    for figure in (bleu, chrf):
        both = figure(answers, references)
        alone = figure(answers[:1], references[:1])
        assert both.of_sums(both.counts[:1].sum(axis=0)) == pytest.approx(alone.value)
