"""What a run will need, before any weight loads: memory by part, time, disk, and what to change when it does not fit.

The rule: a pure function of a recipe and facts about model, data and machine. It reads no file and measures nothing;
the same facts give the same plan, here and in the training process.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from macft.effort import recompute_time, run_seconds
from macft.errors import DoesNotFit
from macft.facts import Calibration, DataFacts, Model
from macft.machine import GIB, MachineFacts
from macft.memory import (
    CPU_PADDED,
    CPU_STREAM,
    FLOAT32_BYTES,
    LEVELS,
    METAL,
    MOMENTS,
    STREAMED,
    Backend,
    Learner,
    Pass,
    choose_linears,
    count_adapter,
    kept_values,
    linears,
    pass_bytes,
    peak_parts,
    quantized_bytes,
)
from macft.recipe import Recipe
from macft.remedies import change, list_changes

__all__ = [
    "Calibration",
    "DataFacts",
    "Plan",
    "Remedy",
    "Scales",
    "Verdict",
    "change",
    "count_layer",
    "count_pass",
    "fit",
    "make_pass",
    "plan",
    "refusal",
]

USABLE_SHARE = 0.75
"""Share of the working set that a run may take: beyond it macOS swaps, and kernel panics are told of (FACTS)."""
TIGHT_SHARE = 0.85
"""From this share of the usable memory on, a plan is tight."""
CACHE_SHARE = 0.1
"""Share of the working set that freed memory may take before it is given back; on Metal the run sets this limit."""
CPU_TOKENS, GPU_TOKENS = 512, 8192
"""Tokens a micro-batch when memory would allow more: nothing is gained from here on, and a CPU loses its caches."""
ENOUGH_TOKENS = 512
"""Micro-batches may shrink to this before anything is computed again."""
PAIRED = {"dpo", "orpo", "simpo", "cpo"}
"""Methods whose rows are a prompt with two answers."""
Scales = Mapping[str, float]
"""By level of recomputation: what comes and goes in a pass as `training.trace` saw it, of what is counted here."""


class Verdict(StrEnum):
    """Whether a run fits this machine."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change that needs less memory, and its price.

    Attributes:
        key: Dotted key of the recipe.
        fits: It is enough by itself.
    """

    key: str
    value: Any
    text: str
    saves_bytes: int
    price: str
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need.

    Attributes:
        parts: Bytes by part at the highest moment: weights, adapter, activations, head, cache.
        available_bytes: What a run may take of this machine.
        micro_batch_tokens: Most tokens of one forward pass.
        recompute: What the backward pass computes again, one of `memory.LEVELS`.
        recompute_time: Time of a step that does, of one that does not.
        adapter_dtype: `float32`, or `model` where LoRA computes in the base's 16 bits.
        seconds: Of the training steps and evaluations; None without a calibration.
        is_estimate: Time, data or the model's family are guessed.
        is_traced: The pass was traced, not counted.
        disk_bytes: Of the result and the checkpoints.
        remedies: Changes that need less, the cheapest first; none when it fits.
    """

    parts: dict[str, int]
    peak_bytes: int
    available_bytes: int
    verdict: Verdict
    micro_batch_tokens: int
    recompute: str
    recompute_time: float
    adapter_dtype: str
    seconds: float | None
    is_estimate: bool
    is_traced: bool
    disk_bytes: int
    remedies: tuple[Remedy, ...] = ()


def plan(
    recipe: Recipe,
    model: Model,
    data: DataFacts,
    machine: MachineFacts,
    calibration: Calibration | None = None,
    *,
    scales: Scales | None = None,
) -> Plan:
    """Plan a run.

    Args:
        recipe: What is asked for.
        model: Of the base as it will be loaded.
        data: Of the rows.
        machine: What it shall fit on.
        calibration: For the time.
        scales: From traces, where there are any.
    """
    made = _plan(recipe, model, data, machine, calibration, scales=scales or {})
    if made.verdict != Verdict.DOES_NOT_FIT:
        return made
    remedies = []
    for key, value, text, price in list_changes(recipe, model, data):
        changed = _plan(change(recipe, key, value), model, data, machine, None, scales=scales or {})
        if (saves := made.peak_bytes - changed.peak_bytes) > 0:
            fits = changed.verdict != Verdict.DOES_NOT_FIT
            remedies.append(Remedy(key, value, text, saves, price, fits))
    return replace(made, remedies=tuple(remedies))


def fit(
    recipe: Recipe, model: Model, data: DataFacts, machine: MachineFacts, *, scales: Scales | None = None
) -> Recipe:
    """Return the recipe with the cheapest change that makes it fit; with several, when one is not enough.

    Raises:
        DoesNotFit: Not even all changes together are enough.
    """
    first = made = plan(recipe, model, data, machine, scales=scales)
    while made.verdict == Verdict.DOES_NOT_FIT:
        way = next((remedy for remedy in made.remedies if remedy.fits), None) or next(iter(made.remedies), None)
        if way is None:
            raise refusal(first)
        recipe = change(recipe, way.key, way.value)
        made = plan(recipe, model, data, machine, scales=scales)
    return recipe


