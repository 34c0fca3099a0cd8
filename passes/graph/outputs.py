"""Memory of its own for every graph output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.graph import Graph, Node, Value
from compiler.ir.places import memory_roots
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute


@register_pass
@dataclass(frozen=True)
class CopyOutputs:
    """Inserts an ``identity`` before each output that is an input, a constant, or memory another output or a larger value has.

    After it every output is the memory of one node that is not a view, so that this node can write the caller's buffer.
    """

    name: ClassVar[str] = "copy-outputs"
    stage: ClassVar[Stage] = Stage.LAID_OUT

    def run(self, graph: Graph) -> PassResult:
        roots = memory_roots(graph)
        given = {*graph.inputs, *graph.constants}
        claimed: set[Value] = set()
        copies: list[int] = []
        for number, value in enumerate(graph.outputs):
            root = roots[value]
            if root in given or root in claimed or root.type.nbytes != value.type.nbytes:
                copies.append(number)
            claimed.add(root)
        if not copies:
            return PassResult(graph, changed=False)
        builder = builder_for(graph)
        outputs = list(graph.outputs)
        twins: dict[Value, Value] = {}
        nodes: list[Node] = []
        for number in copies:
            value = outputs[number]
            source, result = value, Value(builder.unique(value.name), value.type)
            if value not in given and outputs.count(value) == 1:
                source, result = twins.setdefault(value, result), value
            outputs[number] = result
            nodes.append(Node("identity", (source,), (result,), name=value.name))
        for node in graph.nodes:
            builder.append(substitute(node, twins))
        for node in nodes:
            builder.append(node)
        return PassResult(finish(builder, graph, tuple(outputs)), changed=True, notes=(f"{len(copies)} copies",))
