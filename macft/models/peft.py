"""Adapters in PEFT's form, to and from mlx-lm's.

The rule: a change of form changes no number: A and B are only transposed, and after two trips the bytes are the first
ones. What mlx-lm's layers cannot hold is refused by name, never left out.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macft.errors import ModelError

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LEAVES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m"}
_LAYER = re.compile(r"^(.*?layers\.(\d+))\.(.+)$")


def is_peft(config: Mapping[str, Any]) -> bool:
    """Tell whether an `adapter_config.json` is PEFT's and not mlx-lm's."""
    return "peft_type" in config and "lora_parameters" not in config


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, mx.array], *, where: Path
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Turn a PEFT adapter into mlx-lm's form.

    Ranks and alphas that differ from module to module become one: short ones are filled with zeros, and what is left of
    a module's scale is folded into its B. Both change nothing in the product.

    Args:
        config: PEFT's `adapter_config.json`.
        tensors: Of `adapter_model.safetensors`.
        where: The folder, for errors.

    Returns:
        The configuration and the tensors, float32, `lora_a` (in, r), `lora_b` (r, out), DoRA's `m` (out).

    Raises:
        ModelError: It is no LoRA or DoRA on linear layers, or holds more than that.
    """
    _refuse_others(config, where)
    named = {_our_name(name, where): value.astype(mx.float32) for name, value in tensors.items()}
    modules = sorted({name.rpartition(".")[0] for name in named})
    for module in modules:
        if not {f"{module}.lora_a", f"{module}.lora_b"} <= named.keys():
            raise ModelError(f"{where / WEIGHTS}: {module} has no A or no B")
    ranks = {module: named[f"{module}.lora_a"].shape[0] for module in modules}
    rank = max(ranks.values(), default=0)
    if not rank:
        raise ModelError(f"{where / WEIGHTS} holds no adapter")
    scale = _scale(config, rank, "")
    weights = {}
    for module in modules:
        missing = rank - ranks[module]
        a, b = named[f"{module}.lora_a"].T, named[f"{module}.lora_b"].T
        rest = _scale(config, ranks[module], module) / scale
        weights[f"{module}.lora_a"] = mx.pad(a, [(0, 0), (0, missing)]) if missing else a
        weights[f"{module}.lora_b"] = mx.pad(b * rest, [(0, missing), (0, 0)]) if missing or rest != 1.0 else b
        if f"{module}.m" in named:
            weights[f"{module}.m"] = named[f"{module}.m"]
    parameters = {
        "rank": rank,
        "scale": scale,
        "dropout": float(config.get("lora_dropout") or 0.0),
        "keys": sorted({_key(module) for module in modules}),
    }
    return {
        "fine_tune_type": "dora" if config.get("use_dora") else "lora",
        "num_layers": -1,
        "lora_parameters": parameters,
        "base_model_name_or_path": str(config.get("base_model_name_or_path") or ""),
        "macft": {},
    }, weights


def to_peft(config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Turn an adapter in mlx-lm's form into PEFT's `adapter_config.json` and tensors.

    Modules whose A and B are both all zeros are those that `from_peft`'s reader filled in; they are left out.

    Raises:
        ModelError: It adapts experts or embeddings, which PEFT's LoRA layers do not take in this form.
    """
    parameters = config["lora_parameters"]
    rank, scale = parameters["rank"], parameters["scale"]
    alpha = max(1, round(rank * scale))
    rest = scale * rank / alpha
    modules = sorted({name.rpartition(".")[0] for name in weights})
    tensors, kept = {}, []
    for module in modules:
        a, b = weights[f"{module}.lora_a"], weights[f"{module}.lora_b"]
        if a.ndim != 2:
            raise ModelError(f"{module} adapts experts, which PEFT stores otherwise", fix="Fuse it instead.")
        if "embed" in module.rpartition(".")[2]:
            raise ModelError(f"{module} adapts an embedding, which PEFT stores otherwise", fix="Fuse it instead.")
        if not mx.any(a).item() and not mx.any(b).item():
            continue
        kept.append(module)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.T
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = (b * rest if rest != 1.0 else b).T
        if f"{module}.m" in weights:
            tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = weights[f"{module}.m"]
    return _peft_config(config, kept, rank, alpha), dict(sorted(tensors.items()))


def count_layers(weights: Mapping[str, mx.array], total: int) -> int:
    """Return how many of a model's last layers an adapter reaches, as mlx-lm counts them."""
    layers = [int(match.group(2)) for name in weights if (match := _LAYER.match(name))]
    return total - min(layers, default=0) if min(layers, default=0) < total else total


def no_update(name: str, fresh: mx.array) -> mx.array:
    """Return a tensor of an update that changes nothing: zeros, or the magnitude that DoRA starts with."""
    return fresh if name.endswith(".m") else mx.zeros(fresh.shape)


def save_peft_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write tensors byte for byte as PEFT does."""
    from safetensors.numpy import save_file

    # Contiguous, since safetensors writes a buffer as it lies, whatever its strides say.
    rows = {name: np.ascontiguousarray(np.array(value)) for name, value in tensors.items()}
    save_file(rows, path, metadata={"format": "pt"})


def _peft_config(config: Mapping[str, Any], modules: list[str], rank: int, alpha: int) -> dict[str, Any]:
    layers = sorted({int(match.group(2)) for module in modules if (match := _LAYER.match(module))})
    # PEFT takes a missing list for all layers; naming them all would be as good, and harder to read.
    some = layers if layers and layers != list(range(layers[-1] + 1)) else None
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": config.get("base_model_name_or_path") or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": "layers" if some else None,
        "layers_to_transform": some,
        "lora_alpha": alpha,
        "lora_dropout": config["lora_parameters"].get("dropout", 0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "task_type": "CAUSAL_LM",
        "use_dora": config["fine_tune_type"] == "dora",
        "use_rslora": False,
    }


def _refuse_others(config: Mapping[str, Any], where: Path) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise ModelError(f"{where} holds a PEFT adapter of type {kind} (macft reads LORA, with or without DoRA)")
    wrong = {
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "layer_replication": bool(config.get("layer_replication")),
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
        "target_parameters": bool(config.get("target_parameters")),
    }
    if found := [key for key, is_set in wrong.items() if is_set]:
        raise ModelError(
            f"{where}: `{found[0]}` is set, which an mlx-lm adapter cannot hold",
            fix="Merge it into its base with PEFT's merge_and_unload, and load that model.",
        )


def _our_name(name: str, where: Path) -> str:
    for theirs, ours in _LEAVES.items():
        for leaf in (theirs, f"{theirs}.weight"):  # older PEFT ends the magnitude's name so
            if name.startswith(_PREFIX) and name.endswith(f".{leaf}"):
                return f"{name.removeprefix(_PREFIX).removesuffix(leaf)}{ours}"
    raise ModelError(f"{where / WEIGHTS}: {name} is not part of a LoRA on a linear layer")


def _scale(config: Mapping[str, Any], rank: int, module: str) -> float:
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if module and re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _key(module: str) -> str:
    """Return a module's name as mlx-lm's `keys` want it: within its layer, or whole outside of layers."""
    match = _LAYER.match(module)
    return match.group(3) if match else module
