"""Kernels with several results: elementwise groups go into those that make or read the same elements, while these are in registers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.control import CONTROL
from compiler.ir.graph import Graph, Node, Value, reads
from compiler.ir.op import lookup
from compiler.ir.pieces import is_anchor, moves
from compiler.ir.places import memory_places
from compiler.ir.verify import Stage, inner_nodes, is_elementwise
from passes.analysis.liveness import nodes_behind
from passes.base import PassResult, register_pass
from passes.graph.plan import arena_bound
from passes.rewrite import substitute

_MAX_MEMBERS = 128
"""Nodes of one group: a kernel's code grows with them, and what it keeps in registers may."""


@register_pass
@dataclass(frozen=True)
class MergeGroups:
    """Makes one group of two, of which one at least is elementwise, where one reads element by element what the other makes or reads so, too.

    All their results are stored while that is at hand: a kernel less, and one reading of it. What is read inside alone then is not stored. Results
    must be of one shape and layout and not lie in strides, and nothing that depends on the first group may lead to the second one. No more bytes
    live at once than before, though all operands of both are needed at the same time; ``effort`` bounds the search for what may be merged so, in
    nodes planned.

    ``%t = group(%x, %w) {matmul}; %y = group(%t) {relu}; %z = group(%t, %v) {matmul}`` becomes
    ``%t, %y = group(%x, %w) {matmul, relu}; %z = group(%t, %v) {matmul}``.
    """

    effort: int = 10_000
    name: ClassVar[str] = "merge-groups"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        before = _Merged(graph, {})
        pairs = [*_pairs(graph)]
        fewest = max(1, len(pairs) * len(graph.nodes) // self.effort)
        found = before.within(arena_bound(graph), pairs, fewest) if pairs else before
        groups = len(graph.nodes) - len(found.graph.nodes)
        return PassResult(found.graph, groups > 0, (f"{groups} groups merged",) if groups else ())


@dataclass(frozen=True)
class _Merged:
    """A graph in which some groups are merged; ``hosts`` has for each of them the one that it is in."""

    graph: Graph
    hosts: Mapping[Node, Node]

    def within(self, bound: int, pairs: Sequence[tuple[Node, Node]], fewest: int) -> _Merged:
        """With as many pairs merged as leave the arena within ``bound`` bytes: all of them, or else what each half of them allows, where these
        are not less than ``fewest``."""
        found = self
        for pair in pairs:
            found = found._with(*pair)
        if found is self or arena_bound(found.graph) <= bound:
            return found
        half = len(pairs) // 2
        return self.within(bound, pairs[:half], fewest).within(bound, pairs[half:], fewest) if half >= fewest else self

    def _with(self, first: Node, second: Node) -> _Merged:
        """With two groups, the first of which stands before the second, as one, where they may be."""
        first, second = self.hosts.get(first, first), self.hosts.get(second, second)
        nodes = self.graph.nodes
        begin, end = sorted((nodes.index(first), nodes.index(second)))
        first, second, between = nodes[begin], nodes[end], nodes[begin + 1 : end]
        if first is second or not _fit(first, second) or any(node.op in CONTROL for node in between):
            return self
        made, behind = set(first.outputs), dict[Node, None]()
        for node in between:
            if not made.isdisjoint(reads(node)):
                made.update(node.outputs)
                behind[node] = None
        if not made.isdisjoint({*second.present_inputs} - {*first.outputs}):
            return self
        merged = _merged(self.graph, first, second)
        ahead = (node for node in between if node not in behind)
        graph = self.graph.with_(nodes=(*nodes[:begin], *ahead, merged, *behind, *nodes[end + 1 :]))
        hosts = {node: merged if host in (first, second) else host for node, host in self.hosts.items()}
        return _Merged(graph, {**hosts, first: merged, second: merged})


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Groups that read a value element by element, each behind the one that makes it and the last one before that reads it so."""
    places = memory_places(graph)
    makers: dict[Value, Node] = {}
    readers: dict[Value, Node] = {}
    for node in graph.nodes:
        if node.op == "group" and all(places[value].strides is None for value in node.outputs):
            shared = [value for value in _elementwise_operands(node) if value not in graph.constants]
            earlier = dict.fromkeys(found[value] for found in (makers, readers) for value in shared if value in found)
            yield from ((other, node) for other in earlier if _fit(other, node))
            makers.update(dict.fromkeys(node.outputs, node))
            readers.update(dict.fromkeys(shared, node))


def _elementwise_operands(group: Node) -> list[Value]:
    """The operands of a group's shape and layout of which it reads, for an element of its results, that element alone."""
    (region,) = group.regions
    behind, result = nodes_behind(region), group.outputs[0].type
    pairs = zip(region.inputs, group.present_inputs, strict=True)
    return [
        outer
        for inner, outer in pairs
        if (outer.type.shape, outer.type.block) == (result.shape, result.block) and behind.issuperset(region.users[inner])
    ]


def _fit(first: Node, second: Node) -> bool:
    """Whether one kernel can do what two groups do, of which the second may read what the first makes."""
    if "shares" in first.attrs or "shares" in second.attrs:
        return False
    one, other = first.outputs[0].type, second.outputs[0].type
    anchors = [*_anchors(first), *_anchors(second)]
    if _is_moved(first) or _is_moved(second):
        return False
    alike = (one.shape, one.block) == (other.shape, other.block) and not (_anchors(first) and _anchors(second))
    small = len(first.regions[0].nodes) + len(second.regions[0].nodes) <= _MAX_MEMBERS
    read = {*second.present_inputs} & {*first.outputs}
    return alike and small and all(lookup(node.op).takes_epilogue for node in anchors) and read.issubset(_elementwise_operands(second))


def _anchors(group: Node) -> list[Node]:
    """The nodes of a group that are not elementwise, inner groups apart."""
    (region,) = group.regions
    apart = inner_nodes(region)
    return [node for node in region.nodes if node not in apart and not is_elementwise(node)]


def _is_moved(group: Node) -> bool:
    """Whether a group's nodes move elements otherwise than one alone that is its anchor: its kernel makes one result."""
    anchors = _anchors(group)
    return bool(anchors) and all(map(moves, anchors)) and not is_anchor(anchors, group.regions[0])


def _merged(graph: Graph, first: Node, second: Node) -> Node:
    """Two groups as one, which makes what is read elsewhere."""
    (body,), (region,) = first.regions, second.regions
    outer = dict(zip((*first.present_inputs, *first.outputs), (*body.inputs, *body.outputs), strict=True))
    twins = {inner: outer.setdefault(value, inner) for value, inner in zip(second.present_inputs, region.inputs, strict=True)}
    outer |= zip(second.outputs, region.outputs, strict=True)
    wanted = [value for value in first.outputs if value in graph.outputs or graph.users[value] != (second,)]
    outputs = (*wanted, *second.outputs)
    inputs = tuple(value for value in outer if value not in (*first.outputs, *second.outputs))
    nodes = (*body.nodes, *(substitute(node, twins) for node in region.nodes))
    merged = Graph("body", tuple(outer[v] for v in inputs), tuple(outer[v] for v in outputs), nodes)
    named = second if _anchors(second) else first
    return Node("group", inputs, outputs, {}, (merged,), named.name)
