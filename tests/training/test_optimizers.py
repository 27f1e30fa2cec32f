"""Schedules by hand, clipping, and what a checkpoint keeps."""

import math

import mlx.core as mx
import pytest

from macft.recipe import ScheduleTable, make_recipe
from macft.training.optimizers import clip, count_steps, global_norm, learning_rate_at


def rates(name: str, total: int = 10, **more: object) -> list[float]:
    schedule = ScheduleTable(name=name, **more)
    return [learning_rate_at(step, total_steps=total, peak=1.0, schedule=schedule) for step in range(1, total + 1)]


def test_warm_up_climbs_in_equal_steps_and_starts_above_zero() -> None:
    assert rates("constant", warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_cosine_and_linear_decay_to_just_above_their_end() -> None:
    cosine, linear = rates("cosine", warmup_steps=0), rates("linear", warmup_steps=0, final_fraction=0.5)
    assert cosine[0] == linear[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)
    assert linear[9] == pytest.approx(0.55)


def test_wsd_holds_and_then_decays() -> None:
    found = rates("wsd", warmup_steps=0, decay_fraction=0.4)
    assert found == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


def test_one_step_has_the_whole_rate() -> None:
    assert rates("cosine", total=1) == [1.0]


def test_steps_win_over_epochs_and_parts_of_an_epoch_count() -> None:
    assert count_steps(make_recipe({"model": "m", "steps": 7, "epochs": 3}), 100) == 7
    assert count_steps(make_recipe({"model": "m", "epochs": 1.5, "batch_size": 8}), 100) == 20
    assert count_steps(make_recipe({"model": "m", "epochs": 0.01}), 3) == 1


def test_clipping_scales_the_whole_tree() -> None:
    gradients = {"a": mx.array([3.0]), "b": {"c": mx.array([4.0])}}
    norm = global_norm(gradients)
    assert norm.item() == 5.0
    clipped = clip(gradients, norm, 1.0)
    assert clipped["a"].item() == pytest.approx(0.6, rel=1e-5)
    assert clip(gradients, norm, 0.0) is gradients
    assert clip(gradients, norm, 10.0)["b"]["c"].item() == 4.0
