"""Adapters on a model: attach, count, switch off, save, load.

The rule: an adapter folder is a plain mlx-lm adapter folder with more keys. macft speaks of `alpha` and `rank`; the
raw `scale = alpha / rank` of mlx-lm appears only here, at its border.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from pydantic import BaseModel, Field, ValidationError, model_validator

from macft.disk import DISK, Disk, write_file
from macft.errors import ModelError, Problem, RecipeError
from macft.models import peft
from macft.models.adapted import KeyedDropout, add_in_product
from macft.models.tensors import check_tensors, load_tensors, save_tensors
from macft.recipe import LoraTable

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
ADAPTED = (LoRALinear, LoRASwitchLinear, LoRAEmbedding, DoRALinear, DoRAEmbedding)
_LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
_PRESETS = {"attention": ("attn", "attention", "mixer"), "mlp": ("mlp", "feed_forward", "ffn", "moe")}


class _Layers(BaseModel):
    """`lora_parameters` of mlx-lm."""

    rank: int = Field(ge=1)
    scale: float
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    keys: list[str] | None = None


class _AdapterConfig(BaseModel):
    """What macft reads of `adapter_config.json`; everything else, like mlx-lm's paths, is left behind."""

    fine_tune_type: Literal["lora", "dora", "full"] = "lora"
    num_layers: int = -1
    lora_parameters: _Layers | None = None
    base_model_name_or_path: str = ""
    macft: dict[str, Any] = {}

    @model_validator(mode="after")
    def _complete(self) -> "_AdapterConfig":
        if self.fine_tune_type != "full" and self.lora_parameters is None:
            raise ValueError("lora_parameters is missing")
        return self


def attach(model: nn.Module, lora: LoraTable, *, kind: str, seed: int) -> dict[str, Any]:
    """Put a fresh adapter on a frozen model; its output is unchanged until the first update.

    Args:
        model: A frozen model without adapters.
        lora: Rank, alpha, dropout, targets and layers.
        kind: `lora` or `dora`.
        seed: Fixes the start of the A matrices.

    Returns:
        The adapter's configuration, as `write_adapter_files` writes it.

    Raises:
        RecipeError: No linear layer matches the targets, or there are fewer layers than asked for.
        ModelError: DoRA on a base whose bits it does not support.
    """
    if any(isinstance(module, ADAPTED) for module in model.modules()):
        raise ModelError("the model has an adapter already", fix="Load it again before attaching another.")
    total = len(model.layers)
    count = total if lora.layers == "all" else lora.layers
    if count > total:
        raise RecipeError([Problem("lora.layers", f"the model has {total} layers (got {count})")])
    keys = _target_keys(model, lora)
    parameters = {"rank": lora.rank, "scale": update_scale(lora), "dropout": lora.dropout, "keys": keys}
    config = {"fine_tune_type": kind, "num_layers": count, "lora_parameters": parameters}
    mx.random.seed(seed)
    attach_layers(model, config)
    return config


