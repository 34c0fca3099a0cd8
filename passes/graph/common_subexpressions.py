"""One node for nodes that compute the same, one constant for constants that hold the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.printer import print_attr
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, substitute

_SAMPLE = 64
"""Elements of a constant that are looked at before its content is hashed."""

_Key = tuple[str, tuple[Value | None, ...], tuple[tuple[str, str], ...], TensorType]


@register_pass
@dataclass(frozen=True)
class CommonSubexpressions:
    """Nodes without regions that agree in op, operands and attributes are merged, after constants of equal content.

    ``%a = exp(%x); %b = exp(%x); %c = add(%a, %b)`` becomes ``%a = exp(%x); %c = add(%a, %a)``.
    """

    name: ClassVar[str] = "common-subexpressions"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        twins = _equal_constants(graph)
        merged = graph.with_(nodes=tuple(substitute(node, twins) for node in graph.nodes), outputs=tuple(twins.get(v, v) for v in graph.outputs))
        seen: dict[_Key, Value] = {}

        def rule(node: Node, _: GraphBuilder) -> Value | None:
            if node.regions:
                return None
            attrs = tuple(sorted((name, print_attr(attr)) for name, attr in node.attrs.items()))
            first = seen.setdefault((node.op, node.inputs, attrs, node.output.type), node.output)
            return None if first is node.output else first

        result, count = rewrite(merged, rule)
        constants = {v: c for v, c in result.constants.items() if v not in twins}
        changed = bool(count or twins)
        notes = (f"{count} nodes, {len(twins)} constants",) if changed else ()
        return PassResult(result.with_(constants=constants), changed, notes)


def _sample(constant: Constant) -> bytes:
    """A few elements of a constant that is large, none of one that is not."""
    array = constant.array
    if array.dtype == DType.STRING.numpy or array.size < _SAMPLE or not array.flags.c_contiguous:
        return b""
    return array.reshape(-1)[:: array.size // _SAMPLE].tobytes()


def _equal_constants(graph: Graph) -> dict[Value, Value]:
    """The first constant of the same content, for each that repeats one; only those that agree in type and in some elements are hashed."""
    alike: dict[tuple[TensorType, bytes], list[Value]] = {}
    for value, constant in graph.constants.items():
        alike.setdefault((value.type, _sample(constant)), []).append(value)
    twins: dict[Value, Value] = {}
    for values in alike.values():
        firsts: dict[str, Value] = {}
        for value in values if len(values) > 1 else ():
            first = firsts.setdefault(graph.constants[value].digest, value)
            if first is not value:
                twins[value] = first
    return twins
