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
AHEAD = 100
"""Dispatches that MLX runs ahead of the worker: ten tasks of ten."""
_VIEWS = {"Transpose", "Broadcast", "BroadcastAxes", "ExpandDims", "Squeeze", "StopGradient", "Unflatten", "Slice"}
_ALIASES = {"Depends", "Copy", "CustomTransforms", "Split", "View", "NumberOfElements"}
_SHAPED = {"Reshape", "Flatten", "Contiguous"}
_POINTWISE = {
    *{
        "Abs",
        "Add",
        "AsType",
        "BitwiseBinary",
        "Cos",
        "Divide",
        "Equal",
        "Erf",
        "Exp",
        "Greater",
        "GreaterEqual",
        "Less",
        "LessEqual",
    },
    *{"Log", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative", "NotEqual"},
    *{"Power", "Remainder", "Select", "Sigmoid", "Sign", "Sin", "Softmax", "Sqrt", "Rsqrt", "Square", "Subtract"},
    *{"Tanh", "Compiled"},
}


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
    reads = {id(node): [graph.number(each) for each in node.inputs] for node in graph.nodes}
    start = Node("Synchronizer", [], tuple(outputs), ())
    reads[id(start)] = list(outputs)
    degree: dict[int, int] = {}
    stack = [(start, iter(reads[id(start)]))]
    while stack:
        for array in stack[-1][1]:
            maker = makers.get(array)
            if maker is None:
                continue
            if id(maker) in degree:
                degree[id(maker)] += 1
            else:
                degree[id(maker)] = 1
                stack.append((maker, iter(reads[id(maker)])))
                break
        else:
            stack.pop()
    tape, waiting, place = [start], list[tuple[Node, int]](), 0
    while place < len(tape) or waiting:
        if place >= len(tape):
            node, first = waiting.pop()
        else:
            node, first = tape[place], 0
            place += 1
        arrays = reads[id(node)]
        for at in range(first, len(arrays)):
            maker = makers.get(arrays[at])
            if maker is None or id(maker) not in degree:
                continue
            if len(tape) - place >= MAX_WIDTH:
                waiting.append((node, at))
                break
            degree[id(maker)] -= 1
            if not degree[id(maker)]:
                del degree[id(maker)]
                tape.append(maker)
    return tape[:0:-1]


def peak_bytes(graph: Graph, outputs: Sequence[int]) -> int:
    """Return the most bytes that live at once while the outputs are made, those of the outputs counted."""
    return _Evaluation(graph, outputs).run()


class _Evaluation:
    def __init__(self, graph: Graph, outputs: Sequence[int]) -> None:
        self.graph, self.tape = graph, order(graph, outputs)
        self.views: dict[int, _View] = {}
        self.uses: dict[int, int] = {}
        for array in [*outputs, *(graph.number(each) for node in self.tape for each in node.inputs)]:
            self.uses[array] = self.uses.get(array, 0) + 1
        self.constants, self.seen = set[int](), set[int]()
        self.readers: dict[int, set[str]] = {}
        for node in self.tape:
            for each in node.inputs:
                self.readers.setdefault(graph.number(each), set()).add(node.name)
        self.dispatched, self.active, self.peak = AHEAD, 0, 0
        self.leaving: list[_Buffer] = []

    def run(self) -> int:
        self.history = []
        for node in self.tape:
            self._evaluate(node)
            self._collect()
            self.history.append((self.active, node.name, [self.graph.arrays[each][0] for each in node.outputs]))
        return self.peak

    def _evaluate(self, node: Node) -> None:
        inputs = [self.graph.number(each) for each in node.inputs]
        # MLX exports equal broadcasts of a constant as one; evaluated, each reader has its own.
        self.dispatched += sum(each in self.seen for each in inputs if each in self.constants)
        self.seen.update(inputs)
        if node.name == "Broadcast" and inputs[0] in self.graph.resident and not self.graph.arrays[inputs[0]][0]:
            self.constants.update(node.outputs)
        read = [self._view(each) for each in inputs]
        temporaries: list[_Buffer] = []
        if (
            node.name in _VIEWS
            or node.name in _ALIASES
            or (node.name in _SHAPED and self._is_dense(read[0], inputs[0]))
        ):
            for place, made in enumerate(node.outputs):
                self._share(node, made, inputs, place)
        else:
            self.dispatched += len(inputs) if node.name == "Concatenate" else 1
            if node.name == "Matmul":
                temporaries = [self._allocate(self._bytes(each)) for each in inputs if not self._is_matrix(each)]
                self.dispatched += len(temporaries)
            for made in node.outputs:
                self._make(node, made, inputs)
        self.dispatched += 1
        own = [self.views[made].buffer for made in node.outputs]
        for each in [view.buffer for view in read] + temporaries:
            if all(each is not buffer for buffer in own):  # a view, or donated: no longer waited for
                each.last = self.dispatched
        self.leaving.extend(temporaries)
        for each, view in zip(inputs, read, strict=True):
            self.uses[each] -= 1
            if not self.uses[each]:
                self._drop(view.buffer)
        for made in node.outputs:
            if not self.uses.get(made):
                self._drop(self.views[made].buffer)

    def _drop(self, buffer: _Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self.leaving.append(buffer)

    def _collect(self) -> None:
        done = 10 * (self.dispatched // 10) - AHEAD
        left = [buffer for buffer in self.leaving if buffer.last > done]
        for buffer in self.leaving:
            if buffer.last <= done:
                self.active -= buffer.size
        self.leaving = left

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

    def _share(self, node: Node, made: int, inputs: list[int], place: int) -> None:
        source = (
            inputs[place - len(node.outputs)]
            if node.name == "CustomTransforms"
            else inputs[min(place, len(inputs) - 1)]
        )
        view = self._view(source if node.name not in {"Split"} else inputs[0])
        shape = self.graph.arrays[made][0]
        self.views[made] = _View(view.buffer, self._strides(node, view, self.graph.arrays[source][0], shape))
        view.buffer.holders += 1

    def _strides(self, node: Node, view: _View, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
        if node.name == "Transpose":
            return tuple(view.strides[axis] for axis in node.arguments[0])
        if node.name in {"Broadcast", "BroadcastAxes"}:
            lead = len(after) - len(before)
            kept = [stride if size == wanted else 0 for stride, size, wanted in zip(view.strides, before, after[lead:])]
            return (0,) * lead + tuple(kept)
        if node.name in {"ExpandDims", "Squeeze", *_SHAPED, "Unflatten"}:
            return _regroup(view.strides, before, after)
        return view.strides

    def _make(self, node: Node, made: int, inputs: list[int]) -> None:
        shape, _ = self.graph.arrays[made]
        size, strides = self._bytes(made), _row_strides(shape)
        if node.name in _POINTWISE or node.name in _IN_PLACE:
            candidates = inputs[:1] if node.name in _IN_PLACE else inputs
            same = [each for each in candidates if self._bytes(each) == size and self.graph.arrays[each][0] == shape]
            found = {self.views[each].strides for each in same if 0 not in self.views[each].strides}
            if len(found) == 1 and _is_dense_somehow(next(iter(found)), shape):
                strides = next(iter(found))
            done = 10 * (self.dispatched // 10) - AHEAD
            for each in same:
                view = self.views[each]
                if (
                    self.uses[each] == 1
                    and view.buffer.holders == 1
                    and view.buffer.size == size
                    and view.buffer.last <= done
                    and view.strides == strides
                ):
                    self.views[made] = _View(view.buffer, strides)
                    view.buffer.holders += 1
                    return
        # MLX exports equal zeros as one; each reader that writes into them has its own.
        written = node.name == "Full" and self.readers.get(made, {node.name}) <= _IN_PLACE
        buffer = self._allocate(0 if written else size)
        buffer.holders = 1
        self.views[made] = _View(buffer, strides)

    def _is_dense(self, view: _View, array: int) -> bool:
        shape = self.graph.arrays[array][0]
        return all(
            size == 1 or own == stride
            for size, own, stride in zip(shape, view.strides, _row_strides(shape), strict=True)
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
