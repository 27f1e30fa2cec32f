"""What the reference says of every response: computed once, before training, and kept on the disk.

The rule: the reference is the model in hand, at its start or with its adapter off, so there is no second model. An
entry is found by all that its numbers depend on, and what a stopped pass has done is not done again.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import mlx.nn as nn
import numpy as np

from macft.data.batches import Floats, Ints, Responses, Rows, make_response_batch, split_micro_batches
from macft.data.referenced import LabeledRows, Mismatched, ReferencedRows
from macft.data.token_rows import TokenRows
from macft.errors import DataError, Problem
from macft.models.adapters import adapters_off
from macft.models.head import Head
from macft.models.stream import Stream
from macft.recipe import DpoRecipe, KtoRecipe, OrpoRecipe, Recipe
from macft.training.objectives import evaluating, sum_responses, target_logprobs, to_device

SAVE_SECONDS = 30.0
KEPT_ENTRIES = 32

Score = Callable[[Responses, float | None, Callable[[int, int], None]], Floats]
"""Rows, LD-DPO's alpha and a progress teller to the log-probability of each response [N, K]."""


def refers_to_start(recipe: Recipe) -> bool:
    """Return whether the model is measured against the adapter that training starts from."""
    return isinstance(recipe, DpoRecipe | KtoRecipe) and recipe.reference == "start" and recipe.start_from is not None


def as_reference(model: nn.Module, recipe: Recipe) -> AbstractContextManager[None]:
    """Make a model that is at its start its own reference for a while."""
    is_start = refers_to_start(recipe)
    if recipe.adapter == "full" or (is_start and not recipe.stack):
        return nullcontext()
    return adapters_off(model, trained_only=is_start)


def refer(
    recipe: Recipe,
    sets: Sequence[TokenRows | Responses],
    score: Score,
    progress: Callable[[int, int], None],
    *,
    limit: int,
) -> list[Rows]:
    """Give rows what the recipe's objective needs to know of the reference.

    Args:
        recipe: Says whether there is a reference.
        sets: Training and validation rows.
        score: Returns the reference's log-probabilities of responses, like a `ReferencePass`.
        progress: Told rows done, and rows in all.
        limit: Most tokens of a row that is put together from two.
    """
    passes = 2 if isinstance(recipe, KtoRecipe) else 1
    total, before = passes * sum(map(len, sets)), 0

    def refer_one(rows: Responses, ld_alpha: float | None = None) -> ReferencedRows:
        nonlocal before
        found = score(rows, ld_alpha, lambda done, _: progress(before + done, total))
        before += len(rows)
        return ReferencedRows(rows, found, ld_alpha=ld_alpha)

    referred: list[Rows] = []
    for rows in sets:
        if isinstance(rows, TokenRows):
            referred.append(rows)
        elif isinstance(recipe, KtoRecipe):
            referred.append(LabeledRows(refer_one(rows), refer_one(Mismatched(rows, limit))))
        elif isinstance(recipe, DpoRecipe):
            referred.append(refer_one(rows, recipe.ld_alpha))
        else:
            with_prompts = isinstance(recipe, OrpoRecipe) and recipe.nll_on_prompt
            nothing = np.zeros((len(rows), rows.responses), np.float32)
            referred.append(ReferencedRows(rows, nothing, with_prompts=with_prompts))
    return referred


class ReferencePass:
    """Computes log-probabilities of responses with a model as it is.

    Args:
        model: Left in the mode it was in.
        head: Of the model.
        stream: How it is run.
        tokens: Most tokens of a forward pass.
        folder: Where results are kept.
        stands_on: All that the results depend on beside the rows, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        stream: Stream,
        *,
        tokens: int,
        folder: Path,
        stands_on: Mapping[str, object],
    ) -> None:
        self.model, self.head, self.stream = model, head, stream
        self.tokens, self.folder = tokens, folder
        self.stands_on = {**stands_on, "tokens a pass": tokens, "rows": "stream" if stream.layers else "padded"}

    def __call__(self, rows: Responses, ld_alpha: float | None, progress: Callable[[int, int], None]) -> Floats:
        """Return the log-probability of each response [N, K], float32, nats: from the disk, if it was computed before.

        Args:
            rows: Prompts and responses.
            ld_alpha: As in training.
            progress: Told rows done, and rows in all; it may raise `Stopped`.

        Raises:
            DataError: A response has no finite log-probability.
        """
        path = self.folder / f"{self._key(rows, ld_alpha)}.npy"
        found = _read(path, (len(rows), rows.responses))
        missing = split_micro_batches(
            np.flatnonzero(np.isnan(found).any(axis=1)), rows.lengths, tokens=self.tokens, rows=max(1, len(rows))
        )
        done = len(rows) - sum(map(len, missing))
        saved_at = time.monotonic()
        try:
            for part in missing:
                progress(done, len(rows))
                found[part] = self._score(rows, part, ld_alpha)
                done += len(part)
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    _write(path, found)
                    saved_at = time.monotonic()
        finally:
            if missing:
                _write(path, found)
        if missing:
            progress(done, len(rows))
        if bad := [where for where, row in zip(rows.where, found, strict=True) if not np.isfinite(row).all()]:
            path.unlink(missing_ok=True)
            problems = [Problem(where, "has no finite log-probability under the reference") for where in bad]
            raise DataError(problems, fix='--set compute_dtype="float32" may help, or leave these rows out.')
        return found

    def _score(self, rows: Responses, part: Ints, ld_alpha: float | None) -> Floats:
        nothing = np.zeros((len(rows), rows.responses), np.float32)
        batch = to_device(make_response_batch(rows, part, reference=nothing, ld_alpha=ld_alpha))
        with evaluating(self.model):
            summed = sum_responses(target_logprobs(self.head, self.stream, self.model, batch.layout), batch)
            return np.array(summed).reshape(len(part), -1)

    def _key(self, rows: Responses, ld_alpha: float | None) -> str:
        told = sorted((name, str(value)) for name, value in self.stands_on.items())
        return hashlib.blake2b(repr([rows.fingerprint, ld_alpha, told]).encode(), digest_size=16).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Floats:
    """Return what is there, NaN where it is not."""
    try:
        found = np.load(path)
        os.utime(path)
        if found.shape == shape and found.dtype == np.float32:
            return np.array(found)
    except (OSError, ValueError, EOFError):
        pass
    return np.full(shape, np.nan, np.float32)


def _write(path: Path, found: Floats) -> None:
    """Keep results; on a full disk or in a read-only home they are computed again another time."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with aside.open("wb") as file:
            np.save(file, found)
        aside.replace(path)
        for old in sorted(path.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime, reverse=True)[
            KEPT_ENTRIES:
        ]:
            old.unlink(missing_ok=True)
    except OSError:
        aside.unlink(missing_ok=True)
