"""Memory planning: an offset in one arena for every group's result."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.errors import UserError
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import symbols
from compiler.ir.verify import ARENA_ALIGNMENT, Stage, is_elementwise
from passes.analysis.liveness import Interval, live_ranges, max_live_bytes, memory_roots
from passes.base import PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class PlanMemory:
    """Gives each group that does not write a graph output an ``offset`` (bytes, a multiple of 64), and the graph ``arena_bytes`` and
    ``arena_bound_bytes``, the most bytes alive at once: no plan for this order of nodes can be smaller.

    A group may write over an operand that is not needed later and of which it reads, elementwise, just what it writes; the attribute
    ``in_place`` is then that operand's number. ``effort`` bounds the search, in comparisons of two values.
    """

    effort: int = 400_000
    name: ClassVar[str] = "plan-memory"
    stage: ClassVar[Stage] = Stage.PLANNED

    def run(self, graph: Graph) -> PassResult:
        require_static(graph)
        slots, in_place = _slots(graph)
        blocks = list(dict.fromkeys(slots.values()))
        intervals = [block.interval for block in blocks]
        bound = max_live_bytes(intervals)
        offsets, arena = place(intervals, self.effort)
        where = dict(zip(blocks, offsets, strict=True))
        nodes = []
        for node in graph.nodes:
            slot = slots.get(node.outputs[0])
            if slot is not None:
                over = {"in_place": in_place[node]} if node in in_place else {}
                node = Node(node.op, node.inputs, node.outputs, {**node.attrs, "offset": where[slot], **over}, node.regions, node.name)
            nodes.append(node)
        attrs = {**graph.attrs, "arena_bytes": arena, "arena_bound_bytes": bound}
        note = f"{arena} bytes, lower bound {bound}, {len(in_place)} in place"
        return PassResult(graph.with_(nodes=tuple(nodes), attrs=attrs), changed=True, notes=(note,))


def require_static(graph: Graph) -> None:
    """Raises UserError where a value's shape has symbolic dims, naming them."""
    values = (*graph.inputs, *(v for node in graph.nodes for v in node.outputs))
    names = sorted({name for value in values for dim in value.type.shape for name in symbols(dim)})
    if names:
        takers = [f"{v.name} {list(map(str, v.type.shape))}" for v in graph.inputs if not v.type.is_static]
        raise UserError(
            f"dims {', '.join(names)} are not known",
            where=f"model {graph.name}",
            hint=f"bind them with input_shapes; the inputs are {'; '.join(takers)}",
        )


_STORE_ONCE = frozenset({"conv", "matmul"})
"""Anchors whose kernels touch an output element once, with its epilogue; others may keep intermediate results there."""


class _Slot:
    """Memory for one value, or for several that follow each other in place."""

    def __init__(self, interval: Interval) -> None:
        self.interval = interval


def _slots(graph: Graph) -> tuple[dict[Value, _Slot], dict[Node, int]]:
    """The memory of each value in the arena, and the groups that write over an operand, with its number."""
    roots, ranges = memory_roots(graph), live_ranges(graph)
    outside = {*graph.inputs, *graph.constants, *(roots[v] for v in graph.outputs)}
    slots: dict[Value, _Slot] = {}
    in_place: dict[Node, int] = {}
    for number, node in enumerate(graph.nodes):
        for value in node.outputs:
            if roots[value] is not value or value in outside:
                continue
            first, last = ranges[value]
            over = _overwritable(node, [slots.get(roots[v]) for v in node.present_inputs], number)
            if over is None:
                slots[value] = _Slot(Interval(_size(value), first, last))
                continue
            in_place[node] = over
            slot = slots[value] = slots[roots[node.present_inputs[over]]]
            slot.interval = replace(slot.interval, last=last)
    return slots, in_place


def _overwritable(node: Node, slots: Sequence[_Slot | None], number: int) -> int | None:
    """The first operand whose memory the group may write its result to."""
    if node.op != "group":
        return None
    (region,) = node.regions
    if any(not is_elementwise(inner) and inner.op not in _STORE_ONCE for inner in region.nodes):
        return None
    for operand, (value, slot) in enumerate(zip(region.inputs, slots, strict=True)):
        type_, result = value.type, region.outputs[0].type
        same = (type_.shape, type_.block, type_.dtype.itemsize) == (result.shape, result.block, result.dtype.itemsize)
        if slot is None or not same or slot.interval.last != number or slot.interval.nbytes != _size(region.outputs[0]):
            continue
        # The same memory must not also come in as another operand, nor be read elsewhere than at the element written.
        alone = sum(other is slot for other in slots) == 1
        if alone and all(is_elementwise(user) for user in region.users.get(value, ())):
            return operand
    return None


def _size(value: Value) -> int:
    nbytes = value.type.nbytes
    return nbytes if isinstance(nbytes, int) else 0


def place(intervals: Sequence[Interval], effort: int) -> tuple[list[int], int]:
    """Offsets, multiples of 64, such that intervals that overlap in time do not in memory; and the bytes of arena that takes.

    First-fit in several orders, then random exchanges in the best one, until no arena of whole alignment units can be smaller or
    ``effort`` is spent (the result does not depend on the clock).
    """
    if not intervals:
        return [], 0
    neighbours = [[j for j, other in enumerate(intervals) if j != i and other.overlaps(one)] for i, one in enumerate(intervals)]
    orders = [sorted(range(len(intervals)), key=lambda i: key(intervals[i])) for key in _ORDERS]
    best_offsets, best_order = min(((_first_fit(intervals, neighbours, order), order) for order in orders), key=lambda p: _arena(intervals, p[0]))
    best = _arena(intervals, best_offsets)
    target = max_live_bytes(replace(i, nbytes=_aligned(i.nbytes)) for i in intervals)
    rng = random.Random(0)
    for _ in range(effort // (1 + sum(map(len, neighbours)))):
        if best <= target:
            break
        order = list(best_order)
        highest = max(order, key=lambda i: best_offsets[i] + intervals[i].nbytes)
        moved = rng.choice((highest, *neighbours[highest])) if rng.random() < 0.5 else rng.choice(order)
        order.remove(moved)
        order.insert(rng.randrange(len(order) + 1), moved)
        offsets = _first_fit(intervals, neighbours, order)
        size = _arena(intervals, offsets)
        if size <= best:
            best, best_order, best_offsets = size, order, offsets
    return best_offsets, best


_ORDERS: tuple[Callable[[Interval], tuple[int, ...]], ...] = (
    lambda i: (-i.nbytes, i.first),
    lambda i: (i.first - i.last, -i.nbytes),
    lambda i: (-i.nbytes * (i.last - i.first + 1), i.first),
    lambda i: (i.first, -i.nbytes),
    lambda i: (-i.last, -i.nbytes),
)


def _first_fit(intervals: Sequence[Interval], neighbours: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    offsets = [-1] * len(intervals)
    for i in order:
        size, at = intervals[i].nbytes, 0
        taken = sorted((offsets[j], offsets[j] + intervals[j].nbytes) for j in neighbours[i] if offsets[j] >= 0)
        for begin, end in taken:
            if at + size <= begin:
                break
            at = max(at, _aligned(end))
        offsets[i] = at
    return offsets


def _arena(intervals: Sequence[Interval], offsets: Sequence[int]) -> int:
    """The end of the last value, whole alignment units."""
    return _aligned(max(offset + interval.nbytes for offset, interval in zip(offsets, intervals, strict=True)))


def _aligned(nbytes: int) -> int:
    """nbytes rounded up to whole alignment units."""
    return -(-nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
