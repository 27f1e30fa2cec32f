"""Keep less for the backward pass and compute it again there: levels, each with its price.

The rule: what is computed again is a pure function of arrays. Trainable parameters go in as arguments, the modules are
left as they were, and no cache changes inside. The levels between move a norm into the module that reads it; that is
compared with the model itself, and where it does not hold, whole layers are computed again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macft.losses.backward import checkpoint
from macft.losses.exponential import swiglu
from macft.models.stream import TOLERANCE, Stream, StreamLayout, equals, probe

_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm")
"""Norms in front of an MLP; where a layer has both, the first is."""

Arrays = Callable[..., Any]
"""A function of arrays, and of what is no array beside them."""


def recompute(model: nn.Module, level: str, stream: Stream, *, is_sketch: bool = False) -> str:
    """Let a model keep less for its backward pass; what it computes stays the same.

    Only this model changes, and only once; mlx-lm's `grad_checkpoint` patches the class for the whole process.

    Args:
        model: With its adapters, run as `stream` says.
        level: `none`; `pointwise`: norms and activation functions are computed again, so no matrix product of the
            base is; `mlp`: the MLP as well; `layer`: whole layers.
        stream: How the model is run.
        is_sketch: The model has no weights; the result is taken to be its own.

    Returns:
        The level in effect: `layer` where the family does not allow those between.
    """
    if level in {"pointwise", "mlp"} and not _recompute_parts(model, level, stream, is_sketch):
        level = "layer"
    if level == "layer":
        for layer in model.layers:
            _change(layer, _again(_own_call(layer), layer))
    return level


def _recompute_parts(model: nn.Module, level: str, stream: Stream, is_sketch: bool) -> bool:
    """Change both halves of every layer; put all back when the model then computes something else."""
    if any(hasattr(module, "is_recomputed") for module in model.modules()):
        return True
    batch = probe(model, longest=8)
    own, kinds = stream.runner(batch)(model.model), [(module, type(module)) for module in model.modules()]
    activation = _find_activation(model.layers[0], is_sketch) if level == "pointwise" else None
    is_known = level == "mlp" or activation is not None
    is_done = is_known and all(_recompute_halves(layer, activation) for layer in model.layers)
    if is_done and (is_sketch or equals(stream, batch, model, own)):
        return True
    for module, kind in kinds:
        module.__class__ = kind
    return False


def _recompute_halves(layer: Any, activation: Arrays | None) -> bool:
    """Change a layer's attention, where it takes streams, and its MLP; False when it has no MLP behind a norm."""
    norm = next((layer[name] for name in _MLP_NORMS if name in layer), None)
    if norm is None or "mlp" not in layer:
        return False
    if hasattr(layer.get("self_attn"), "project"):
        _recompute_projections(layer.self_attn, layer.input_layernorm)
    normed = _move_out(norm)
    if activation is None:
        _change(layer.mlp, _again(_behind(normed, _own_call(layer.mlp)), norm, layer.mlp))
    else:
        _recompute_pointwise(layer.mlp, norm, normed, activation)
    return True


def _recompute_projections(attention: Any, norm: nn.Module) -> None:
    normed, own, project = _move_out(norm), _own_call(attention), attention.project
    again = _again(_behind(normed, project), norm, attention.q_proj, attention.k_proj, attention.v_proj)

    def call(x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output: mx.array = own(x if isinstance(cache, StreamLayout) else normed(x), mask, cache)
        return output

    _change(attention, call, project=again)


def _recompute_pointwise(mlp: Any, norm: nn.Module, normed: Arrays, activation: Arrays) -> None:
    open_gate = _again(_behind(normed, lambda x: (mlp.gate_proj(x), mlp.up_proj(x))), norm, mlp.gate_proj, mlp.up_proj)
    close = _again(lambda gate, up: mlp.down_proj(activation(gate, up)), mlp.down_proj)
    _change(mlp, lambda x: close(*open_gate(x)))


def _again(function: Arrays, *modules: nn.Module) -> Arrays:
    """Return a function that keeps its inputs only, and the same without a backward pass to come.

    Args:
        function: Reads the trainable parameters of the modules, and of no others.
        modules: One of them at least.
    """

    def pure(parameters: list[Any], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        before = [module.trainable_parameters() for module in modules]
        try:
            for module, given in zip(modules, parameters, strict=True):
                module.update(given)
            return function(*inputs, **named)
        finally:
            for module, given in zip(modules, before, strict=True):
                module.update(given)

    def call(*inputs: Any, **named: Any) -> Any:
        if not modules[0].training:
            return function(*inputs, **named)
        return checkpoint(pure)([module.trainable_parameters() for module in modules], inputs, named)

    return call


def _move_out(norm: nn.Module) -> Arrays:
    """Let a norm hand its input through, and return what it did: whoever reads it does that from now on."""
    own = _own_call(norm)
    _change(norm, lambda x: x)
    return own


def _behind(norm: Arrays, function: Arrays) -> Arrays:
    return lambda x: function(norm(x))


def _own_call(module: nn.Module) -> Arrays:
    kind: Any = type(module)
    return partial(kind.__call__, module)


def _change(module: nn.Module, call: Arrays, **methods: Arrays) -> None:
    """Replace the call, and methods, of one module: by a class of its own, since Python looks calls up there."""
    kind = type(module)
    if not hasattr(kind, "is_recomputed"):
        replaced = {name: staticmethod(method) for name, method in methods.items()}
        own = {"__call__": lambda _, *args, **named: call(*args, **named), "is_recomputed": True}
        module.__class__ = type(kind.__name__, (kind,), own | replaced)


def _find_activation(layer: Any, is_sketch: bool) -> Arrays | None:
    """Return what a layer's MLP makes of gate and up before its last product, by trying it; None when unknown."""
    mlp = layer.get("mlp")
    if mlp is None or not all(name in mlp for name in ("gate_proj", "up_proj", "down_proj")):
        return None
    if is_sketch:  # GeGLU keeps as much
        return swiglu
    x = mx.random.normal((2, layer.input_layernorm.weight.size), key=mx.random.key(1))
    own, gate, up = mlp(x), mlp.gate_proj(x), mlp.up_proj(x)
    for activation in (swiglu, _geglu):
        if (mx.abs(own - mlp.down_proj(activation(gate, up))).max() <= TOLERANCE * mx.abs(own).max()).item():
            return activation
    return None


def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    product: mx.array = nn.gelu_approx(gate) * up
    return product
