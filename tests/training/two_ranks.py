"""What `test_distributed` runs under `mlx.launch`: the seam's functions, then five updates and an evaluation.

Usage: python -m tests.training.two_ranks FOLDER. Each rank leaves `rank-N.json` there, rank 0 the gradients of each
method.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import optimizers
from mlx.utils import tree_flatten

from macft.data.batches import shard_rows
from macft.errors import RunError
from macft.launcher import read_launch
from macft.models.adapters import attach
from macft.models.head import find_head
from macft.models.load import load_model
from macft.models.stream import prepare_stream
from macft.recipe import LoraTable, Recipe, make_recipe
from macft.training.distributed import Ranks, joined
from macft.training.evaluate import evaluate
from macft.training.objectives import make_objective
from macft.training.packed import VECTOR_VALUES, PackedOptimizer, Places
from macft.training.update import Updater
from tests.golden import load_case
from tests.training.conftest import random_responses, rows_of
from tests.training.test_preference import VOCABULARY, random_reference, recipe_of, rows_for

METHODS = ["sft", "dpo", "kto"]
UPDATES = [[0, 1, 2, 3], [2, 0, 1], [3], [1, 3], [0, 1, 2, 3]]
"""Rows of each update; the third has fewer rows than there are ranks."""
LEARNING_RATE = 1e-3
"""As for LoRA. At 0.05 the weights part faster, and gradients with them: 1.4e-6 at the fifth step."""


class Recorder(PackedOptimizer):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        super().__init__(optimizers.SGD(LEARNING_RATE), VECTOR_VALUES)
        self.kept: list[dict[str, mx.array]] = []

    def update_packed(self, places: Places, gradients: Sequence[mx.array]) -> None:
        self.kept.append(dict(tree_flatten(self.unpack(gradients))))
        super().update_packed(places, gradients)


def make_updates(ranks: Ranks, method: str) -> tuple[dict[str, mx.array], list[Any]]:
    """Return the gradients of five updates, by step and name, and what was measured before, between and after them."""
    case = load_case("llama")
    model, _ = load_model(case.folder, compute_dtype="float32")
    attach(model, LoraTable(rank=4, alpha=8.0), kind="lora", seed=0)
    recipe, rows = _recipe_and_rows(method, rows_of(case))
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=64))
    optimizer = Recorder()
    updater = Updater(model, objective, optimizer, max_grad_norm=0.0, seed=0, compiled=False, ranks=ranks)
    seen: list[Any] = [evaluate(model, objective, rows, tokens=40, ranks=ranks)]
    for step, update in enumerate(UPDATES, start=1):
        own = shard_rows(np.array(update), rows.lengths, ranks.size)[ranks.rank]
        seen.append(updater(step, [rows.batch(own[place : place + 1]) for place in range(len(own))], LEARNING_RATE))
    seen.append(evaluate(model, objective, rows, tokens=40, ranks=ranks))
    kept = {f"{step}.{name}": leaf for step, leaves in enumerate(optimizer.kept, 1) for name, leaf in leaves.items()}
    return kept, [(*each[:2], *each[-1].values()) for each in seen]


def _recipe_and_rows(method: str, supervised: Any) -> tuple[Recipe, Any]:
    if method == "sft":
        return make_recipe({"model": "m"}), supervised
    recipe = recipe_of(method, **({"sft_weight": 0.7} if method == "dpo" else {}))
    rows = random_responses(VOCABULARY, responses=1 if method == "kto" else 2)
    return recipe, rows_for(recipe, rows, random_reference(rows))


def try_the_seam(ranks: Ranks) -> dict[str, Any]:
    """Use every function of the seam with what is different on each rank."""
    sent = {"rank": ranks.rank, "numbers": [0.1 + ranks.rank, math.inf], "text": "é" * (3000 if ranks.rank else 1)}
    own = {"a": mx.array([-0.0, math.nan, 1.5]) * (1 + ranks.rank), "b": mx.array([7 + ranks.rank], mx.uint64)}
    copied = ranks.copy_leader(own)
    summed = ranks.all_sum((mx.full((3, 5), 1.0 + ranks.rank), {"x": mx.array([2.0], mx.bfloat16)}))
    try:
        ranks.require_same({"same": "1", "mlx": f"0.{ranks.rank}", "rows": str(ranks.rank) * 30})
        refusal = ""
    except RunError as error:
        refusal = error.message
    return {
        "gathered": ranks.gather(sent),
        "from_leader": ranks.from_leader(ranks.rank + 10),
        "copied": [np.array(copied["a"]).tobytes().hex(), np.array(copied["b"]).tolist()],
        "summed": [np.array(summed[0]).tolist(), np.array(summed[1]["x"]).tolist()],
        "key": np.array(ranks.key(mx.random.key(3))).tolist(),
        "refusal": refusal,
    }


def main(folder: Path) -> None:
    with joined(read_launch(), lambda loss: print(loss, file=sys.stderr)) as ranks:
        told = try_the_seam(ranks)
        made = {method: make_updates(ranks, method) for method in METHODS}
    seen = {method: part for method, (_, part) in made.items()}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(told | {"seen": seen}))
    if ranks.leads:
        for method, (gradients, _) in made.items():
            mx.save_safetensors(str(folder / f"{method}.safetensors"), gradients)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
