"""What a run will need, before any weight loads: memory by part, time, disk, and what to change when it does not fit.

The rule: a pure function of a recipe and facts about model, data and machine. It reads no file and measures nothing;
the same facts give the same plan, here and in the training process.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from macft.errors import DoesNotFit
from macft.machine import GIB, MachineFacts
from macft.memory import (
    CPU_PADDED,
    CPU_STREAM,
    FLOAT32_BYTES,
    METAL,
    MOMENTS,
    STREAMED,
    Backend,
    Learner,
    Loaded,
    Pass,
    Shape,
    choose_linears,
    count_adapter,
    linears,
    peak_parts,
    quantized_bytes,
)
from macft.recipe import Recipe

USABLE_SHARE = 0.75
"""Share of the working set that a run may take: beyond it macOS swaps, and kernel panics are told of (FACTS)."""
TIGHT_SHARE = 0.85
"""From this share of the usable memory on, a plan is tight."""
CACHE_SHARE = 0.1
"""Share of the working set that freed memory may take before it is given back; on Metal the run sets this limit."""
CPU_TOKENS, GPU_TOKENS = 512, 8192
"""Tokens a micro-batch when memory would allow more: nothing is gained from here on, and a CPU loses its caches."""
REFERENCE_READINGS = {"dpo": 1, "kto": 2}
"""How often a method's reference reads every row before training; KTO's also reads each prompt with another answer."""
ENOUGH_TOKENS = 512
"""Micro-batches may shrink to this before layers are computed again."""
RECOMPUTE_TIME = 1.4
"""Time of a step with layers computed again, of one without (ENGINE §3)."""


class Verdict(StrEnum):
    """Whether a run fits this machine."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does not fit"


