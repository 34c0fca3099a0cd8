"""Views after the arithmetic on what they view, so that the arithmetic meets the kernel whose epilogue it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use


@register_pass
@dataclass(frozen=True)
class SinkViews:
    """An elementwise node over a view and constants of one element is computed before the view, where no one else reads either.

    ``%m = matmul(%x, %w); %v = reshape(%m); %s = mul(%v, %half)`` becomes ``%m = matmul(%x, %w); %s = mul(%m, %half); %v = reshape(%s)``.
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
    data = [v for v in node.present_inputs if not _is_number(v, builder)]
    if not is_elementwise(node) or len(data) != 1 or data[0] not in single or data[0].type.shape != node.output.type.shape:
        return None
    view = builder.producer(data[0])
    if view is None or not is_view(view):
        return None
    source = view.present_inputs[0]
    producer = builder.producer(source)
    if (
        source.type.dtype is not data[0].type.dtype
        or source.type.elements != data[0].type.elements
        or source not in single
        or producer is None
        or is_view(producer)
    ):
        return None
    numbers = {v: _of_rank(v, source.type.rank, builder) for v in node.present_inputs if v is not data[0]}
    inputs = [None if v is None else numbers.get(v, source) for v in node.inputs]
    value = builder.emit(node.op, *inputs, name=node.name, **node.attrs)
    single.add(value)
    return builder.emit(view.op, value, name=view.name, **view.attrs)


def _is_number(value: Value, builder: GraphBuilder) -> bool:
    array = builder.array(value)
    return array is not None and array.size == 1


def _of_rank(number: Value, rank: int, builder: GraphBuilder) -> Value:
    """A constant of one element that does not raise the rank of what it is combined with."""
    array = builder.array(number)
    return number if array is None or array.ndim <= rank else builder.constant(array.reshape(()), name=number.name)
