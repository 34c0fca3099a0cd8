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
    """Applies ``Op.simplify`` everywhere until nothing changes. Raises InternalError where that takes more than ``rounds``."""

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
    return lookup(node.op).simplify(node, builder)
