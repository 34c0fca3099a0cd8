"""Which values to compute patch by patch so that less memory is needed, from estimates.

Two places in the order of nodes bound a stretch that can be computed in patches if, of what is alive at its end, its last result alone is
new. A stretch between neighbouring places fits the budget as it is, or it does not; the cheapest way from the inputs to the outputs, through what
fits as it is and what fits in patches for some work more, is a shortest path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from compiler.ir.box import Box, sizes
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.places import memory_roots
from compiler.ir.verify import is_elementwise, is_view
from passes.analysis.estimate import element_work
from passes.analysis.patches import Step, cartesian_boxes, grid_boxes, patches

_STRETCH = 16
"""Places that one stretch in patches may span; recomputation grows with each."""

_ROWS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_SQUARES = ((3, 3), (4, 3), (4, 4), (5, 4), (5, 5), (6, 6), (7, 7), (8, 8))
_IMAGES = (tuple((rows, 1) for rows in _ROWS), tuple((rows, 2) for rows in range(2, 9)), _SQUARES)
"""Pieces along an axis, and along the rows and columns of an image, in kinds from coarse to fine."""

_CALL_WORK = 50_000
"""What running one more kernel costs, in simple instructions: about a microsecond."""


@dataclass(frozen=True)
class Patching:
    """``value`` in a ``grid`` of pieces, from ``source`` on (None: the inputs)."""

    value: Value
    grid: tuple[int, ...]
    source: Value | None


@dataclass(frozen=True)
class _Stretch:
    """The nodes from one place to another: the work this way adds, the bytes that live at once, and, where it is in patches, those of
    one and of the result, which do not get fewer from farther back, and how."""

    begin: int
    end: int
    work: int
    nbytes: int
    pieces_bytes: int = 0
    patching: Patching | None = None


@dataclass(frozen=True)
class _Place:
    """After the node of that number, and what is alive there."""

    number: int
    live: frozenset[Value]


class PatchSearch:
    """The stretches of a canonical graph whose sizes are known.

    Those that take at most ``enough`` bytes as they are stay so, and finer grids than such as do are not looked at. What takes more than
    ``most`` bytes in patches is left out.
    """

    def __init__(self, graph: Graph, enough: int, most: int) -> None:
        self._graph = graph
        self._enough = enough
        self._most = most
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}
        self._elementwise = {node for node in graph.nodes if is_elementwise(node)}
        self._element_work: dict[Node, int] = {}
        self._epilogues = {node: self._epilogue(node) for node in graph.nodes}
        self._roots = memory_roots(graph)
        self._during, self._places = self._whole_lives()
        self._stretches = [*self._plain(), *self._patched()]

    def cheapest(self, budget: int) -> list[Patching] | None:
        """What to compute in patches so that at most ``budget`` bytes live at once, for the least work; None where nothing found does."""
        return self._path([(stretch.work, 0, stretch) for stretch in self._stretches if stretch.nbytes <= budget])

    def smallest(self) -> list[Patching]:
        """What to compute in patches so that as few bytes as possible live at once."""
        return self._path([(stretch.work, stretch.nbytes, stretch) for stretch in self._stretches]) or []

    def _path(self, stretches: Iterable[tuple[int, int, _Stretch]]) -> list[Patching] | None:
        """The way from the first place to the last with the least of all bytes, then with the least work in all."""
        best: dict[int, tuple[int, int, list[Patching]]] = {0: (0, 0, [])}
        for work, nbytes, stretch in sorted(stretches, key=lambda found: found[2].begin):
            if stretch.begin not in best:
                continue
            most, total, way = best[stretch.begin]
            reached = (max(most, nbytes), total + work)
            if stretch.end not in best or reached < best[stretch.end][:2]:
                best[stretch.end] = (*reached, way if stretch.patching is None else [*way, stretch.patching])
        return best[len(self._places) - 1][2] if len(self._places) - 1 in best else None

    # -- stretches ----------------------------------------------------------------------------------------------

    def _plain(self) -> Iterator[_Stretch]:
        for number in range(len(self._places) - 1):
            yield _Stretch(number, number + 1, 0, self._most_during(number, number + 1))

    def _most_during(self, begin: int, end: int) -> int:
        """The most bytes that live at once from one place to another."""
        return max(self._during[self._places[begin].number + 1 : self._places[end].number + 1], default=0)

    def _patched(self) -> Iterator[_Stretch]:
        for end in range(1, len(self._places) - 1):
            value, live = self._value_at(end), self._places[end].live
            begins = [begin for begin in range(max(0, end - _STRETCH), end) if live - {value} <= self._places[begin].live]
            begins = [begin for begin in begins if self._most_during(begin, end) > self._enough]
            if begins and _nbytes(value) <= self._most:
                for grids in _grids(value.type.static_shape):
                    yield from self._patched_to(end, list(begins), grids)

    def _patched_to(self, end: int, begins: list[int], grids: Sequence[tuple[int, ...]]) -> Iterator[_Stretch]:
        """The stretches that end at a place, from each of some, in grids of one kind."""
        value = self._value_at(end)
        shape = value.type.static_shape
        seen = set()
        for grid in grids:
            spans = grid_boxes(shape, grid)
            counts = tuple(len(axis) for axis in spans)
            if prod(counts) == 1 or counts in seen or not begins:
                continue
            seen.add(counts)
            # Two boxes stand for all: what only some of them need whole is no reason to compute it before.
            middle = tuple(axis[len(axis) // 2] for axis in spans)
            found = patches(self._graph, value, (middle, cartesian_boxes(spans)[0]), self._source_at(begins[0]))
            for begin in reversed(begins) if found else ():
                steps = [step for step in found[0].steps if self._numbers[step.node] > self._places[begin].number]
                stretch = self._stretch(begin, end, steps, Patching(value, counts, self._source_at(begin)))
                if stretch.nbytes <= self._most:
                    yield stretch
                if stretch.nbytes <= self._enough:
                    begins.remove(begin)
                if stretch.pieces_bytes > self._most:
                    break

    def _value_at(self, place: int) -> Value:
        return self._graph.nodes[self._places[place].number].output

    def _source_at(self, place: int) -> Value | None:
        return self._value_at(place) if place else None

    def _stretch(self, begin: int, end: int, steps: Sequence[Step], patching: Patching) -> _Stretch:
        boxes = {step.node.output: step.box for step in steps}
        reads = [(step.node, value, box) for step in steps for value, box in zip(step.node.present_inputs, step.part.boxes, strict=True)]
        cut = {step.node: 0 for step in steps}
        for node, value, box in reads:
            have = boxes.get(value)
            if value not in self._graph.constants and (sizes(box) != (value.type.static_shape if have is None else sizes(have))):
                cut[node] += _nbytes(value, box)
        made = {value: _nbytes(value, box) for value, box in boxes.items()}
        each = max(nbytes for nbytes, _ in self._lives([step.node for step in steps], made, cut, (patching.value,)))
        outside = {*self._graph.inputs, *self._graph.constants, *self._graph.outputs}
        kept = {*self._places[begin].live, *(self._roots[value] for _, value, _ in reads if value not in boxes)} - outside
        whole = sum(map(_nbytes, kept))
        inside = {self._numbers[step.node] for step in steps}
        numbers = range(self._places[begin].number + 1, self._places[end].number + 1)
        before = max((self._during[number] for number in numbers if number not in inside), default=0)
        # Pieces are made where they lie in the value, so that all of it is alive from the first one on.
        work, pieces = self._extra_work(steps, cut, prod(patching.grid)), each + _nbytes(patching.value)
        return _Stretch(begin, end, work, max(before, pieces + whole), pieces, patching)

    def _extra_work(self, steps: Sequence[Step], cut: Mapping[Node, int], pieces: int) -> int:
        each = sum(self._work(step.node, step.box) + cut[step.node] // 4 for step in steps)
        once = sum(self._work(step.node) for step in steps)
        kernels = sum(step.node not in self._elementwise for step in steps)
        return max(0, pieces * each - once) + _CALL_WORK * kernels * (pieces - 1)

    def _work(self, node: Node, box: Box | None = None) -> int:
        if node not in self._element_work:
            self._element_work[node] = element_work(node)
        return self._element_work[node] * prod(node.output.type.static_shape if box is None else sizes(box))

    # -- lives --------------------------------------------------------------------------------------------------

    def _whole_lives(self) -> tuple[list[int], list[_Place]]:
        """For each node the bytes alive while it runs; and the places: before the nodes, after each whose result is in memory, behind them."""
        graph, roots = self._graph, self._roots
        results = {roots[value] for value in graph.outputs}
        made = {v: 0 if v in results else _nbytes(v) for node in graph.nodes for v in node.outputs if roots[v] is v}
        during, places = [], [_Place(-1, frozenset())]
        for number, (nbytes, live) in enumerate(self._lives(graph.nodes, made, {}, graph.outputs, roots)):
            during.append(nbytes)
            outputs = graph.nodes[number].outputs
            if len(outputs) == 1 and outputs[0] in live and outputs[0].type.rank > 0 and 0 not in outputs[0].type.shape:
                places.append(_Place(number, frozenset(live)))
        return during, [*places, _Place(len(graph.nodes), frozenset())]

    def _lives(
        self,
        nodes: Sequence[Node],
        made: Mapping[Value, int],
        cut: Mapping[Node, int],
        kept: Iterable[Value],
        roots: Mapping[Value, Value] | None = None,
    ) -> Iterator[tuple[int, list[Value]]]:
        """For each node the bytes alive while it runs, and the values alive after it; ``cut`` are bytes that a node needs beside its operands.

        A node that only an epilogue reads is done with that, which writes over an operand of its own that ends there.
        """
        memory = roots or {}
        place = {node: number for number, node in enumerate(nodes)}
        ends: dict[Node, int] = {}
        last = {memory.get(value, value): len(nodes) for value in kept}
        by_anchor: set[tuple[int, Value]] = set()
        beside: dict[int, int] = {}
        for number, node in reversed(list(enumerate(nodes))):
            epilogue = self._epilogues[node]
            end = ends[node] = ends[epilogue] if epilogue in place else number
            beside[end] = beside.get(end, 0) + cut.get(node, 0)
            for value in node.present_inputs:
                root = memory.get(value, value)
                last[root] = max(last.get(root, 0), end)
                if node not in self._elementwise:
                    by_anchor.add((end, root))
        live: dict[Value, int] = {}
        for number, node in enumerate(nodes):
            if ends[node] > number:
                yield 0, []
                continue
            ending = [value for value in live if last.get(value, 0) <= number]
            results = {value: made[value] for value in node.outputs if value in made}
            size = sum(results.values())
            over = node in self._elementwise and any(live[value] == size and (number, value) not in by_anchor for value in ending)
            yield sum(live.values()) + beside[number] + (0 if over else size), _after(live, results, ending, last)

    def _epilogue(self, node: Node) -> Node | None:
        """The elementwise node that alone reads a node's result, and does so element by element."""
        if len(node.outputs) != 1 or node.output in self._graph.outputs or is_view(node):
            return None
        users = self._graph.users.get(node.output, ())
        fits = len(users) == 1 and users[0] in self._elementwise and users[0].output.type.shape == node.output.type.shape
        return users[0] if fits and lookup(node.op).takes_epilogue else None


def _after(live: dict[Value, int], results: Mapping[Value, int], ending: Sequence[Value], last: Mapping[Value, int]) -> list[Value]:
    """Take over what a node makes and ends; the values alive then, those that hold no memory of ours left out unless just made."""
    live.update({value: nbytes for value, nbytes in results.items() if value in last})
    for value in ending:
        del live[value]
    return [value for value, nbytes in live.items() if nbytes or value in results]


def _grids(shape: Sequence[int]) -> Iterator[list[tuple[int, ...]]]:
    """Grids of each kind for a value, coarse ones first: of an image its rows and columns, else rows of whatever it is."""
    rank = len(shape)
    if rank >= 4:
        for kind in _IMAGES:
            yield [(1, 1, rows, columns, *(1,) * (rank - 4)) for rows, columns in kind if rows <= shape[2] and columns <= shape[3]]
        return
    for axis in range(min(1, rank - 1), rank):
        yield [(*(1,) * axis, rows, *(1,) * (rank - axis - 1)) for rows in _ROWS if rows <= shape[axis]]


def _nbytes(value: Value, box: Box | None = None) -> int:
    return prod(value.type.static_shape if box is None else sizes(box)) * value.type.dtype.itemsize
