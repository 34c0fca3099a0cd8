"""The order of nodes in which the least memory lives at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from compiler.ir.graph import Graph, Node, Value, reads
from compiler.ir.places import held_starts, memory_roots
from compiler.ir.verify import Stage, is_view
from passes.analysis.liveness import aligned, estimated_bytes, overwritable, typical_sizes
from passes.base import PassResult, register_pass

_WIDEST = 64
"""Partial orders of one length that are kept; more found nothing better in any network tried."""


@register_pass
@dataclass(frozen=True)
class OrderNodes:
    """Puts groups in an order in which fewer bytes live at once, if it finds one; otherwise leaves them as they are.

    A beam search over the sets of nodes that can be done first: two orders of one set lead on alike, so only the one with the lower peak is
    kept, and ``effort`` bounds the steps tried. A node that neither raises the peak nor leaves more alive than before is done at once, which
    no other order improves on. Where an order is found, the search begins anew from it. Control nodes stay between the groups they stand
    between. Symbolic sizes count as typical ones. A graph with joins keeps its order, which is the one they were made for.
    """

    effort: int = 30_000
    name: ClassVar[str] = "order-nodes"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        if any(held_starts(node) for node in graph.nodes):
            return PassResult(graph, changed=False)
        peaks: list[int] = []
        while True:
            problem = _Problem.of(graph)
            peaks.append(problem.peak(range(len(problem.steps))))
            least = max((problem.needed(number) for number in range(len(problem.steps))), default=0)
            width = max(1, min(_WIDEST, self.effort // max(1, len(problem.steps))))
            order = problem.search(peaks[-1], width) if peaks[-1] > least else None
            if order is None:
                notes = (f"{peaks[0]} bytes at once before, {peaks[-1]} after",) if len(peaks) > 1 else ()
                return PassResult(graph, len(peaks) > 1, notes)
            graph = graph.with_(nodes=_with_views(graph, [problem.steps[number].node for number in order]))


@dataclass(frozen=True)
class _Step:
    """A node that is not a view: what it reads from the arena, what it makes there, and which of its operands each of that could be written over."""

    node: Node
    before: int
    reads: tuple[Value, ...]
    made: tuple[Value, ...]
    over: tuple[tuple[Value, ...], ...]

    def written_over(self, dead: Sequence[Value]) -> dict[Value, Value]:
        """Which of what it makes it would write over which operand, if it could over those in ``dead``."""
        found: dict[Value, Value] = {}
        for value, operands in zip(self.made, self.over, strict=True):
            operand = next((operand for operand in operands if operand in dead and operand not in found.values()), None)
            if operand is not None:
                found[value] = operand
        return found


class _State(NamedTuple):
    """The steps of ``done`` in some order: the most bytes that lived at once, those that live now, and the order, last step first."""

    done: int
    ready: int
    peak: int
    live: int
    order: tuple[int, _State] | None

    def numbers(self) -> list[int]:
        """The steps in order."""
        found: list[int] = []
        state = self
        while state.order is not None:
            number, state = state.order
            found.append(number)
        return found[::-1]


@dataclass(frozen=True)
class _Problem:
    """The steps of a graph, which of them follow each, which read each value, and the bytes of values in the arena; sets are bits of integers."""

    steps: Sequence[_Step]
    after: Sequence[tuple[int, ...]]
    readers: Mapping[Value, int]
    nbytes: Mapping[Value, int]

    @classmethod
    def of(cls, graph: Graph) -> _Problem:
        roots, sizes = memory_roots(graph), typical_sizes(graph)
        outside = {*graph.inputs, *graph.constants, *(roots[v] for v in graph.outputs)}
        steps: list[_Step] = []
        after: list[list[int]] = []
        readers: dict[Value, int] = {}
        nbytes: dict[Value, int] = {}
        makers: dict[Value, int] = {}
        barrier = 0
        for node in graph.nodes:
            if is_view(node):
                continue
            number = len(steps)
            read = tuple(dict.fromkeys(roots[value] for value in reads(node)))
            if node.op == "group":
                before = barrier | sum({1 << makers[value] for value in read if value in makers})
                pairs = zip(node.outputs, overwritable(node, roots), strict=True)
                made = {
                    value: tuple(roots[node.present_inputs[operand]] for operand in operands) for value, operands in pairs if value not in outside
                }
            else:
                before, made = (1 << number) - 1, {}
                barrier = 1 << number
            makers.update(dict.fromkeys(node.outputs, number))
            nbytes.update({value: aligned(estimated_bytes(value.type, sizes)) for value in made})
            for value in read:
                readers[value] = readers.get(value, 0) | 1 << number
            over = tuple(tuple(v for v in operands if v in nbytes) for operands in made.values())
            steps.append(_Step(node, before, tuple(v for v in read if v in nbytes), tuple(made), over))
            after.append([])
            for earlier in _bits(before):
                after[earlier].append(number)
        return cls(steps, [tuple(numbers) for numbers in after], readers, nbytes)

    def needed(self, number: int) -> int:
        """The bytes that live while a step runs in any order."""
        step = self.steps[number]
        over = step.written_over(step.reads)
        return sum(self.nbytes[value] for value in (*step.made, *step.reads) if value not in over)

    def peak(self, order: Sequence[int]) -> int:
        """The most bytes that live at once in an order."""
        state = _State(0, 0, 0, 0, None)
        for number in order:
            state = self._next(state, number)
        return state.peak

    def search(self, limit: int, width: int) -> list[int] | None:
        """The best order found with a peak below limit."""
        first = sum(1 << number for number, step in enumerate(self.steps) if not step.before)
        states = [_State(0, first, 0, 0, None)]
        for _ in self.steps:
            found: dict[int, _State] = {}
            for state in states:
                for following in self._followers(state):
                    known = found.get(following.done)
                    if following.peak < limit and (known is None or following.peak < known.peak):
                        found[following.done] = following
            states = sorted(found.values(), key=lambda state: (state.peak, state.live, state.done))[:width]
        return states[0].numbers() if states else None

    def _followers(self, state: _State) -> Iterator[_State]:
        """The state after each step that may come next; after one alone where it costs nothing."""
        following = []
        for number in _bits(state.ready):
            after = self._next(state, number)
            if after.peak <= state.peak and after.live <= state.live:
                yield after
                return
            following.append(after)
        yield from following

    def _next(self, state: _State, number: int) -> _State:
        step = self.steps[number]
        done = state.done | 1 << number
        ready = state.ready & ~(1 << number)
        for later in self.after[number]:
            if not self.steps[later].before & ~done:
                ready |= 1 << later
        dead = [value for value in step.reads if not self.readers[value] & ~done]
        made = sum(self.nbytes[value] for value in step.made)
        during = state.live + made - sum(self.nbytes[value] for value in step.written_over(dead))
        live = state.live + made - sum(self.nbytes[value] for value in dead)
        live -= sum(self.nbytes[value] for value in step.made if value not in self.readers)
        return _State(done, ready, max(state.peak, during), live, (number, state))


def _bits(numbers: int) -> Iterator[int]:
    """The set bits, lowest first."""
    while numbers:
        lowest = numbers & -numbers
        yield lowest.bit_length() - 1
        numbers ^= lowest


def _with_views(graph: Graph, order: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes in order, every view before the first node that reads it; views that only the outputs need come last."""
    placed: dict[Node, None] = {}

    def place(value: Value) -> None:
        views = []
        while (node := graph.producers.get(value)) is not None and is_view(node) and node not in placed:
            views.append(node)
            (value, *_) = node.present_inputs
        placed.update(dict.fromkeys(reversed(views)))

    for node in order:
        for value in reads(node):
            place(value)
        placed[node] = None
    for value in graph.outputs:
        place(value)
    placed.update(dict.fromkeys(graph.nodes))
    return tuple(placed)
