"""Which buffers of a graph live together, as MLX's CPU backend evaluates it.

The rule: the order, the views, the donations and the buffers that wait for the worker are MLX's (`transforms.cpp`,
`backend/cpu` of 0.32); nothing is fitted. Bytes are those of buffers that come and go; what is resident counts nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from macft.training.graph import Graph, Node

MAX_WIDTH = 20
"""Arrays that may wait in MLX's breadth-first order."""
AHEAD = 95
"""Dispatches that MLX runs ahead of the worker: ten tasks of ten, the last of them half done."""
_VIEWS = {"Transpose", "Broadcast", "BroadcastAxes", "ExpandDims", "Squeeze", "StopGradient", "Unflatten", "Slice"}
_ALIASES = {"Depends", "Copy", "CustomTransforms", "Split", "View", "NumberOfElements"}
_SHAPED = {"Reshape", "Flatten", "Contiguous"}
_UNARY = {"Abs", "AsType", "Cos", "Erf", "Exp", "Log", "LogicalNot", "Negative", "Rsqrt", "Sigmoid", "Sign", "Sin"}
_BINARY = {"Add", "BitwiseBinary", "Divide", "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Multiply", "Subtract"}
_COMPARISONS = {"Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"}
_POINTWISE = {"Compiled", "Power", "Remainder", "Select", "Softmax", "Sqrt", "Square", "Tanh"}
_POINTWISE |= _UNARY | _BINARY | _COMPARISONS
_IN_PLACE = {"SliceUpdate", "Scatter", "ScatterAxis"}
"""What writes into a copy of its first input, or into that itself."""


@dataclass(slots=True)
class _Buffer:
    """Memory that arrays share.

    Attributes:
        holders: Arrays that are still to be read.
        last: Dispatch after which the worker is done with it.
    """

    size: int
    holders: int = 0
    last: int = 0


@dataclass(slots=True)
class _View:
    buffer: _Buffer
    strides: tuple[int, ...]


def order(graph: Graph, outputs: Sequence[int]) -> list[Node]:
    """Return the primitives in the order in which MLX evaluates them."""
    makers = {made: node for node in graph.nodes for made in node.outputs}
    start = Node("Synchronizer", [], tuple(outputs), ())
    needed: dict[int, list[Node]] = {}
    for node in (start, *graph.nodes):
        reads = (makers.get(graph.number(each)) for each in node.inputs)
        needed[id(node)] = [maker for maker in reads if maker is not None]
    degree = _count_readers(start, needed)
    tape, waiting, place = [start], list[tuple[Node, int]](), 0
    while place < len(tape) or waiting:
        node, first = (tape[place], 0) if place < len(tape) else waiting.pop()
        place = min(place + 1, len(tape))
        for at, maker in enumerate(needed[id(node)][first:], first):
            if id(maker) not in degree:
                continue
            if len(tape) - place >= MAX_WIDTH:
                waiting.append((node, at))
                break
            degree[id(maker)] -= 1
            if not degree[id(maker)]:
                del degree[id(maker)]
                tape.append(maker)
    return tape[:0:-1]


def _count_readers(start: Node, needed: dict[int, list[Node]]) -> dict[int, int]:
    """Return how often each primitive is read, of those that are needed at all."""
    degree: dict[int, int] = {}
    stack = [start]
    while stack:
        for maker in needed[id(stack.pop())]:
            if id(maker) not in degree:
                degree[id(maker)] = 0
                stack.append(maker)
            degree[id(maker)] += 1
    return degree


def peak_bytes(graph: Graph, outputs: Sequence[int]) -> int:
    """Return the most bytes that live at once while the outputs are made, those of the outputs counted."""
    return _Evaluation(graph, outputs).run()


