"""Our side of `make bench-dpo`: macft's engine on pairs, driven over the same pipe as the peers."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macft.bench.clock import timed
from macft.bench.engine import layout_flops, layout_of, plan_rows
from macft.data.batches import Ints
from macft.data.referenced import ReferencedRows
from macft.data.response_rows import ResponseRows
from macft.recipe import make_recipe
from tests.benchmarks.ours import Ours
from tests.benchmarks.preference_rows import pack, read_ids


class OurPreferences(Ours):
    """macft's updater on pairs; the reference of a batch is computed, and timed, when the batch is first asked for."""

    def __init__(self, options: dict[str, Any], replies: Any) -> None:
        super().__init__(options, replies)
        self.pairs: dict[str, tuple[ResponseRows, list[Ints]]] = {}
        self.referred: dict[tuple[str, int], Any] = {}

    def recipe(self, files: list[str]) -> Any:
        """Return the recipe that trains what the peers train."""
        recipe = super().recipe(files)
        shared = recipe.model_dump(include={"model", "learning_rate", "max_seq_length", "compute_dtype", "recompute"})
        lora = {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha}
        return make_recipe({**shared, "lora": lora, "method": "dpo", "beta": 0.1})

    def plan(self, name: str, file: str, batch_size: int) -> dict[str, Any]:
        """Make an epoch's updates as training would."""
        rows = read_ids(Path(file))
        plan = plan_rows(rows, batch_size=batch_size, seed=0)
        self.pairs[name] = rows, plan
        counted = ReferencedRows(rows, np.zeros((len(rows), 2), np.float32))
        batches = [self.engine.split(counted, indices) for indices in plan]
        forward = [
            [layout_flops(self.engine.shape, layout_of(one), backward=False) for one in batch] for batch in batches
        ]
        return {
            "rows": [indices.tolist() for indices in plan],
            "work": [self.engine.work(counted, indices) for indices in plan],
            "reference": sum(map(sum, forward)),
        }

    def step(self, plan: str, batch: int, *, peak: bool) -> dict[str, Any]:
        """Make one update and return what it took, and what its reference took before."""
        if (plan, batch) not in self.referred:
            self.referred[plan, batch] = self.refer(*self.pairs[plan], batch)
        rows, cost = self.referred[plan, batch]
        held = mx.get_active_memory()
        everything = np.arange(len(rows))
        if peak:
            return {"peak": self.engine.peak_bytes(rows, everything), "held": held}
        took = self.engine.update(rows, everything)
        return {**took._asdict(), "reference": cost._asdict()}

    def refer(self, rows: ResponseRows, plan: list[Ints], batch: int) -> Any:
        """Have the reference pass run on one batch; return its rows and what that took."""
        picked = pack([rows.parts(int(index)) for index in plan[batch]])
        made: list[Any] = []
        with tempfile.TemporaryDirectory() as cache:
            cost = timed(lambda: made.append(self.engine.refer(picked, Path(cache))))
        return made[0], cost


def main() -> None:
    """Run with options as JSON in the first argument; stdout is for replies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    OurPreferences(json.loads(sys.argv[1]), replies).run()


if __name__ == "__main__":
    main()
