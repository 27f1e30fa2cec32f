"""Peak memory above the weights, each figure from a process of its own."""

from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.sides import start_ours, start_peer
from tests.benchmarks.worker import Worker

MIB = 2**20
UNSPLIT = 10**9
"""A token budget that no batch reaches."""


class Memory(NamedTuple):
    """Peaks of both sides' middle batch, above what lay there before it."""

    model: str
    data: str
    batch_size: int
    recompute: bool
    split: bool
    bytes: int
    their_bytes: int

    @property
    def ratio(self) -> float:
        """How many times less macft takes."""
        return self.their_bytes / self.bytes


def compare_memory(
    python: Path, model: Path, *, data: str, file: Path, batch_size: int, recompute: bool, split: bool
) -> Memory:
    """Measure the batch of middling size of each side's epoch, after a small one.

    Args:
        python: Of the peer's environment.
        model: Model folder.
        data: What the rows are called.
        file: The rows.
        batch_size: Rows an update.
        recompute: Both sides keep only each layer's input.
        split: macft splits the batch into micro-batches, as it does in training.
    """
    more = {} if split else {"micro_batch_tokens": UNSPLIT}
    with start_ours(model, recompute=recompute, **more) as ours:
        peak = _peak(ours, file, batch_size)
    with start_peer(python, model, recompute=recompute) as peer:
        their_peak = _peak(peer, file, batch_size)
    return Memory(model.name, data, batch_size, recompute, split, peak, their_peak)


def _peak(worker: Worker, file: Path, batch_size: int) -> int:
    plan = worker.plan("memory", file=str(file), batch_size=batch_size)
    size = plan.get("work") or [rows * columns for rows, columns in plan["shapes"]]
    order = sorted(range(len(size)), key=size.__getitem__)
    worker.step("memory", order[0])
    peak: int = worker.step("memory", order[len(order) // 2], peak=True)["peak"]
    return peak