def update_scale(lora: LoraTable) -> float:
    """Return what the low-rank product is multiplied by: mlx-lm's `scale`."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def load_adapter(model: nn.Module, folder: Path, *, base_fingerprint: str = "") -> dict[str, Any]:
    """Attach an adapter from a folder written by macft or by mlx-lm.

    Args:
        model: A frozen model without adapters.
        folder: Holds `adapters.safetensors` and `adapter_config.json`.
        base_fingerprint: Of the model; an adapter that names another base is refused. Empty: not checked.

    Returns:
        The adapter's configuration.

    Raises:
        ModelError: Files are missing or damaged, tensors do not fit the model, or the base is another one.
    """
    config, weights = read_adapter(folder)
    trained_on = config.get("macft", {}).get("base_fingerprint", "")
    if base_fingerprint and trained_on and trained_on != base_fingerprint:
        raise ModelError(
            f"{folder.name}: this adapter was trained on another base ({config.get('base_model_name_or_path', '?')})",
            fix="Use the model it was trained on.",
        )
    is_full, from_peft = config["fine_tune_type"] == "full", not (folder / WEIGHTS).is_file()
    if from_peft:
        config["num_layers"] = peft.count_layers(weights, len(model.layers))
    attach_layers(model, config)
    expected = dict(_flat(model.parameters())) if is_full else adapter_parameters(model)
    if from_peft or "merge" in config["macft"]:  # these may leave out layers in between, which get an update of zero
        weights |= {name: peft.no_update(name, value) for name, value in expected.items() if name not in weights}
    check_tensors(weights, expected, where=folder / (peft.WEIGHTS if from_peft else WEIGHTS), complete=not is_full)
    model.load_weights(list(weights.items()), strict=False)
    return config


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Read an adapter folder of macft, mlx-lm or PEFT.

    Returns:
        The configuration as `read_adapter_config` gives it, and the tensors by mlx-lm's names.

    Raises:
        ModelError: Files are missing or damaged, or PEFT's adapter holds what mlx-lm's layers cannot.
    """
    config = read_adapter_config(folder)
    if (folder / WEIGHTS).is_file() or not (folder / peft.WEIGHTS).is_file():
        return config, load_tensors(folder / WEIGHTS)
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return peft.from_peft(told, load_tensors(folder / peft.WEIGHTS), where=folder)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter_config.json`.

    Raises:
        ModelError: It is missing, not JSON, or lacks a key that mlx-lm needs.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not an adapter folder (no {CONFIG})", fix="`macft runs` lists the runs."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    if isinstance(config, dict) and peft.is_peft(config):
        if not (folder / peft.WEIGHTS).is_file():
            raise ModelError(f"{folder} has PEFT's {CONFIG} and no {peft.WEIGHTS}", fix="Save the adapter again.")
        return peft.from_peft(config, load_tensors(folder / peft.WEIGHTS), where=folder)[0]
    try:
        return _AdapterConfig.model_validate(config).model_dump(exclude_none=True)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"])) or "the file"
        raise ModelError(f"{path}: {key}: {detail['msg'].lower()}") from None


def adapter_hash(folder: Path) -> str:
    """Identify an adapter by every byte of its weights and its configuration.

    Raises:
        ModelError: A file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for path in (folder / CONFIG, folder / WEIGHTS):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror})", fix="`macft runs` lists the runs.") from None
    return digest.hexdigest()


def write_adapter_files(
    folder: Path,
    tensors: dict[str, mx.array],
    config: dict[str, Any],
    provenance: dict[str, Any],
    *,
    disk: Disk = DISK,
) -> None:
    """Write an adapter folder into `folder`, which exists.

    `alpha = rank · scale` is always an integer on disk, since the tools that read it expect one; what is left of the
    scale (rsLoRA) is folded into B, which changes nothing in the product.

    Args:
        folder: Where the two files go.
        tensors: As `adapter_parameters` returns them.
        config: As `attach` or `load_adapter` returned it.
        provenance: What made it: base name and fingerprint, template hash, method, step. No absolute paths.
        disk: What it is written through.
    """
    parameters = config["lora_parameters"]
    rank, scale = parameters["rank"], parameters["scale"]
    alpha = max(1, round(rank * scale))
    rest = scale * rank / alpha
    weights = {
        name: value * rest if name.endswith("lora_b") and rest != 1.0 else value for name, value in tensors.items()
    }
    save_tensors(folder / WEIGHTS, weights, disk)
    written = {
        **config,
        "lora_parameters": {**parameters, "scale": alpha / rank},
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": parameters["dropout"],
        "target_modules": sorted({key.rsplit(".", 1)[-1] for key in parameters.get("keys") or []}),
        "use_dora": config["fine_tune_type"] == "dora",
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": provenance.get("base_model", ""),
        "macft": provenance,
    }
    write_file(folder / CONFIG, [json.dumps(written, indent=2).encode()], disk)


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Return the adapter's tensors by name: `lora_a` (in, r), `lora_b` (r, out), and DoRA's `m` (out)."""
    return {
        name: value for name, value in _flat(model.parameters()) if name.rsplit(".", 1)[-1] in {"lora_a", "lora_b", "m"}
    }


@contextmanager
def adapters_off(model: nn.Module, *, trained_only: bool = False) -> Iterator[None]:
    """Make the model its base for a while, bit for bit: adapted layers step aside.

    Args:
        model: Carries adapters, perhaps one over another.
        trained_only: Leave frozen adapters on: the model becomes what its training stands on.
    """
    adapted = list(outermost(model).items())
    model.update_modules(tree_unflatten([(name, _inside(module, trained_only)) for name, module in adapted]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(adapted))


def outermost(model: nn.Module) -> dict[str, Any]:
    """Return the adapted layers by name; of adapters one over another, the upper ones."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, ADAPTED)}
    return {name: module for name, module in adapted.items() if name.rpartition(".")[0] not in adapted}


def _inside(module: Any, trained_only: bool) -> Any:
    while isinstance(module, ADAPTED) and not (trained_only and not count_values(module.trainable_parameters())[0]):
        module = module.linear if "linear" in module else module.embedding
    return module


def set_dropout(model: nn.Module, probability: float) -> None:
    """Change the dropout of every adapted layer."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.probability = probability


def compute_in_model_dtype(model: nn.Module) -> None:
    """Let LoRA's products be made in the type of what they multiply; its parameters stay float32.

    mlx-lm multiplies with the float32 matrices themselves, so that a 16-bit model keeps its activations once more, in
    float32. Gradients arrive in float32 either way, and so do all that stands on them: moments, checkpoints, results.
    """
    for module in model.modules():
        if isinstance(module, LoRALinear | LoRASwitchLinear):
            module.__class__ = _casting(cast(Any, type(module)))


@functools.cache
def _casting(kind: Any) -> type[nn.Module]:
    def call(self: Any, x: mx.array, *indices: Any, **named: Any) -> mx.array:
        matrices = self.lora_a, self.lora_b
        if all(matrix.dtype == x.dtype for matrix in matrices):
            same: mx.array = kind.__call__(self, x, *indices, **named)
            return same
        self.lora_a, self.lora_b = (matrix.astype(x.dtype) for matrix in matrices)
        try:
            product: mx.array = kind.__call__(self, x, *indices, **named)
            return product
        finally:
            self.lora_a, self.lora_b = matrices

    return type(kind.__name__, (kind,), {"__call__": call})


def attach_layers(model: nn.Module, config: dict[str, Any]) -> None:
    """Put fresh layers for an adapter on a model, as its configuration says; one of a full model changes nothing.

    Raises:
        ModelError: DoRA on a base whose bits it does not support.
    """
    if config.get("fine_tune_type") == "full":
        return
    is_dora = config["fine_tune_type"] == "dora"
    if is_dora and any(getattr(module, "bits", 4) in {3, 5, 6} for module in model.modules()):
        raise ModelError("DoRA does not work on 3-, 5- and 6-bit bases", fix='Use adapter = "lora".')
    # mlx-lm reads num_layers 0 and −1 as all.
    linear_to_lora_layers(model, config["num_layers"], config["lora_parameters"], use_dora=is_dora)
    for module in model.modules():
        if isinstance(module, ADAPTED):
            module.dropout = KeyedDropout(config["lora_parameters"]["dropout"])
        if type(module) is LoRALinear:
            module.__class__ = add_in_product(cast(Any, LoRALinear))
    model.train(model.training)  # new layers are born in training mode


def _target_keys(model: nn.Module, lora: LoraTable) -> list[str]:
    present = sorted(
        {name for layer in model.layers for name, module in layer.named_modules() if isinstance(module, _LINEAR)}
    )
    if isinstance(lora.targets, list):
        keys = [
            name for name in present if any(name == target or name.endswith("." + target) for target in lora.targets)
        ]
    elif lora.targets == "all":
        keys = present
    else:
        parts = _PRESETS[lora.targets]
        keys = [name for name in present if any(part in name.split(".", 1)[0].lower() for part in parts)]
    if not keys:
        raise RecipeError([Problem("lora.targets", f"matches no linear layer (the model has {', '.join(present)})")])
    return keys


def count_values(tree: Any) -> tuple[int, int]:
    """Return how many values a tree of arrays holds, and their bytes."""
    leaves = [value for _, value in _flat(tree)]
    return sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    return cast(list[tuple[str, mx.array]], tree_flatten(tree))
