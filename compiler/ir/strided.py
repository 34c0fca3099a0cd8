"""Strided views: tensors whose elements lie at fixed distances in the memory of another, which transposes, slices and reshapes make.

A kernel that reads an operand through strides needs none of the nodes that bring it into order (``Op.reads_strided``). They stand in its
group as what they are, before the anchor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compiler.ir.graph import Node, Region, Value
from compiler.ir.intexpr import Dim, product, substitute, sym
from compiler.ir.op import lookup

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Strided:
    """A tensor of ``shape`` whose element at the indices i lies at ``offset + sum(i * strides)`` of a memory of ``elements`` elements."""

    shape: Shape
    strides: tuple[Dim, ...]
    offset: Dim
    elements: Dim

    @classmethod
    def row_major(cls, shape: Shape) -> Strided:
        """All of a tensor's own memory, in order."""
        return cls(shape, row_major(shape), 0, product(shape))

    def mapped(self, region: Region) -> Strided | None:
        """What an index map of one box makes of it; None where its index is not a sum of multiples of the axes' positions."""
        names = [f"i{axis}" for axis in range(len(region.extent))]
        origin_at = dict.fromkeys(names, 0)
        offset = self.offset
        strides: list[Dim] = [0] * len(names)
        for index, stride in zip(region.index, self.strides, strict=True):
            origin = substitute(index, origin_at)
            steps = [substitute(index, {**origin_at, name: 1}) - origin for name in names]
            linear = origin
            for name, step in zip(names, steps, strict=True):
                linear = linear + sym(name) * step
            if linear != index:
                return None
            offset = offset + origin * stride
            strides = [have + step * stride for have, step in zip(strides, steps, strict=True)]
        return Strided(region.extent, tuple(strides), offset, self.elements)

    def reshaped(self, shape: Shape) -> Strided | None:
        """The same elements in order under another shape; None where axes that do not lie together would be joined, or symbolic dims hide it."""
        strides: list[Dim] = []
        at = 0
        found = runs(self.shape, shape)
        for dims, axes in found or ():
            inner = [(dim, stride) for dim, stride in zip(dims, self.strides[at : at + len(dims)], strict=True) if dim != 1]
            if any(outer[1] != below[0] * below[1] for outer, below in pairwise(inner)):
                return None
            strides += row_major(shape[axes], inner[-1][1] if inner else 0)
            at += len(dims)
        return None if found is None else Strided(shape, tuple(strides), self.offset, self.elements)


def row_major(shape: Shape, step: Dim = 1) -> tuple[Dim, ...]:
    """The strides of elements that lie one after another, the last axis fastest, each ``step`` from the next."""
    strides: list[Dim] = []
    for dim in reversed(shape):
        strides.append(step)
        step = step * dim
    return tuple(reversed(strides))


def runs(before: Shape, after: Shape) -> list[tuple[Shape, slice]] | None:
    """The shortest runs of dims of equal product, in order, as dims before and the axes after; None where symbolic dims hide them.

    From ``[2, 12, 5]`` to ``[2, 3, 4, 5]``: ``[2]`` axis 0, ``[12]`` axes 1 and 2, ``[5]`` axis 3.
    """
    found: list[tuple[Shape, slice]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ends = ((a, b) for a in range(i, len(before) + 1) for b in range(j, len(after) + 1) if (a, b) != (i, j))
        ends = (end for end in sorted(ends, key=sum) if product(before[i : end[0]]) == product(after[j : end[1]]))
        end = next(ends, None)
        if end is None:
            return None
        found.append((before[i : end[0]], slice(j, end[1])))
        i, j = end
    return found


def after(node: Node, x: Strided) -> Strided | None:
    """The result of a node as a view of what its operand, the row-major ``x``, is a view of; None where it is not one."""
    if len(node.inputs) != 1 or len(node.outputs) != 1 or node.op == "group":
        return None
    (read,), result = node.present_inputs, node.output.type
    if read.type.block != 1 or result.block != 1 or read.type.dtype is not result.dtype:
        return None
    if lookup(node.op).is_view:
        return x.reshaped(result.shape)
    regions = lookup(node.op).regions([read.type], node.attrs) or ()
    whole = [r for r in regions if r.source == 0 and r.extent == result.shape and all(start == 0 for start in r.offset)]
    return x.mapped(whole[0]) if len(regions) == len(whole) == 1 else None


def chain(value: Value, producers: Mapping[Value, Node]) -> list[Node]:
    """The nodes that make a value, each of the result of the one before it alone, as far back as they go; ``producers`` are those looked at."""
    found: list[Node] = []
    while value in producers and len(producers[value].inputs) == len(producers[value].outputs) == 1:
        found.insert(0, producers[value])
        value = found[0].present_inputs[0]
    return found


def through(nodes: Sequence[Node]) -> Strided | None:
    """What a chain of nodes makes of the first one's operand, as a view of that; None where it is not one."""
    view: Strided | None = Strided.row_major(nodes[0].present_inputs[0].type.shape)
    for node in nodes:
        view = None if view is None else after(node, view)
    return view


def strided_reads(anchor: Node, computed: Iterable[Node], producers: Mapping[Value, Node]) -> dict[Value, tuple[Node, ...]]:
    """The nodes among ``producers`` that do nothing but bring an operand into order, for each operand that the anchor's kernels can read without.

    ``computed`` are the elementwise nodes that make its first operand as its kernels read it: what they read counts as that operand.
    """
    found: dict[Value, tuple[Node, ...]] = {}
    types = [None if v is None else v.type for v in anchor.inputs]
    reads = [(0, value) for node in computed for value in node.present_inputs]
    for number, value in (*enumerate(anchor.inputs), *reads):
        nodes = [] if value is None or value in found else chain(value, producers)
        for start in range(len(nodes)):
            view = through(nodes[start:])
            if value is not None and view is not None and lookup(anchor.op).reads_strided(number, view, types):
                found[value] = tuple(nodes[start:])
                break
    return found
