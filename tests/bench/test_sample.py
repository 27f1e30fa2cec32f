import numpy as np
import pytest

from macft.bench.sample import Epoch, Timed, compare_rates, median, spread, tokens_per_second


def test_batches_lie_at_evenly_spaced_quantiles():
    work = [5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 7.0, 6.0]
    assert sorted(work[index] for index in spread(work, 4)) == [1.0, 3.0, 5.0, 7.0]


@pytest.mark.parametrize("stopped_after", [3, 7, 15])
def test_a_sample_that_is_cut_off_is_still_spread(stopped_after):
    chosen = spread(list(range(310)), 31)[:stopped_after]
    gaps = np.diff([0, *sorted(chosen), 310])
    assert gaps.max() <= 2 * 310 / (stopped_after + 1)


def test_an_epoch_with_few_batches_is_taken_whole():
    assert sorted(spread([3.0, 1.0, 2.0], 30)) == [0, 1, 2]


def test_an_epochs_rate_is_its_tokens_by_the_time_of_its_work():
    # 6 units took 3 s, so the epoch's 60 take 30 s; it has 300 tokens.
    assert tokens_per_second([Timed(2, 1), Timed(4, 2)], Epoch(tokens=300, work=60)) == pytest.approx(10)


def test_a_constant_ratio_has_no_spread():
    ours, theirs = [Timed(work, work) for work in (1, 2, 5)], [Timed(work, 3 * work) for work in (2, 4, 9)]
    ratio = compare_rates(ours, theirs, (Epoch(10, 10), Epoch(10, 20)), seed=0)
    assert ratio == pytest.approx((6, 6, 6))


def test_noise_widens_the_interval_and_the_seed_fixes_it():
    generator = np.random.default_rng(1)
    ours, theirs = ([Timed(1, seconds) for seconds in generator.uniform(0.5, 1.5, 20)] for _ in range(2))
    epochs = (Epoch(1, 1), Epoch(1, 1))
    first, again, other = (compare_rates(ours, theirs, epochs, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first.low < first.value < first.high
    assert first.value == other.value


def test_a_slow_spell_that_hits_both_sides_leaves_the_ratio():
    load = [1, 1, 5, 1, 3]
    ours, theirs = [Timed(1, slow) for slow in load], [Timed(1, 2 * slow) for slow in load]
    assert compare_rates(ours, theirs, (Epoch(1, 1), Epoch(1, 1)), seed=0) == pytest.approx((2, 2, 2))


def test_sides_without_partners_are_refused():
    with pytest.raises(ValueError, match="partner"):
        compare_rates([Timed(1, 1)], [], (Epoch(1, 1), Epoch(1, 1)), seed=0)


def test_a_median_lies_in_its_interval():
    estimate = median([1.0, 2.0, 3.0, 4.0, 100.0])
    assert estimate.value == 3.0
    assert 1.0 <= estimate.low <= 3.0 <= estimate.high <= 100.0
