"""Tiny models and adapters on the disk, as a person has them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macft.models.adapters import adapter_parameters, write_adapter_files
from macft.models.describe import fingerprint, template_hash
from macft.models.load import load_model
from macft.models.stacked import folded_parameters
from macft.models.start import start_adapter
from macft.models.tensors import save_tensors
from macft.recipe import dump_recipe, make_recipe
from macft.run import Run
from tests.golden import load_case


@dataclass(frozen=True)
class Shelf:
    """A home with the model `tiny`, and runs that tuned it."""

    home: Path
    runs: Path

    @property
    def tiny(self) -> Path:
        return self.home / "models" / "tiny"

    def add_run(
        self,
        name: str,
        *,
        seed: int,
        kind: str = "lora",
        quantize: int | None = None,
        over: Run | None = None,
        stack: bool = False,
        **lora: Any,
    ) -> Run:
        """Write a run that changes the model plainly; its checkpoint at step 4 is the result, that at 2 another.

        Args:
            over: Whose adapter it continues, or with `stack` is trained over.
            lora: Of the recipe's table; rank 4 when left out.
        """
        told = {
            "model": str(self.tiny),
            "adapter": kind,
            "lora": {"rank": 4, **lora},
            "seed": seed,
            "stack": stack,
            "data": {"train": ["rows.jsonl"]},
        }
        told |= {"quantize": quantize, "quantize_group_size": 32} if quantize else {}
        told |= {"start_from": str(over.adapter)} if over else {}
        recipe = make_recipe(told, folder=self.home)
        run = Run.create(self.runs / name, dump_recipe(recipe))
        for step in (2, 4):
            model, _ = load_model(self.tiny)
            config = start_adapter(model, recipe, self.tiny, self.runs)
            mx.random.seed(seed + step)
            changed = [
                (key, 0.5 * mx.random.normal(value.shape))
                for key, value in tree_flatten(model.trainable_parameters())
                if key.endswith("lora_b")
            ]
            model.load_weights(changed, strict=False)
            folder = run.checkpoints / f"step-{step:06d}"
            folder.mkdir()
            save_tensors(folder / "weights.safetensors", dict(tree_flatten(model.trainable_parameters())))
        (run.checkpoints / "best").write_text("step-000002")
        run.adapter.mkdir()
        provenance = {
            "base_model": "tiny",
            "base_fingerprint": fingerprint(self.tiny),
            "template_hash": template_hash(self.tiny),
            "quantize": quantize,
            "quantize_group_size": 32,
        }
        tensors = folded_parameters(model, config) if stack else adapter_parameters(model)
        write_adapter_files(run.adapter, tensors, config, provenance)
        return run

    def add_model(self, name: str, *, seed: int) -> Path:
        """Write another model of the same shape."""
        folder = self.home / "models" / name
        shutil.copytree(self.tiny, folder)
        weights = mx.load(str(self.tiny / "model.safetensors"))
        mx.random.seed(seed)
        save_tensors(
            folder / "model.safetensors",
            {key: value + 0.05 * mx.random.normal(value.shape) for key, value in weights.items()},
        )
        return folder


def make_shelf(folder: Path) -> Shelf:
    """Put a tiny model on an empty shelf, with room for conversations."""
    made = Shelf(folder / "home", folder / "runs")
    shutil.copytree(load_case("llama").folder, made.tiny)
    config = json.loads((made.tiny / "config_v4.json").read_text())  # stock mlx-lm reads no other
    (made.tiny / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return made
