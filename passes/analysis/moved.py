"""What a group can read where it lies: the nodes before it that move elements, and the arithmetic between those, computed where they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import product
from compiler.ir.op import lookup
from compiler.ir.pieces import Piece, moves, pieces
from compiler.ir.places import held_starts
from compiler.ir.scalar import divisors
from compiler.ir.types import DType
from compiler.ir.verify import is_elementwise, is_view
from compiler.kernels.loops import Axis, collapse
from passes.analysis.estimate import estimate, expression, work

_MOST_NODES = 64
"""Nodes of a group that move elements or compute what is moved."""

_REPEATED_WORK = 1 << 15
"""What may be computed more often than once, in simple instructions on one element: what a kernel and a trip through memory cost."""

_SHORT, _FAR = 8, 4
"""Elements in a row below which loops cost more than they do, and elements apart up to which a few vectors have a vector of them."""

_SMALL = 1 << 10
"""Elements of a result that is made in no time however it is done."""


@dataclass(frozen=True)
class Movable:
    """Finds such nodes in ``graph``; ``group_of`` says what would be in the group that ends in a node; ``needed`` are values that other groups
    read, or the caller."""

    graph: Graph
    group_of: Callable[[Node], Collection[Node]]
    needed: Collection[Value]

    def before(self, sink: Node, own: Collection[Node], copies: Collection[Node], taken: Collection[Node]) -> tuple[set[Node], set[Node]]:
        """The nodes that the group that ends in ``sink`` can do itself beside ``own`` and ``copies``, where that saves a kernel: those that nodes
        of its own alone read, and those that others may read, too."""
        if self._is_join(sink) or not all(moves(node) or _computes(node) for node in (*own, *copies)):
            return set(), set()
        found: list[Node] = []
        refused = set(taken)
        while len(found) < _MOST_NODES and (added := self._next(sink, own, [*copies, *found], refused)):
            found += added
        found = self._pruned(found, {*own, *copies})
        if all(map(is_view, found)):
            return set(), set()
        alone = self._alone(own, found) - {*own}
        return alone, set(found) - alone

    def _alone(self, own: Collection[Node], others: Collection[Node]) -> set[Node]:
        """The nodes of a group that need not be made for anyone else."""
        found = {*own}
        pending = [node for node in others if node.output not in self.needed]
        while added := [node for node in pending if node not in found and found.issuperset(self.graph.users.get(node.output, ()))]:
            found.update(added)
        return found

    def _next(self, sink: Node, own: Collection[Node], others: Sequence[Node], refused: set[Node]) -> list[Node]:
        """One more node that the group can take in, or a chain of them that is read better than its last ones alone."""
        group = [*own, *others]
        for value in dict.fromkeys(v for node in group for v in node.present_inputs):
            chain: list[Node] = []
            producer = self.graph.producers.get(value)
            while producer is not None and producer not in group and producer not in refused and self._fits(producer, own, [*others, *chain]):
                chain.append(producer)
                found = self._pieces(sink, [*group, *chain])
                if found is not None and all(map(_is_quick, found)):
                    return chain
                before = [] if found is None else [self.graph.producers.get(v) for v in producer.present_inputs]
                producer = next((node for node in before if node is not None), None)
            refused.update(chain[:1])
        return []

    def _fits(self, node: Node, own: Collection[Node], others: Collection[Node]) -> bool:
        """Whether a node only moves elements, or computes what is moved and is read by the group alone, without much work done twice."""
        if moves(node):
            spared = _is_single(node) and node.output not in self.needed
            return not self._is_join(node) and (is_view(node) or spared or node in self._alone(own, [*others, node]))
        if not _computes(node) or node not in self._alone(own, [*others, node]):
            return False
        around = self.group_of(node)
        users = self.graph.users[node.output]
        if not all(moves(n) or _computes(n) for n in around) or not any(moves(n) or n in others for n in (*around, *users)):
            return False
        again = self._times(node, {*own, *others}) - estimate(node.output.type.elements)
        return work(node) * again <= _REPEATED_WORK

    def _times(self, node: Node, group: Collection[Node]) -> int:
        """How many elements of a node the kernel of a group computes: once for all arithmetic on an element, and for every place it is moved to."""
        users = [user for user in self.graph.users.get(node.output, ()) if user in group]
        moved = [self._times(user, group) * _share(node, user) // 100 for user in users if moves(user)]
        computed = [self._times(user, group) for user in users if not moves(user)]
        return sum(moved) + max(computed, default=0) if users else estimate(node.output.type.elements)

    def _pieces(self, sink: Node, group: Collection[Node]) -> tuple[Piece, ...] | None:
        found = pieces(sink.output, {node.output: node for node in group}, self.graph.constants)
        return None if found is None else found[0]

    @staticmethod
    def _pruned(found: list[Node], members: Collection[Node]) -> list[Node]:
        """Without views of what lies in memory anyway."""
        while True:
            made = {v for node in (*found, *members) for v in node.outputs}
            idle = {node for node in found if is_view(node) and node.present_inputs[0] not in made}
            if not idle:
                return found
            found = [node for node in found if node not in idle]

    def _is_join(self, node: Node) -> bool:
        """Whether a node is a concatenation whose operands kernels make in its result, one of which could not be computed where it is read."""
        if node.op != "concat" or not held_starts(replace(node, op="join")):
            return False
        makers = [(self.graph.producers.get(v), v) for v in node.present_inputs]
        found = [maker for maker, v in makers if maker is not None and not is_view(maker) and self.graph.users[v] == (node,)]
        return len(found) == len(makers) and not all(moves(n) or _computes(n) for maker in found for n in self.group_of(maker))


def _computes(node: Node) -> bool:
    """Whether a node is elementwise, row-major, and reports nothing."""
    values = (*node.present_inputs, *node.outputs)
    if not is_elementwise(node) or any(v.type.block != 1 or v.type.dtype is DType.STRING for v in values):
        return False
    expr = expression(node)
    return expr is not None and not divisors(expr)


def _share(node: Node, user: Node) -> int:
    """The part of the result of a node that moves elements, in percent, that is elements of another node's."""
    regions = lookup(user.op).regions([v.type for v in user.present_inputs], user.attrs)
    if regions is None:
        return 100
    own = {number for number, v in enumerate(user.present_inputs) if v in node.outputs}
    elements = sum(estimate(product(region.extent)) for region in regions if region.source in own)
    return 100 * elements // max(1, estimate(user.output.type.elements))


def _is_single(node: Node) -> bool:
    """Whether a node's result is one box of what it reads."""
    regions = lookup(node.op).regions([v.type for v in node.present_inputs], node.attrs) or ()
    return len(regions) == 1


def _is_quick(piece: Piece) -> bool:
    """Whether a piece is long rows whose elements, and those they read, lie together or nearly so."""
    tables = (piece.strides, *(read.strides for read in piece.reads))
    axes = collapse([Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(piece.extents)])
    elements = 1
    for extent in piece.extents:
        elements *= estimate(extent)
    if not axes or elements <= _SMALL:
        return True
    last = axes[-1]
    return estimate(last.extent) >= _SHORT and all(isinstance(step, int) and abs(step) <= _FAR for step in last.strides)
