"""Our side of `make bench`: macft's engine, driven over the same pipe as the peer."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from macft.bench.clock import measure_peak
from macft.bench.engine import Engine, layout_of, plan_rows, read_rows
from macft.data.batches import Ints
from macft.data.token_rows import TokenRows
from macft.recipe import make_recipe
from tests.benchmarks.counters import count


class Ours:
    """macft's updater and the batches it may be asked for."""

    def __init__(self, options: dict[str, Any], replies: Any) -> None:
        self.options, self.replies = options, replies
        self.folder = Path(options["model"])
        self.rows: dict[str, TokenRows] = {}
        self.batches: dict[str, tuple[TokenRows, list[Ints]]] = {}
        recipe = self.recipe([])
        longest, micro = options["max_seq_length"], options.get("micro_batch_tokens")
        self.engine = Engine(recipe, self.folder, longest=longest, micro_batch_tokens=micro)

    def recipe(self, files: list[str]) -> Any:
        """Return the recipe that trains what the peer trains."""
        lora = {"rank": self.options["rank"], "alpha": self.options["rank"] * self.options["scale"]}
        return make_recipe(
            {
                "model": str(self.folder),
                "learning_rate": self.options["learning_rate"],
                "max_seq_length": self.options["max_seq_length"],
                "compute_dtype": "float32",
                "recompute": "layer" if self.options["recompute"] else "none",
                "lora": lora,
                "data": {"train": files, "valid_fraction": 0.0},
            }
        )

    def run(self) -> None:
        """Obey until the pipe is closed."""
        self.reply({"macft": version("macft"), "shape": self.engine.shape})
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "plan":
                self.reply(self.plan(**command["with"]))
            elif command["do"] == "peak":
                self.reply(measure_peak(self.engine.dtype)._asdict())
            else:
                self.reply(self.step(command["plan"], command["batch"], peak=command["peak"]))

    def step(self, plan: str, batch: int, *, peak: bool) -> dict[str, Any]:
        """Make one update and return what it took."""
        rows, updates = self.batches[plan]
        if peak:
            return {"peak": self.engine.peak_bytes(rows, updates[batch])}
        return self.engine.update(rows, updates[batch])._asdict()

    def plan(self, name: str, file: str, batch_size: int) -> dict[str, Any]:
        """Make an epoch's updates as training would."""
        if file not in self.rows:
            self.rows[file] = read_rows(self.recipe([file]), self.folder)
        rows = self.rows[file]
        plan = plan_rows(rows, batch_size=batch_size, seed=0)
        self.batches[name] = rows, plan
        laid_out = [layout_of(batch) for indices in plan for batch in self.engine.split(rows, indices)]
        return {
            "tokens": [int(rows.lengths[indices].sum()) for indices in plan],
            "work": [self.engine.work(rows, indices) for indices in plan],
            "counters": count(len(plan), laid_out),
        }

    def reply(self, values: dict[str, Any]) -> None:
        """Answer a command."""
        print(json.dumps(values), file=self.replies, flush=True)


def main() -> None:
    """Run with options as JSON in the first argument; stdout is for replies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Ours(json.loads(sys.argv[1]), replies).run()


if __name__ == "__main__":
    main()
