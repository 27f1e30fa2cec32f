"""A second adapter over a frozen first: attach it, and make both one plain adapter.

The rule: the first adapter stands where the base's linear layer stood, frozen, so whatever works on one adapter works
on two. What is written is one adapter whose rank is the sum: A = [A₁ | A₂], B = [B₁ · s₁ / s₂; B₂], which is exact.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from macft.errors import Problem, RecipeError
from macft.models.adapters import ADAPTED, attach, attach_layers, outermost
from macft.recipe import LoraTable


def stack_adapter(model: nn.Module, first: dict[str, Any], lora: LoraTable, *, seed: int) -> dict[str, Any]:
    """Freeze the adapter that a model carries and put a fresh one over it, which changes nothing until it is trained.

    Args:
        model: Carries the first adapter.
        first: Its configuration.
        lora: Of the second.
        seed: Fixes the start of the second's A matrices.

    Returns:
        The configuration of both as one adapter, as `folded_parameters` makes it.

    Raises:
        RecipeError: The first adapter is not plain LoRA on linear layers.
    """
    below = outermost(model)
    if any(not isinstance(module, LoRALinear) for module in below.values()):
        message = "needs a start_from with plain LoRA on linear layers, without experts or embeddings"
        raise RecipeError([Problem("stack", message)], fix="Fuse that adapter first, and train on the fused model.")
    model.update_modules(tree_unflatten([(name, module.linear) for name, module in below.items()]))
    second = attach(model, lora, kind="lora", seed=seed)
    above = outermost(model)
    alone = []
    for name, module in below.items():
        module.freeze()
        module.dropout.probability = 0.0
        if name in above:
            above[name].linear = module
        else:
            alone.append((name, module))
    model.update_modules(tree_unflatten(alone))
    one, two = first["lora_parameters"], second["lora_parameters"]
    keys = None if one.get("keys") is None else sorted({*one["keys"], *two["keys"]})
    both = {"rank": one["rank"] + two["rank"], "scale": two["scale"], "dropout": two["dropout"], "keys": keys}
    layers = [count if count > 0 else len(model.layers) for count in (first["num_layers"], second["num_layers"])]
    return {"fine_tune_type": "lora", "num_layers": max(layers), "lora_parameters": both}


def folded_parameters(model: nn.Module, config: dict[str, Any]) -> dict[str, mx.array]:
    """Return both adapters of a stacked model as the tensors of one; what only one of them has is filled with zeros.

    Args:
        model: As `stack_adapter` left it.
        config: As `stack_adapter` returned it.

    Returns:
        `lora_a` (in, r₁ + r₂) and `lora_b` (r₁ + r₂, out) by name.
    """
    rank, scale = config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]
    tensors = {}
    keys = config["lora_parameters"].get("keys") or []
    places = {id(module): name for name, module in model.named_modules()}
    for layer in model.layers[-config["num_layers"] :]:
        bare = {key: module for key, module in layer.named_modules() if key in keys and not isinstance(module, ADAPTED)}
        for key, module in bare.items():  # the configuration names it, since another layer has it
            empty = LoRALinear.from_base(module, r=rank)
            for part in ("lora_a", "lora_b"):
                tensors[f"{places[id(layer)]}.{key}.{part}"] = mx.zeros(empty[part].shape)
    for name, module in outermost(model).items():
        levels = list(_levels(module))
        a = mx.concatenate([level.lora_a for level in levels], axis=1)
        b = mx.concatenate([level.lora_b * (level.scale / scale) for level in levels], axis=0)
        missing = rank - int(a.shape[1])
        tensors[f"{name}.lora_a"] = mx.pad(a, [(0, 0), (0, missing)])
        tensors[f"{name}.lora_b"] = mx.pad(b, [(0, missing), (0, 0)])
    return tensors


def fold(model: nn.Module, config: dict[str, Any]) -> None:
    """Replace both adapters of a stacked model by the one that computes the same.

    Args:
        model: As `stack_adapter` left it, with any weights.
        config: As `stack_adapter` returned it.
    """
    tensors, both = folded_parameters(model, config), outermost(model)
    model.update_modules(tree_unflatten([(name, next(_levels(module)).linear) for name, module in both.items()]))
    attach_layers(model, config)
    model.load_weights(list(tensors.items()), strict=False)


def is_stacked(model: nn.Module) -> bool:
    """Return whether a model carries one adapter over another."""
    return any(isinstance(module.get("linear"), ADAPTED) for module in outermost(model).values())


def _levels(module: Any) -> Iterator[LoRALinear]:
    """Yield the adapters of a layer from the innermost, and first, to the outermost."""
    if isinstance(module, LoRALinear):
        yield from _levels(module.linear)
        yield module
