"""Transposes that meet: one is carried along the chain of nodes that leads to the next, where both become one or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Attr, Graph, Node, Value
from compiler.ir.regroup import Shape, runs
from compiler.ir.verify import Stage, is_elementwise
from compiler.ops.support import attr_dims, attr_int, attr_ints
from compiler.ops.window import pixel_windows
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use

_LONGEST = 32
"""Nodes of a chain that is looked at."""

_NARROW = 16
"""Columns from which on a product is as good with its weights on the left: with fewer, vectors along them are not full."""


@register_pass
@dataclass(frozen=True)
class SinkTransposes:
    """Between two transposes a chain of elementwise nodes, products with constant weights, reshapes, norms and softmax, each read by the next alone,
    works on what the first transposes; the second does the work of both.

    ``%t = transpose(%x) {perm = [1, 0, 2]}; %m = matmul(%t, %w); %y = transpose(%m) {perm = [1, 0, 2]}`` becomes ``%y = matmul(%x, %w)``.
    """

    name: ClassVar[str] = "sink-transposes"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        single = single_use(graph)

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            found = _met(node, builder, single) if node.op == "transpose" else None
            if found is not None and node.output in single:
                single.add(found)
            return found

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} pairs",) if count else ())


@dataclass(frozen=True)
class State:
    """What a chain has come to: a value of ``shape``, of which ``perm`` makes what the graph has."""

    shape: Shape
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A node as it is done before the transpose, by ``op``: ``None`` stands for what it works on among its operands."""

    node: Node
    operands: tuple[Array | Value | None, ...]
    attrs: dict[str, Attr]
    state: State
    op: str

    def emit(self, values: Iterator[Value], builder: GraphBuilder) -> Value:
        """The node on these values."""
        inputs = [next(values) if v is None else v if isinstance(v, Value) else builder.constant(v) for v in self.operands]
        return builder.emit(self.op, *inputs, name=self.node.name, **self.attrs)


def _met(last: Node, builder: GraphBuilder, single: set[Value]) -> Value | None:
    """The result of the second transpose, made of what the first one reads; None where no chain leads from one to the other."""
    value, chain = last.present_inputs[0], list[tuple[Node, Value]]()
    while True:
        node = builder.producer(value)
        if node is None or value not in single or len(chain) > _LONGEST:
            return None
        data = [v for v in node.present_inputs if builder.array(v) is None]
        if len(data) != 1 or len(node.outputs) != 1 or node.inputs.count(data[0]) != 1:
            return None
        if node.op == "transpose":
            break
        chain.append((node, data[0]))
        value = data[0]
    if not chain:
        return None  # two in a row are one: Op.simplify
    state, steps = State(data[0].type.shape, attr_ints(node.attrs, "perm")), list[Step]()
    for each, read in reversed(chain):
        step = carried(each, read, state, builder)
        if step is None:
            return None
        steps.append(step)
        state = step.state
    value = data[0]
    for step in steps:
        value = step.emit(iter((value,)), builder)
        single.add(value)
    perm = tuple(state.perm[axis] for axis in attr_ints(last.attrs, "perm"))
    return value if perm == tuple(range(len(perm))) else builder.emit("transpose", value, perm=perm, name=last.name)


def carried(node: Node, read: Value, state: State, builder: GraphBuilder) -> Step | None:
    """A node that works on ``read`` alone as it is done before the transpose; None where it cannot be."""
    constants = [None if v is read or v is None else builder.array(v) for v in node.inputs]
    match node.op:
        case "reshape":
            return _reshape(node, read, state)
        case "matmul":
            return _matmul(node, constants, state)
        case "normalize":
            first, *others = (state.perm[axis] for axis in attr_ints(node.attrs, "axes"))
            if node.attrs["groups"] != 1 and any(axis < first for axis in others):
                return None
            return Step(node, (None,), {**node.attrs, "axes": tuple(sorted((first, *others)))}, state, node.op)
        case "softmax":
            axis = state.perm[attr_int(node.attrs, "axis")]
            return Step(node, (None,), {**node.attrs, "axis": axis}, state, node.op) if axis == len(state.perm) - 1 else None
        case _ if is_elementwise(node) and node.output.type.shape == read.type.shape and None not in node.inputs:
            return Step(node, tuple(before_transpose(array, state.perm) for array in constants), dict(node.attrs), state, node.op)
        case _:
            return None


def before_transpose(array: Array | None, perm: Sequence[int]) -> Array | None:
    """A constant that broadcasts to what is transposed, as one that broadcasts to what is not yet."""
    if array is None or array.size == 1:
        return array
    return np.transpose(array.reshape((1,) * (len(perm) - array.ndim) + array.shape), np.argsort(perm))


def _matmul(node: Node, constants: Sequence[Array | None], state: State) -> Step | None:
    """Products of weights with the last axis where it stays last, from the left where it is the last but one; where it is the channels of an image,
    a convolution has them.
    """
    weights, rank, axis = constants[1], len(state.perm), state.perm[-1]
    if weights is None or weights.ndim != 2:
        return None
    after = State((*state.shape[:axis], weights.shape[1], *state.shape[axis + 1 :]), state.perm)
    if axis == rank - 1:
        return Step(node, (None, node.inputs[1]), {}, after, node.op)
    columns = state.shape[-1]
    if axis == rank - 2 and not (isinstance(columns, int) and columns < _NARROW):
        return Step(node, (weights.T, None), {}, after, node.op)
    if axis != 1 or rank < 4 or not node.output.type.dtype.is_float:
        return None
    filters = weights.T.reshape(*weights.shape[::-1], *(1,) * (rank - 2))
    return Step(node, (None, filters), pixel_windows(rank - 2), after, "conv")


def _reshape(node: Node, read: Value, state: State) -> Step | None:
    """One that splits or joins runs of axes that lie together before the transpose, too."""
    shape = attr_dims(node.attrs, "shape")
    found = runs(read.type.shape, shape)
    blocks: list[tuple[int, slice]] = []  # where the run begins before the transpose, and what it becomes
    at = 0
    for dims, axes in found or ():
        sources = state.perm[at : at + len(dims)]
        if sources and sources != tuple(range(sources[0], sources[0] + len(sources))):
            return None
        blocks.append((sources[0] if sources else blocks[-1][0] if blocks else -1, axes))
        at += len(dims)
    if not blocks or at != len(state.perm):
        return None
    order = sorted(range(len(blocks)), key=lambda block: (blocks[block][0], block))
    placed = [axis for block in order for axis in range(*blocks[block][1].indices(len(shape)))]
    before = tuple(shape[axis] for axis in placed)
    return Step(node, (None,), {"shape": before}, State(before, tuple(placed.index(axis) for axis in range(len(shape)))), node.op)
