"""How long a run takes: its work in FLOPs, by how many of them a machine makes a second.

The rule: matrix products and attention alone are counted; how fast a machine is, `training.calibrate` measures.
"""

import math

from macft.facts import Calibration, DataFacts, Model
from macft.memory import linears
from macft.recipe import Recipe

POINTWISE_TIME = 0.02
"""Share of a step that norms and activation functions take when they are computed again, measured on a CPU."""
REFERENCE_READINGS = {"dpo": 1, "kto": 2}
"""How often a method's reference reads every row before training; KTO's also reads each prompt with another answer."""


def run_seconds(
    recipe: Recipe, model: Model, data: DataFacts, calibration: Calibration, level: str = "none"
) -> float | None:
    """Return the time of all steps and evaluations; None when there are no rows.

    Args:
        recipe: What is done.
        model: What it is done with.
        data: Of the rows, cut to the recipe's length.
        calibration: Of the machine.
        level: What the backward pass computes again, one of `memory.LEVELS`.
    """
    if not data.rows:
        return None
    rows = data.rows
    steps = recipe.steps or max(1, math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size)))
    tokens = steps * min(recipe.batch_size, rows) * data.tokens / rows
    forward = forward_flops(model, data)
    evaluations = 1 + (10 if recipe.evaluate.every is None else steps // recipe.evaluate.every)
    training = _passes(recipe) * forward * tokens * recompute_time(recipe, model, data, level)
    reference = REFERENCE_READINGS.get(recipe.method, 0) * forward * (data.tokens + data.valid_tokens)
    return (training + evaluations * forward * data.valid_tokens + reference) / calibration.step_flops


def forward_flops(model: Model, data: DataFacts) -> float:
    """Return the FLOPs a token of a forward pass.

    Source: ENGINE §6: a step is twice that with a frozen base, three times where weights have gradients too.
    """
    head = model.vocab_size * model.hidden_size
    body = max(0, model.parameters - head * (1 if model.tied else 2))
    return 2 * (body + head * data.supervised_share + model.layers * _score_products(model, data))


def recompute_time(recipe: Recipe, model: Model, data: DataFacts, level: str) -> float:
    """Return the time of a step that computes again what a level says, of one that does not.

    A product whose output no gradient needs is not made again: of a whole layer all but the MLP's last.
    """
    if level == "none":
        return 1.0
    sizes = {name: inputs * outputs for name, (inputs, outputs) in linears(model).items()}
    again = 0.0
    if level in {"mlp", "layer"}:
        again += sizes["mlp.gate_proj"] + sizes["mlp.up_proj"]
    if level == "layer":
        again += sum(size for name, size in sizes.items() if name.startswith("self_attn"))
        again += _score_products(model, data)
    step = _passes(recipe) * forward_flops(model, data)
    return 1.0 + POINTWISE_TIME + 2 * model.layers * again / step


def _score_products(model: Model, data: DataFacts) -> float:
    """Return the multiplications a token and layer of attention itself, causal, over rows of mean length."""
    return model.heads * model.head_dim * data.tokens / max(1, data.rows)


def _passes(recipe: Recipe) -> int:
    """Return what a step costs, in forward passes."""
    return (3 if recipe.adapter == "full" else 2) + (recipe.method == "kto")
