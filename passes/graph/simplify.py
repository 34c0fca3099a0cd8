"""The simplifications that the ops themselves declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite


@register_pass
@dataclass(frozen=True)
class Simplify:
    """Applies ``Op.simplify`` everywhere until nothing changes, and lets ops that broadcast their operands do it alone.

    ``%e = expand(%row) {shape = [8, 4]}; %y = add(%x, %e)`` becomes ``%y = add(%x, %row)``. Raises InternalError where it takes more than
    ``rounds``.
    """

    rounds: int = 64
    name: ClassVar[str] = "simplify"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        total = 0
        for _ in range(self.rounds):
            graph, replaced = rewrite(graph, _simplify)
            if not replaced:
                return PassResult(graph, total > 0, (f"{total} nodes",) if total else ())
            total += replaced
        raise InternalError(f"nodes still change after {self.rounds} rounds: two simplifications undo each other", where=self.name)


def _simplify(node: Node, builder: GraphBuilder) -> Value | None:
    return lookup(node.op).simplify(node, builder) or _unexpanded(node, builder)


def _unexpanded(node: Node, builder: GraphBuilder) -> Value | None:
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
