"""Removal of what no output needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.graph import Graph, Value, reads
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class EliminateDeadCode:
    """Drops nodes and constants whose values no output depends on; inputs stay, they are the interface.

    ``%a = exp(%x); %b = relu(%x); return %b`` becomes ``%b = relu(%x); return %b``.
    """

    name: ClassVar[str] = "eliminate-dead-code"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        needed: set[Value] = set(graph.outputs)
        kept = []
        for node in reversed(graph.nodes):
            if not needed.isdisjoint(node.outputs):
                kept.append(node)
                needed.update(reads(node))
        constants = {value: constant for value, constant in graph.constants.items() if value in needed}
        if len(kept) == len(graph.nodes) and len(constants) == len(graph.constants):
            return PassResult(graph, changed=False)
        return PassResult(graph.with_(nodes=tuple(reversed(kept)), constants=constants), changed=True)
