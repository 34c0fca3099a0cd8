"""The simplifications that the ops themselves declare, and those of expansions and concatenations that the ops around them make needless."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Graph, Node, Value
from compiler.ir.op import Simplification, lookup
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage, is_elementwise
from compiler.ops.index import MOST_PARTS
from passes.base import PassResult, RuleEvent, register_pass
from passes.rewrite import rewrite, single_use


@register_pass
@dataclass(frozen=True)
class Simplify:
    """Applies ``Op.simplifications`` everywhere until nothing changes, lets ops that broadcast their operands do it alone, computes elementwise
    what is expanded before that, keeps constants once along axes where they repeat, and makes one concatenation of those that read each other alone.

    ``%e = expand(%row) {shape = [8, 4]}; %y = add(%x, %e)`` becomes ``%y = add(%x, %row)``. Raises InternalError where it takes more than
    ``rounds``.
    """

    rounds: int = 64
    name: ClassVar[str] = "simplify"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        events: list[RuleEvent] = []
        for _ in range(self.rounds):
            graph, done = _sweep(graph)
            if not done:
                counts = Counter(event.rule for event in events)
                return PassResult(graph, bool(events), tuple(f"{count} {name}" for name, count in sorted(counts.items())), tuple(events))
            events += done
        raise InternalError(f"nodes still change after {self.rounds} rounds: two simplifications undo each other", where=self.name)


def rule_name(rule: Simplification) -> str:
    """What a simplification is called in reports."""
    return rule.__name__.replace("_", "-")


def _sweep(graph: Graph) -> tuple[Graph, list[RuleEvent]]:
    """Each node offered to its rules once."""
    alone = single_use(graph)
    events: list[RuleEvent] = []

    def rule(node: Node, builder: GraphBuilder) -> Value | None:
        for each in (*lookup(node.op).simplifications, *BROADCASTING):
            found = each(node, builder)
            if found is not None:
                events.append(RuleEvent(rule_name(each), node.name or node.output.name))
                return found
        joined = _flattened(node, builder, alone)
        if joined is not None:
            events.append(RuleEvent(NESTED_CONCAT, node.name or node.output.name))
        return joined

    return rewrite(graph, rule)[0], events


NESTED_CONCAT = "nested-concat"
"""A concatenation along the same axis that one other alone reads; a shared one would be written twice."""


def _flattened(node: Node, builder: GraphBuilder, alone: set[Value]) -> Value | None:
    if node.op != "concat":
        return None
    operands: list[Value] = []
    for value in node.present_inputs:
        inner = builder.producer(value) if value in alone else None
        nested = inner is not None and inner.op == "concat" and inner.attrs["axis"] == node.attrs["axis"]
        operands += inner.present_inputs if inner is not None and nested else (value,)
    return builder.emit("concat", *operands, name=node.name, **node.attrs) if len(node.inputs) < len(operands) <= MOST_PARTS else None


def needless_expand(node: Node, builder: GraphBuilder) -> Value | None:
    """The node without the expansions of its operands that it does itself."""
    op = lookup(node.op)
    if op.broadcasts is None:
        return None
    inputs = list(node.inputs)
    for index, value in enumerate(inputs):
        source = None if value is None else _before_expand(value, op.broadcasts, builder)
        if source is not None:
            fewer = [*inputs[:index], source, *inputs[index + 1 :]]
            if op.infer([None if v is None else v.type for v in fewer], node.attrs) == (node.output.type,):
                inputs = fewer
    return None if tuple(inputs) == node.inputs else builder.emit(node.op, *inputs, name=node.name, **node.attrs)


def early_expand(node: Node, builder: GraphBuilder) -> Value | None:
    """An elementwise node all of whose operands repeat what they hold: of fewer elements, and what comes of it expanded."""
    sources = tuple(None if v is None else _before_expand(v, 0, builder) or v for v in node.inputs)
    if sources == node.inputs or not is_elementwise(node) or node.op == "identity":
        return None
    narrow = builder.emit(node.op, *sources, name=node.name, **node.attrs)
    return builder.emit("expand", narrow, name=node.name, shape=node.output.type.shape)


def repeated_constant(node: Node, builder: GraphBuilder) -> Value | None:
    """A constant that holds the same all along an axis that other operands have, too: once there."""
    if not any(value in builder.constants for value in node.present_inputs) or not is_elementwise(node):
        return None
    op, types = lookup(node.op), [None if v is None else v.type for v in node.inputs]
    narrow: dict[int, Array] = {}
    for index, value in enumerate(node.inputs):
        array = None if value is None or value.type.dtype is DType.STRING else builder.array(value)
        once = None if array is None else _narrowed(array)
        if once is not None and once is not array:
            fewer = [*types[:index], TensorType(DType.of(once.dtype), once.shape), *types[index + 1 :]]
            if op.infer(fewer, node.attrs) == (node.output.type,):
                types, narrow[index] = fewer, once
    inputs = [builder.constant(narrow[i], name=v.name) if v is not None and i in narrow else v for i, v in enumerate(node.inputs)]
    return builder.emit(node.op, *inputs, name=node.name, **node.attrs) if narrow else None


def _narrowed(array: Array) -> Array:
    """The array with 1 in the place of each axis along which its elements have the same bits; itself where there is none."""
    for axis, size in enumerate(array.shape if array.size else ()):
        origin = [0] * array.ndim
        beside = [*origin[:axis], min(1, size - 1), *origin[axis + 1 :]]
        # Most differ at once.
        if size > 1 and _same_bits(array[tuple(origin)], array[tuple(beside)]):
            first = array.take([0], axis)
            if _same_bits(np.broadcast_to(first, array.shape), array):
                array = first
    return array


def _same_bits(left: Array | np.generic, right: Array | np.generic) -> bool:
    return left.tobytes() == right.tobytes()


BROADCASTING: tuple[Simplification, ...] = (needless_expand, early_expand, repeated_constant)
"""Rules of every op that broadcasts its operands, after its own."""


def _before_expand(value: Value, kept: int, builder: GraphBuilder) -> Value | None:
    """What a value is an expansion of, in known dims and not along its last ``kept`` axes; None where it is none."""
    expand = builder.producer(value)
    if expand is None or expand.op != "expand":
        return None
    source, shape = expand.present_inputs[0], value.type.shape
    dims = source.type.shape
    alike = all(dim in (1, wide) for dim, wide in zip(reversed(dims), reversed(shape), strict=False))
    last = len(shape) - kept
    return source if alike and len(dims) >= kept and dims[len(dims) - kept :] == shape[last:] else None
