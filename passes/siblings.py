"""Nodes side by side as one: nodes that do the same to parts of one value do it to all of it, and what they made are parts of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from compiler.ir.graph import Array, Attr, Graph, Node, Value
from compiler.ir.intexpr import product
from compiler.ir.types import TensorType
from compiler.ir.verify import is_elementwise
from compiler.ops.support import attr_dims, attr_int, attr_ints, known

Attrs = Mapping[str, Attr]

_DEEPEST = 4
"""Nodes after one another that make what is read beside parts: a scale of a quantised product is two."""


@dataclass(frozen=True)
class Shared:
    """An operand that all nodes read as it is."""

    value: Value


@dataclass(frozen=True)
class Constants:
    """Constants, one for each node, that stand side by side along ``axis``, counted from the end, each for ``sizes`` of its positions."""

    values: tuple[Value, ...]
    axis: int
    sizes: tuple[int, ...]

    def array(self, arrays: Sequence[Array]) -> Array:
        """The constants, whose data ``arrays`` are, as one."""
        rank = max(-self.axis, *(array.ndim for array in arrays))
        full = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]
        shape = list(np.broadcast_shapes(*((*a.shape[: self.axis], 1, *a.shape[rank + self.axis + 1 :]) for a in full)))
        parts = []
        for array, size in zip(full, self.sizes, strict=True):
            shape[self.axis] = size
            parts.append(np.broadcast_to(array, shape))
        return np.concatenate(parts, self.axis)


@dataclass(frozen=True)
class Repeated:
    """Elementwise nodes, one for each of those that read them, of operands that all have or that are constants: smaller than what is side by side."""

    nodes: tuple[Node, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Run:
    """Neighbouring parts of what other nodes make together: ``count`` of them, beginning with number ``first``."""

    bundle: Bundle
    first: int
    count: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all parts."""
        return self.count == len(self.bundle.nodes)


Operand = Shared | Constants | Repeated | Run


@dataclass(frozen=True, eq=False)
class Bundle:
    """Nodes of one op whose results stand side by side along ``axis`` in that of one node with ``operands`` and ``attrs``.

    ``origin`` is the number of the first one's branch among those that begin together.
    """

    nodes: tuple[Node, ...]
    axis: int
    operands: tuple[Operand, ...]
    attrs: Attrs
    origin: int = 0

    @property
    def root(self) -> Bundle:
        """The products that this begins with."""
        run = next((operand for operand in self.operands if isinstance(operand, Run)), None)
        return self if run is None else run.bundle.root

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How long each part is along the axis."""
        return tuple(_size(node.output, self.axis) for node in self.nodes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins, and where the last one ends."""
        return tuple(accumulate(self.sizes, initial=0))

    @cached_property
    def type(self) -> TensorType:
        """The type of all parts together."""
        own = self.nodes[0].output.type
        return TensorType(own.dtype, (*own.shape[: self.axis], self.starts[-1], *own.shape[self.axis + 1 :]))

    def taken(self, first: int, count: int) -> dict[str, Attr]:
        """The attributes of the slice that is ``count`` parts from number ``first`` on."""
        shape, axis = self.type.shape, self.axis
        starts = (*(0,) * axis, self.starts[first], *(0,) * (len(shape) - axis - 1))
        sizes = (*shape[:axis], self.starts[first + count] - self.starts[first], *shape[axis + 1 :])
        return {"starts": starts, "sizes": sizes, "steps": (1,) * len(shape)}


Places = Mapping[Value, tuple[Bundle, int]]
"""The bundle that makes a value, and which of its parts that is."""


def products(nodes: Sequence[Node]) -> Bundle:
    """Products, or convolutions, of one value by constants."""
    axis, along = (1, -nodes[0].output.type.rank) if nodes[0].op == "conv" else (nodes[0].output.type.rank - 1, -1)
    weights = tuple(node.present_inputs[1] for node in nodes)
    sizes = tuple(_size(node.output, axis) for node in nodes)
    return Bundle(tuple(nodes), axis, (Shared(nodes[0].present_inputs[0]), Constants(weights, along, sizes)), nodes[0].attrs)


def together(nodes: Sequence[Node], places: Places, graph: Graph) -> Bundle | None:
    """Nodes that read neighbouring parts, as one; None where they are not of one kind, or what they make is not side by side then."""
    first = nodes[0]
    if any((node.op, len(node.inputs), len(node.outputs)) != (first.op, len(first.inputs), 1) or node.regions for node in nodes):
        return None
    runs = [_run(values, places) for values in zip(*(node.inputs for node in nodes), strict=True)]
    axes = [None if run is None else run.bundle.axis for run in runs]
    method = _elementwise if all(map(is_elementwise, nodes)) else _METHODS.get(first.op)
    found = None if method is None else method(nodes, axes)
    if found is None:
        return None
    axis, attrs = found
    if not all(isinstance(node.output.type.shape[axis], int) and _agree(node, first, axis) for node in nodes):
        return None
    back, sizes = axis - first.output.type.rank, tuple(_size(node.output, axis) for node in nodes)
    operands: list[Operand] = []
    for number, run in enumerate(runs):
        operand = run or _beside([node.inputs[number] for node in nodes], back, sizes, graph)
        if operand is None:
            return None
        operands.append(operand)
    origin = next(run.bundle.origin + run.first for run in runs if run is not None)
    return Bundle(tuple(nodes), axis, tuple(operands), attrs, origin)


def _size(value: Value, axis: int) -> int:
    return known(value.type.shape[axis], "the size of a part")


def _agree(node: Node, first: Node, axis: int) -> bool:
    """Whether results differ in their size along an axis alone."""
    own, other = node.output.type, first.output.type
    return own.dtype is other.dtype and own.rank == other.rank and _without(own, axis) == _without(other, axis)


