"""The peak of one training update, measured in a process of its own.

    python -m tests.benchmarks.plan_peaks '{"layers": 4, "tokens": 256}'

The rule: MLX counts the bytes; what is counted is what `macft train` does, from loading the model to the second update.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
NORMS = tuple(f"{place}_layernorm" for place in ("input", "post_attention", "pre_feedforward", "post_feedforward"))


@dataclass(frozen=True)
class Point:
    """A model's shape, and how one update of it is made. `model` names a folder instead of a shape."""

    family: str = "llama"
    layers: int = 2
    width: int = 128
    inner: int = 384
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocabulary: int = 512
    tied: bool = True
    model: str = ""
    method: str = "sft"
    rows: int = 2
    length: int = 64
    """Tokens of each row, of a pair of its prompt and one answer; a micro-batch holds all rows."""
    share: float = 0.5
    """Supervised tokens of each row, the last ones."""
    parts: int = 1
    """Micro-batches an update."""
    recompute: str = "none"
    quantize: int | None = None
    adapter: str = "lora"
    optimizer: str = "adamw"
    rank: int = 8
    targets: str = "all"
    padded: bool = False
    """Padded rows, as a family takes whose attention is not known."""
    adapted: int = 0
    """How many of the last layers get an adapter; 0: all."""


def make_folder(point: Point, parent: Path) -> Path:
    """Write the model that a point speaks of: bfloat16 zeros in the shapes of a llama, or what `model` names."""
    if point.model:
        return Path(point.model)
    width, inner = point.width, point.inner
    queries, kv = point.heads * point.head_dim, point.kv_heads * point.head_dim
    layer = {
        **{"self_attn.q_proj": (queries, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)},
        **{"self_attn.o_proj": (width, queries), "mlp.gate_proj": (inner, width)},
        **{"mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)},
        **{name: (width,) for name in NORMS if "feed" not in name or point.family == "gemma3_text"},
        **{f"self_attn.{name}_norm": (point.head_dim,) for name in ("q", "k") if point.family != "llama"},
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(point.layers) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens": (point.vocabulary, width), "model.norm": (width,)}
    shapes |= {} if point.tied else {"lm_head": (point.vocabulary, width)}
    config = {
        **{"model_type": point.family, "hidden_size": width, "intermediate_size": inner, "head_dim": point.head_dim},
        **{"num_hidden_layers": point.layers, "num_attention_heads": point.heads, "vocab_size": point.vocabulary},
        **{"num_key_value_heads": point.kv_heads, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
        **{"rope_theta": 10000.0, "tie_word_embeddings": point.tied, "torch_dtype": "bfloat16"},
        **(
            {"sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256}
            if point.family == "gemma3_text"
            else {}
        ),
    }
    (parent / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (parent / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return parent


def recipe_of(point: Point, folder: Path):
    """Return the recipe that trains as the point says."""
    from macft.recipe import make_recipe

    return make_recipe(
        {
            "method": point.method,
            "model": str(folder),
            "quantize": point.quantize,
            "adapter": point.adapter,
            "recompute": point.recompute,
            "batch_size": point.rows * point.parts,
            "max_seq_length": point.length,
            "lora": {"rank": point.rank, "targets": point.targets, "layers": point.adapted or "all"},
            "optimizer": {"name": point.optimizer},
        },
        folder=folder,
    )


def update_once(point: Point, folder: Path, scratch: Path) -> dict[str, int]:
    """Load, attach, refer and make two updates; return MLX's bytes of the weights and at the peak."""
    import macft.models.load  # noqa: F401, I001 — first: it guards the import of mlx-lm
    import mlx.core as mx

    from macft.models.adapters import count_values
    from macft.models.head import find_head
    from macft.models.recompute import recompute
    from macft.models.stream import Stream, prepare_stream
    from macft.training.objectives import make_objective
    from macft.training.optimizers import make_optimizer
    from macft.training.reference import ReferencePass, as_reference, refer
    from macft.training.trace import even_rows
    from macft.training.trainable import make_trainable
    from macft.training.update import Updater

    mx.set_default_device(mx.cpu)
    recipe = recipe_of(point, folder)
    model, _ = make_trainable(recipe, folder, folder)
    loaded, load_peak = mx.get_active_memory(), mx.get_peak_memory()
    mx.reset_peak_memory()
    head = find_head(model)
    stream = Stream(0) if point.padded else prepare_stream(model, longest=point.length)
    answer = round(point.share * point.length)
    told = even_rows(point.method, count=point.rows * point.parts, prompt=point.length - answer, answer=answer)
    tokens = point.rows * int(told.lengths[0])
    scorer = ReferencePass(model, head, stream, tokens=tokens, folder=scratch, stands_on={})
    with as_reference(model, recipe):
        (rows,) = refer(recipe, [told], scorer, lambda *_: None, limit=point.length)
    recompute(model, recipe.recompute, stream)
    parts = np.split(np.arange(len(rows)), point.parts)
    objective, optimizer = make_objective(recipe, head, stream), make_optimizer(recipe.optimizer, 1e-4)
    updater = Updater(model, objective, optimizer, max_grad_norm=1.0, seed=0, compiled=False)
    model.train()
    for step in (1, 2):
        updater(step, [rows.batch(part) for part in parts], 1e-4)
    trainable, _ = count_values(model.trainable_parameters())
    return {
        "loaded": loaded,
        "load_peak": load_peak,
        "trainable": trainable,
        "weights": count_values(model.parameters())[1],
        "peak": max(load_peak, mx.get_peak_memory()),
        "layers": stream.layers,
    }


def measure(point: Point) -> dict[str, int]:
    """Return what a fresh process measures for a point."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.plan_peaks", json.dumps(asdict(point))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    values: dict[str, int] = json.loads(done.stdout)
    return values


def main() -> None:
    """Measure the point on the command line."""
    point = Point(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(update_once(point, make_folder(point, Path(scratch)), Path(scratch))))


if __name__ == "__main__":
    main()
