"""Concatenations that move nothing: their operands are made where they lie in the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import Stage, held_offsets
from passes.analysis.liveness import Place, memory_places
from passes.base import PassResult, register_pass
from passes.graph.plan import arena_bound


@register_pass
@dataclass(frozen=True)
class JoinInPlace:
    """Makes a ``join`` of a group that is a concatenation, where groups make its operands, each for it alone, and those lie together in the result.

    Sizes must be known: those of a loop's values a run knows too late. It does so where no more memory is alive at once than before: a result
    that is begun early waits for what is made last.

    ``%a = group(…); %b = group(…); %c = group(%a, %b) { concat }`` becomes ``%a = group(…); %b = group(…); %c = join(%a, %b)``.
    """

    name: ClassVar[str] = "join-in-place"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        joins = dict(_joins(graph))
        if not joins:
            return PassResult(graph, changed=False)
        before = arena_bound(graph)
        result = _with(graph, joins)
        if arena_bound(result) > before:
            result, kept = graph, joins
            joins = {}
            for node, join in kept.items():
                found = _with(graph, {**joins, node: join})
                if arena_bound(found) <= before:
                    result, joins = found, {**joins, node: join}
        notes = (f"{len(joins)} concatenations move nothing",) if joins else ()
        return PassResult(result, changed=bool(joins), notes=notes)


def _joins(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Groups that can be joins, and the join of each."""
    places = memory_places(graph)
    makers = {value for node in graph.nodes if node.op == "group" for value in node.outputs}
    taken = {places[value].root for value in graph.outputs}
    for node in graph.nodes:
        join = _join(node)
        if join is None or not join.output.type.is_static:
            continue
        parts = _parts(join, places)
        if parts and taken.isdisjoint(parts) and makers.issuperset(parts):
            taken.update(parts)
            yield node, join


def _parts(join: Node, places: Mapping[Value, Place]) -> set[Value]:
    """The values whose memory a join holds, each of them whole and once; none where it cannot."""
    parts = {places[value].root for value in join.present_inputs}
    whole = all(places[value].root.type.nbytes == value.type.nbytes for value in join.present_inputs)
    return parts if whole and len(parts) == len(join.inputs) else set()


def _join(node: Node) -> Node | None:
    """A group that is a concatenation and no more as a join, if it can be one."""
    if node.op != "group" or [inner.op for inner in node.regions[0].nodes] != ["concat"]:
        return None
    region = node.regions[0]
    outside = dict(zip(region.inputs, node.inputs, strict=True))
    operands = tuple(outside.get(value) if value is not None else None for value in region.nodes[0].inputs)
    if None in operands:
        return None
    join = replace(node, op="join", inputs=operands, attrs=region.nodes[0].attrs, regions=())
    return join if held_offsets(join) else None


def _with(graph: Graph, joins: Mapping[Node, Node]) -> Graph:
    return graph.with_(nodes=tuple(joins.get(node, node) for node in graph.nodes))
