"""The rules of the planned stage, checked for several sizes of what is symbolic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.control import BRANCHING, planned_sizes, type_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, IntExpr, evaluate, symbols
from compiler.ir.printer import print_node

ARENA_ALIGNMENT = 64
"""Bytes; offsets in the arena and in the weights blob are multiples of it."""

_SIZES = ((1, 0), (2, 1), (7, 3), (100, 50), (3, 400))
"""The first symbol's size, and how much larger each further one is."""


@dataclass(frozen=True)
class Memory:
    """Which nodes share memory: views with their first operand, from the byte ``view_offset`` on, others with all operands, at the bytes
    ``held_offsets``."""

    view_offset: Callable[[Node], Dim | None]
    held_offsets: Callable[[Node], tuple[Dim, ...]]


def verify_plan(graph: Graph, memory: Memory, where: str) -> None:
    """Raises InternalError, naming the node, where values that live at the same time overlap, or one lies outside the arena."""
    names = sorted({name for value in graph.inputs for name in type_symbols(value.type)})
    for first, step in _SIZES if names else _SIZES[:1]:
        sizes = {name: first + step * k for k, name in enumerate(names)}
        for name, value in planned_sizes(graph):
            sizes[name] = evaluate(value, sizes)
        if _below_zero(graph, sizes):
            continue
        arena = _size(graph.attrs.get("arena_bytes"), sizes, where)
        end = _Level(graph, memory, sizes, where).end()
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
    """A graph or region; offsets count from the beginning of its arena."""

    def __init__(self, graph: Graph, memory: Memory, sizes: Mapping[str, int], where: str) -> None:
        self._graph = graph
        self._memory = memory
        self._sizes = sizes
        self._where = where
        self._owner: dict[Value, Value] = {}
        self._parts: dict[Value, dict[Value, int]] = {}
        self._begins: dict[Value, int] = {}
        offsets: dict[Value, Dim] = {}
        for node in graph.nodes:
            begin = memory.view_offset(node)
            source = None if begin is None else node.inputs[0]
            for value in node.outputs:
                self._owner[value] = self._owner.get(source, source) if source is not None else value
                if source is not None and begin is not None:
                    offsets[value] = offsets.get(source, 0) + begin
            for value, at in zip(node.present_inputs, memory.held_offsets(node), strict=False):
                parts = self._parts.setdefault(node.output, {})
                parts[self._owner.get(value, value)] = _size(at - offsets.get(value, 0), sizes, where)
        self._held = {part for parts in self._parts.values() for part in parts}

    def end(self) -> int:
        """Where the last value ends."""
        last = self._last_reads()
        outside = {part for value in self._graph.outputs for part in self._with_parts(self._owner.get(value, value))}
        live: list[tuple[int, int, int, Value | None]] = []
        highest = 0
        for step, node in enumerate(self._graph.nodes):
            place = f"{self._where}, node {print_node(node)}"
            over = node.attrs.get("in_place")
            written_over = self._owner.get(node.present_inputs[over]) if isinstance(over, int) else None
            covered = set() if written_over is None else set(self._with_parts(written_over))
            live = [entry for entry in live if entry[0] >= step]
            for begin, end, value in self._taken(node, outside, place):
                for last_read, other_begin, other_end, other in live:
                    allowed = other in covered and last_read == step and written_over is not None and begin == self._begins[written_over]
                    if begin < other_end and other_begin < end and not allowed:
                        name = "a region's arena" if other is None else f"%{other.name}"
                        raise InternalError(f"overlaps {name}, which is still read", where=place)
                live.append((step if value is None else last.get(value, step), begin, end, value))
                highest = max(highest, end)
            for value in self._parts.keys() & node.outputs:
                self._join(value, place)
        return highest

    def _taken(self, node: Node, outside: set[Value], place: str) -> Iterator[tuple[int, int, Value | None]]:
        """The arena that a node takes: for its result, or for its regions."""
        if node.op in BRANCHING:
            begin = self._offset(node, place)
            yield begin, begin + max(_Level(region, self._memory, self._sizes, place).end() for region in node.regions), None
        elif node.op == "group" and "dynamic" not in node.attrs and ("offset" in node.attrs or node.output not in outside):
            begin = self._begins[node.output] = self._offset(node, place)
            yield begin, begin + _size(node.output.type.nbytes, self._sizes, place), node.output

    def _offset(self, node: Node, place: str) -> int:
        given = node.attrs.get("offset")
        offset = evaluate(given, self._sizes) if isinstance(given, int | IntExpr) else -1
        if offset < 0 or (offset % ARENA_ALIGNMENT and not self._held.issuperset(node.outputs)):
            raise InternalError(f"offset {given!r} is not a multiple of {ARENA_ALIGNMENT}", where=place)
        return offset

    def _join(self, value: Value, place: str) -> None:
        """Take note of where a value begins that holds others, which lie where it has them."""
        begins = {self._begins[part] - offset for part, offset in self._parts[value].items() if part in self._begins}
        if len(begins) > 1 or (value not in self._held and any(begin % ARENA_ALIGNMENT for begin in begins)):
            raise InternalError(f"its operands are not at their places in it, which begins at {sorted(begins)}", where=place)
        self._begins.update((value, begin) for begin in begins)

    def _with_parts(self, value: Value) -> Iterator[Value]:
        """A value and those that it holds."""
        yield value
        for part in self._parts.get(value, ()):
            yield from self._with_parts(part)

    def _last_reads(self) -> Mapping[Value, int]:
        last: dict[Value, int] = {}
        ends = [(value, len(self._graph.nodes)) for value in self._graph.outputs]
        for value, step in (*((v, step) for step, node in enumerate(self._graph.nodes) for v in node.present_inputs), *ends):
            last.update(dict.fromkeys(self._with_parts(self._owner.get(value, value)), step))
        return last
