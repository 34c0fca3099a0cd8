"""Fusion: every node that does work goes into a ``group``, one kernel each; views stay outside.

A group is found from its sink backwards. It takes in elementwise producers of the sink's shape all of whose readers are inside, however
they branch and meet again, and at most one anchor on the same terms. Because nothing inside is read outside, groups form no cycles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.control import CONTROL
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish

_MAX_MEMBERS = 128
"""Elementwise nodes of one group: their expression is one tree, and a long chain of them would be a deep one."""

_MAX_REPEATS = 8
"""How often a node may stand in the expression tree of its group; a chain of diamonds doubles it at each."""


@register_pass
@dataclass(frozen=True)
class Group:
    """Makes the groups. With ``fuse=False`` each holds one node.

    ``%c = conv(%x, %w); %b = add(%c, %k); %r = relu(%b)`` becomes one ``%r = group(%x, %w, %k)`` of the three nodes.
    """

    fuse: bool = True
    name: ClassVar[str] = "group"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        finder = _Finder(graph)
        groups: dict[Node, list[Node]] = {}
        taken: set[Node] = set()
        for node in reversed(graph.nodes):
            if node in taken or not _is_work(node):
                continue
            groups[node] = finder.find(node, taken) if self.fuse else [node]
            taken.update(groups[node])
        builder = builder_for(graph)
        for node in graph.nodes:
            if node in groups:
                builder.append(_group_node(groups[node], builder))
            elif node not in taken:
                builder.append(node)
        return PassResult(finish(builder, graph, graph.outputs), bool(groups), (f"{len(groups)} groups",))


def _is_work(node: Node) -> bool:
    """Whether a node becomes (part of) a kernel; views do not, nor does control flow."""
    return not is_view(node) and node.op not in CONTROL and node.op != "group"


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        self._outputs = set(graph.outputs)
        self._elementwise = {node for node in graph.nodes if is_elementwise(node)}

    def find(self, sink: Node, taken: set[Node]) -> list[Node]:
        """The nodes of the group that ends in sink, in order."""
        members = {sink: 1}
        anchors: list[Node] = []
        pending = [sink] if sink in self._elementwise else []
        while pending:
            node = pending.pop()
            for value in node.present_inputs:
                producer = self._graph.producers.get(value)
                if producer is None or producer in members or producer in anchors or producer in taken:
                    continue
                if len(members) == _MAX_MEMBERS or not self._belongs(producer, sink, members):
                    continue
                if producer not in self._elementwise:
                    anchors.append(producer)
                    continue
                repeats = sum(members[user] * user.inputs.count(value) for user in self._graph.users[value])
                if repeats <= _MAX_REPEATS:
                    members[producer] = repeats
                    pending.append(producer)
        found = set(members)
        if anchors:
            anchor = max(anchors, key=lambda node: (_is_heavy(node), self._order[node]))
            found = self._of_one_anchor(found, anchor, [a for a in anchors if a is not anchor], sink)
        return sorted(found, key=self._order.__getitem__)

    def _belongs(self, producer: Node, sink: Node, members: Mapping[Node, int]) -> bool:
        """Whether a producer's only result is of the sink's shape and layout and read inside alone."""
        if not _is_work(producer) or len(producer.outputs) != 1 or producer.output in self._outputs:
            return False
        if not lookup(producer.op).takes_epilogue:
            return False
        type_, result = producer.output.type, sink.output.type
        same = type_.shape == result.shape and type_.block == result.block
        return same and all(user in members for user in self._graph.users[producer.output])

    def _of_one_anchor(self, members: set[Node], anchor: Node, others: list[Node], sink: Node) -> set[Node]:
        """Leave to every other anchor what only it leads to: its own epilogue."""
        own = self._descendants(anchor, members)
        left = {node for other in others for node in self._descendants(other, members)} - own
        kept = members - left
        while True:
            open_ = {node for node in kept if node is not sink and not kept.issuperset(self._graph.users[node.output])}
            if not open_:
                return kept | {anchor}
            kept -= open_

    def _descendants(self, node: Node, members: set[Node]) -> set[Node]:
        found: set[Node] = set()
        pending = [node]
        while pending:
            for user in self._graph.users.get(pending.pop().output, ()):
                if user in members and user not in found:
                    found.add(user)
                    pending.append(user)
        return found


def _is_heavy(node: Node) -> bool:
    """Whether an anchor computes rather than moves: its epilogue is the cheaper one."""
    types = [v.type for v in node.present_inputs]
    return node.op != "to_layout" and lookup(node.op).regions(types, node.attrs) is None


def _group_node(nodes: list[Node], builder: GraphBuilder) -> Node:
    """The nodes, the last of which makes the group's result, as one."""
    made = {value for node in nodes for value in node.outputs}
    outer = tuple(dict.fromkeys(v for node in nodes for v in node.present_inputs if v not in made))
    twins = {v: Value(builder.unique(v.name), v.type) for v in outer}
    sink = nodes[-1]
    twins.update({v: Value(builder.unique(v.name), v.type) for v in sink.outputs})
    inner = tuple(
        Node(n.op, tuple(None if v is None else twins.get(v, v) for v in n.inputs), tuple(twins.get(v, v) for v in n.outputs), n.attrs, name=n.name)
        for n in nodes
    )
    constants: dict[Value, Constant] = {}
    region = Graph("body", tuple(twins[v] for v in outer), tuple(twins[v] for v in sink.outputs), inner, constants)
    named = next((n for n in nodes if not is_elementwise(n)), sink)
    return Node("group", outer, sink.outputs, {}, (region,), named.name or sink.output.name)
