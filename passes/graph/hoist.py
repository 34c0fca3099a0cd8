"""Work of branches and loops that is the same whichever way a run goes, done once before them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.control import BRANCHING, CONTROL, If, Loop, defined_symbols, own_symbols
from compiler.ir.graph import Constant, Graph, Node, Value, reads
from compiler.ir.op import lookup
from compiler.ir.printer import print_attr
from compiler.ir.scalar import divisors
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.analysis.estimate import expression
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute

_LEFT = frozenset({"expand", "identity"})
"""Ops that give more to read than they save: they stay, unless what is taken out reads them."""

_HASHED_BYTES = 1 << 20
"""Size up to which constants are compared by their content; larger ones are the same where they are one array."""


@register_pass
@dataclass(frozen=True)
class HoistInvariants:
    """Nodes of a loop's body that read nothing but constants and captured values move in front of the loop; of the branches of an ``if``,
    those that are in both of them, or before it as well. What is left behind captures what it reads of them.

    What a run may end at with an error stays where it is, since the region need not run at all; so does what a ``check`` in it may guard.
    """

    name: ClassVar[str] = "hoist-invariants"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        if not any(node.op in BRANCHING for node in graph.nodes):
            return PassResult(graph, changed=False)
        builder, numbers, count = builder_for(graph), _Numbers(), 0
        for value, constant in graph.constants.items():
            numbers.of[value] = numbers.constant(constant)
        for node in graph.nodes:
            moved = _in_loop(node, numbers) if node.op == "loop" else _in_branches(node, numbers) if node.op == "if" else ()
            count += sum(map(len, moved))
            builder.append(_without(node, moved, numbers, builder) if any(moved) else node)
            numbers.add(node)
        return PassResult(finish(builder, graph, graph.outputs), count > 0, (f"{count} nodes",) if count else ())


@dataclass
class _Numbers:
    """A number for each value, the same for those that hold the same: constants of one content, results of one op on the same operands."""

    of: dict[Value, int] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def constant(self, constant: Constant) -> int:
        return self._number("constant", constant.digest if constant.array.nbytes <= _HASHED_BYTES else id(constant.array))

    def input(self, value: Value) -> int:
        return self.of.setdefault(value, self._number("input", value))

    def result(self, node: Node, operands: Iterable[int | None]) -> int:
        attrs = tuple(sorted((name, print_attr(attr)) for name, attr in node.attrs.items()))
        return self._number(node.op, tuple(operands), attrs, node.output.type)

    def add(self, node: Node) -> None:
        """Number the results of a node of the graph around."""
        if len(node.outputs) == 1 and not node.regions:
            self.of[node.output] = self.result(node, (None if v is None else self.input(v) for v in node.inputs))
            self.made.add(self.of[node.output])

    def _number(self, *key: object) -> int:
        return self._known.setdefault(key, len(self._known))


def _in_loop(node: Node, numbers: _Numbers) -> Sequence[list[Node]]:
    """The nodes of the body that move, in order."""
    loop = Loop.of(node)
    if loop.trips in (0, 1):
        return ()
    changing = {loop.iteration, *(merge.symbol for merge in loop.merges)}
    alike = _alike(loop.body, loop.body.inputs[len(loop.initial) :], loop.captured, changing, numbers)
    return (_worth(loop.body, list(alike)),)


def _in_branches(node: Node, numbers: _Numbers) -> Sequence[list[Node]]:
    """The nodes of each branch that move, in order."""
    branch = If.of(node)
    found = [_alike(region, region.inputs, branch.captured, (), numbers) for region in node.regions]
    common = set.intersection(*({*alike.values()} for alike in found)) | numbers.made
    return [_worth(region, [inner for inner, number in alike.items() if number in common]) for region, alike in zip(node.regions, found, strict=True)]


def _alike(region: Graph, inputs: Sequence[Value], captured: Sequence[Value], changing: Iterable[str], numbers: _Numbers) -> dict[Node, int]:
    """The nodes of a region, in order, that compute the same wherever they stand, and the numbers of their results."""
    own = {*changing, *(name for node in region.nodes for name in defined_symbols(node))}
    same = {value: numbers.input(outer) for value, outer in zip(inputs, captured, strict=True)}
    same.update((value, numbers.constant(constant)) for value, constant in region.constants.items())
    found: dict[Node, int] = {}
    guarded = False
    for node in region.nodes:
        guarded = guarded or node.op == "check"
        static = all(value.type.is_static for value in (*node.present_inputs, *node.outputs))
        known = node.op not in CONTROL and all(value in same for value in node.present_inputs) and own.isdisjoint(own_symbols(node))
        if known and (static or not guarded) and _always_succeeds(node) and node.output not in region.outputs:
            found[node] = same[node.output] = numbers.result(node, (None if v is None else same[v] for v in node.inputs))
    return found


def _always_succeeds(node: Node) -> bool:
    """Whether no run ends with an error at a node: arithmetic without division of integers, and what moves elements from known places."""
    if len(node.outputs) != 1:
        return False
    if is_elementwise(node):
        expr = expression(node)
        return expr is not None and not divisors(expr)
    op, types = lookup(node.op), [value.type for value in node.present_inputs]
    return op.computes or op.is_view or op.regions(types, node.attrs) is not None


def _worth(region: Graph, nodes: Sequence[Node]) -> list[Node]:
    """Those of nodes that are work, and those that they read."""
    taken: list[Node] = []
    needed: set[Value] = set()
    for node in reversed(nodes):
        work = node.op not in _LEFT and not is_view(node) and any(value not in region.constants for value in node.present_inputs)
        if work or node.output in needed:
            taken.append(node)
            needed.update(node.present_inputs)
    return taken[::-1]


def _without(node: Node, moved: Sequence[list[Node]], numbers: _Numbers, builder: GraphBuilder) -> Node:
    """The node without nodes of its regions, which are emitted before it, and whose results the regions capture."""
    captured = Loop.of(node).captured if node.op == "loop" else If.of(node).captured
    emitted: dict[int, Value] = {}
    results: list[dict[Value, Value]] = []
    for region, nodes in zip(node.regions, moved, strict=True):
        twins = dict(zip(region.inputs[len(region.inputs) - len(captured) :], captured, strict=True))
        same = {value: numbers.input(outer) for value, outer in twins.items()}
        for inner in nodes:
            for value in inner.present_inputs:
                if value in region.constants and value not in twins:
                    twins[value] = builder.adopt(Value(builder.unique(value.name), value.type), region.constants[value])
                    same[value] = numbers.constant(region.constants[value])
            number = same[inner.output] = numbers.result(inner, (None if v is None else same[v] for v in inner.inputs))
            if number not in emitted:
                emitted[number] = Value(builder.unique(inner.output.name), inner.output.type)
                builder.append(substitute(inner, {**twins, inner.output: emitted[number]}))
            twins[inner.output] = emitted[number]
        results.append({inner.output: twins[inner.output] for inner in nodes})
    read = [_read(region, nodes, made) for region, nodes, made in zip(node.regions, moved, results, strict=True)]
    added = tuple(dict.fromkeys(outer for values in read for outer in values))
    regions = tuple(_reduced(*each, added, builder) for each in zip(node.regions, moved, results, strict=True))
    return replace(node, inputs=(*node.inputs, *added), regions=regions)


def _read(region: Graph, gone: Container[Node], results: Mapping[Value, Value]) -> list[Value]:
    """The results of nodes that are gone which others read, as they are called outside."""
    left = dict.fromkeys(value for node in region.nodes if node not in gone for value in reads(node))
    return [results[value] for value in left if value in results]


def _reduced(region: Graph, gone: Container[Node], results: Mapping[Value, Value], added: Sequence[Value], builder: GraphBuilder) -> Graph:
    """The region without nodes, with ``added`` among its inputs in the place of their results."""
    inputs = {outer: Value(builder.unique(outer.name), outer.type) for outer in added}
    twins = {value: inputs[outer] for value, outer in results.items() if outer in inputs}
    nodes = tuple(substitute(node, twins) for node in region.nodes if node not in gone)
    return region.with_(nodes=nodes, inputs=(*region.inputs, *inputs.values()))
