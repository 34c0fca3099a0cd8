"""Memory planning: an offset in one arena for every group's result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.control import BRANCHING, Loop, type_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, evaluate, maximum, sym, symbols
from compiler.ir.places import memory_places, memory_roots
from compiler.ir.verify import Stage
from passes.analysis.liveness import (
    Interval,
    aligned,
    derived_sizes,
    live_peak,
    live_ranges,
    overwritable,
    typical_sizes,
)
from passes.analysis.packing import place
from passes.base import PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class PlanMemory:
    """Gives each output of a group that is not one of the graph an ``offset`` (bytes, a multiple of 64), and the graph ``arena_bytes`` and
    ``arena_bound_bytes``, the most bytes alive at once, values in whole alignment units: no plan for this order of nodes can be smaller
    (None where sizes are not known). ``arena_peak`` names a node at which so many are alive.

    A group may write over an operand that is not needed later and of which it reads, elementwise, just what it writes; the attribute
    ``in_place`` then has that operand's number. Attributes of groups have an entry for each output, None for one that they say nothing of.
    ``effort`` bounds the search, in comparisons of two values.

    Where sizes are expressions, so are offsets: values lie in the order that is best for typical sizes, each where those below it end. What
    a run works out before it begins, ``define`` nodes included, is in the graph's ``definitions``, pairs of a symbol and its value. A value
    whose size depends on data has the attribute ``dynamic`` instead, the number of a buffer that grows, shared by values that do not live at
    the same time; the graph's ``dynamic`` is how many there are, ``results`` has the buffer of each of its outputs, or None for memory that
    the caller gives.

    The arena of a region lies in the one around it, at its node's ``offset``. The results of an ``if`` or ``loop`` are in buffers: ``dynamic``
    is a tuple of their numbers. A loop's ``following`` has those of the condition and of what the body carries on. The outputs of a region
    that groups make have no place of their own: they go to the buffers of its node.
    """

    effort: int = 400_000
    name: ClassVar[str] = "plan-memory"
    stage: ClassVar[Stage] = Stage.PLANNED

    def run(self, graph: Graph) -> PassResult:
        if "arena_bytes" in graph.attrs:  # planned before
            return PassResult(graph, changed=False)
        planner = _Planner(graph, self.effort)
        level, results = planner.graph(graph)
        bound = None if planner.symbolic else level.bound
        attrs = {**graph.attrs, "arena_bytes": level.arena, "arena_bound_bytes": bound, "arena_peak": level.peak}
        if planner.definitions:
            attrs["definitions"] = tuple(planner.definitions.items())
        if planner.dynamic:
            attrs |= {"dynamic": planner.dynamic, "results": results}
        note = f"{level.arena} bytes, lower bound {'not known' if bound is None else bound}, {planner.in_place} in place"
        return PassResult(graph.with_(nodes=level.nodes, attrs=attrs), changed=True, notes=(note,))


class _Slot:
    """Memory for one value, or for several that follow each other in place, or for the arena of a node's regions."""

    def __init__(self, nbytes: Dim, first: int, last: int) -> None:
        self.nbytes = nbytes
        self.first = first
        self.last = last


@dataclass(frozen=True)
class _Level:
    """A planned graph or region: its nodes, the bytes of its arena and, for typical sizes, the most that live at once, and the name of a node
    at which they do."""

    nodes: tuple[Node, ...]
    arena: Dim
    bound: int
    peak: str


