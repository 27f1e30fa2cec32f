"""Sessions in this process whose objective is watched or poisoned."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macft.data.prepare import Prepared
from macft.events import Event, Metrics
from macft.plan import Plan
from macft.recipe import load_recipe
from macft.run import Run
from macft.training.loop import Ending, Job
from macft.training.objectives import Objective, Sums
from macft.training.session import Session


class Patient:
    """Requests of somebody who asks for nothing."""

    def __call__(self) -> list[str]:
        return []

    def wants_stop(self) -> bool:
        return False


class WatchedObjective:
    """An objective that counts how often training traces it, and hands its sums to whoever wants to spoil them."""

    def __init__(self, inner: Objective, spoil: Callable[[nn.Module, mx.array], mx.array]) -> None:
        self.inner, self.spoil = inner, spoil
        self.head, self.stream = inner.head, inner.stream
        self.traces = 0

    def survey(self, model: nn.Module, batch: Any) -> list[float]:
        return self.inner.survey(model, batch)

    def sums(self, model: nn.Module, batch: Any, whole: mx.array, key: mx.array) -> Sums:
        self.traces += model.training
        sums = self.inner.sums(model, batch, whole, key)
        return sums._replace(loss=self.spoil(model, sums.loss))

    def metrics(self, sums: Mapping[str, float], whole: Sequence[float]) -> Metrics:
        return self.inner.metrics(sums, whole)


class WatchedSession(Session):
    """A session that shows its job."""

    job: Job

    def __init__(
        self,
        run: Run,
        *,
        emit: Callable[[Event], None] | None = None,
        spoil: Callable[[nn.Module, mx.array], mx.array] = lambda _, loss: loss,
    ) -> None:
        self.spoil = spoil
        self.told: list[Event] = []
        super().__init__(load_recipe(run.path / "recipe.toml"), run, emit=emit or self.told.append, requests=Patient())

    def _make_job(self, model: nn.Module, data: Prepared, planned: Plan) -> Job:
        job = super()._make_job(model, data, planned)
        self.job = dataclasses.replace(job, objective=WatchedObjective(job.objective, self.spoil))
        return self.job

    @property
    def objective(self) -> WatchedObjective:
        assert isinstance(self.job.objective, WatchedObjective)
        return self.job.objective

    def values(self) -> dict[str, bytes]:
        """Return every byte of what training changes: weights, moments, and the optimizer's count of steps."""
        both = {"weights": self.job.model.trainable_parameters(), "optimizer": self.job.optimizer.state}
        mx.eval(both)
        return {name: bytes(memoryview(mx.array(value))) for name, value in tree_flatten(both)}


def train_in_process(run: Run, **watched: Any) -> tuple[WatchedSession, Ending]:
    """Train a run to its end, in this process and without a lock."""
    session = WatchedSession(run, **watched)
    return session, session.run()
