"""Concatenations that move nothing: their operands are made where they lie in the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import product, symbols
from compiler.ir.places import Place, held_starts, memory_places, unfit_joins
from compiler.ir.verify import Stage
from passes.analysis.estimate import estimate
from passes.analysis.liveness import typical_sizes
from passes.base import PassResult, register_pass
from passes.graph.inline_groups import KERNEL_WORK, is_small
from passes.graph.plan import arena_bound

_SHORTEST_RUN_BYTES = 32
"""What lies together at least of an operand that lies in strides: a vector of its group's has elements of one run only."""


@register_pass
@dataclass(frozen=True)
class JoinInPlace:
    """Makes a ``join`` of a group that is a concatenation, where groups make its operands, each for it alone, and can store them where they lie in
    the result: together, or in strides.

    Sizes must be known when a run begins: those of a loop's values a run knows too late. It does so where no more memory is alive at once than
    before, or than ``enough`` bytes: a result that is begun early waits for what is made last; and where moving the operands is not less than the
    kernels that are spared when small groups go into the concatenation.

    ``%a = group(…); %b = group(…); %c = group(%a, %b) { concat }`` becomes ``%a = group(…); %b = group(…); %c = join(%a, %b)``.
    """

    enough: int = 0
    name: ClassVar[str] = "join-in-place"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        joins = _fitting(graph, dict(_joins(graph)))
        if not joins:
            return PassResult(graph, changed=False)
        most = max(arena_bound(graph), self.enough)
        result = _with(graph, joins)
        if arena_bound(result) > most:
            result, kept = graph, joins
            joins = {}
            for node, join in kept.items():
                more = {**joins, node: join}
                found = _with(graph, more)
                if not unfit_joins(found) and arena_bound(found) <= most:
                    result, joins = found, more
        notes = (f"{len(joins)} concatenations move nothing",) if joins else ()
        return PassResult(result, changed=bool(joins), notes=notes)


def _joins(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Groups that can be joins, and the join of each."""
    places = memory_places(graph)
    known = typical_sizes(graph).keys() if "input_names" in graph.attrs else set()  # a region's values have their sizes too late
    makers = {value: node for node in graph.nodes if node.op == "group" for value in node.outputs}
    outputs = {places[value].root for value in graph.outputs}
    taken = set(outputs)
    for node in graph.nodes:
        join = _join(node)
        if join is None or not all(known >= set(symbols(dim)) for dim in join.output.type.shape):
            continue
        parts = _parts(join, places)
        if parts and taken.isdisjoint(parts) and makers.keys() >= parts:
            spared = sum(map(is_small, (makers[part] for part in parts))) - 1 + (is_small(node) and join.output not in outputs)
            if spared * KERNEL_WORK <= estimate(join.output.type.elements):
                taken.update(parts)
                yield node, join


def _fitting(graph: Graph, joins: Mapping[Node, Node]) -> Mapping[Node, Node]:
    """The joins whose operands can lie in them."""
    while unfit := unfit_joins(_with(graph, joins)):
        joins = {node: join for node, join in joins.items() if join not in unfit}
    return joins


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
    return join if held_starts(join) and not _in_short_runs(join) else None


def _in_short_runs(join: Node) -> bool:
    """Whether elements of an operand that lie together in the result are few."""
    axis, result = join.attrs["axis"], join.output.type
    if not isinstance(axis, int) or product(result.physical_shape[:axis]) == 1:
        return False
    runs = (estimate(product(value.type.physical_shape[axis:])) for value in join.present_inputs)
    return min(runs) * result.dtype.itemsize < _SHORTEST_RUN_BYTES


def _with(graph: Graph, joins: Mapping[Node, Node]) -> Graph:
    return graph.with_(nodes=tuple(joins.get(node, node) for node in graph.nodes))