class _Planner:
    """Plans a graph and the regions in it, adding to ``definitions`` as offsets are found."""

    def __init__(self, graph: Graph, effort: int) -> None:
        self._effort = effort
        self._typical = typical_sizes(graph)
        self._named: dict[Dim, Dim] = {}
        self.definitions: dict[str, Dim] = {}
        self.symbolic = any(True for value in graph.inputs for _ in type_symbols(value.type))
        self.dynamic = 0
        self.in_place = 0

    def graph(self, graph: Graph) -> tuple[_Level, tuple[int | None, ...]]:
        """The whole graph, and the buffers of its outputs."""
        roots, branching = memory_roots(graph), {v for node in graph.nodes if node.op in BRANCHING for v in node.outputs}
        given = {roots[v] for v in graph.outputs if roots[v] not in branching and all(map(self._known, v.type.shape))}
        kept = {root: self._buffer() for root in dict.fromkeys(roots[v] for v in graph.outputs) if root not in given}
        level = self._level(graph, given, kept)
        return level, tuple(kept.get(roots[v]) for v in graph.outputs)

    def _define(self, graph: Graph) -> None:
        """Take over the symbols of a graph that follow from known ones."""
        for symbol, value in derived_sizes(graph, self._typical).items():
            self._add(symbol, value)

    def _add(self, symbol: str, value: Dim) -> None:
        self.definitions[symbol] = value
        self._typical[symbol] = evaluate(value, self._typical)

    def _known(self, size: Dim) -> bool:
        """Whether a run knows a size before it begins."""
        return all(name in self._typical for name in symbols(size))

    def _buffer(self) -> int:
        self.dynamic += 1
        return self.dynamic - 1

    def _level(self, graph: Graph, given: set[Value], kept: Mapping[Value, int]) -> _Level:
        """A graph, of which the roots in ``given`` have memory from outside and those in ``kept`` a buffer of their own."""
        self._define(graph)
        places, ranges = memory_places(graph), live_ranges(graph)
        roots = {value: place.root for value, place in places.items()}
        inner = {node: self._regions(node, number) for number, node in enumerate(graph.nodes) if node.op in BRANCHING}
        slots, in_place = self._slots(graph, {*graph.inputs, *graph.constants, *given, *kept}, roots, ranges)
        made = {v for node in graph.nodes for v in node.outputs if roots[v] is v}
        buffers = {**kept, **self._shared([v for v in made if v not in slots and v not in given and v not in kept], ranges)}
        blocks = list(dict.fromkeys([*slots.values(), *(slot for slot, _ in inner.values())]))
        offsets, arena, (bound, peak) = self._arrange(blocks)
        nodes = []
        for node in graph.nodes:
            attrs, regions = dict(node.attrs), node.regions
            if node in inner:
                slot, regions = inner[node]
                attrs |= {"offset": offsets[slot], "dynamic": tuple(buffers[v] for v in node.outputs)}
                if node.op == "loop":
                    loop = Loop.of(node)
                    attrs["following"] = tuple(self._buffer() for _ in range(len(loop.body.outputs) - len(loop.scans)))
            elif node.op == "group":
                slot_of = [slots.get(roots[v]) for v in node.outputs]
                found = {
                    "offset": tuple(
                        None if slot is None else offsets[slot] + places[v].offset for v, slot in zip(node.outputs, slot_of, strict=True)
                    ),
                    "dynamic": tuple(buffers.get(v) for v in node.outputs),
                    "in_place": tuple(in_place.get(v) for v in node.outputs),
                }
                attrs |= {name: items for name, items in found.items() if any(item is not None for item in items)}
            if node.op != "define" or node.attrs["symbol"] not in self._typical:
                nodes.append(replace(node, attrs=attrs, regions=regions))
        return _Level(tuple(nodes), arena, bound, graph.nodes[peak].name if bound else "")

    def _regions(self, node: Node, number: int) -> tuple[_Slot, tuple[Graph, ...]]:
        """The planned regions of a node, and memory for the arena of whichever runs."""
        levels = [(region, self._level(region, direct_outputs(region), {})) for region in node.regions]
        arena: Dim = 0
        for _, level in levels:
            arena = maximum(arena, level.arena)
        return _Slot(self._name(arena), number, number), tuple(region.with_(nodes=level.nodes) for region, level in levels)

    def _shared(self, values: Sequence[Value], ranges: Mapping[Value, tuple[int, int]]) -> dict[Value, int]:
        """Buffers for values; one is used again when what it held is not needed any more."""
        found: dict[Value, int] = {}
        free: list[tuple[int, int]] = []
        for value in sorted(values, key=lambda v: ranges[v]):
            first, last = ranges[value]
            number = next((k for k, (until, _) in enumerate(free) if until < first), None)
            buffer = self._buffer() if number is None else free.pop(number)[1]
            free.append((last, buffer))
            found[value] = buffer
        return found

    def _slots(
        self, graph: Graph, outside: set[Value], roots: Mapping[Value, Value], ranges: Mapping[Value, tuple[int, int]]
    ) -> tuple[dict[Value, _Slot], dict[Value, int]]:
        """The memory of each value in the arena, and the results that are written over an operand, with its number."""
        slots: dict[Value, _Slot] = {}
        in_place: dict[Value, int] = {}
        for number, node in enumerate(graph.nodes):
            if node.op != "group":
                continue
            operands = [slots.get(roots[v]) for v in node.present_inputs]
            taken: set[int] = set()
            for value, over in zip(node.outputs, overwritable(node, roots), strict=True):
                root = roots[value]
                if root in slots or root in outside or not self._known(root.type.nbytes):
                    continue
                first, last = ranges[root]
                for operand in over if root is value else ():
                    slot = operands[operand]
                    if slot is not None and slot.last == number and operand not in taken:
                        in_place[value], slots[value], slot.last = operand, slot, last
                        taken.add(operand)
                        break
                else:
                    slots[root] = _Slot(root.type.nbytes, first, last)
        self.in_place += len(in_place)
        return slots, in_place

    def _arrange(self, blocks: Sequence[_Slot]) -> tuple[dict[_Slot, Dim], Dim, tuple[int, int]]:
        """Offsets, the bytes of the arena, and the most bytes that live at once for typical sizes, with the number of a node at which they do."""
        intervals = [Interval(aligned(evaluate(block.nbytes, self._typical)), block.first, block.last) for block in blocks]
        places, arena = place(intervals, self._effort)
        peak = live_peak(intervals)
        if all(isinstance(block.nbytes, int) for block in blocks):
            return dict(zip(blocks, places, strict=True)), arena, peak
        offsets: dict[_Slot, Dim] = {}
        beneath: dict[int, set[int]] = {}
        end: Dim = 0
        for number in sorted(range(len(blocks)), key=lambda i: (places[i], i)):
            below = {other for other in beneath if intervals[other].overlaps(intervals[number])}
            next_below = [other for other in sorted(below) if not any(other in beneath[between] for between in below)]
            offset = self._name(_highest(offsets[blocks[other]] + aligned(blocks[other].nbytes) for other in next_below))
            offsets[blocks[number]] = offset
            beneath[number] = below
        under = set().union(*beneath.values())
        end = _highest(offsets[blocks[top]] + aligned(blocks[top].nbytes) for top in sorted(beneath.keys() - under))
        return offsets, self._name(end), peak

    def _name(self, value: Dim) -> Dim:
        """value, or a symbol that is defined as it where it is more than a number."""
        if isinstance(value, int):
            return value
        if value not in self._named:
            symbol = f"size.{len(self._named)}"
            self._named[value] = sym(symbol)
            self._add(symbol, value)
        return self._named[value]


def arena_bound(graph: Graph) -> int:
    """The most bytes of a grouped graph's arena that are alive at once, for typical sizes where they are not known."""
    return _Planner(graph, 0).graph(graph)[0].bound


def direct_outputs(region: Graph) -> set[Value]:
    """The roots of a region's outputs that groups make, which write them where its node wants them."""
    branching = {value for node in region.nodes if node.op in BRANCHING for value in node.outputs}
    return {root for root in map(memory_roots(region).__getitem__, region.outputs) if root not in branching}


def _highest(ends: Iterable[Dim]) -> Dim:
    found: Dim | None = None
    for end in ends:
        found = end if found is None else maximum(found, end)
    return 0 if found is None else found