class Model(Shape, Loaded, Protocol):
    """What a plan needs to know of a model; `models.describe.ModelFacts` is one."""

    @property
    def name(self) -> str:
        """What to call it."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a plan needs to know of the rows; lengths in tokens.

    Attributes:
        tokens: Of all training rows; a prompt with several answers counts once.
        longest: Of the longest attention row.
        p99: Length that 99% of the rows do not exceed.
        valid_tokens: Of the rows that every evaluation scores.
        widest: Of a row with all its answers; 0 where rows have one.
        is_estimate: Guessed from the files' sizes; nothing was tokenized.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    p99: int
    valid_tokens: int = 0
    widest: int = 0
    is_estimate: bool = False

    @property
    def largest(self) -> int:
        """Most tokens that a row lays into the stream, and so the least that a forward pass must take."""
        return max(self.widest, self.longest)

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that is trained on."""
        return min(1.0, self.supervised_tokens / max(1, self.tokens))

    def cut(self, longest: int) -> "DataFacts":
        """Return the facts after rows were cut to a length."""
        if longest >= self.longest:
            return self
        share = min(1.0, longest * self.rows / max(1, self.tokens))
        tokens, supervised = int(self.tokens * share), int(self.supervised_tokens * share)
        return replace(
            self,
            tokens=tokens,
            supervised_tokens=supervised,
            longest=longest,
            p99=min(self.p99, longest),
            widest=self.widest * longest // self.longest,
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """How fast a machine is.

    Attributes:
        matmul_flops: Peak of a matrix product in the type that is computed in, FLOP/s.
        step_flops: Useful FLOP/s of a training step.
        is_estimate: From published figures, not measured here.
    """

    chip: str
    mlx: str
    matmul_flops: float
    step_flops: float
    is_estimate: bool = False


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
        recompute: none or layer.
        seconds: Of the training steps and evaluations; None without a calibration.
        is_estimate: Time, data or the model's family are guessed.
        disk_bytes: Of the result and the checkpoints.
        remedies: Changes that need less, the cheapest first; none when it fits.
    """

    parts: dict[str, int]
    peak_bytes: int
    available_bytes: int
    verdict: Verdict
    micro_batch_tokens: int
    recompute: str
    seconds: float | None
    is_estimate: bool
    disk_bytes: int
    remedies: tuple[Remedy, ...] = ()


def plan(
    recipe: Recipe, model: Model, data: DataFacts, machine: MachineFacts, calibration: Calibration | None = None
) -> Plan:
    """Plan a run.

    Args:
        recipe: What is asked for.
        model: Of the base as it will be loaded.
        data: Of the rows.
        machine: What it shall fit on.
        calibration: For the time.
    """
    made = _plan(recipe, model, data, machine, calibration)
    if made.verdict != Verdict.DOES_NOT_FIT:
        return made
    remedies = []
    for key, value, text, price in _changes(recipe, model, data):
        changed = _plan(change(recipe, key, value), model, data, machine, None)
        if (saves := made.peak_bytes - changed.peak_bytes) > 0:
            fits = changed.verdict != Verdict.DOES_NOT_FIT
            remedies.append(Remedy(key, value, text, saves, price, fits))
    return replace(made, remedies=tuple(remedies))


def fit(recipe: Recipe, model: Model, data: DataFacts, machine: MachineFacts) -> Recipe:
    """Return the recipe with the cheapest change that makes it fit; with several, when one is not enough.

    Raises:
        DoesNotFit: Not even all changes together are enough.
    """
    first = made = plan(recipe, model, data, machine)
    while made.verdict == Verdict.DOES_NOT_FIT:
        way = next((remedy for remedy in made.remedies if remedy.fits), None) or next(iter(made.remedies), None)
        if way is None:
            raise refusal(first)
        recipe = change(recipe, way.key, way.value)
        made = plan(recipe, model, data, machine)
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


def change(recipe: Recipe, key: str, value: Any) -> Recipe:
    """Return a recipe with one dotted key changed."""
    table, _, name = key.rpartition(".")
    if not table:
        return recipe.model_copy(update={name: value})
    return recipe.model_copy(update={table: getattr(recipe, table).model_copy(update={name: value})})


def _plan(
    recipe: Recipe, model: Model, data: DataFacts, machine: MachineFacts, calibration: Calibration | None
) -> Plan:
    data = data.cut(recipe.max_seq_length)
    available = int(machine.working_set_bytes * USABLE_SHARE)
    is_gpu = machine.is_apple_silicon
    cap = max(data.largest, GPU_TOKENS if is_gpu else CPU_TOKENS)
    floor = max(data.largest, min(cap, ENOUGH_TOKENS))
    levels = ("none", "layer") if recipe.recompute == "auto" else (recipe.recompute,)
    candidates = [(levels[0], tokens) for tokens in _halved(cap, floor)]
    candidates += [(level, tokens) for level in levels[1:] for tokens in _halved(cap, floor)]
    candidates += [(levels[-1], tokens) for tokens in _halved(floor, data.largest)]
    limit = available * TIGHT_SHARE
    for level, tokens in candidates:
        parts = _parts(recipe, model, data, level, tokens, is_gpu=is_gpu)
        parts["cache"] = min(parts["cache"], int(machine.working_set_bytes * CACHE_SHARE))
        if sum(parts.values()) <= limit:
            break
    peak = sum(parts.values())
    verdict = Verdict.FITS if peak <= limit else Verdict.TIGHT if peak <= available else Verdict.DOES_NOT_FIT
    seconds = None if calibration is None else _seconds(recipe, model, data, calibration, level)
    guessed = data.is_estimate or model.family not in STREAMED or (calibration is not None and calibration.is_estimate)
    return Plan(
        parts, peak, available, verdict, tokens, level, seconds, guessed, _disk_bytes(recipe, model, is_gpu=is_gpu)
    )


def _halved(most: int, least: int) -> Iterator[int]:
    """Yield token budgets from the most down to the least."""
    tokens = most
    while tokens > least:
        yield tokens
        tokens //= 2
    yield least


def _parts(recipe: Recipe, model: Model, data: DataFacts, level: str, budget: int, *, is_gpu: bool) -> dict[str, int]:
    backend = _backend(recipe, model, is_gpu=is_gpu)
    rows = min(recipe.batch_size, recipe.micro_batch_size or recipe.batch_size, max(1, budget // max(1, data.largest)))
    most = min(recipe.batch_size, recipe.micro_batch_size or recipe.batch_size) * data.largest
    tokens = max(1, min(budget, most))
    learner = _learner(recipe, model)
    part = Pass(
        tokens=tokens,
        longest=data.longest,
        supervised=max(1, math.ceil(tokens * data.supervised_share)),
        recomputed=level == "layer",
        accumulates=rows < recipe.batch_size and rows < data.rows,
    )
    quantized = model.is_quantized or bool(recipe.quantize)
    return dict(
        peak_parts(
            model,
            learner,
            part,
            backend,
            weight_bytes=_weight_bytes(recipe, model, backend),
            trained=_count_trained(model, learner),
            quantized=quantized,
        )
    )


def _backend(recipe: Recipe, model: Model, *, is_gpu: bool) -> Backend:
    stored_bytes = (model.weight_bytes - model.code_bytes) / max(1, model.float_values)
    is_auto = recipe.compute_dtype == "auto"  # on Metal the model's own, float32 where all weights are trained
    is_wide = recipe.compute_dtype == "float32" or (is_auto and (recipe.adapter == "full" or stored_bytes > 3))
    if is_gpu:
        return replace(METAL, value_bytes=4) if is_wide else METAL
    return CPU_STREAM if model.family in STREAMED else CPU_PADDED


def _learner(recipe: Recipe, model: Model) -> Learner:
    if recipe.adapter == "full":
        return Learner(frozenset(linears(model)), model.layers, 0, "full", recipe.optimizer.name)
    table = recipe.lora
    layers = model.layers if table.layers == "all" else min(table.layers, model.layers)
    return Learner(choose_linears(model, table.targets), layers, table.rank, recipe.adapter, recipe.optimizer.name)


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


def _seconds(recipe: Recipe, model: Model, data: DataFacts, calibration: Calibration, level: str) -> float | None:
    """Return the time of all steps and evaluations; None when there are no rows.

    Source: ENGINE §6, F = 4·N_body + 4·N_head·s a token for a frozen base; 6 where weights have gradients too.
    """
    if not data.rows:
        return None
    rows = data.rows
    steps = recipe.steps or max(1, math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size)))
    tokens = steps * min(recipe.batch_size, rows) * data.tokens / rows
    head = model.vocab_size * model.hidden_size
    body = max(0, model.parameters - head * (1 if model.tied else 2))
    scores = model.layers * model.heads * model.head_dim * data.tokens / rows
    forward = 2 * (body + head * data.supervised_share + scores)
    passes = (3 if recipe.adapter == "full" else 2) + (recipe.method == "kto")
    evaluations = 1 + (10 if recipe.evaluate.every is None else steps // recipe.evaluate.every)
    training = passes * forward * tokens * (RECOMPUTE_TIME if level == "layer" else 1.0)
    reference = REFERENCE_READINGS.get(recipe.method, 0) * forward * (data.tokens + data.valid_tokens)
    return (training + evaluations * forward * data.valid_tokens + reference) / calibration.step_flops


def _changes(recipe: Recipe, model: Model, data: DataFacts) -> Iterator[tuple[str, Any, str, str]]:
    """Yield changes that may need less memory, the cheapest first: key, value, what it does, its price."""
    longest = min(data.longest, recipe.max_seq_length)
    if recipe.recompute == "none":
        yield "recompute", "layer", "compute layers again in the backward pass", f"{RECOMPUTE_TIME - 1:.0%} more time"
    if recipe.compute_dtype == "float32" and recipe.adapter != "full":
        yield "compute_dtype", "auto", "compute in the model's own precision", "less exact"
    if data.p99 < longest:
        cut = f"{'about ' * data.is_estimate}{math.ceil(data.rows / 100):,} rows cut"
        yield "max_seq_length", max(8, data.p99), "cut the longest rows", cut
    if recipe.adapter == "full" and recipe.optimizer.name != "adafactor":
        yield "optimizer.name", "adafactor", "keep no moments of every weight", "another optimizer"
    if recipe.adapter != "full" and not model.is_quantized:
        if recipe.quantize is None:
            yield "quantize", 8, "quantize the base to 8 bits", "hardly less accurate"
        if recipe.quantize != 4:
            yield "quantize", 4, "quantize the base to 4 bits", "somewhat less accurate"
    if recipe.adapter == "full":
        yield "adapter", "lora", "train an adapter instead of all weights", "learns less"
    else:
        layers = model.layers if recipe.lora.layers == "all" else min(recipe.lora.layers, model.layers)
        if layers > 1:
            yield "lora.layers", max(1, layers // 2), f"adapt the last half of {layers} layers", "learns less"
        if recipe.lora.rank > 1:
            yield "lora.rank", max(1, recipe.lora.rank // 2), "halve the rank", "learns less"
    if longest > 64:
        yield "max_seq_length", longest // 2, "halve the longest row", "long rows lose their end"
