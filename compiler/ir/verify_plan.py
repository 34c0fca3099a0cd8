"""The rules of the planned stage, checked for several sizes of what is symbolic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compiler.errors import InternalError
from compiler.ir.control import BRANCHING, planned_places, planned_sizes, type_symbols
from compiler.ir.graph import Attr, Graph, Node, Value
from compiler.ir.intexpr import IntExpr, evaluate, symbols
from compiler.ir.places import memory_places
from compiler.ir.printer import print_node

ARENA_ALIGNMENT = 64
"""Bytes; offsets in the arena and in the weights blob are multiples of it."""

_SIZES = ((1, 0), (2, 1), (7, 3), (100, 50), (3, 400))
"""The first symbol's size, and how much larger each further one is."""


def verify_plan(graph: Graph, where: str) -> None:
    """Raises InternalError, naming the node, where values that live at the same time overlap, or one lies outside the arena."""
    names = sorted({name for value in graph.inputs for name in type_symbols(value.type)})
    for first, step in _SIZES if names else _SIZES[:1]:
        sizes = {name: first + step * k for k, name in enumerate(names)}
        for name, value in planned_sizes(graph):
            sizes[name] = evaluate(value, sizes)
        if _below_zero(graph, sizes):
            continue
        arena = _size(graph.attrs.get("arena_bytes"), sizes, where)
        end = _Level(graph, sizes, where).end()
        if end > arena:
            raise InternalError(f"values reach to byte {end}, outside the arena of {arena}", where=where)


def _below_zero(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether a value would have a dim below zero: a run of such sizes is refused."""
    dims = (dim for node in graph.nodes for value in node.outputs for dim in value.type.shape)
    return any(evaluate(dim, sizes) < 0 for dim in dims if sizes.keys() >= set(symbols(dim)))


def _size(value: object, sizes: Mapping[str, int], where: str) -> int:
    if not isinstance(value, int | IntExpr):
        raise InternalError(f"{value!r} is not a number of bytes", where=where)
    return evaluate(value, sizes)


class _Level:
    """A graph or region; offsets count from the beginning of its arena. What a value lies in is alive from the first node that makes some of it."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], where: str) -> None:
        self._graph = graph
        self._places = memory_places(graph)
        self._sizes = sizes
        self._where = where
        self._begins: dict[Value, int] = {}

    def end(self) -> int:
        """Where the last value ends."""
        last = self._last_reads()
        outside = {self._places[value].root for value in self._graph.outputs}
        live: list[tuple[int, int, int, Value | None]] = []
        highest = 0
        for step, node in enumerate(self._graph.nodes):
            place = f"{self._where}, node {print_node(node)}"
            live = [entry for entry in live if entry[0] >= step]
            for begin, end, value, over in self._taken(node, outside, place):
                written_over = None if over is None else self._places[node.present_inputs[over]].root
                for last_read, other_begin, other_end, other in live:
                    allowed = other is not None and other is written_over and last_read == step and begin == other_begin
                    if begin < other_end and other_begin < end and not allowed:
                        name = "a region's arena" if other is None else f"%{other.name}"
                        raise InternalError(f"overlaps {name}, which is still read", where=place)
                live.append((step if value is None else last.get(value, step), begin, end, value))
                highest = max(highest, end)
        return highest

    def _taken(self, node: Node, outside: set[Value], place: str) -> Iterator[tuple[int, int, Value | None, int | None]]:
        """The arena that a node is the first to take: for what its results lie in, and the operands these are written over, or for its regions."""
        if node.op in BRANCHING:
            begin = _aligned(self._offset(node.attrs.get("offset"), place), place)
            yield begin, begin + max(_Level(region, self._sizes, place).end() for region in node.regions), None, None
        elif node.op == "group":
            planned = (planned_places(node, name, place) for name in ("offset", "dynamic", "in_place"))
            for value, offset, buffer, over in zip(node.outputs, *planned, strict=True):
                lies = self._places[value]
                if buffer is not None or (offset is None and lies.root in outside):
                    continue
                begin = _aligned(self._offset(offset, place) - _size(lies.offset, self._sizes, place), place)
                if lies.root not in self._begins:
                    yield begin, begin + _size(lies.root.type.nbytes, self._sizes, place), lies.root, over if isinstance(over, int) else None
                elif self._begins[lies.root] != begin:
                    raise InternalError(f"%{lies.root.name}'s operands are not at their places in it, of which one begins at {begin}", where=place)
                self._begins[lies.root] = begin

    def _offset(self, given: Attr, place: str) -> int:
        if not isinstance(given, int | IntExpr):
            raise InternalError(f"offset {given!r} is not a number of bytes", where=place)
        return evaluate(given, self._sizes)

    def _last_reads(self) -> Mapping[Value, int]:
        """The last node that reads some of what lies in each memory; the number of nodes for outputs."""
        last: dict[Value, int] = {}
        for step, node in enumerate(self._graph.nodes):
            last.update((self._places[value].root, step) for value in node.present_inputs)
        last.update((self._places[value].root, len(self._graph.nodes)) for value in self._graph.outputs)
        return last


def _aligned(offset: int, where: str) -> int:
    if offset < 0 or offset % ARENA_ALIGNMENT:
        raise InternalError(f"offset {offset} is not a multiple of {ARENA_ALIGNMENT}", where=where)
    return offset
