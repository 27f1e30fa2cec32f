"""The other side of `make bench`: stock mlx-lm, driven over a pipe. Runs in an environment that has no macft.

The rule: `mlx_lm.tuner.trainer.train` runs as it is. Its own hook for batches is where this file stands: it waits for
the name of a batch, hands over one that mlx-lm's own `iterate_batches` made, and looks at the clock when it is asked
for the next.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.datasets import CacheDataset, create_dataset
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load

NEVER = 10**9


class Peer:
    """mlx-lm's trainer and the batches it may be asked for."""

    def __init__(self, options: dict[str, Any], replies: Any) -> None:
        self.options, self.replies = options, replies
        self.rows: dict[str, Any] = {}
        self.batches: dict[str, list[Any]] = {}
        self.model, self.tokenizer = load(options["model"])
        self.model.freeze()
        lora = {"rank": options["rank"], "scale": options["scale"], "dropout": 0.0}
        linear_to_lora_layers(self.model, -1, lora)

    def run(self) -> None:
        """Train until the pipe is closed."""
        arguments = TrainingArgs(
            batch_size=1,
            iters=NEVER,
            steps_per_report=NEVER,
            steps_per_save=NEVER,
            max_seq_length=self.options["max_seq_length"],
            grad_checkpoint=self.options["recompute"],
            adapter_file=os.devnull,
        )
        train(self.model, optim.Adam(self.options["learning_rate"]), [], args=arguments, iterate_batches=self.obey)

    def obey(self, **_: Any) -> Iterator[Any]:
        """Yield the batches that are asked for, and answer with what each took."""
        self.reply({"mlx": version("mlx"), "mlx_lm": version("mlx-lm")})
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "plan":
                self.reply(self.plan(**command["with"]))
                continue
            batch = self.batches[command["plan"]][command["batch"]]
            if command.get("peak"):
                mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            started, cpu_started = time.perf_counter(), time.process_time()
            yield batch
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            self.reply({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": mx.get_peak_memory() - before})
        os._exit(0)  # without this, `train` would go on to save

    def plan(self, name: str, file: str, batch_size: int, sort: bool = False) -> dict[str, Any]:
        """Make an epoch's batches the way mlx-lm does; `sort` hands its length sort the lengths that it misses."""
        if file not in self.rows:
            values = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
            # Learn the answers only, as macft does; all else is as it is by default.
            self.rows[file] = CacheDataset(create_dataset(values, self.tokenizer, SimpleNamespace(mask_prompt=True)))
        rows = self.rows[file]
        # A CacheDataset's `itemlen` counts the keys of a dict; of a plain list, mlx-lm takes the lengths themselves.
        dataset = [rows[place] for place in range(len(rows))] if sort else rows
        self.batches[name] = list(iterate_batches(dataset, batch_size, self.options["max_seq_length"], seed=0))
        return {
            "tokens": [int(lengths[:, 1].sum().item()) for _, lengths in self.batches[name]],
            "shapes": [list(batch.shape) for batch, _ in self.batches[name]],
        }

    def reply(self, values: dict[str, Any]) -> None:
        """Answer a command."""
        print(json.dumps(values), file=self.replies, flush=True)


def main() -> None:
    """Run with options as JSON in the first argument; stdout is for replies, mlx-lm's own output goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Peer(json.loads(sys.argv[1]), replies).run()


if __name__ == "__main__":
    main()
