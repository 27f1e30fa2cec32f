"""Signs of trouble in a preference run, read off recorded events."""

import math

import pytest

from macft.events import Evaluated, Event, StepDone, Warned
from macft.recipe import make_recipe
from macft.state import fold
from macft.training.signs import list_signs, starting_loss


def recipe_of(method: str = "dpo", **keys: object):
    return make_recipe({"model": "m", "method": method, "steps": 100, "schedule": {"warmup_steps": 0}, **keys})


def step(number: int, *, loss: float = 0.69, margin: float = 0.5, chosen: float = -50.0) -> StepDone:
    metrics = {"loss": loss, "rewards/margins": margin, "logps/chosen": chosen}
    return StepDone(step=number, epoch=0.1, metrics=metrics)


def evaluated(number: int, chosen: float) -> Evaluated:
    return Evaluated(step=number, metrics={"eval_loss": 0.5, "eval_logps/chosen": chosen})


def signs(recipe, events: list[Event]) -> list[str]:
    return [sign.message for sign in list_signs(recipe, fold(events))]


def test_a_run_as_it_should_be_says_nothing():
    events = [evaluated(0, -50.0), *(step(number) for number in range(1, 21)), evaluated(20, -49.0)]
    assert signs(recipe_of(), events) == []


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "apo_zero", "apo_down"])
def test_a_first_loss_that_is_not_that_of_the_reference_is_told(loss: str):
    recipe = recipe_of(loss=loss, sft_weight=0.5)
    right = starting_loss(recipe)
    first = StepDone(step=1, epoch=0.1, metrics={"loss": right + 0.5 * 3.0, "nll_loss": 3.0, "rewards/margins": 0.0})
    assert signs(recipe, [first]) == []
    (said,) = list_signs(recipe, fold([step(1, loss=1.2 * right)]))
    assert "the first loss is" in said.message
    assert "cache/reference" in said.fix


def test_ln_2_is_what_the_sigmoid_family_starts_at():
    assert starting_loss(recipe_of()) == starting_loss(recipe_of(loss="robust")) == math.log(2)
    assert starting_loss(recipe_of(loss="ipo", beta=0.5)) == 1.0


def test_a_start_from_an_adapter_against_the_base_has_no_known_first_loss():
    assert signs(recipe_of(reference="base", start_from="a"), [step(1, loss=2.0)]) == []
    assert signs(recipe_of("orpo"), [step(1, loss=2.0)]) == []


def test_a_model_that_does_not_move_is_told_once_at_step_20():
    still = [step(number, margin=1e-4) for number in range(1, 20)]
    assert signs(recipe_of(), still) == []
    (said,) = list_signs(recipe_of(learning_rate=1e-6), fold([*still, step(20, margin=1e-4)]))
    assert said.message == "nothing has moved by step 20: answers are 0.001 nats from where they were"
    assert said.fix == "Raise learning_rate: try 5e-06."
    assert signs(recipe_of(), [*still, step(20, margin=1e-4), said]) == []
    assert signs(recipe_of(), [*still, step(20, margin=1e-4), step(21, margin=1e-4)]) == []


def test_steps_of_a_warm_up_are_not_counted():
    still = [step(number, margin=1e-4) for number in range(1, 26)]
    recipe = recipe_of(schedule={"warmup_steps": 5})
    assert signs(recipe, still[:20]) == []
    assert "nothing has moved by step 25" in signs(recipe, still)[0]


def test_falling_chosen_answers_are_told_with_what_to_do():
    events = [evaluated(0, -50.0), evaluated(10, -54.9)]
    assert signs(recipe_of(), events) == []
    (said,) = list_signs(recipe_of(), fold([*events, evaluated(20, -55.1)]))
    assert said.message == (
        "the log-probability of good answers has fallen more than 10% below the start (likelihood displacement)"
    )
    assert "raise sft_weight (now 0), or lower learning_rate (now 2e-05)" in said.fix
    assert signs(recipe_of(), [*events, evaluated(20, -55.1), said, evaluated(30, -70.0)]) == []
    assert signs(recipe_of(max_chosen_fall=0.0), [*events, evaluated(20, -99.0)]) == []
    (of_kto,) = list_signs(recipe_of("kto"), fold([*events, evaluated(20, -55.1)]))
    assert "sft_weight" not in of_kto.fix


def test_without_held_out_rows_the_updates_are_judged():
    falling = [step(number, chosen=-50.0 - number) for number in range(1, 31)]
    assert signs(recipe_of(), falling[:19]) == []
    assert "fallen more than 10%" in signs(recipe_of(), falling)[0]


def test_what_was_said_before_a_resume_is_not_said_again():
    warned = Warned(
        message="the log-probability of good answers has fallen more than 10% below the start (likelihood displacement)"
    )
    assert signs(recipe_of(), [evaluated(0, -50.0), evaluated(20, -60.0), warned]) == []