def refusal(made: Plan) -> DoesNotFit:
    """Return the error for a plan that does not fit: what is needed, what there is, three ways out."""
    enough = [remedy for remedy in made.remedies if remedy.fits]
    shown = (enough + [remedy for remedy in made.remedies if not remedy.fits])[:3]
    ways = "; ".join(
        f"--set {way.key}={way.value} ({way.price}, saves {way.saves_bytes / GIB:.1f} GB)" for way in shown
    )
    needs = (
        f"this run needs {made.peak_bytes / GIB:.1f} GB of memory, and {made.available_bytes / GIB:.1f} GB may be used"
    )
    return DoesNotFit(needs, fix=f"{ways or 'Take a smaller model'}. --force trains all the same.")


def make_pass(recipe: Recipe, model: Model, data: DataFacts, level: str, budget: int) -> Pass:
    """Return the largest micro-batch of a token budget.

    Args:
        recipe: Says how many rows it may have, and of which kind they are.
        model: Its family says whether rows are padded.
        data: Of the rows, cut to the recipe's length.
        level: What is computed again.
        budget: Tokens that the plan allows; of padded pairs only half, since each answer has its own prompt.
    """
    is_paired, is_padded = recipe.method in PAIRED, model.family not in STREAMED
    budget = budget // 2 if is_paired and is_padded else budget
    most_rows = min(recipe.batch_size, recipe.micro_batch_size or recipe.batch_size)
    rows = min(most_rows, max(1, budget // max(1, data.largest)))
    tokens = max(1, min(max(budget, data.largest), most_rows * data.largest))
    answers = max(1, math.ceil(tokens * data.supervised_share))
    laid = 2 * tokens - answers if is_paired else tokens
    return Pass(
        tokens=laid if is_padded else tokens,
        laid=laid,
        longest=data.longest,
        supervised=tokens if getattr(recipe, "nll_on_prompt", False) else answers,
        recompute=level,
        accumulates=rows < recipe.batch_size and rows < data.rows,
    )


def count_pass(recipe: Recipe, model: Model, part: Pass, *, is_gpu: bool) -> int:
    """Return the bytes that come and go in a micro-batch, as they are counted here: what a trace is held against.

    Gradients of all weights are more than activations, and there once those are gone.
    """
    is_quantized, learner = model.is_quantized or bool(recipe.quantize), _learner(recipe, model)
    counted = pass_bytes(model, learner, part, _backend(recipe, model, is_gpu=is_gpu), quantized=is_quantized)
    return counted if learner.rank else max(counted, _count_trained(model, learner) * FLOAT32_BYTES)


def count_layer(recipe: Recipe, model: Model, part: Pass, *, is_gpu: bool) -> int:
    """Return the bytes that one more layer adds to a micro-batch's peak: what it keeps, or else its gradients."""
    learner, backend = _learner(recipe, model), _backend(recipe, model, is_gpu=is_gpu)
    kept = kept_values(model, learner, part, backend) * part.tokens * backend.value_bytes
    return max(int(kept), _count_trained(model, learner) // learner.layers * FLOAT32_BYTES)


def _plan(
    recipe: Recipe,
    model: Model,
    data: DataFacts,
    machine: MachineFacts,
    calibration: Calibration | None,
    *,
    scales: Scales,
) -> Plan:
    data = data.cut(recipe.max_seq_length)
    available = int(machine.working_set_bytes * USABLE_SHARE)
    is_gpu = machine.is_apple_silicon
    cap = max(data.largest, GPU_TOKENS if is_gpu else CPU_TOKENS)
    floor = max(data.largest, min(cap, ENOUGH_TOKENS))
    levels = _levels(recipe, model)
    candidates = [(levels[0], tokens) for tokens in _halved(cap, floor)]
    candidates += [(level, tokens) for level in levels[1:] for tokens in _halved(cap, floor)]
    candidates += [(levels[-1], tokens) for tokens in _halved(floor, data.largest)]
    limit = available * TIGHT_SHARE
    for level, tokens in candidates:
        part = make_pass(recipe, model, data, level, tokens)
        parts = _parts(recipe, model, part, is_gpu=is_gpu, scale=scales.get(level, 1.0))
        parts["cache"] = min(parts["cache"], int(machine.working_set_bytes * CACHE_SHARE))
        if sum(parts.values()) <= limit:
            break
    peak = sum(parts.values())
    verdict = Verdict.FITS if peak <= limit else Verdict.TIGHT if peak <= available else Verdict.DOES_NOT_FIT
    guessed = data.is_estimate or model.family not in STREAMED or (calibration is not None and calibration.is_estimate)
    return Plan(
        parts=parts,
        peak_bytes=peak,
        available_bytes=available,
        verdict=verdict,
        micro_batch_tokens=tokens,
        recompute=level,
        recompute_time=recompute_time(recipe, model, data, level),
        adapter_dtype="model" if _is_narrow(recipe, model, is_gpu=is_gpu) else "float32",
        seconds=None if calibration is None else run_seconds(recipe, model, data, calibration, level),
        is_estimate=guessed,
        is_traced=level in scales,
        disk_bytes=_disk_bytes(recipe, model, is_gpu=is_gpu),
    )


def _levels(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """Return the levels of recomputation that a plan may choose from, the cheapest first."""
    if recipe.recompute != "auto":
        return (recipe.recompute,)
    return LEVELS if model.family in STREAMED else ("none", "layer")  # others may not be taken apart


def _halved(most: int, least: int) -> Iterator[int]:
    """Yield token budgets from the most down to the least."""
    tokens = most
    while tokens > least:
        yield tokens
        tokens //= 2
    yield least


def _parts(recipe: Recipe, model: Model, part: Pass, *, is_gpu: bool, scale: float) -> dict[str, int]:
    backend, learner = _backend(recipe, model, is_gpu=is_gpu), _learner(recipe, model)
    return dict(
        peak_parts(
            model,
            learner,
            part,
            backend,
            weight_bytes=_weight_bytes(recipe, model, backend),
            trained=_count_trained(model, learner),
            quantized=model.is_quantized or bool(recipe.quantize),
            scale=scale,
        )
    )


def _backend(recipe: Recipe, model: Model, *, is_gpu: bool) -> Backend:
    stored_bytes = (model.weight_bytes - model.code_bytes) / max(1, model.float_values)
    is_auto = recipe.compute_dtype == "auto"  # on Metal the model's own, float32 where all weights are trained
    is_wide = is_auto and (not is_gpu or recipe.adapter == "full" or stored_bytes > 3)
    is_wide |= recipe.compute_dtype == "float32"
    backend = METAL if is_gpu else CPU_STREAM if model.family in STREAMED else CPU_PADDED
    return replace(backend, value_bytes=FLOAT32_BYTES if is_wide else 2)


def _is_narrow(recipe: Recipe, model: Model, *, is_gpu: bool) -> bool:
    """Return whether LoRA's products are made in 16 bits."""
    is_16_bit = _backend(recipe, model, is_gpu=is_gpu).value_bytes < FLOAT32_BYTES
    return is_16_bit and recipe.adapter == "lora" and recipe.adapter_dtype != "float32"


def _learner(recipe: Recipe, model: Model) -> Learner:
    if recipe.adapter == "full":
        return Learner(frozenset(linears(model)), model.layers, 0, "full", recipe.optimizer.name)
    table = recipe.lora
    layers = model.layers if table.layers == "all" else min(table.layers, model.layers)
    is_float32 = recipe.adapter_dtype == "float32" or recipe.adapter == "dora"
    names = choose_linears(model, table.targets)
    return Learner(names, layers, table.rank, recipe.adapter, recipe.optimizer.name, is_float32)


def _count_trained(model: Model, learner: Learner) -> int:
    return count_adapter(model, learner) if learner.rank else model.parameters


def _weight_bytes(recipe: Recipe, model: Model, backend: Backend) -> int:
    """Return the model's bytes in memory, after casting and quantizing."""
    if recipe.quantize and not model.is_quantized:
        matrices = _packed_values(model, recipe.quantize_group_size)
        kept = (model.parameters - matrices) * backend.value_bytes
        packed = {"bits": recipe.quantize, "group_size": recipe.quantize_group_size, "value_bytes": backend.value_bytes}
        return kept + quantized_bytes(matrices, **packed)
    return model.code_bytes + model.float_values * backend.value_bytes


def _packed_values(model: Model, group_size: int) -> int:
    """Count what quantizing packs: matrices whose rows are whole groups, so all but norms and biases in most models."""
    if not (model.hidden_size % group_size or model.intermediate_size % group_size):
        return max(0, model.parameters - (2 * model.layers + 1) * model.hidden_size)
    whole = [inputs * outputs for inputs, outputs in linears(model).values() if inputs % group_size == 0]
    return model.layers * sum(whole)


def _disk_bytes(recipe: Recipe, model: Model, *, is_gpu: bool) -> int:
    learner = _learner(recipe, model)
    trained = _count_trained(model, learner) * FLOAT32_BYTES
    result = (
        _weight_bytes(recipe, model, _backend(recipe, model, is_gpu=is_gpu)) if recipe.adapter == "full" else trained
    )
    checkpoints = recipe.checkpoint.keep + 1  # the newest, and the best
    return result + checkpoints * trained * (1 + MOMENTS[learner.optimizer])
