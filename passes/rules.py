"""Rules: a pattern, a check that says why it does not hold, and the nodes that take its place; and what applies them to a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from passes.base import PassResult, RuleEvent
from passes.graph.dead_code import EliminateDeadCode
from passes.pattern import Either, Match, Operation, Pattern, matches, operations
from passes.rewrite import rewrite

_ROUNDS = 64
"""Sweeps over a graph until nothing matches; each finds what those before it made."""


def _accept(_: Match) -> str | None:
    return None


@dataclass(frozen=True)
class Rule:
    """Where ``pattern`` is found and ``check`` gives no reason against it, ``build`` makes the value that takes its place.

    Values inside a match may be read outside of it only where ``shared``: replacing the match would leave them to be computed as before.
    The value built must have the type of the one it replaces.
    """

    name: str
    pattern: Pattern
    build: Callable[[Match, GraphBuilder], Value]
    check: Callable[[Match], str | None] = _accept
    shared: bool = False


def _roots(pattern: Pattern) -> frozenset[str]:
    """The operators a match can end in."""
    match pattern:
        case Operation(ops):
            return frozenset(ops)
        case Either(patterns):
            return frozenset().union(*map(_roots, patterns))
        case _:
            raise InternalError("a rule's pattern must end in an operator", where="passes.rules")


@dataclass
class _Nearest:
    """The failure that came furthest."""

    depth: int = 0
    reason: Callable[[], str] = field(default=lambda: "")

    def __call__(self, match: Match, reason: Callable[[], str]) -> None:
        if len(match.nodes) > self.depth:
            self.depth, self.reason = len(match.nodes), reason


@dataclass(frozen=True)
class _Readers:
    """The results of the nodes that read each value, None standing for the caller; values made by rules inherit those of what they replace."""

    of: dict[Value, frozenset[Value | None]]

    @classmethod
    def in_graph(cls, graph: Graph) -> _Readers:
        found: dict[Value, frozenset[Value | None]] = {v: frozenset(r for n in nodes for r in n.outputs) for v, nodes in graph.users.items()}
        for output in graph.outputs:
            found[output] = found.get(output, frozenset()) | {None}
        return cls(found)

    def outside(self, match: Match) -> str | None:
        """The first value inside the match that is read outside of it, in words."""
        made = {v for node in match.nodes for v in node.outputs}
        for node in match.nodes[1:]:
            for result in node.outputs:
                others = self.of.get(result, frozenset({None})) - made
                if others:
                    who = sorted(f"%{v.name}" if v is not None else "the caller" for v in others)[0]
                    return f"%{result.name} is also read by {who}"
        return None


def apply_rules(graph: Graph, rules: Sequence[Rule]) -> PassResult:
    """The graph with every rule applied until none matches; events say what matched, and then what nearly did and never matched."""
    by_root: dict[str, list[Rule]] = {}
    for rule in rules:
        for root in _roots(rule.pattern):
            by_root.setdefault(root, []).append(rule)
    done: list[RuleEvent] = []
    missed: dict[tuple[str, str], RuleEvent] = {}
    for _ in range(_ROUNDS):
        graph, events = _sweep(graph, by_root)
        applied = [event for event in events if event.reason is None]
        done += applied
        missed.update({(event.rule, event.node): event for event in events})
        if not applied:
            counts = Counter(event.rule for event in done)
            notes = tuple(f"{count} {name}" for name, count in sorted(counts.items()))
            return PassResult(graph, bool(done), notes, (*done, *(event for event in missed.values() if event.reason is not None)))
        graph = EliminateDeadCode().run(graph).graph  # what matches have left behind reads their values
    raise InternalError(f"nodes still change after {_ROUNDS} rounds: two rules undo each other", where="passes.rules")


def _sweep(graph: Graph, by_root: dict[str, list[Rule]]) -> tuple[Graph, list[RuleEvent]]:
    readers = _Readers.in_graph(graph)
    events: list[RuleEvent] = []

    def rule(node: Node, builder: GraphBuilder) -> Value | None:
        for each in by_root.get(node.op, ()):
            found, reason = _apply(each, node, builder, readers)
            if found is not None or reason is not None:
                events.append(RuleEvent(each.name, node.name or node.output.name, reason))
            if found is not None:
                readers.of[found] = readers.of.get(node.output, frozenset())
                return found
        return None

    result, _ = rewrite(graph, rule)
    return result, events


def _apply(rule: Rule, node: Node, builder: GraphBuilder, readers: _Readers) -> tuple[Value | None, str | None]:
    """What replaces node's result, or, for a near miss, the reason it stays."""
    refusal = None
    for pattern in rule.pattern.patterns if isinstance(rule.pattern, Either) else (rule.pattern,):
        nearest, complete = _Nearest(), False
        for match in matches(pattern, node.output, Match(builder, node), nearest):
            complete = True
            reason = rule.check(match) or (None if rule.shared else readers.outside(match))
            if reason is None:
                return _built(rule, match), None
            refusal = refusal or reason
        if not complete and nearest.depth >= 2 and 2 * nearest.depth > len(operations(pattern)):
            refusal = refusal or nearest.reason()
    return None, refusal


def _built(rule: Rule, match: Match) -> Value:
    result, found = match.root.output, rule.build(match, match.builder)
    if found.type != result.type:
        raise InternalError(f"%{result.name} of type {result.type} would become {found.type}", where=f"rule {rule.name}")
    return found
