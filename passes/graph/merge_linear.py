"""Linear regions in their cheapest equal form: re-parameterisation, and folding of normalisation into weights, as one piece of algebra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import Stage
from passes.base import PassResult, RuleEvent, register_pass
from passes.claims import Claim, part_of
from passes.graph.dead_code import EliminateDeadCode
from passes.linear.emit import Emitter
from passes.linear.forms import Domain
from passes.linear.search import Component, Search
from passes.rewrite import rewrite

_ROUNDS = 8
"""Searches at the most: what one made may let the next, which reads it afresh, find more. Most graphs take one and a look."""


@register_pass
@dataclass(frozen=True)
class MergeLinear:
    """Convolutions, matrix products by constants, factors and shifts per channel, sums, averages, zero padding, and slices, concatenations and
    shuffles of channels are linear maps. Where maps in sequence or side by side are one that costs less, it takes their place; the rest stays.
    New weights are computed in float64 and rounded once; ``work_limit`` is how many multiply-adds that may take in all of a graph. Weights in half
    precision, which another rounding could take out of range, stay as they are.

    ``%a = conv(%x, %w3); %b = conv(%x, %w1); %s = add(%a, %b); %y = add(%s, %x)`` becomes ``%y = conv(%x, %w)``.
    """

    work_limit: int = 1 << 32
    name: ClassVar[str] = "merge-linear"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        merges: list[RuleEvent] = []
        claims: list[Claim] = []
        work = self.work_limit
        for _ in range(_ROUNDS):
            graph, events, found, work = _round(graph, work)
            merges += [event for event in events if event.reason is None]
            claims += found
            if not found:
                break
        left = [event for event in events if event.reason is not None]
        return PassResult(graph, bool(claims), _notes([*merges, *left]), (*merges, *left), tuple(claims))


def _round(graph: Graph, work: int) -> tuple[Graph, list[RuleEvent], list[Claim], int]:
    """One search in each domain: the graph, what was merged or left and why, the claims of the merges, and what is left of ``work``."""
    events: list[RuleEvent] = []
    claims: list[Claim] = []
    for domain in (Domain(windowed=True), Domain(windowed=False)):
        search = Search(graph, domain, work)
        merged: dict[Value, Emitter] = {}
        components = search.run()
        work = search.work_left
        for component in components:
            emitters = {value: Emitter.of(form, value, domain) for value, form in component.forms.items()}
            finite = {value: emitter for value, emitter in emitters.items() if emitter is not None}
            what = _described(graph, component)
            if len(finite) < len(emitters):
                events.append(RuleEvent("merge", what, "its weights would not be finite"))
                continue
            merged.update(finite)
            events.append(RuleEvent("merge", what))
            claims.append(Claim(what, partial(_sides, graph, search.nodes, finite)))
        for (operand, value), reason in search.blocked():
            events.append(RuleEvent("insert", f"{_name(graph, operand)} in {_name(graph, value)}", reason))
        if merged:
            graph = EliminateDeadCode().run(_replaced(graph, merged)).graph
    return graph, events, claims, work


def _notes(events: Sequence[RuleEvent]) -> tuple[str, ...]:
    """How much was merged, and how often what was in the way."""
    merged = sum(event.reason is None for event in events)
    left = Counter(event.reason for event in events if event.reason is not None)
    return (*((f"{merged} regions merged",) if merged else ()), *(f"{count} times left: {reason}" for reason, count in sorted(left.items())))


def _sides(graph: Graph, nodes: Container[Node], emitters: Mapping[Value, Emitter]) -> tuple[Graph, Graph]:
    """What the graph says of the values that the emitters are of, and what they say themselves."""
    operands = (term.operand for emitter in emitters.values() for term in emitter.form.terms)
    before = part_of(graph, nodes, (value for value in operands if value not in emitters), emitters)
    return before, EliminateDeadCode().run(_replaced(before, emitters)).graph


def _replaced(graph: Graph, emitters: Mapping[Value, Emitter]) -> Graph:
    now: dict[Value, Value] = {}

    def rule(node: Node, builder: GraphBuilder) -> Value | None:
        emitter = emitters.get(node.output)
        if emitter is not None:
            now[node.output] = emitter.emit(builder, now, node.name)
        return now.get(node.output)

    return rewrite(graph, rule)[0]


def _described(graph: Graph, component: Component) -> str:
    """A component's nodes, as ops and how many of each, and the nodes it ends in."""
    ops = Counter(node.op for form in component.before.values() for node in form.kept)
    kinds = ", ".join(f"{count} {op}" for op, count in sorted(ops.items()))
    return f"{kinds} into {', '.join(_name(graph, value) for value in component.forms)}"


def _name(graph: Graph, value: Value) -> str:
    return graph.producers[value].name or value.name
