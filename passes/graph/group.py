"""Fusion: every node that does work goes into a ``group``, one kernel each; views stay outside.

A group is found from its sink backwards. It takes in elementwise producers of the sink's shape all of whose readers are inside, however
they branch and meet again, and at most one anchor on the same terms. Because nothing inside is read outside, groups form no cycles.

Where an anchor's kernels can compute what they read, so do the elementwise nodes that make it. Where they can read it as it lies, through
strides, the transposes, slices and reshapes that bring it into order stand in the group; one that all readers do without is not made.

What a group then reads may be elementwise itself: smaller than the sink, or read by other groups, too. Where computing it again for every
element costs less than a kernel of its own, the group takes a copy; a value that every reader computes for itself is not made at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.control import CONTROL
from compiler.ir.graph import Constant, Graph, Node, Value, reads
from compiler.ir.op import lookup
from compiler.ir.places import held_starts
from compiler.ir.scalar import divisors
from compiler.ir.strided import strided_reads
from compiler.ir.verify import Stage, computing, is_elementwise, is_view
from passes.analysis.estimate import estimate, expression, work
from passes.analysis.moved import Movable
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish

_MAX_MEMBERS = 128
"""Elementwise nodes of one group: a kernel's code grows with them, and what it keeps in registers may."""

_KERNEL_WORK = 1 << 15
"""What starting one more kernel and a trip through memory cost, in simple instructions on one element: about a microsecond."""

_SHARED_ELEMENTS, _SHARED_NUMBERS = 8, 32
"""Elements of a group's result that share what is computed for a value that broadcasts to it, and for a single number, at the least."""


@register_pass
@dataclass(frozen=True)
class Group:
    """Makes the groups. With ``fuse=False`` each holds one node.

    ``%c = conv(%x, %w); %b = add(%c, %k); %r = relu(%b)`` becomes one ``%r = group(%x, %w, %k)`` of the three nodes, and
    ``%s = mul(%a, %b); %y = mul(%x, %s); %z = add(%x, %s)``, ``%s`` of one element, becomes two groups that each have a ``mul`` for ``%s``.
    """

    fuse: bool = True
    name: ClassVar[str] = "group"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        finder = _Finder(graph)
        groups: dict[Node, list[Node]] = {}
        gone: set[Node] = set()
        needed = set(graph.outputs)
        for node in reversed(graph.nodes):
            if node in gone:
                continue
            if self.fuse and node.op not in CONTROL and needed.isdisjoint(node.outputs):
                gone.add(node)
            elif not _is_work(node):
                needed.update(reads(node))
            else:
                groups[node] = [node]
                if self.fuse:
                    own, copies = finder.find(node, gone)
                    moved, shared = finder.moved(node, own, copies, gone, needed)
                    groups[node] = finder.in_order({*own, *copies, *moved, *shared, *finder.brought(own, copies)})
                    gone.update(own | moved)
                needed.update(_read_outside(groups[node]))
        builder, times = builder_for(graph), Counter(chain(*groups.values()))
        copied = {node for node, count in times.items() if count > 1 or (is_view(node) and node not in gone)}
        for node in graph.nodes:
            if node in groups:
                builder.append(_group_node(groups[node], copied, builder))
            elif node not in gone:
                builder.append(node)
        return PassResult(finish(builder, graph, graph.outputs), bool(groups), (f"{len(groups)} groups",))


