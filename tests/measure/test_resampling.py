"""Intervals hold the truth as often as they say, and a test finds what is there and nothing else."""

import numpy as np
import pytest

from macft.measure.resampling import compare_paired, find_interval, mean, ratio


def test_a_figure_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    assert ratio([1, 3], [1, 9]).value == pytest.approx(0.4)
    assert mean([0, 1, 1, 1]).value == 0.75
    assert np.isnan(ratio([0.0], [0.0]).value)


def test_an_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = find_interval(mean(values))
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.015)
    assert high == pytest.approx(values.mean() + error, abs=0.015)
    assert find_interval(mean(values)) == (low, high)
    assert find_interval(mean([1.0] * 9)) == (1.0, 1.0)


def test_the_truth_lies_in_about_nineteen_of_twenty_intervals() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        low, high = find_interval(mean(rng.random(60) < 0.3), resamples=400, seed=seed)
        held += low <= 0.3 <= high
    assert 178 <= held <= 200


def test_a_paired_test_is_the_sign_test_on_ones_and_noughts() -> None:
    """Of 40 rows 9 became right and 1 wrong: two-sided, 2 · (1 + 10) / 2¹⁰ = 0.0215."""
    before, after = np.zeros(40), np.zeros(40)
    after[:9], before[9] = 1, 1
    assert compare_paired(mean(before), mean(after), resamples=20_000) == pytest.approx(22 / 1024, abs=0.004)
    assert compare_paired(mean(before), mean(before)) == 1.0


def test_without_a_difference_p_is_anything() -> None:
    rng = np.random.default_rng(3)
    found = [compare_paired(*(mean(rng.random(50)) for _ in range(2)), resamples=200) for _ in range(200)]
    assert 0.4 < np.mean(found) < 0.6
    assert np.mean(np.array(found) < 0.05) < 0.1
