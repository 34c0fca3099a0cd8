"""Reshapes that tie a layout become a part of the transposes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Attr, Graph, Node, Value
from compiler.ir.op import Layouts, lookup
from compiler.ir.regroup import runs
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite


@register_pass
@dataclass(frozen=True)
class FoldReshapes:
    """A transpose and the reshape before or behind it become a ``rearrange`` where a reshape keeps values row-major, and that does not: channels may
    be in blocks of ``block``.

    ``%s = reshape(%x) {shape = [1, 2, 2, 8, 3, 3]}; %t = transpose(%s) {perm = [0, 3, 1, 4, 2, 5]}`` of ``%x: f32[4, 8, 3, 3]`` becomes
    ``%t = rearrange(%x) {split = [1, 2, 2, 8, 3, 3], perm = [0, 3, 1, 4, 2, 5], shape = [1, 8, 2, 3, 2, 3]}``.
    """

    block: int
    name: ClassVar[str] = "fold-reshapes"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        folded: dict[Value, int] = {}
        taken: set[Node] = set()
        for node in graph.nodes:
            nodes = self._chain(graph, node, taken) if node.op == "transpose" else []
            taken.update(nodes)
            folded.update({nodes[-1].output: len(nodes)} if nodes else {})

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            nodes = [node]
            while len(nodes) < folded.get(node.output, 0):
                made = builder.producer(nodes[0].present_inputs[0])
                if made is None:
                    raise InternalError("a node of a chain has gone", where=self.name)
                nodes.insert(0, made)
            return builder.emit("rearrange", nodes[0].present_inputs[0], name=node.name, **_rearranged(nodes)) if node.output in folded else None

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} transposes",) if count else ())

    def _chain(self, graph: Graph, node: Node, taken: set[Node]) -> list[Node]:
        """The nodes that become one with a transpose, in order, none of them taken by another; none where that would free nothing."""
        if node.output.type.elements == 0:
            return []
        before, behind = graph.producers.get(node.present_inputs[0]), graph.users.get(node.output, ())
        first = [before] if before is not None and self._ties(before) and len(graph.users[before.output]) == 1 else []
        last = [*behind] if len(behind) == 1 and self._ties(behind[0]) and node.output not in graph.outputs else []
        first = [] if first and first[0].output in graph.outputs else first
        for nodes in ([*first, node, *last], [*first, node], [node, *last]):
            types = [v.type for v in nodes[0].present_inputs]
            known = all(runs(each.present_inputs[0].type.shape, each.output.type.shape) for each in nodes if each is not node)
            free = len(nodes) > 1 and known and taken.isdisjoint(nodes)
            if free and lookup("rearrange").layouts(types, _rearranged(nodes), self.block) is Layouts.ANY:
                return nodes
        return []

    def _ties(self, node: Node) -> bool:
        """Whether a node is a reshape of what is row-major."""
        types = [v.type for v in node.present_inputs]
        return node.op == "reshape" and lookup(node.op).layouts(types, node.attrs, self.block) is Layouts.PLAIN


def _rearranged(nodes: Sequence[Node]) -> dict[str, Attr]:
    """The attributes of the one node that does what a transpose and the reshapes around it do."""
    (move,) = (node for node in nodes if node.op == "transpose")
    return {"split": move.present_inputs[0].type.shape, "perm": move.attrs["perm"], "shape": nodes[-1].output.type.shape}
