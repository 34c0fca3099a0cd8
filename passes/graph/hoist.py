"""Work that every iteration of a loop would do alike, done once before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.control import CONTROL, Loop, defined_symbols, own_symbols
from compiler.ir.graph import Graph, Node, Value, reads
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, divisors
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute

_LEFT = frozenset({"expand", "identity"})
"""Ops that give more to read than they save: they stay, unless what is taken out reads them."""


@register_pass
@dataclass(frozen=True)
class HoistInvariants:
    """Nodes of a loop's body that read nothing but constants and captured values move in front of the loop, which captures what they make.

    What a run may end at with an error stays where it is, since the loop need not run at all; so does what a ``check`` in the body may guard.
    """

    name: ClassVar[str] = "hoist-invariants"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        if not any(node.op == "loop" for node in graph.nodes):
            return PassResult(graph, changed=False)
        builder, count = builder_for(graph), 0
        for node in graph.nodes:
            taken = _taken(Loop.of(node)) if node.op == "loop" else []
            builder.append(_without(node, taken, builder) if taken else node)
            count += len(taken)
        return PassResult(finish(builder, graph, graph.outputs), count > 0, (f"{count} nodes",) if count else ())


def _taken(loop: Loop) -> list[Node]:
    """The nodes of the body that move, in order."""
    if loop.trips in (0, 1):
        return []
    body = loop.body
    own = {loop.iteration, *(merge.symbol for merge in loop.merges), *(name for node in body.nodes for name in defined_symbols(node))}
    same = {*body.constants, *body.inputs[len(loop.initial) :]}
    alike: list[Node] = []
    guarded = False
    for node in body.nodes:
        guarded = guarded or node.op == "check"
        types = [value.type for value in (*node.present_inputs, *node.outputs)]
        if (
            node.op not in CONTROL
            and own.isdisjoint(own_symbols(node))
            and same.issuperset(node.present_inputs)
            and not (guarded and not all(type_.is_static for type_ in types))
            and _always_succeeds(node)
            and body.outputs.count(node.output) == 0
        ):
            alike.append(node)
            same.update(node.outputs)
    needed: set[Value] = set()
    taken: list[Node] = []
    for node in reversed(alike):
        worth = node.op not in _LEFT and not is_view(node) and any(value not in body.constants for value in node.present_inputs)
        if worth or not needed.isdisjoint(node.outputs):
            taken.append(node)
            needed.update(node.present_inputs)
    return taken[::-1]


def _always_succeeds(node: Node) -> bool:
    """Whether no run ends with an error at a node: arithmetic without division of integers, and what moves elements from known places."""
    if len(node.outputs) != 1:
        return False
    op, types = lookup(node.op), [value.type for value in node.present_inputs]
    if is_elementwise(node):
        expression = op.scalar([Arg(number, type_.dtype) for number, type_ in enumerate(types)], node.attrs)
        return expression is not None and not any(True for _ in divisors(expression))
    return op.computes or op.is_view or op.regions(types, node.attrs) is not None


def _without(node: Node, taken: list[Node], builder: GraphBuilder) -> Node:
    """The loop without nodes of its body, which are emitted before it, and whose results it captures where others read them."""
    loop = Loop.of(node)
    twins: dict[Value, Value] = dict(zip(loop.body.inputs[len(loop.initial) :], loop.captured, strict=True))
    for value in dict.fromkeys(value for inner in taken for value in inner.present_inputs if value in loop.body.constants):
        twins[value] = builder.adopt(Value(builder.unique(value.name), value.type), loop.body.constants[value])
    for inner in taken:
        twins.update((value, Value(builder.unique(value.name), value.type)) for value in inner.outputs)
        builder.append(substitute(inner, twins))
    gone = set(taken)
    left = [inner for inner in loop.body.nodes if inner not in gone]
    captured = list(_read(left, [value for inner in taken for value in inner.outputs]))
    body = loop.body.with_(nodes=tuple(left), inputs=(*loop.body.inputs, *captured))
    return replace(node, inputs=(*node.inputs, *(twins[value] for value in captured)), regions=(body,))


def _read(nodes: list[Node], values: list[Value]) -> Iterator[Value]:
    """Those of values that some of the nodes read."""
    read = {value for node in nodes for value in reads(node)}
    return (value for value in values if value in read)
