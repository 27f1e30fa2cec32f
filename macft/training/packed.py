"""Parameters as a few long vectors, and an optimizer that works on those.

The rule: an adapter is hundreds of small matrices, and a call on each costs more than its arithmetic; so matrices lie
one after the other in vectors while they are measured, clipped and updated. Outside, an optimizer's state is told by
parameter, as MLX's own optimizers tell it, so checkpoints do not know how it was computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

VECTOR_VALUES = 2**22
"""Most values of a vector, so that an update's temporary copies stay small."""
SMALL_VALUES = 2**18
"""Larger matrices stay as they are: a call on one is cheap beside its arithmetic, and a copy is not."""


@dataclass(frozen=True)
class Group:
    """Parameters that lie in one vector; of a single one, the array itself.

    Attributes:
        names: Of the parameters, as `tree_flatten` writes them.
        shapes: Of the parameters.
        dtype: Of all of them.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    dtype: mx.Dtype

    def pack(self, arrays: dict[str, mx.array]) -> mx.array:
        """Lay arrays one after the other [N]."""
        if len(self.names) == 1:
            return arrays[self.names[0]]
        return mx.concatenate([arrays[name].reshape(-1) for name in self.names])

    def unpack(self, vector: mx.array) -> list[tuple[str, mx.array]]:
        """Return the parameters by name."""
        if len(self.names) == 1:
            return [(self.names[0], vector)]
        ends = list(accumulate(math.prod(shape) for shape in self.shapes))
        parts = mx.split(vector, ends[:-1])
        named = zip(self.names, parts, self.shapes, strict=True)
        return [(name, part.reshape(shape)) for name, part, shape in named]


class Places:
    """Where a model's trainable parameters lie: found once, since walks through all modules add up to a part of a step.

    Parameters are known by their names, as `tree_flatten` writes them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = {name: _find(model, name) for name in _flat(model.trainable_parameters())}

    def take(self) -> dict[str, mx.array]:
        """Return the parameters."""
        return {name: holder[key] for name, (holder, key) in self._places.items()}

    def put(self, parameters: Mapping[str, mx.array]) -> None:
        """Set the parameters."""
        for name, (holder, key) in self._places.items():
            holder[key] = parameters[name]


class PackedOptimizer(Optimizer):
    """An optimizer of MLX that sees parameters in groups.

    Args:
        inner: Does the mathematics.
        most: Most values of a vector; 0 where the optimizer looks at matrices as such.
    """

    def __init__(self, inner: Optimizer, most: int) -> None:
        self.inner, self.most, self.groups = inner, most, list[Group]()

    def init(self, parameters: Any) -> None:
        """Group the parameters; a state that is there already stays."""
        self.groups = group(parameters, self.most)
        self.inner.init(self._keyed(self.pack(parameters)))

    def pack(self, tree: Any) -> list[mx.array]:
        """Return a tree's arrays, one of each group; it may hold more than what is trained."""
        arrays = _flat(tree)
        return [group.pack(arrays) for group in self.groups]

    def unpack(self, vectors: Sequence[mx.array]) -> Any:
        """Return the tree of the parameters."""
        return tree_unflatten(self._unpack_named(vectors))

    def _unpack_named(self, vectors: Sequence[mx.array]) -> list[tuple[str, mx.array]]:
        pairs = zip(self.groups, vectors, strict=True)
        return [pair for group, vector in pairs for pair in group.unpack(vector)]

    def cast(self, vectors: Sequence[mx.array]) -> list[mx.array]:
        """Return the vectors in the types of the parameters."""
        return [vector.astype(group.dtype) for group, vector in zip(self.groups, vectors, strict=True)]

    def update_packed(self, places: Places, gradients: Sequence[mx.array]) -> None:
        """Update a model's parameters from packed gradients."""
        parameters = self._keyed(self.pack(places.take()))
        updated = self.inner.apply_gradients(self._keyed(gradients), parameters)
        places.put(dict(self._unpack_named(list(updated.values()))))

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Return the updated parameters as a tree."""
        if not self.groups:
            self.init(gradients)
        packed = self._keyed(self.pack(gradients)), self._keyed(self.pack(parameters))
        return self.unpack(list(self.inner.apply_gradients(*packed).values()))

    @property
    def state(self) -> dict[str, Any]:
        """What the optimizer keeps: `step`, `learning_rate`, and a parameter's own under its name."""
        told = [(name, value) for name, value in self.inner.state.items() if not name.startswith(_KEY)]
        for key, group in zip(self._keyed(self.groups), self.groups, strict=True):
            for kind, kept in self.inner.state[key].items():
                # Adafactor keeps rows and columns of a matrix; it gets no vectors, so this is never cut.
                told += [(f"{name}.{kind}", part) for name, part in group.unpack(kept)]
        return cast(dict[str, Any], tree_unflatten(told))

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        told = _flat(state)
        kept: dict[str, Any] = {name: value for name, value in told.items() if "." not in name}
        for key, group in zip(self._keyed(self.groups), self.groups, strict=True):
            kinds = [name[len(group.names[0]) + 1 :] for name in told if name.startswith(group.names[0] + ".")]
            kept[key] = {
                kind: group.pack({name: told[f"{name}.{kind}"] for name in group.names}) for kind in sorted(kinds)
            }
        self.inner.state = kept

    @property
    def learning_rate(self) -> mx.array:
        """The rate of the next update."""
        return cast(mx.array, self.inner.learning_rate)

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | mx.array) -> None:
        self.inner.learning_rate = learning_rate

    @staticmethod
    def _keyed(values: Sequence[Any]) -> dict[str, Any]:
        return {f"{_KEY}{number}": value for number, value in enumerate(values)}


_KEY = "group "


def group(parameters: Any, most: int) -> list[Group]:
    """Divide a tree's arrays, in their order, into groups of one type and at most so many values."""
    groups, room = list[Group](), 0
    for name, array in _flat(parameters).items():
        if array.size > min(room, SMALL_VALUES) or groups[-1].dtype != array.dtype:
            groups.append(Group([], [], array.dtype))
            room = most if array.size <= SMALL_VALUES else 0
        room -= array.size
        groups[-1].names.append(name)
        groups[-1].shapes.append(array.shape)
    return groups


def _find(model: nn.Module, name: str) -> tuple[Any, str]:
    """Return the module, or what it holds, that a parameter lies in, and the parameter's key there."""
    holder: Any = model
    *path, key = name.split(".")
    for part in path:
        holder = holder[int(part) if isinstance(holder, list) else part]
    return holder, key


def _flat(tree: Any) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))
