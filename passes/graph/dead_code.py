"""Removal of what no output needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.control import defined_symbols, read_symbols, type_symbols
from compiler.ir.graph import Graph, Value, reads
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class EliminateDeadCode:
    """Drops nodes and constants whose values and symbols no output and no ``check`` depends on; inputs stay, they are the interface.

    ``%a = exp(%x); %b = relu(%x); return %b`` becomes ``%b = relu(%x); return %b``.
    """

    name: ClassVar[str] = "eliminate-dead-code"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        needed: set[Value] = set(graph.outputs)
        symbols = {name for value in graph.outputs for name in type_symbols(value.type)}
        kept = []
        for node in reversed(graph.nodes):
            if node.op == "check" or not needed.isdisjoint(node.outputs) or not symbols.isdisjoint(defined_symbols(node)):
                kept.append(node)
                needed.update(reads(node))
                symbols |= read_symbols(node)
        constants = {value: constant for value, constant in graph.constants.items() if value in needed}
        if len(kept) == len(graph.nodes) and len(constants) == len(graph.constants):
            return PassResult(graph, changed=False)
        return PassResult(graph.with_(nodes=tuple(reversed(kept)), constants=constants), changed=True)
