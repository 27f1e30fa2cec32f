"""What the numbers of a preference run say when something is wrong, and what to do about it.

The rule: a sign is a pure function of the recipe and of what happened so far, so it can be read off a recorded run, and
is told once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from macft.events import Warned
from macft.recipe import DpoRecipe, KtoRecipe, PreferenceRecipe, SimpoRecipe
from macft.state import RunState

TOLERANCE = 0.05
"""Share by which the first loss may be off: bfloat16 moves log-probabilities of long answers by tenths of a nat."""
PATIENCE_STEPS = 20
STILL_NATS = 0.02
"""A margin between log-ratios that, after so many steps, means that nothing moves."""
WINDOW_STEPS = 10
"""Updates whose mean is judged where there are no held-out rows."""


def list_signs(recipe: PreferenceRecipe, state: RunState) -> Iterator[Warned]:
    """Yield what deserves attention after the newest event and has not been said yet."""
    told = {warned.message for warned in state.warnings}
    for find in (_wrong_start, _no_movement, _falling_chosen):
        if (sign := find(recipe, state)) and sign.message not in told:
            yield sign


def thinned(state: RunState) -> RunState:
    """Return a state with no more updates than signs are read off: the first and the newest."""
    if len(state.steps) <= 4 * WINDOW_STEPS:
        return state
    return replace(state, steps=[*state.steps[: 2 * WINDOW_STEPS], *state.steps[-2 * WINDOW_STEPS :]])


def starting_loss(recipe: DpoRecipe) -> float:
    """Return a pair's loss, without the SFT term, where policy equals reference: all log-ratios are 0."""
    by_name = {"hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "ipo": 1.0 / (4.0 * recipe.beta**2)}
    return by_name.get(recipe.loss, math.log(2))


def _wrong_start(recipe: PreferenceRecipe, state: RunState) -> Warned | None:
    """Find a first loss that is not that of a policy equal to its reference, as at a start it must be."""
    if not isinstance(recipe, DpoRecipe) or (recipe.reference == "base" and recipe.start_from) or not state.steps:
        return None
    first = state.steps[0]
    found = first.metrics["loss"] - recipe.sft_weight * first.metrics.get("nll_loss", 0.0)
    expected = starting_loss(recipe)
    if first.step != 1 or abs(found - expected) <= TOLERANCE * expected:
        return None
    return Warned(
        message=f"the first loss is {found:.4f} where a model equal to its reference has {expected:.4f}",
        fix="The reference does not fit the model: remove cache/reference in macft's home, and start again; "
        'with half precision, try compute_dtype = "float32".',
        step=state.step,
    )


def _no_movement(recipe: PreferenceRecipe, state: RunState) -> Warned | None:
    """Find a policy that still says what its reference says, well after the warm-up."""
    if not isinstance(recipe, DpoRecipe | KtoRecipe) or (recipe.reference == "base" and recipe.start_from):
        return None
    warmup = recipe.schedule.warmup_steps
    if warmup is None:
        warmup = round(recipe.schedule.warmup_fraction * state.total_steps)
    if state.step != PATIENCE_STEPS + warmup:
        return None
    margins = [step.metrics.get("rewards/margins", 0.0) for step in state.steps[-WINDOW_STEPS:]]
    margin = sum(margins) / max(1, len(margins)) / recipe.beta
    if abs(margin) > STILL_NATS:
        return None
    return Warned(
        message=f"nothing has moved by step {state.step}: answers are {margin:.3f} nats from where they were",
        fix=f"Raise learning_rate: try {5 * recipe.learning_rate:.0e}.",
        step=state.step,
    )


def _falling_chosen(recipe: PreferenceRecipe, state: RunState) -> Warned | None:
    """Find good answers that have become less likely than they were at the start: likelihood displacement."""
    values = [event.metrics["eval_logps/chosen"] for event in state.evaluations if "eval_logps/chosen" in event.metrics]
    if not values:
        values = _windows([event.metrics.get("logps/chosen", math.nan) for event in state.steps])
    if len(values) < 2 or not recipe.max_chosen_fall:
        return None
    start, now = values[0], values[-1]
    if not now < start * (1.0 + recipe.max_chosen_fall):  # both are negative
        return None
    fall = f"more than {recipe.max_chosen_fall:.0%} below the start (likelihood displacement)"
    way = f"lower learning_rate (now {recipe.learning_rate:g})"
    if isinstance(recipe, DpoRecipe | SimpoRecipe):
        way = f"raise sft_weight (now {recipe.sft_weight:g}), or {way}"
    numbers = f"At step {state.step} it is {now:.1f} nats; it was {start:.1f}."
    return Warned(
        message=f"the log-probability of good answers has fallen {fall}",
        fix=f"{numbers} If answers get worse, {way}.",
        step=state.step,
    )


def _windows(values: Sequence[float]) -> list[float]:
    """Return the means of the first and of the last few finite values, when there are enough for both."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2 * WINDOW_STEPS:
        return []
    return [sum(part) / WINDOW_STEPS for part in (known[:WINDOW_STEPS], known[-WINDOW_STEPS:])]
