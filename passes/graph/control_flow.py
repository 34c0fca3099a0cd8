"""Branches that are known, and what regions take, carry or give for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.control import BRANCHING, If, Loop, defined_symbols, read_symbols, type_symbols
from compiler.ir.graph import Graph, Node, Value, reads
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute


@register_pass
@dataclass(frozen=True)
class SimplifyControlFlow:
    """An ``if`` whose condition is a constant becomes the nodes of its branch. Values that a region takes and does not read, results that no
    one reads, and values that a loop carries without changing them are taken out of ``if`` and ``loop``.
    """

    name: ClassVar[str] = "simplify-control-flow"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        if not any(node.op in BRANCHING for node in graph.nodes):
            return PassResult(graph, changed=False)
        uses = _Uses(graph)
        builder, twins, count = builder_for(graph), dict[Value, Value](), 0
        for original in graph.nodes:
            node = substitute(original, twins)
            if node.op not in BRANCHING:
                builder.append(node)
                continue
            used = uses.used(original)
            kept, same = _if(node, builder, used) if node.op == "if" else _loop(node, used)
            count += kept is not node
            if kept is not None:
                builder.append(kept)
            for value, twin in same.items():
                if value in graph.outputs:
                    builder.append(Node("identity", (twin,), (value,), name=node.name))
                else:
                    twins[value] = twin
        result = finish(builder, graph, graph.outputs)
        return PassResult(result, count > 0, (f"{count} nodes",) if count else ())


_Step = tuple[Node | None, Mapping[Value, Value]]
"""The node as it is to be (None: it is gone), and values in the place of results that it made."""


def _if(node: Node, builder: GraphBuilder, used: set[Value]) -> _Step:
    branch = If.of(node)
    known = builder.array(branch.condition)
    if known is not None:
        return None, _inlined(node, branch, bool(known.item()), builder)
    kept = [number for number, value in enumerate(node.outputs) if value in used]
    read = [_read(region) for region in node.regions]
    taken = [
        number for number in range(len(branch.captured)) if any(region.inputs[number] in r for region, r in zip(node.regions, read, strict=True))
    ]
    if len(kept) == len(node.outputs) and len(taken) == len(branch.captured):
        return node, {}
    smaller = tuple(
        region.with_(inputs=tuple(region.inputs[i] for i in taken), outputs=tuple(region.outputs[i] for i in kept)) for region in node.regions
    )
    inputs = (branch.condition, *(branch.captured[i] for i in taken))
    return _with_merges_of(replace(node, inputs=inputs, outputs=tuple(node.outputs[i] for i in kept), regions=smaller)), {}


def _read(region: Graph) -> set[Value]:
    return {value for node in region.nodes for value in reads(node)}


def _inlined(node: Node, branch: If, taken: bool, builder: GraphBuilder) -> Mapping[Value, Value]:
    """The nodes of one branch, emitted; what stands for each result of the ``if``."""
    region = branch.then if taken else branch.otherwise
    twins = dict(zip(region.inputs, branch.captured, strict=True))
    for value, constant in region.constants.items():
        twins[value] = builder.adopt(Value(builder.unique(value.name), value.type), constant)
    for inner in region.nodes:
        twins.update((value, Value(builder.unique(value.name), value.type)) for value in inner.outputs)
        builder.append(substitute(inner, twins))
    for merge in branch.merges:
        builder.append(Node("define", (), (), {"symbol": merge.symbol, "value": merge.first if taken else merge.second}, name=node.name))
    found = {}
    for value, result in zip(node.outputs, region.outputs, strict=True):
        found[value] = twins[result]
        if value.type != result.type:
            found[value] = Value(builder.unique(value.name), value.type)
            builder.append(Node("reshape", (twins[result],), (found[value],), {"shape": value.type.shape}, name=node.name))
    return found


def _loop(node: Node, used: set[Value]) -> _Step:
    loop = Loop.of(node)
    body, carried = loop.body, len(loop.initial)
    read, first = _read(body), int(loop.has_condition)
    results = node.outputs
    same = {
        i
        for i in set(range(carried)).difference(loop.appended)
        if _passes_on(body, loop.next_values[i], body.inputs[i]) and loop.initial[i].type == body.inputs[i].type
    }
    dead = {i for i in range(carried) if i not in same and body.inputs[i] not in read and results[i] not in used}
    kept = [i for i in range(carried) if i not in same and i not in dead]
    scans = [i for i in range(carried, len(results)) if results[i] in used]
    rest = [(body.inputs[carried + i], value) for i, value in enumerate(loop.captured)]
    captured = [pair for pair in (*((body.inputs[i], loop.initial[i]) for i in sorted(same)), *rest) if pair[0] in read]
    if len(kept) == carried and len(scans) == len(loop.scans) and len(captured) == len(rest):
        return node, {}
    region = body.with_(
        inputs=(*(body.inputs[i] for i in kept), *(inner for inner, _ in captured)),
        outputs=(*body.outputs[:first], *(body.outputs[first + i] for i in (*kept, *scans))),
    )
    inputs = (loop.condition, *(loop.initial[i] for i in kept), *(outer for _, outer in captured))
    appended = tuple(number for number, i in enumerate(kept) if i in loop.appended)
    attrs = {**node.attrs, "carried": len(kept), **({"appended": appended} if loop.appended else {})}
    smaller = Node(node.op, inputs, tuple(results[i] for i in (*kept, *scans)), attrs, (region,), node.name)
    return _with_merges_of(smaller), {results[i]: loop.initial[i] for i in same if results[i] in used}


def _passes_on(body: Graph, value: Value, given: Value) -> bool:
    """Whether a next value is the carried one as it came."""
    producer = body.producers[value]
    return producer.op == "identity" and producer.inputs[0] is given


def _with_merges_of(node: Node) -> Node:
    """node with those merges alone whose symbols the types of its results, or of what its regions take, use."""
    types = [value.type for value in (*node.outputs, *(value for region in node.regions for value in region.inputs))]
    symbols = {name for type_ in types for name in type_symbols(type_)}
    given = node.attrs["symbols"]
    merges = tuple(merge for merge in given if isinstance(merge, tuple) and merge[0] in symbols) if isinstance(given, tuple) else ()
    return replace(node, attrs={**node.attrs, "symbols": merges})


class _Uses:
    """What the nodes of a graph read of each other."""

    def __init__(self, graph: Graph) -> None:
        self._values = {*graph.outputs, *(value for node in graph.nodes for value in reads(node))}
        self._symbols = {name for value in graph.outputs for name in type_symbols(value.type)}
        # What a node says of its own symbols is no use of them.
        self._symbols.update(name for node in graph.nodes for name in read_symbols(node) - set(defined_symbols(node)))

    def used(self, node: Node) -> set[Value]:
        """The results of node that are read, or whose sizes are."""
        merges = If.of(node).merges if node.op == "if" else Loop.of(node).merges
        symbols = self._symbols.intersection(merge.symbol for merge in merges)
        return {value for value in node.outputs if value in self._values or not symbols.isdisjoint(type_symbols(value.type))}