def _is_work(node: Node) -> bool:
    """Whether a node becomes (part of) a kernel; views do not, nor do joins and control flow."""
    return not is_view(node) and not held_starts(node) and node.op not in CONTROL and node.op != "group"


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        self._outputs = set(graph.outputs)
        self._elementwise = {node for node in graph.nodes if is_elementwise(node)}

    def is_elementwise(self, node: Node) -> bool:
        """Whether node is an elementwise node of the graph."""
        return node in self._elementwise

    def in_order(self, nodes: set[Node]) -> list[Node]:
        """nodes as they stand in the graph."""
        return sorted(nodes, key=self._order.__getitem__)

    def find(self, sink: Node, taken: set[Node]) -> tuple[set[Node], set[Node]]:
        """The nodes that only the group that ends in sink reads, and those it computes for itself though others may, too."""
        return self._find(sink, taken, set(), {})

    def _find(self, sink: Node, taken: set[Node], brought: set[Node], found: dict[Node, tuple[set[Node], set[Node]]]) -> tuple[set[Node], set[Node]]:
        """``find`` without nodes in ``brought``; ``found`` has what it gives for others while nothing more is taken: paths to a node may be many."""
        if sink in found:
            return found[sink]
        own = self._own(sink, taken | brought)
        copies: set[Node] = set()
        budget = _KERNEL_WORK
        before = self._prologue(own, taken)
        if before is not None:
            own, copies = own | before[0], before[1]
        for value in _read_outside(self.in_order(own)):
            producer = self._graph.producers.get(value)
            if producer is None or producer in taken or producer in copies or not self._repeats(producer):
                continue
            again = set().union(*self._find(producer, taken, brought, found)) - copies
            cost = sum(map(work, again)) * self._times(producer, sink)
            if again <= self._elementwise and cost <= budget and len(own | copies | again) <= _MAX_MEMBERS:
                copies |= again
                budget -= cost
        found[sink] = own, copies
        return own, copies

    def moved(self, sink: Node, own: set[Node], copies: set[Node], taken: set[Node], needed: set[Value]) -> tuple[set[Node], set[Node]]:
        """The nodes that move what the group reads, and those that compute what is moved, where its kernel can do it all: as ``find`` gives them."""
        movable = Movable(self._graph, lambda node: self.find(node, taken)[0], needed)
        return movable.before(sink, self.in_order(own), self.in_order(copies), taken)

    def brought(self, own: set[Node], copies: set[Node]) -> set[Node]:
        """The nodes that bring what the anchor among ``own`` reads into order, where its kernels can read it as it lies and no other node of the
        group reads what they make."""
        anchor = next((node for node in own if node not in self._elementwise), None)
        if anchor is None:
            return set()
        found: set[Node] = set()
        computed = computing(anchor, {node.output: node for node in own | copies})
        for nodes in strided_reads(anchor, computed, self._graph.producers).values():
            first = next((number for number, node in enumerate(nodes) if not is_view(node)), len(nodes))
            users = {user for node in nodes[first:] for user in self._graph.users[node.output]}
            if nodes[0].present_inputs[0] not in self._graph.constants and users.isdisjoint((own | copies) - {anchor} - computed):
                found.update(nodes[first:])
        return found

    def _prologue(self, own: set[Node], taken: set[Node]) -> tuple[set[Node], set[Node]] | None:
        """The elementwise nodes that make what the anchor among ``own`` reads, as ``find`` gives them, where its kernels can compute it."""
        anchor = next((node for node in own if node not in self._elementwise), None)
        if anchor is None or not self._computes_input(anchor):
            return None
        value, *others = anchor.present_inputs
        producer = self._graph.producers.get(value)
        alone = self._graph.users[value] == (anchor,) and value not in others and value not in self._outputs
        if producer not in self._elementwise or producer in taken or not alone:
            return None
        producers = self._graph.producers
        brought = set(chain(*strided_reads(anchor, computing(anchor, producers), producers).values()))
        found = self._find(producer, taken, brought, {})
        every = found[0] | found[1]
        if not every <= self._elementwise or any(map(_divides, every)):
            return None
        return found if len(own | every) <= _MAX_MEMBERS else None

    def _computes_input(self, anchor: Node) -> bool:
        """Whether an anchor's kernels can compute what it reads first."""
        types, constant = [None if v is None else v.type for v in anchor.inputs], [v in self._graph.constants for v in anchor.inputs]
        return lookup(anchor.op).takes_prologue(types, anchor.attrs, constant)

    def _repeats(self, producer: Node) -> bool:
        """Whether a value need not be in memory: an elementwise node makes it, and such nodes alone read it."""
        if producer not in self._elementwise or producer.output in self._outputs:
            return False
        return all(user in self._elementwise for user in self._graph.users[producer.output])

    def _times(self, producer: Node, sink: Node) -> int:
        """How often a group computes an element of a producer that broadcasts to its result."""
        elements = estimate(sink.output.type.elements)
        if producer.output.type.shape == sink.output.type.shape:
            return elements
        own = estimate(producer.output.type.elements)
        return max(own, elements // (_SHARED_NUMBERS if own == 1 else _SHARED_ELEMENTS))

    def _own(self, sink: Node, taken: set[Node]) -> set[Node]:
        """The nodes all of whose readers are among them, and sink."""
        members = {sink}
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
                members.add(producer)
                pending.append(producer)
        if not anchors:
            return members
        anchor = max(anchors, key=lambda node: (_is_heavy(node), self._order[node]))
        return self._of_one_anchor(members, anchor, [a for a in anchors if a is not anchor], sink)

    def _belongs(self, producer: Node, sink: Node, members: set[Node]) -> bool:
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


def _divides(node: Node) -> bool:
    """Whether a run is to report a zero that a node divides by."""
    expr = expression(node)
    return expr is not None and bool(divisors(expr))


def _read_outside(nodes: Sequence[Node]) -> tuple[Value, ...]:
    """What nodes read that none of them makes."""
    made = {value for node in nodes for value in node.outputs}
    return tuple(dict.fromkeys(v for node in nodes for v in node.present_inputs if v not in made))


def _group_node(nodes: list[Node], copied: set[Node], builder: GraphBuilder) -> Node:
    """The nodes, the last of which makes the group's result, as one; those in ``copied`` are in other groups, too."""
    outer, sink = _read_outside(nodes), nodes[-1]
    inside = (v for node in nodes if node is sink or node in copied for v in node.outputs)
    twins = {v: Value(builder.unique(v.name), v.type) for v in (*outer, *inside)}
    inner = tuple(
        Node(n.op, tuple(None if v is None else twins.get(v, v) for v in n.inputs), tuple(twins.get(v, v) for v in n.outputs), n.attrs, name=n.name)
        for n in nodes
    )
    constants: dict[Value, Constant] = {}
    region = Graph("body", tuple(twins[v] for v in outer), tuple(twins[v] for v in sink.outputs), inner, constants)
    named = next((n for n in reversed(nodes) if not is_elementwise(n)), sink)
    return Node("group", outer, sink.outputs, {}, (region,), named.name or sink.output.name)
