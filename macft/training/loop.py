"""The training loop: what happens, in order, told as events.

The rule: the loop only yields. It prints nothing, opens no file and knows no terminal; what it needs from outside
(to save, to hear requests, to sample) is handed to it.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from macft.data.batches import Order, Rows, shard_rows, split_micro_batches
from macft.errors import RunError
from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Metrics,
    Paused,
    Sampled,
    StepDone,
    StepSkipped,
    Warned,
    WentOn,
)
from macft.recipe import BaseRecipe
from macft.training.checkpoint import Checkpoints, Progress
from macft.training.distributed import ALONE, Ranks
from macft.training.evaluate import evaluate
from macft.training.objectives import Objective
from macft.training.optimizers import count_steps, learning_rate_at
from macft.training.packed import PackedOptimizer
from macft.training.update import Updater

SKIPS_ALLOWED = 3
"""Updates in a row that may be refused before training gives up."""
PAUSE_SECONDS = 0.2


class Requests(Protocol):
    """What the user wants done."""

    def __call__(self) -> list[str]:
        """Return what was asked for since the last call: pause, go_on, sample, stop."""

    def wants_stop(self) -> bool:
        """Return whether a stop was asked for, and leave everything for the next call."""


@dataclass(frozen=True)
class Job:
    """A model, rows and a recipe, ready to be trained.

    Attributes:
        micro_batch_tokens: Most tokens in one forward pass.
        micro_batch_divisor: What the recipe's rows of a micro-batch are divided by.
        requests: Asked once a step, and whether to stop, more often.
        sample: Answers the sample prompts at a step.
        ranks: Those that train together; `requests` say the same to each.
    """

    recipe: BaseRecipe
    model: nn.Module
    objective: Objective
    optimizer: PackedOptimizer
    train_rows: Rows
    valid_rows: Rows
    micro_batch_tokens: int
    compiled: bool
    checkpoints: Checkpoints
    requests: Requests
    sample: Callable[[int], Iterator[Sampled]]
    micro_batch_divisor: int = 1
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Ending:
    """How training ended: done, stopped or failed, and what to do about it."""

    progress: Progress
    status: str
    reason: str = ""
    fix: str = ""


def train(job: Job, progress: Progress) -> Generator[Event, None, Ending]:
    """Train from where `progress` stands to the end, and say what happens.

    Args:
        job: Model, rows and recipe; the model and the optimizer are changed in place.
        progress: All zero for a new run; a checkpoint's to go on from it.

    Yields:
        Every update, evaluation, sample and checkpoint, as it happens.

    Returns:
        How it ended. Whatever the reason, the last event before it is a checkpoint that training can go on from.
    """
    recipe = job.recipe
    total_steps = count_steps(recipe, len(job.train_rows))
    order = Order(job.train_rows.lengths, batch_size=recipe.batch_size, seed=recipe.seed)
    updater = Updater(
        job.model,
        job.objective,
        job.optimizer,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        seed=recipe.seed,
        compiled=job.compiled,
        ranks=job.ranks,
    )
    job.model.train()
    ending = Ending(progress, "done")
    saved_at, saved_step = time.monotonic(), progress.step
    progress = replace(progress, skipped_in_a_row=0)
    if _is_due(recipe, progress, total_steps):  # at step 0, and where a stop cut an evaluation short
        progress = yield from _look(job, progress)
        if 0 < progress.step == progress.best_step:
            yield _save(job, progress)
    while progress.step < total_steps:
        if recipe.evaluate.patience and progress.stale >= recipe.evaluate.patience:
            reason = f"{recipe.evaluate.metric} has not improved since step {progress.best_step}"
            ending = Ending(progress, "done", reason)
            break
        if (yield from _obey(job, progress.step)) == "stop":
            ending = Ending(progress, "stopped", "you asked for it", "`macft resume` goes on from here.")
            break
        step = progress.step + 1
        rate = learning_rate_at(step, total_steps=total_steps, peak=recipe.learning_rate, schedule=recipe.schedule)
        event = _update(job, updater, order, step, rate)
        yield event
        skipped = progress.skipped_in_a_row + 1 if isinstance(event, StepSkipped) else 0
        progress = replace(progress, step=step, skipped_in_a_row=skipped)
        if skipped >= SKIPS_ALLOWED:
            ending = Ending(
                progress,
                "failed",
                f"the loss or its gradient was not finite {skipped} times in a row",
                "Look at the rows that the log names, or lower learning_rate; no weight was changed by them.",
            )
            break
        if _is_due(recipe, progress, total_steps):
            progress = yield from _look(job, progress)
        is_best = progress.best_step == step
        old = time.monotonic() - saved_at > recipe.checkpoint.minutes * 60
        if step % recipe.checkpoint.every == 0 or is_best or old:
            saved = _save(job, progress)
            yield saved
            saved_at = time.monotonic()
            saved_step = step if isinstance(saved, CheckpointSaved) else saved_step
    if saved_step != progress.step:
        yield _save(job, progress)
    return replace(ending, progress=progress)


def _is_due(recipe: BaseRecipe, progress: Progress, total_steps: int) -> bool:
    """Return whether the validation rows are to be scored at this step and have not been yet."""
    every = recipe.evaluate.every or max(1, total_steps // 10)
    return progress.looked_step < progress.step and (progress.step % every == 0 or progress.step == total_steps)


def _update(job: Job, updater: Updater, order: Order, step: int, rate: float) -> Event:
    started = time.perf_counter()
    indices = order.rows_of(step)
    lengths = job.train_rows.lengths
    own = shard_rows(indices, lengths, job.ranks.size)[job.ranks.rank]
    most = max(1, (job.recipe.micro_batch_size or len(indices)) // job.micro_batch_divisor)
    parts = split_micro_batches(own, lengths, tokens=job.micro_batch_tokens, rows=most)
    outcome = updater(step, [job.train_rows.batch(part) for part in parts], rate)
    seconds = time.perf_counter() - started
    if not outcome.is_finite:
        rows = [job.train_rows.where[index] for index in indices]
        reason = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        return StepSkipped(step=step, rows=rows, reason=reason)
    tokens = int(lengths[indices].sum())
    metrics: Metrics = {
        "loss": outcome.loss,
        **outcome.metrics,
        "grad_norm": outcome.grad_norm,
        "learning_rate": rate,
        "tokens": tokens,
        "supervised_tokens": int(job.train_rows.supervised[indices].sum()),
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds,
        "active_memory_bytes": mx.get_active_memory(),
        "cache_memory_bytes": mx.get_cache_memory(),
        "peak_memory_bytes": mx.get_peak_memory(),
    }
    return StepDone(step=step, epoch=step / order.steps_per_epoch, metrics=metrics)


def _look(job: Job, progress: Progress) -> Generator[Event, None, Progress]:
    """Score the validation rows and answer the sample prompts; a stop cuts it short, and then nothing is scored."""
    if len(job.valid_rows):
        started = time.perf_counter()
        scored = evaluate(
            job.model,
            job.objective,
            job.valid_rows,
            tokens=job.micro_batch_tokens,
            wants_stop=job.requests.wants_stop,
            ranks=job.ranks,
        )
        if scored is None:
            return progress
        metrics: Metrics = {
            "eval_loss": scored.loss,
            **{f"eval_{name}": value for name, value in scored.metrics.items()},
            "eval_supervised_tokens": int(job.valid_rows.supervised.sum()),
            "eval_seconds": time.perf_counter() - started,
        }
        progress = progress.evaluated(metrics, job.recipe.evaluate.metric)
        yield Evaluated(step=progress.step, metrics=metrics, is_best=progress.stale == 0)
    yield from job.sample(progress.step)
    return progress


def _obey(job: Job, step: int) -> Generator[Event, None, str]:
    """Do what was asked for since the last step; returns `stop` when training shall end."""
    paused = False
    while True:
        for action in job.requests():
            if action == "stop":
                return "stop"
            if action == "sample":
                yield from job.sample(step)
            elif action == "pause" and not paused:
                paused = True
                yield Paused(step=step)
            elif action == "go_on" and paused:
                paused = False
                yield WentOn(step=step)
        if not paused:
            return ""
        time.sleep(PAUSE_SECONDS)


def _save(job: Job, progress: Progress) -> Event:
    """Let rank 0 write a checkpoint; a full disk is a warning: the last one stands and training can go on."""
    try:
        name = job.checkpoints.save(job.model, job.optimizer, progress) if job.ranks.leads else ""
    except RunError as error:
        return Warned(step=progress.step, message=error.message, fix=error.fix)
    return CheckpointSaved(step=progress.step, name=name, is_best=progress.best_step == progress.step)
