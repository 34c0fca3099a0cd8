"""Values that grow in a loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.control import Loop
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class AppendInLoops:
    """A carried value whose next one is a ``concat`` of it and more becomes one that the loop appends to, so that an iteration writes what is
    new alone: it costs what it adds, not what there is.
    """

    name: ClassVar[str] = "append-in-loops"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        nodes = [_appending(node) if node.op == "loop" else node for node in graph.nodes]
        count = sum(new is not old for new, old in zip(nodes, graph.nodes, strict=True))
        notes = (f"{count} nodes",) if count else ()
        return PassResult(graph.with_(nodes=tuple(nodes)), changed=count > 0, notes=notes) if count else PassResult(graph, changed=False)


def _appending(node: Node) -> Node:
    loop = Loop.of(node)
    begin, body = int(loop.has_condition), loop.body
    grown: dict[Node, Node] = {}
    for position, value in enumerate(loop.next_values):
        made = body.producers[value]
        if position not in loop.appended and _adds(made, body.inputs[position]) and value not in body.users:
            tail = _tail(made)
            grown.update({} if tail is None else {made: tail})
    if not grown:
        return node
    twins = {old.output: new.output for old, new in grown.items()}
    outputs = tuple(twins.get(value, value) for value in body.outputs)
    appended = tuple(p for p, value in enumerate(outputs[begin : begin + len(loop.initial)]) if p in loop.appended or value in twins.values())
    region = body.with_(nodes=tuple(grown.get(inner, inner) for inner in body.nodes), outputs=outputs)
    return replace(node, regions=(region,), attrs={**node.attrs, "appended": appended})


def _tail(made: Node) -> Node | None:
    """The node that makes what a ``concat`` puts behind its first operand; None where several tell less of their sizes than it."""
    rest, value = made.present_inputs[1:], made.output
    added = sum((v.type.shape[0] for v in rest), start=0)
    tail = Value(value.name, replace(value.type, shape=(added, *value.type.shape[1:])))
    if len(rest) > 1:
        known = lookup("concat").infer([v.type for v in rest], made.attrs) == (tail.type,)
        return replace(made, inputs=rest, outputs=(tail,)) if known else None
    op, attrs = ("identity", {}) if rest[0].type == tail.type else ("reshape", {"shape": tail.type.shape})
    return replace(made, op=op, inputs=rest, outputs=(tail,), attrs=attrs)


def _adds(made: Node, carried: Value) -> bool:
    """Whether a node puts more behind a carried value along its first axis."""
    return made.op == "concat" and made.attrs["axis"] == 0 and len(made.inputs) > 1 and made.inputs[0] is carried
