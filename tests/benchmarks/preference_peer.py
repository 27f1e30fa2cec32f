"""The other sides of `make bench-dpo`, driven over a pipe. Runs in environments that have no macft.

The rule: each library's own training loop runs as it is. This file stands where the loop fetches its next batch: it
waits for the name of one, hands over token ids that macft made, in the library's own padding and order, and looks at
the clock when the loop asks for the next. What a peer computes from the ids is its own affair, and told as `passes`:

- mlx-lm-lora: `train_dpo`, compiled, with a second model as the reference, asked in every step.
- troy: `run_dpo`, its adapters' scale set to 0 for the reference, asked in every step.
- mlx-tune: `DPOTrainer`, reference log-probabilities cached; one pair a step shares the prompt through a cache of keys
  and values, more are compiled and repeat it, and then the prompt's own log-probabilities are part of the sums.
"""

import json
import os
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load

NEVER = 10**9
Row = dict[str, list[int]]


def pass_of(lengths: list[int], *, supervised: int, backward: bool, shared: list[int] | None = None) -> dict[str, Any]:
    """Describe one run through the model, as the parent counts its operations."""
    return {"lengths": lengths, "supervised": supervised, "backward": backward, "shared": shared or []}


class Peer:
    """A library's training loop and the batches it may be asked for."""

    package: str
    compiles = False
    """Whether a shape takes longer when it first comes."""

    def __init__(self, options: dict[str, Any], replies: Any) -> None:
        self.options, self.replies = options, replies
        self.plans: dict[str, list[list[Row]]] = {}
        self.asked = self.obey()

    @abstractmethod
    def train(self) -> None:
        """Train until the pipe is closed, fetching batches from `asked`."""

    @abstractmethod
    def passes(self, batch: list[Row]) -> list[dict[str, Any]]:
        """Return the runs through the model that a step on this batch makes."""

    def order(self, rows: list[Row], batch_size: int) -> list[list[int]]:
        """Return the rows of each step of an epoch: as they come, those left over not at all."""
        return [list(range(start, start + batch_size)) for start in range(0, len(rows) - batch_size + 1, batch_size)]

    def ready(self, batch: list[Row]) -> Any:
        """Make what the loop is handed for a batch, before the clock starts."""
        return batch

    def obey(self) -> Iterator[Any]:
        """Yield the batches that are asked for, and answer with what each took."""
        self.reply({"mlx": version("mlx"), "mlx_lm": version("mlx-lm"), self.package: version(self.package)})
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "plan":
                self.reply(self.plan(**command["with"]))
                continue
            batch = self.ready(self.plans[command["plan"]][command["batch"]])
            if command["peak"]:
                mx.clear_cache()
            mx.reset_peak_memory()
            held = mx.get_active_memory()
            started, cpu_started = time.perf_counter(), time.process_time()
            yield batch
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            peak = mx.get_peak_memory() - held
            self.reply({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "held": held})
        os._exit(0)  # without this, the loop would go on to save

    def plan(self, name: str, file: str, batch_size: int) -> dict[str, Any]:
        """Make an epoch's batches the way the library does."""
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        order = self.order(rows, batch_size)
        self.plans[name] = [[rows[index] for index in indices] for indices in order]
        passes = [self.passes(batch) for batch in self.plans[name]]
        return {"rows": order, "passes": passes, "compiles": self.compiles}

    def reply(self, values: dict[str, Any]) -> None:
        """Answer a command."""
        print(json.dumps(values), file=self.replies, flush=True)


def whole(row: Row, side: str) -> list[int]:
    """Return the ids of the prompt and one of its responses."""
    return row["prompt"] + row[side]


def longest(batch: list[Row], *sides: str) -> int:
    """Return the tokens of the longest prompt with a response."""
    return max(len(whole(row, side)) for row in batch for side in sides)