def _without(type_: TensorType, axis: int) -> tuple[object, ...]:
    return (*type_.shape[:axis], *type_.shape[axis + 1 :])


def _run(values: Sequence[Value | None], places: Places) -> Run | None:
    """Values as neighbouring parts of one bundle."""
    found = [None if value is None else places.get(value) for value in values]
    if found[0] is None:
        return None
    bundle, first = found[0]
    return Run(bundle, first, len(values)) if found == [(bundle, first + number) for number in range(len(values))] else None


def _beside(values: Sequence[Value | None], axis: int, sizes: Sequence[int], graph: Graph, depth: int = 0) -> Operand | None:
    """What nodes read beside parts, as one operand; ``axis`` is counted from the end, and may not be one along which it differs for all."""
    given = [value for value in values if value is not None]
    if len(given) < len(values):
        return None
    short = all(_along(value, axis) == 1 for value in given)
    if short and len(set(given)) == 1:
        return Shared(given[0])
    if all(value in graph.constants and _along(value, axis) in (1, size) for value, size in zip(given, sizes, strict=True)):
        return Constants(tuple(given), axis, tuple(sizes))
    nodes = [graph.producers.get(value) for value in given]
    made = [node for node in nodes if node is not None and is_elementwise(node) and node.present_inputs]
    if not short or depth == _DEEPEST or len(made) < len(nodes) or not _same_attrs(made):
        return None
    if any((node.op, len(node.inputs)) != (made[0].op, len(made[0].inputs)) for node in made):
        return None
    operands = [_beside(read, axis, sizes, graph, depth + 1) for read in zip(*(node.inputs for node in made), strict=True)]
    found = [operand for operand in operands if operand is not None]
    return Repeated(tuple(made), tuple(found)) if len(found) == len(operands) else None


def _along(value: Value, axis: int) -> object:
    """How long a value is along an axis that is counted from the end; 1 where it has none."""
    return value.type.shape[axis] if value.type.rank >= -axis else 1


_Method = Callable[[Sequence[Node], Sequence[int | None]], tuple[int, Attrs] | None]
"""The axis along which results stand side by side, and the attributes of the one node, from the nodes and the axis of each operand's parts."""


def _same_attrs(nodes: Sequence[Node]) -> bool:
    return all(node.attrs == nodes[0].attrs for node in nodes)


def _elementwise(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    back = {axis - v.type.rank for axis, v in zip(axes, nodes[0].inputs, strict=True) if axis is not None and v is not None}
    if len(back) != 1 or not _same_attrs(nodes):
        return None
    (from_end,) = back
    for node in nodes:
        parts = [v for v, axis in zip(node.inputs, axes, strict=True) if axis is not None and v is not None]
        if any(v.type.shape[from_end] != node.output.type.shape[from_end] for v in parts):
            return None
    return nodes[0].output.type.rank + from_end, nodes[0].attrs


def _transpose(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    (axis,) = axes
    return None if axis is None or not _same_attrs(nodes) else (attr_ints(nodes[0].attrs, "perm").index(axis), nodes[0].attrs)


def _rows(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    (axis,), attrs = axes, nodes[0].attrs
    within = attr_ints(attrs, "axes") if nodes[0].op == "normalize" else (attr_int(attrs, "axis"),)
    return None if axis is None or axis in within or attrs.get("groups", 1) != 1 or not _same_attrs(nodes) else (axis, attrs)


def _concat(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    axis = axes[0]
    same = axis is not None and set(axes) == {axis} and _same_attrs(nodes)
    return (axis, nodes[0].attrs) if same and axis is not None and axis != attr_int(nodes[0].attrs, "axis") else None


def _slice(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    (axis,) = axes
    if axis is None:
        return None
    for node in nodes:
        if _others(node, axis) != _others(nodes[0], axis) or not _takes_all(node, axis):
            return None
    sizes = list(attr_dims(nodes[0].attrs, "sizes"))
    sizes[axis] = sum(_size(node.output, axis) for node in nodes)
    return axis, {**nodes[0].attrs, "sizes": tuple(sizes)}


def _others(node: Node, axis: int) -> list[object]:
    """What a slice takes of the axes but one."""
    return [(*dims[:axis], *dims[axis + 1 :]) for dims in (attr_dims(node.attrs, name) for name in ("starts", "sizes", "steps"))]


def _takes_all(node: Node, axis: int) -> bool:
    start, size, step = (attr_dims(node.attrs, name)[axis] for name in ("starts", "sizes", "steps"))
    return (start, size, step) == (0, node.present_inputs[0].type.shape[axis], 1)


def _reshape(nodes: Sequence[Node], axes: Sequence[int | None]) -> tuple[int, Attrs] | None:
    """Parts stay side by side where as many elements are outside of an axis of the result as are outside of theirs."""
    (before,), shapes = axes, [node.output.type.shape for node in nodes]
    if before is None or len({len(shape) for shape in shapes}) > 1:
        return None
    outer = product(nodes[0].present_inputs[0].type.shape[:before])
    for axis in range(len(shapes[0])):
        dims = [shape[axis] for shape in shapes]
        if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1 or product(shapes[0][:axis]) != outer or set(dims) == {1}:
            continue
        if any(not isinstance(dim, int) for dim in dims):
            continue
        shape = (*shapes[0][:axis], sum(dim for dim in dims if isinstance(dim, int)), *shapes[0][axis + 1 :])
        return axis, {**nodes[0].attrs, "shape": shape}
    return None


_METHODS: dict[str, _Method] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "slice": _slice,
    "roll": _rows,
    "concat": _concat,
    "normalize": _rows,
    "softmax": _rows,
}
