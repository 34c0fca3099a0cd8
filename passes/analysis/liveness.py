"""Which memory each value of a grouped graph lives in, and from which node to which it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compiler.ir.graph import Graph, Value
from compiler.ir.verify import is_view


def memory_roots(graph: Graph) -> Mapping[Value, Value]:
    """For every value the one whose memory it is: itself, or what it is (a view of) a view of."""
    roots = {value: value for value in (*graph.inputs, *graph.constants)}
    for node in graph.nodes:
        view = is_view(node)
        for value in node.outputs:
            roots[value] = roots[node.present_inputs[0]] if view else value
    return roots


@dataclass(frozen=True)
class Interval:
    """``nbytes`` of memory needed from node number ``first`` to node number ``last``, both included."""

    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Interval) -> bool:
        """Whether there is a node at which both are needed."""
        return self.first <= other.last and other.first <= self.last


def live_ranges(graph: Graph) -> Mapping[Value, tuple[int, int]]:
    """For every root the nodes that make it and read it (or a view of it) last; inputs and constants start at -1, outputs never end."""
    roots = memory_roots(graph)
    ranges = dict.fromkeys((*graph.inputs, *graph.constants), (-1, -1))
    for number, node in enumerate(graph.nodes):
        for value in node.present_inputs:
            ranges[roots[value]] = (ranges[roots[value]][0], number)
        for value in node.outputs:
            if roots[value] is value:
                ranges[value] = (number, number)
    for value in graph.outputs:
        ranges[roots[value]] = (ranges[roots[value]][0], len(graph.nodes))
    return ranges


def max_live_bytes(intervals: Iterable[Interval]) -> int:
    """The most bytes needed at one node: no arena can be smaller."""
    changes: dict[int, int] = {}
    for interval in intervals:
        changes[interval.first] = changes.get(interval.first, 0) + interval.nbytes
        changes[interval.last + 1] = changes.get(interval.last + 1, 0) - interval.nbytes
    live = peak = 0
    for number in sorted(changes):
        live += changes[number]
        peak = max(peak, live)
    return peak