class _Evaluation:
    """The main thread of MLX: it allocates and hands work on, and a buffer leaves once the worker is done with it."""

    def __init__(self, graph: Graph, outputs: Sequence[int]) -> None:
        self.graph, self.tape = graph, order(graph, outputs)
        self.views: dict[int, _View] = {}
        self.uses: dict[int, int] = dict.fromkeys(outputs, 1)
        self.readers: dict[int, set[str]] = {}
        for node in self.tape:
            for array in self._inputs(node):
                self.uses[array] = self.uses.get(array, 0) + 1
                self.readers.setdefault(array, set()).add(node.name)
        self.constants, self.seen = set[int](), set[int]()
        self.dispatched, self.active, self.peak = AHEAD, 0, 0
        self.leaving: list[_Buffer] = []

    def run(self) -> int:
        for node in self.tape:
            self._evaluate(node, self._inputs(node))
            done = self.dispatched - AHEAD
            self.active -= sum(buffer.size for buffer in self.leaving if buffer.last <= done)
            self.leaving = [buffer for buffer in self.leaving if buffer.last > done]
        return self.peak

    def _inputs(self, node: Node) -> list[int]:
        return [self.graph.number(array) for array in node.inputs]

    def _evaluate(self, node: Node, inputs: list[int]) -> None:
        self._note_constants(node, inputs)
        read, temporaries = [self._view(array) for array in inputs], list[_Buffer]()
        if self._is_view(node, inputs):
            for place, made in enumerate(node.outputs):
                self._share(node, made, inputs, place)
        else:
            if node.name == "Matmul":
                temporaries = [self._allocate(self._bytes(array)) for array in inputs if not self._is_matrix(array)]
            self.dispatched += len(temporaries) + (len(inputs) if node.name == "Concatenate" else 1)
            for made in node.outputs:
                self._make(node, made, inputs)
        self.dispatched += 1
        own = [self.views[made].buffer for made in node.outputs]
        for buffer in [view.buffer for view in read] + temporaries:
            if all(buffer is not other for other in own):  # a view, or donated: no longer waited for
                buffer.last = self.dispatched
        self.leaving += temporaries
        self._release(node, inputs, read)

    def _note_constants(self, node: Node, inputs: list[int]) -> None:
        # MLX exports equal broadcasts of a constant as one; evaluated, each reader has its own.
        self.dispatched += sum(array in self.seen for array in inputs if array in self.constants)
        self.seen.update(inputs)
        if node.name == "Broadcast" and inputs[0] in self.graph.resident and not self.graph.arrays[inputs[0]][0]:
            self.constants.update(node.outputs)

    def _release(self, node: Node, inputs: list[int], read: list[_View]) -> None:
        for array, view in zip(inputs, read, strict=True):
            self.uses[array] -= 1
            if not self.uses[array]:
                self._drop(view.buffer)
        for made in node.outputs:
            if not self.uses.get(made):
                self._drop(self.views[made].buffer)

    def _drop(self, buffer: _Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self.leaving.append(buffer)

    def _view(self, array: int) -> _View:
        if array not in self.views:  # resident
            self.views[array] = _View(_Buffer(0, holders=1), _row_strides(self.graph.arrays[array][0]))
        return self.views[array]

    def _bytes(self, array: int) -> int:
        shape, value_bytes = self.graph.arrays[array]
        return math.prod(shape) * value_bytes

    def _allocate(self, size: int) -> _Buffer:
        self.active += size
        self.peak = max(self.peak, self.active)
        return _Buffer(size)

    def _is_view(self, node: Node, inputs: list[int]) -> bool:
        return node.name in _VIEWS | _ALIASES or (node.name in _SHAPED and self._is_dense(inputs[0]))

    def _share(self, node: Node, made: int, inputs: list[int], place: int) -> None:
        match node.name:
            case "CustomTransforms":
                source = inputs[place - len(node.outputs)]
            case "Split":
                source = inputs[0]
            case _:
                source = inputs[min(place, len(inputs) - 1)]
        view = self._view(source)
        strides = self._strides(node, view, self.graph.arrays[source][0], self.graph.arrays[made][0])
        self.views[made] = _View(view.buffer, strides)
        view.buffer.holders += 1

    def _strides(self, node: Node, view: _View, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
        if node.name == "Transpose":
            return tuple(view.strides[axis] for axis in node.arguments[0])
        if node.name in {"Broadcast", "BroadcastAxes"}:
            lead = len(after) - len(before)
            sizes = zip(view.strides, before, after[lead:], strict=True)
            kept = [stride if size == wanted else 0 for stride, size, wanted in sizes]
            return (0,) * lead + tuple(kept)
        if node.name in {"ExpandDims", "Squeeze", *_SHAPED, "Unflatten"}:
            return _regroup(view.strides, before, after)
        return view.strides

    def _make(self, node: Node, made: int, inputs: list[int]) -> None:
        shape, size = self.graph.arrays[made][0], self._bytes(made)
        candidates = inputs if node.name in _POINTWISE else inputs[:1] if node.name in _IN_PLACE else []
        same = [array for array in candidates if self._bytes(array) == size and self.graph.arrays[array][0] == shape]
        strides = self._strides_like(same, shape)
        if donor := next((array for array in same if self._can_be_donated(array, size, strides)), None):
            buffer = self.views[donor].buffer
        else:
            # MLX exports equal zeros as one; each reader that writes into them has its own.
            is_written = node.name == "Full" and self.readers.get(made, {node.name}) <= _IN_PLACE
            buffer = self._allocate(0 if is_written else size)
        buffer.holders += 1
        self.views[made] = _View(buffer, strides)

    def _strides_like(self, inputs: list[int], shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the strides of what is computed element by element: those that the inputs share, if they are dense."""
        found = {self.views[array].strides for array in inputs if 0 not in self.views[array].strides}
        strides = found.pop() if len(found) == 1 else _row_strides(shape)
        return strides if _is_dense_somehow(strides, shape) else _row_strides(shape)

    def _can_be_donated(self, array: int, size: int, strides: tuple[int, ...]) -> bool:
        """Return whether MLX writes an output into an input: nobody else reads it, and the worker is done with it."""
        view, is_last = self.views[array], self.uses[array] == 1
        is_own = view.buffer.holders == 1 and view.buffer.size == size
        return is_last and is_own and view.buffer.last <= self.dispatched - AHEAD and view.strides == strides

    def _is_dense(self, array: int) -> bool:
        shape, strides = self.graph.arrays[array][0], self._view(array).strides
        return all(
            size == 1 or own == stride for size, own, stride in zip(shape, strides, _row_strides(shape), strict=True)
        )

    def _is_matrix(self, array: int) -> bool:
        """Return whether a product reads it as it lies."""
        shape, (rows, columns) = self.graph.arrays[array][0], self._view(array).strides[-2:]
        return (columns == 1 and rows == shape[-1]) or (rows == 1 and columns == shape[-2]) or 1 in shape[-2:]


def _row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _is_dense_somehow(strides: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    step = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != step:
                return False
            step *= size
    return True


def _regroup(strides: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides after sizes of one were added or removed, or a dense shape was cut otherwise."""
    if [size for size in before if size != 1] == [size for size in after if size != 1]:
        left = iter(stride for stride, size in zip(strides, before, strict=True) if size != 1)
        return tuple(next(left) if size != 1 else 0 for size in after)
    return _row_strides(after)
