"""The whole graph of a gradient, with shapes, before anything is computed or allocated.

The rule: exact. MLX hands a graph over only where no custom function is in it, so each of those is left out as a hole;
its own forward and backward graphs are exported alike and put there. What is exported is what MLX would evaluate.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from macft.losses.backward import traced_by
from macft.models.sketch import MARK, placeholder

Function = Callable[..., Any]


class Node(NamedTuple):
    """One primitive: its name and arguments, and the arrays it reads and makes, by number."""

    name: str
    arguments: list[Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Graph:
    """Primitives, in no order, and the arrays between them.

    Attributes:
        nodes: All primitives.
        arrays: (shape, bytes a value) of each array.
        resident: Arrays that are there before and after: weights, parameters, batches.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.arrays: list[tuple[tuple[int, ...], int]] = []
        self.resident: set[int] = set()
        self._same: dict[int, int] = {}

    def add_array(self, shape: Sequence[int], dtype: mx.Dtype) -> int:
        """Return the number of a new array."""
        self.arrays.append((tuple(shape), dtype.size))
        return len(self.arrays) - 1

    def add_node(self, name: str, arguments: list[Any], inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Add a primitive."""
        self.nodes.append(Node(name, arguments, tuple(inputs), tuple(outputs)))

    def equate(self, hole: int, value: int) -> None:
        """Say that an array which nothing makes is another one."""
        self._same[hole] = value

    def number(self, array: int) -> int:
        """Return the array that fills a hole, or the array itself."""
        while array in self._same:
            array = self._same[array]
        return array


def gradient_graph(function: Function, inputs: Sequence[mx.array]) -> tuple[Graph, list[int]]:
    """Trace a function of arrays to a scalar, with the gradients of its inputs.

    Args:
        function: What it reads beside its inputs are placeholders.
        inputs: Placeholders too.

    Returns:
        The graph, and the numbers of the value and of the gradients, in the order in which they are evaluated.
    """
    graph = Graph()
    one = mx.array(1.0)
    given = [graph.add_array(each.shape, each.dtype) for each in (*inputs, one)]
    graph.resident.update(given)
    values, gradients = _differentiate(graph, function, inputs, [one], given)
    return graph, [graph.number(each) for each in (*values, *gradients)]


class _Call(NamedTuple):
    """A custom function, or a gradient inside of a backward pass, as it was called."""

    fill: Callable[["Graph", "_Call", list[int]], list[int]]
    functions: tuple[Function, ...]
    inputs: tuple[mx.array, ...]
    outputs: tuple[mx.array, ...]
    is_single: bool


class _Inline:
    """Computes custom functions like any others, and leaves a hole for a gradient: what backward passes ask for."""

    def __init__(self, cuts: Sequence[tuple[mx.array, ...]] | None = None) -> None:
        self.calls: list[_Call] = []
        self.cuts = cuts
        self.inputs: list[tuple[mx.array, ...]] = []

    def call(self, forward: Function, backward: Function, inputs: tuple[mx.array, ...]) -> Any:
        """Return a custom function's outputs."""
        return forward(*inputs)

    def vjp(self, function: Function, inputs: list[mx.array], cotangents: list[mx.array]) -> Sequence[mx.array]:
        """Return placeholders of the gradients."""
        outputs = tuple(placeholder(each) for each in inputs)
        return self.leave_out(_Call(_fill_gradient, (function,), (*inputs, *cotangents), outputs, False))

    def leave_out(self, call: _Call) -> tuple[mx.array, ...]:
        """Return the outputs of a call: what stands for them, the first time; what is given, the second."""
        self.inputs.append(call.inputs)
        if self.cuts is not None:
            return tuple(self.cuts[len(self.inputs) - 1])
        self.calls.append(call)
        return call.outputs


class _Cut(_Inline):
    """Leaves a hole for every custom function."""

    def call(self, forward: Function, backward: Function, inputs: tuple[mx.array, ...]) -> Any:
        """Return what stands for a custom function's outputs."""
        with traced_by(_Inline()):
            made = forward(*inputs)
        is_single = isinstance(made, mx.array)
        outputs = tuple(placeholder(each) for each in _listed(made))
        left = self.leave_out(_Call(_fill_custom, (forward, backward), inputs, outputs, is_single))
        return left[0] if is_single else left


def _differentiate(
    graph: Graph, function: Function, inputs: Sequence[mx.array], cotangents: Sequence[mx.array], given: list[int]
) -> tuple[list[int], list[int]]:
    """Add a function and its gradient to a graph; returns the numbers of its outputs and of the gradients."""
    with traced_by(recorder := _Cut()):
        count = len(_listed(function(*inputs)))
    calls = recorder.calls
    cuts = [each for call in calls for each in call.outputs]
    pulls = [placeholder(each) for call in calls for each in _floats(call.inputs)]

    def body(*arrays: mx.array) -> list[mx.array]:
        parts = _split(arrays, [len(inputs), len(cotangents), len(cuts), len(pulls)])
        seen: list[tuple[mx.array, ...]] = []

        def forward(*primals: mx.array) -> list[mx.array]:
            own = _split(primals[len(inputs) :], [len(call.outputs) for call in calls])
            with traced_by(replay := _Cut(own)):
                made = _listed(function(*primals[: len(inputs)]))
            seen.extend(replay.inputs)
            return made + [each for read in replay.inputs for each in _floats(read)]

        made, pulled = mx.vjp(forward, [*parts[0], *parts[2]], [*parts[1], *parts[3]])
        return [*made[:count], *(each for read in seen for each in read), *pulled]

    holes = [graph.add_array(each.shape, each.dtype) for each in cuts]
    asked = [graph.add_array(each.shape, each.dtype) for each in pulls]
    made = _export(graph, body, [*inputs, *cotangents, *cuts, *pulls], [*given, *holes, *asked])
    sizes = [count, *(len(call.inputs) for call in calls), len(inputs), *(len(call.outputs) for call in calls)]
    values, *parts = _split(made, sizes)
    reads, gradients, pulled = parts[: len(calls)], parts[len(calls)], parts[len(calls) + 1 :]
    left, wanted = iter(_split(holes, [len(call.outputs) for call in calls])), iter(asked)
    for call, read, pull in zip(calls, reads, pulled, strict=True):
        own = next(left)
        _fill_forward(graph, call, list(read), list(own))
        found = _add(graph, _backward_of(call), [*call.inputs, *call.outputs, *call.outputs], [*read, *pull, *own])
        for each, value in zip(call.inputs, found, strict=True):
            if _is_float(each):
                graph.equate(next(wanted), value)
    return list(values), list(gradients)


def _backward_of(call: _Call) -> Function:
    """Return a custom function's backward pass as a function of flat arrays."""

    def backward(*arrays: mx.array) -> list[mx.array]:
        read, pull, made = _split(arrays, [len(call.inputs), len(call.outputs), len(call.outputs)])
        inputs = read[0] if len(read) == 1 else tuple(read)
        cotangents, outputs = (part[0] if call.is_single else tuple(part) for part in (pull, made))
        return _listed(call.functions[1](inputs, cotangents, outputs))

    return backward


def _fill_forward(graph: Graph, call: _Call, read: list[int], outputs: list[int]) -> None:
    made = _add(graph, call.functions[0], call.inputs, read)
    graph.add_node("CustomTransforms", [], [*read, *made], outputs)


def _fill_custom(graph: Graph, call: _Call, read: list[int]) -> list[int]:
    return _add(graph, call.functions[0], call.inputs, read)


def _fill_gradient(graph: Graph, call: _Call, read: list[int]) -> list[int]:
    """Add a gradient that a backward pass asked for."""
    count = len(call.outputs)
    inputs, cotangents = call.inputs[:count], call.inputs[count:]
    return _differentiate(graph, call.functions[0], inputs, cotangents, read)[1]


def _add(graph: Graph, function: Function, inputs: Sequence[mx.array], given: Sequence[int]) -> list[int]:
    """Add a function that is not differentiated to a graph; returns the numbers of its outputs."""
    with traced_by(recorder := _Inline()):
        count = len(_listed(function(*inputs)))
    calls = recorder.calls
    cuts = [each for call in calls for each in call.outputs]

    def body(*arrays: mx.array) -> list[mx.array]:
        own = _split(arrays[len(inputs) :], [len(call.outputs) for call in calls])
        with traced_by(replay := _Inline(own)):
            made = _listed(function(*arrays[: len(inputs)]))
        return made + [each for read in replay.inputs for each in read]

    holes = [graph.add_array(each.shape, each.dtype) for each in cuts]
    made = _export(graph, body, [*inputs, *cuts], [*given, *holes])
    values, *reads = _split(made, [count, *(len(call.inputs) for call in calls)])
    left = iter(holes)
    for call, read in zip(calls, reads, strict=True):
        for value in call.fill(graph, call, list(read)):
            graph.equate(next(left), value)
    return list(values)


def _export(graph: Graph, function: Function, inputs: Sequence[mx.array], given: Sequence[int]) -> list[int]:
    """Add a function without holes to a graph; returns the numbers of its outputs."""
    names: dict[str, int] = {}
    outputs: list[str] = []

    def take(event: dict[str, Any]) -> None:
        match event["type"]:
            case "inputs":
                names.update(zip((name for name, *_ in event["inputs"]), given, strict=True))
            case "outputs":
                outputs.extend(name for name, *_ in event["outputs"])
            case "constants":
                for name, value in event["constants"]:
                    names[name] = graph.add_array(value.shape, value.dtype)
                    graph.resident.add(names[name])
                    if value.size == 1 and value.item() == MARK:
                        marked.add(names[name])
            case "primitive":
                read = [names[name] for name, *_ in event["inputs"]]
                made = [graph.add_array(shape, dtype) for _, shape, dtype in event["outputs"]]
                names.update(zip((name for name, *_ in event["outputs"]), made, strict=True))
                if event["name"] in {"Broadcast", "Full"} and read[0] in marked:
                    marked.update(made)
                    graph.resident.update(made)
                else:
                    graph.add_node(event["name"], event["arguments"], read, made)

    marked: set[int] = set()
    mx.export_function(take, function, *inputs)
    return [names[name] for name in outputs]


def _listed(made: Any) -> list[mx.array]:
    return [made] if isinstance(made, mx.array) else list(made)


def _split(arrays: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    parts, start = [], 0
    for size in sizes:
        parts.append(tuple(arrays[start : start + size]))
        start += size
    return parts


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _floats(arrays: Sequence[mx.array]) -> list[mx.array]:
    return [each for each in arrays if _is_float(each)]
