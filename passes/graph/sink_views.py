"""Views after the arithmetic on what they view, so that the arithmetic meets the kernel whose epilogue it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import product
from compiler.ir.regroup import Shape, carried, widened
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use

_CONSTANT_SHARE = 8
"""How many times smaller than what it is combined with a constant must be that is broadcast to stand before a view."""


@register_pass
@dataclass(frozen=True)
class SinkViews:
    """An elementwise node over a view and operands that broadcast is computed before the view, where no one else reads either.

    ``%m = matmul(%x, %w); %v = reshape(%m); %s = mul(%v, %half)`` becomes ``%m = matmul(%x, %w); %s = mul(%m, %half); %v = reshape(%s)``.
    Operands of more than one element are reshaped, which is possible where the view splits or joins no axis along which they are one number only
    in part. Constants are broadcast there, where they stay small beside what they are combined with.
    """

    name: ClassVar[str] = "sink-views"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        single = single_use(graph)

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            found = _compute_first(node, builder, single)
            if found is not None and node.output in single:
                single.add(found)
            return found

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} nodes",) if count else ())


def _compute_first(node: Node, builder: GraphBuilder, single: set[Value]) -> Value | None:
    if not is_elementwise(node):
        return None
    viewed = next((v for v in node.present_inputs if v in single and v.type.shape == node.output.type.shape and _view(v, builder)), None)
    view = None if viewed is None else _view(viewed, builder)
    if viewed is None or view is None or node.inputs.count(viewed) > 1:
        return None
    source = view.present_inputs[0]
    producer = builder.producer(source)
    if source not in single or producer is None or is_view(producer):
        return None
    operands = [v for v in node.present_inputs if v is not viewed]
    wide = {v: _broadcast(v, source, viewed, builder) for v in operands}
    shapes = {v: _shape_before(v, wide[v], source, viewed, builder) for v in operands}
    if None in shapes.values():
        return None
    others = {v: _reshaped(v, wide[v], shape, builder) for v, shape in shapes.items() if shape is not None}
    inputs = [None if v is None else others.get(v, source) for v in node.inputs]
    value = builder.emit(node.op, *inputs, name=node.name, **node.attrs)
    single.add(value)
    return builder.emit(view.op, value, name=view.name, **view.attrs)


def _view(value: Value, builder: GraphBuilder) -> Node | None:
    """The view of all of another value, of the same element type, that makes a value."""
    node = builder.producer(value)
    if node is None or not is_view(node):
        return None
    source = node.present_inputs[0].type
    return node if (source.dtype, source.elements) == (value.type.dtype, value.type.elements) else None


def _broadcast(operand: Value, source: Value, viewed: Value, builder: GraphBuilder) -> Shape:
    """The shape that an operand of what is viewed is broadcast to first: its own, or for a small constant one that has a shape before the view."""
    wide = widened(operand.type.shape, source.type.shape, viewed.type.shape)
    elements, room = product(wide), viewed.type.elements
    small = isinstance(elements, int) and isinstance(room, int) and elements * _CONSTANT_SHARE <= room
    return wide if small and builder.array(operand) is not None else operand.type.shape


def _shape_before(operand: Value, wide: Shape, source: Value, viewed: Value, builder: GraphBuilder) -> Shape | None:
    """The shape in which an operand of what is viewed is one of its source; None where there is none, or a run computes as many elements."""
    if operand.type.elements == 1:
        return operand.type.shape if operand.type.rank <= source.type.rank else ()
    if operand.type.elements == viewed.type.elements and builder.array(operand) is None:
        return None
    return carried(wide, source.type.shape, viewed.type.shape)


def _reshaped(operand: Value, wide: Shape, shape: Shape, builder: GraphBuilder) -> Value:
    array = builder.array(operand)
    if operand.type.shape == shape:
        return operand
    if array is None:
        return builder.emit("reshape", operand, shape=shape)
    each, before = ([dim for dim in dims if isinstance(dim, int)] for dims in (wide, shape))
    return builder.constant(np.broadcast_to(array, each).reshape(before), name=operand.name)
