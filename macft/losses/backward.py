"""Functions with a backward pass of their own, as MLX has them, that a tracer can see into.

The rule: outside of a trace these are MLX's. MLX exports no graph that holds a custom function, so a tracer (see
`training.graph`) is handed forward and backward as plain functions instead.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_map


class Tracer(Protocol):
    """Takes custom functions apart."""

    def call(self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: tuple[mx.array, ...]) -> Any:
        """Return the outputs of a custom function."""

    def vjp(
        self, function: Callable[..., Any], inputs: list[mx.array], cotangents: list[mx.array]
    ) -> Sequence[mx.array]:
        """Return the gradients of a function's inputs."""


_TRACER: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


class custom_function:
    """A function of arrays whose gradient is given by `vjp`: (inputs, cotangents, outputs) to the inputs' gradients.

    As in MLX, one input, or one output, is handed over as it is, and several as a tuple.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self._function = mx.custom_function(forward)

    def vjp(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        """Set the backward pass."""
        self.backward = backward
        self._function.vjp(backward)
        return backward

    def __call__(self, *inputs: mx.array) -> Any:
        """Compute the function."""
        tracer = _TRACER.get()
        return self._function(*inputs) if tracer is None else tracer.call(self.forward, self.backward, inputs)


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that keeps its inputs only, and computes the rest again once its cotangents are there.

    Args:
        function: Pure; its arrays may lie in trees, and one array or a tuple of arrays comes out.
    """

    def call(*inputs: Any) -> Any:
        leaves: list[mx.array] = []
        tree_map(lambda leaf: leaves.append(leaf) if isinstance(leaf, mx.array) else None, inputs)

        def flat(*arrays: mx.array) -> Any:
            left = iter(arrays)
            return function(*tree_map(lambda leaf: next(left) if isinstance(leaf, mx.array) else leaf, inputs))

        run = custom_function(flat)

        @run.vjp
        def backward(given: Any, cotangents: Any, _: Any) -> Any:
            given, cotangents = (value if isinstance(value, tuple) else (value,) for value in (given, cotangents))
            # Without this MLX could compute it again at once, and keep it.
            again = mx.depends(list(given), list(cotangents))
            tracer = _TRACER.get()
            pull_back = tracer.vjp if tracer else lambda *values: mx.vjp(*values)[1]
            gradients = pull_back(flat, again, list(cotangents))
            return tuple(gradients) if len(gradients) > 1 else gradients[0]

        return run(*leaves)

    return call


@contextmanager
def traced_by(tracer: Tracer) -> Iterator[None]:
    """Hand custom functions to a tracer for a while."""
    token = _TRACER.set(tracer)
    try:
        yield
    finally:
        _TRACER.reset(token)