class MlxLmLora(Peer):
    """mlx-lm-lora's `train_dpo`, with the second model that its command loads."""

    package = "mlx-lm-lora"
    compiles = True

    def train(self) -> None:
        """Run `train_dpo`; the one thing of it that a CPU lacks is a limit for wired memory."""
        from mlx_lm_lora.trainer import dpo_trainer

        model, reference = load(self.options["model"])[0], load(self.options["model"])[0]
        model.freeze(), reference.freeze()
        lora = {"rank": self.options["rank"], "scale": self.options["scale"], "dropout": 0.0}
        linear_to_lora_layers(model, -1, lora)
        self.iterate = dpo_trainer.iterate_dpo_batches
        dpo_trainer.iterate_dpo_batches = lambda **_: self.asked
        if "max_recommended_working_set_size" not in mx.device_info():
            mx.device_info = lambda: {"max_recommended_working_set_size": 0}
            mx.set_wired_limit = lambda _: 0
        arguments = dpo_trainer.DPOTrainingArgs(
            batch_size=1,
            iters=NEVER,
            steps_per_report=NEVER,
            steps_per_eval=NEVER,
            steps_per_save=NEVER,
            max_seq_length=self.options["max_seq_length"],
            adapter_file=os.devnull,
            beta=self.options["beta"],
        )
        optimizer = optim.Adam(self.options["learning_rate"])
        dpo_trainer.train_dpo(model, reference, optimizer, [], args=arguments)

    def order(self, rows: list[Row], batch_size: int) -> list[list[int]]:
        """Return the rows of each step: sorted by the length of prompt and chosen response, as its iterator does."""
        by_length = sorted(range(len(rows)), key=lambda index: len(whole(rows[index], "chosen")))
        return [by_length[start : start + batch_size] for start in range(0, len(rows) - batch_size + 1, batch_size)]

    def ready(self, batch: list[Row]) -> Any:
        """Have its own iterator pad the batch."""
        dataset = [
            {side: whole(row, side) for side in ("chosen", "rejected")}
            | {f"{side}_prompt_length": len(row["prompt"]) for side in ("chosen", "rejected")}
            for row in batch
        ]
        return next(self.iterate(dataset, len(batch), self.options["max_seq_length"]))

    def passes(self, batch: list[Row]) -> list[dict[str, Any]]:
        """Two padded runs of the model in training and two of the other one, with all logits."""
        columns = longest(batch, "chosen", "rejected") - 1
        runs = 2 * len(batch)
        return [pass_of([columns] * runs, supervised=columns * runs, backward=trains) for trains in (True, False)]


class Troy(Peer):
    """troy's `run_dpo`."""

    package = "troy-cli"

    def train(self) -> None:
        """Run `run_dpo`, whose `_batch` is called twice a step: for the chosen, then for the rejected responses."""
        from troy import train_dpo
        from troy.config import TroyConfig

        pad, pending = train_dpo._batch, []

        def batch_of(_: object, pad_id: int) -> Any:
            if not pending:
                batch = next(self.asked)
                pending.extend(
                    [(whole(row, side), len(row["prompt"])) for row in batch] for side in ("chosen", "rejected")
                )
            return pad(pending.pop(0), pad_id)

        train_dpo._batch = batch_of
        with tempfile.TemporaryDirectory() as folder:
            lora = {"r": self.options["rank"], "alpha": self.options["rank"] * self.options["scale"], "layers": "all"}
            config = TroyConfig.model_validate(
                {
                    "base": self.options["model"],
                    "task": "dpo",
                    "data": {"train": "none"},
                    "output": folder,
                    "training": {
                        "iters": NEVER,
                        "batch_size": 1,
                        "lr": self.options["learning_rate"],
                        "seq_len": self.options["max_seq_length"],
                        "save_every": NEVER,
                        "lora": lora,
                        "dpo": {"beta": self.options["beta"]},
                    },
                }
            )
            train_dpo.run_dpo(config, [{"prompt": "a", "chosen": "b", "rejected": "c"}], [])

    def passes(self, batch: list[Row]) -> list[dict[str, Any]]:
        """A padded run for the chosen and one for the rejected responses, without and with the adapters."""
        lengths = [longest(batch, side) - 1 for side in ("chosen", "rejected") for _ in batch]
        return [pass_of(lengths, supervised=sum(lengths), backward=trains) for trains in (True, False)]


