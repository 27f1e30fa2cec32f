"""Which evaluation is the best, whatever decides it."""

import math

from macft.training.checkpoint import Progress


def pairs(accuracy: float, margin: float = 0.5) -> dict[str, float]:
    return {"eval_loss": 0.5, "eval_rewards/accuracies": accuracy, "eval_rewards/margins": margin}


def test_a_loss_is_better_when_it_is_lower():
    progress = Progress(step=1).evaluated({"eval_loss": 2.0}, "eval_loss")
    assert (progress.best_value, progress.best_step, progress.stale) == (2.0, 1, 0)
    assert progress.evaluated({"eval_loss": 2.0}, "eval_loss").stale == 1
    assert progress.evaluated({"eval_loss": math.nan}, "eval_loss").best_value == 2.0
    assert progress.evaluated({"eval_loss": 1.0}, "eval_loss").best_value == 1.0


def test_an_accuracy_is_better_when_it_is_higher_and_the_first_of_equals_stays():
    metric = "eval_rewards/accuracies"
    progress = Progress(step=10).evaluated(pairs(0.9), metric)
    worse = Progress(step=20, best_value=0.9, best_step=10).evaluated(pairs(0.9), metric)
    assert (progress.best_step, worse.best_step, worse.stale) == (10, 10, 1)
    assert Progress(step=30, best_value=0.9, best_step=10).evaluated(pairs(0.95), metric).best_step == 30


def test_an_accuracy_of_equal_rewards_is_nothing():
    """Before the first update rewards are 0 but for rounding, and a small set may seem to be all right."""
    metric = "eval_rewards/accuracies"
    start = Progress().evaluated(pairs(1.0, margin=1e-7), metric)
    assert start.best_value == 0.0
    assert Progress(step=5, best_value=0.0).evaluated(pairs(0.8), metric).best_step == 5


def test_a_margin_is_better_when_it_is_higher():
    progress = Progress(step=5, best_value=0.4).evaluated(pairs(0.5, margin=0.6), "eval_rewards/margins")
    assert progress.best_value == 0.6
