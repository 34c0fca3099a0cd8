"""From which node to which the memory of each value of a grouped graph is needed, and what may be written over."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from compiler.ir.control import type_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, IntExpr, evaluate, symbols
from compiler.ir.op import lookup
from compiler.ir.places import memory_roots
from compiler.ir.types import TensorType
from compiler.ir.verify import ARENA_ALIGNMENT, inner_nodes, is_elementwise

_TYPICAL, _TYPICAL_STEP = 48, 16
"""The size that the first symbol is taken for where memory is compared, and how much larger each further one is."""

_STORE_ONCE = frozenset({"attention", "conv", "gather", "matmul"})
"""Anchors whose kernels touch an output element once, with its epilogue, as those of index maps do; others may keep intermediate results there."""

_OVER_OPERAND = frozenset({"softmax"})
"""Of the others those whose kernels do not read an element of their operand after they write that element of the result, an epilogue apart."""

_REGIONS = 1 << 10
"""Groups of which what is found is remembered: passes look at the same ones again and again."""


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
    """For every root the first node that makes some of it and the last that reads some; inputs and constants start at -1, outputs never end."""
    roots = memory_roots(graph)
    ranges = dict.fromkeys((*graph.inputs, *graph.constants), (-1, -1))
    for number, node in enumerate(graph.nodes):
        for value in node.present_inputs:
            ranges[roots[value]] = (ranges[roots[value]][0], number)
        for value in node.outputs:
            ranges.setdefault(roots[value], (number, number))
    for value in graph.outputs:
        ranges[roots[value]] = (ranges[roots[value]][0], len(graph.nodes))
    return ranges


def max_live_bytes(intervals: Iterable[Interval]) -> int:
    """The most bytes needed at one node: no arena can be smaller."""
    return live_peak(intervals)[0]


def live_peak(intervals: Iterable[Interval]) -> tuple[int, int]:
    """The most bytes needed at one node, and the number of the first such node."""
    changes: dict[int, int] = {}
    for interval in intervals:
        changes[interval.first] = changes.get(interval.first, 0) + interval.nbytes
        changes[interval.last + 1] = changes.get(interval.last + 1, 0) - interval.nbytes
    live = peak = at = 0
    for number in sorted(changes):
        live += changes[number]
        if live > peak:
            peak, at = live, number
    return peak, at


_Size = TypeVar("_Size", int, Dim)


def aligned(nbytes: _Size) -> _Size:
    """nbytes rounded up to whole alignment units."""
    return (nbytes + (ARENA_ALIGNMENT - 1)) // ARENA_ALIGNMENT * ARENA_ALIGNMENT


def typical_sizes(graph: Graph) -> dict[str, int]:
    """A size for each symbol in the types of a graph's inputs, and for those that its ``define`` nodes derive from them."""
    names = sorted({name for value in graph.inputs for name in type_symbols(value.type)})
    sizes = {name: _TYPICAL + _TYPICAL_STEP * k for k, name in enumerate(names)}
    for symbol, value in derived_sizes(graph, sizes).items():
        sizes[symbol] = evaluate(value, sizes)
    return sizes


def derived_sizes(graph: Graph, known: Container[str]) -> dict[str, Dim]:
    """The symbols that a graph's own ``define`` nodes derive from known ones, in order, and what they stand for."""
    found: dict[str, Dim] = {}
    for node in graph.nodes:
        value = node.attrs.get("value")
        if node.op == "define" and isinstance(value, int | IntExpr) and all(name in known or name in found for name in symbols(value)):
            found[str(node.attrs["symbol"])] = value
    return found


def estimated_bytes(type_: TensorType, sizes: Mapping[str, int]) -> int:
    """The bytes a value has in the arena for such sizes; 0 for one that is not there, since its size is only known in a run."""
    nbytes = type_.nbytes
    return evaluate(nbytes, sizes) if sizes.keys() >= set(symbols(nbytes)) else 0


def _stores_once(node: Node) -> bool:
    if is_elementwise(node) or node.op in _STORE_ONCE:
        return True
    return lookup(node.op).regions([value.type for value in node.present_inputs], node.attrs) is not None


@lru_cache(_REGIONS)
def nodes_behind(region: Graph) -> frozenset[Node]:
    """The elementwise nodes of a group's region whose results are not read for its anchor, nor by inner groups."""
    before: set[Node] = set()
    for node in reversed(region.nodes):
        if node in before or not is_elementwise(node):
            before.update(region.producers[value] for value in node.present_inputs if value in region.producers)
    return frozenset(node for node in region.nodes if node not in before and is_elementwise(node))


@lru_cache(_REGIONS)
def _storing_twice(region: Graph) -> frozenset[str]:
    """The ops of a group's region whose kernels may keep intermediate results in its first result."""
    apart = inner_nodes(region)
    return frozenset(node.op for node in region.nodes if node not in apart and not _stores_once(node))


def overwritable(node: Node, roots: Mapping[Value, Value]) -> tuple[tuple[int, ...], ...]:
    """For each of a group's results the operands over whose memory it may be written, if nothing reads them later."""
    if node.op != "group":
        return tuple(() for _ in node.outputs)
    (region,) = node.regions
    memory = [roots[value] for value in node.present_inputs]
    # The same memory must not also come in as another operand.
    alone = [operand for operand, root in enumerate(memory) if memory.count(root) == 1 and root.type.nbytes == region.inputs[operand].type.nbytes]
    alike = [[operand for operand in alone if _same_bytes(region.inputs[operand].type, result.type)] for result in region.outputs]
    if not any(alike):
        return tuple(() for _ in node.outputs)
    anchors, behind = _storing_twice(region), nodes_behind(region)

    def fits(operand: int, number: int) -> bool:
        """Whether an operand is not read elsewhere than at the element written, as a prologue is; the first result may hold intermediate ones."""
        users = region.users.get(region.inputs[operand], ())
        if anchors and number == 0:
            return anchors <= _OVER_OPERAND and [user.op for user in users] == [*anchors]
        return behind.issuperset(users)

    return tuple(tuple(operand for operand in operands if fits(operand, number)) for number, operands in enumerate(alike))


def _same_bytes(one: TensorType, other: TensorType) -> bool:
    """Whether each element of two types is in the same bytes."""
    return (one.shape, one.block, one.dtype.itemsize) == (other.shape, other.block, other.dtype.itemsize)