class MlxTune(Peer):
    """mlx-tune's `DPOTrainer`."""

    package = "mlx-tune"
    bucket = 64

    @property
    def compiles(self) -> bool:
        """Only a step of several pairs is."""
        return int(self.options["batch_size"]) > 1

    def train(self) -> None:
        """Run `train`, whose samples come from a list that it indexes."""
        from mlx_tune import DPOConfig, DPOTrainer, FastLanguageModel
        from mlx_tune.losses import common_prefix_length, compute_log_probs_with_lengths

        self.prefix, self.score, self.scored = common_prefix_length, compute_log_probs_with_lengths, {}
        model, tokenizer = FastLanguageModel.from_pretrained(self.options["model"])
        alpha = self.options["rank"] * self.options["scale"]
        model = FastLanguageModel.get_peft_model(model, r=self.options["rank"], lora_alpha=alpha)
        self.model = model.model
        with tempfile.TemporaryDirectory() as folder:
            config = DPOConfig(
                beta=self.options["beta"],
                learning_rate=self.options["learning_rate"],
                per_device_train_batch_size=self.options["batch_size"],
                max_steps=NEVER,
                logging_steps=NEVER,
                save_steps=NEVER,
                max_seq_length=self.options["max_seq_length"],
                output_dir=folder,
            )
            trainer = DPOTrainer(model=model, train_dataset=[], tokenizer=tokenizer, args=config)
            trainer._prepare_dpo_batches = lambda: Samples(self)
            trainer.train()

    def ready(self, batch: list[Row]) -> list[dict[str, Any]]:
        """Make its samples; the reference's numbers, which are cached in a run, come from the model as it is."""
        samples = []
        for row in batch:
            chosen, rejected = whole(row, "chosen"), whole(row, "rejected")
            key = tuple(chosen + rejected)
            if key not in self.scored:
                self.scored[key] = [
                    self.score(self.model, mx.array([ids]), mx.array([len(ids)])).item() for ids in (chosen, rejected)
                ]
            samples.append(
                {
                    "chosen_ids": chosen,
                    "rejected_ids": rejected,
                    "chosen_length": len(chosen),
                    "rejected_length": len(rejected),
                    "prompt_length": self.prefix(chosen, rejected),
                    "ref_chosen_logp": self.scored[key][0],
                    "ref_rejected_logp": self.scored[key][1],
                }
            )
        return samples

    def passes(self, batch: list[Row]) -> list[dict[str, Any]]:
        """One pair: the prompt once, then both responses. More: two runs, padded to the next bucket, all logits."""
        if len(batch) == 1:
            chosen, rejected = (whole(batch[0], side) for side in ("chosen", "rejected"))
            prompt = self.prefix(chosen, rejected)
            supervised = len(chosen) + len(rejected) - 2 * prompt
            lengths = [len(chosen) - 1, len(rejected) - 1]
            return [pass_of(lengths, supervised=supervised, shared=[0, prompt - 1], backward=True)]
        columns = -(-longest(batch, "chosen", "rejected") // self.bucket) * self.bucket - 1
        runs = 2 * len(batch)
        return [pass_of([columns] * runs, supervised=columns * runs, backward=True)]


class Samples:
    """What mlx-tune takes for its list of samples: it is indexed once a sample, in order."""

    def __init__(self, peer: MlxTune) -> None:
        self.peer, self.pending = peer, list[dict[str, Any]]()

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, _: int) -> dict[str, Any]:
        if not self.pending:
            self.pending = list(next(self.peer.asked))
        return self.pending.pop(0)


def main() -> None:
    """Run with options as JSON in the first argument; stdout is for replies, the library prints to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    peers = {kind.package: kind for kind in (MlxLmLora, Troy, MlxTune)}
    peers[options["peer"]](options, replies).train()


if __name__ == "__main__":
    main()
