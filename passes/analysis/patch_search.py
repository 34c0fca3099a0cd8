"""Which values to compute patch by patch so that less memory is needed, from estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as cartesian
from math import prod

from compiler.ir.box import Box, sizes
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import is_elementwise
from passes.analysis.estimate import element_work
from passes.analysis.liveness import memory_roots
from passes.analysis.patches import Patch, cartesian_boxes, grid_boxes, patches

_CUTS, _SOURCES = 10, 3
"""Values behind the peak that may be computed in pieces, and values before it from which they may be."""

_ROWS, _COLUMNS, _PIECES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16), (1, 2, 3, 4, 6, 8), 64
"""Pieces along the first and the second spatial axis, and the most of them: each is a copy of the code that calls kernels."""

_CALL_WORK = 50_000
"""What running one more kernel costs, in simple instructions: about a microsecond."""


@dataclass(frozen=True)
class Candidate:
    """``value`` in a ``grid`` of pieces, from ``source`` on: the work this adds, the bytes that then live at once there, and those elsewhere."""

    value: Value
    grid: tuple[int, ...]
    source: Value | None
    extra_work: int
    peak_bytes: int
    rest_bytes: int


@dataclass(frozen=True)
class _Lives:
    """For each node of a canonical graph the bytes alive while it runs, and whether its result alone is alive after it."""

    bytes_during: Sequence[int]
    alone: Sequence[bool]

    @classmethod
    def of(cls, graph: Graph) -> _Lives:
        """Elementwise nodes are taken to write over an operand that ends there, which fusion or the planner makes true."""
        roots = dict(memory_roots(graph))
        outside = {*graph.inputs, *graph.constants}
        last: dict[Value, int] = {}
        for number, node in enumerate(graph.nodes):
            last.update({roots[value]: number for value in node.present_inputs})
        last.update({roots[value]: len(graph.nodes) for value in graph.outputs})
        results = {roots[value] for value in graph.outputs}
        live: dict[Value, int] = {}
        during, alone = [], []
        for number, node in enumerate(graph.nodes):
            dying = [value for value in live if last[value] <= number]
            made = [value for value in node.outputs if roots[value] is value]
            over = sum(live[value] for value in dying) if is_elementwise(node) else 0
            size = {value: 0 if value in results or value in outside else _nbytes(value) for value in made}
            during.append(sum(live.values()) + max(0, sum(size.values()) - over))
            live.update({value: nbytes for value, nbytes in size.items() if value in last})
            for value in dying:
                del live[value]
            alone.append(len(node.outputs) == 1 and list(live) == [roots[node.output]])
        return cls(during, alone)


def candidates(graph: Graph, budget: int) -> list[Candidate]:
    """Ways to compute in patches what is alive where the budget is passed first, the one that adds the least work first."""
    lives = _Lives.of(graph)
    most = min(budget, max(lives.bytes_during, default=0) - 1)
    peak = next((number for number, nbytes in enumerate(lives.bytes_during) if nbytes > most), 0)
    single = [number for number, alone in enumerate(lives.alone) if alone and 2 * _nbytes(graph.nodes[number].output) <= budget]
    sources = [number for number in single if number < peak][-_SOURCES:]
    found: list[Candidate] = []
    for cut in [number for number in single if number >= peak][:_CUTS]:
        for source in [None, *sources]:
            begin = 0 if source is None else source + 1
            rest = max((*lives.bytes_during[:begin], *lives.bytes_during[cut + 1 :]), default=0)
            value = graph.nodes[cut].output
            found += _grids(graph, value, None if source is None else graph.nodes[source].output, rest)
    return sorted(found, key=lambda candidate: (candidate.extra_work, candidate.peak_bytes))


def _grids(graph: Graph, value: Value, source: Value | None, rest: int) -> Iterator[Candidate]:
    shape = value.type.static_shape
    seen = set()
    for grid in _possible(shape):
        spans = grid_boxes(shape, grid)
        counts = tuple(len(axis) for axis in spans)
        if prod(counts) == 1 or counts in seen:
            continue
        seen.add(counts)
        middle = tuple(axis[len(axis) // 2] for axis in spans)
        # Two boxes: what only one of all needs whole is no reason to compute it before.
        found = patches(graph, value, (middle, cartesian_boxes(spans)[0]), source)
        if found:
            yield _candidate(graph, value, source, counts, found[0], rest)


def _possible(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Grids for a value: of an image its rows and columns, else rows of whatever it is."""
    rank = len(shape)
    if rank >= 4:
        for rows, columns in cartesian(_ROWS, _COLUMNS):
            if rows * columns <= _PIECES and rows <= shape[2] and columns <= shape[3]:
                yield (1, 1, rows, columns, *(1,) * (rank - 4))
        return
    for axis in range(rank - 1 if rank == 2 else 1, rank):
        for rows in _ROWS:
            if rows <= shape[axis]:
                yield (*(1,) * axis, rows, *(1,) * (rank - axis - 1))


def _candidate(graph: Graph, value: Value, source: Value | None, grid: tuple[int, ...], patch: Patch, rest: int) -> Candidate:
    pieces = prod(grid)
    each = sum(_work(step.node, step.box) for step in patch.steps)
    plain = sum(_work(step.node, None) for step in patch.steps)
    kernels = sum(not is_elementwise(step.node) for step in patch.steps)
    whole, reads = _nbytes(value), _read_whole(graph, patch)
    outside = value in graph.outputs
    peak = max(_peak(patch) + whole, whole if outside else 2 * whole) + reads
    return Candidate(value, grid, source, pieces * each - plain + _CALL_WORK * kernels * (pieces - 1), peak, rest)


def _work(node: Node, box: Box | None) -> int:
    return element_work(node) * prod(node.output.type.static_shape if box is None else sizes(box))


def _read_whole(graph: Graph, patch: Patch) -> int:
    """The bytes of what is made before the patches and read by them."""
    outside = {*graph.inputs, *graph.constants}
    read = {value for step in patch.steps for value in step.node.present_inputs if value not in patch.boxes and value not in outside}
    return sum(map(_nbytes, read))


def _peak(patch: Patch) -> int:
    """The most bytes of a patch that live at once."""
    last = {value: number for number, step in enumerate(patch.steps) for value in step.node.present_inputs}
    live: dict[Value, int] = {}
    peak = 0
    for number, step in enumerate(patch.steps):
        made = _box_bytes(step.node.output, step.box)
        pieces = _cut_bytes(step.node.present_inputs, step.part.boxes, patch.boxes)
        dying = [value for value in live if last.get(value, -1) <= number]
        over = sum(live[value] for value in dying) if is_elementwise(step.node) else 0
        peak = max(peak, sum(live.values()) + pieces + max(0, made - over))
        for value in dying:
            del live[value]
        live[step.node.output] = made
    return peak


def _cut_bytes(operands: Sequence[Value], boxes: Sequence[Box], known: Mapping[Value, Box]) -> int:
    """The bytes of operands that are cut out of larger ones; constants are cut when the model is compiled, and are small where they broadcast."""
    return sum(_box_bytes(value, box) for value, box in zip(operands, boxes, strict=True) if value in known and known[value] != box)


def _box_bytes(value: Value, box: Box) -> int:
    return prod(sizes(box)) * value.type.dtype.itemsize


def _nbytes(value: Value) -> int:
    nbytes = value.type.nbytes
    return nbytes if isinstance(nbytes, int) else 0
