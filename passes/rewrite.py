"""Rebuilding a graph node by node: what keeps the passes small.

The interface stays: inputs and outputs keep their names and order, whatever the rule replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value

Rule = Callable[[Node, GraphBuilder], Value | None]
"""What a node's only output is replaced by (made with the builder, or a value already there); None keeps the node."""


def rewrite(graph: Graph, rule: Rule) -> tuple[Graph, int]:
    """``rule`` applied to every node with one output, in order; the new graph and the number of replacements.

    The rule sees nodes whose operands are already rewritten, and finds their producers and constants in the builder.
    """
    builder = builder_for(graph)
    twins: dict[Value, Value] = {}
    outputs = set(graph.outputs)
    renamed: dict[Value, Value] = {}
    replaced = 0
    for original in graph.nodes:
        node = substitute(original, twins)
        found = rule(node, builder) if len(node.outputs) == 1 else None
        if found is None:
            builder.append(node)
            continue
        value = original.output
        if value in outputs:
            # Only a value that is computed, and has no name of the interface yet, can take the output's.
            if found in outputs or found in renamed or builder.producer(found) is None:
                builder.append(Node("identity", (found,), (value,), name=node.name))
                replaced += node.op != "identity"
                continue
            renamed[found] = Value(value.name, found.type)
        twins[value] = found
        replaced += 1
    result = finish(builder, graph, tuple(twins.get(v, v) for v in graph.outputs))
    if renamed:
        nodes = tuple(substitute(node, renamed) for node in result.nodes)
        result = result.with_(nodes=nodes, outputs=tuple(renamed.get(v, v) for v in result.outputs))
    return result, replaced


def builder_for(graph: Graph) -> GraphBuilder:
    """A builder that continues graph: its inputs and constants adopted, every name of it taken."""
    builder = GraphBuilder(graph.name, folding=False)
    for value in graph.inputs:
        builder.inputs.append(builder.adopt(value))
    for value, constant in graph.constants.items():
        builder.adopt(value, constant)
    for value in defined(graph):
        builder.adopt(value)
    return builder


def single_use(graph: Graph) -> set[Value]:
    """The values that one node alone reads and that are not outputs."""
    return {value for value, nodes in graph.users.items() if len(nodes) == 1} - set(graph.outputs)


def finish(builder: GraphBuilder, graph: Graph, outputs: tuple[Value, ...]) -> Graph:
    """The builder's graph with ``graph``'s attributes."""
    return builder.graph(outputs).with_(attrs=graph.attrs)


def defined(graph: Graph) -> Iterator[Value]:
    """Every value defined in graph's nodes, those of regions included."""
    for node in graph.nodes:
        yield from node.outputs
        for region in node.regions:
            yield from region.inputs
            yield from region.constants
            yield from defined(region)


def substitute(node: Node, twins: Mapping[Value, Value]) -> Node:
    """node with values replaced wherever it reads or makes them, regions included; itself where there is nothing to replace."""
    if not twins:
        return node
    inputs = tuple(None if v is None else twins.get(v, v) for v in node.inputs)
    outputs = tuple(twins.get(v, v) for v in node.outputs)
    regions = tuple(_substitute_region(region, twins) for region in node.regions)
    if inputs == node.inputs and outputs == node.outputs and all(a is b for a, b in zip(regions, node.regions, strict=True)):
        return node
    return Node(node.op, inputs, outputs, node.attrs, regions, node.name)


def _substitute_region(region: Graph, twins: Mapping[Value, Value]) -> Graph:
    nodes = tuple(substitute(node, twins) for node in region.nodes)
    outputs = tuple(twins.get(v, v) for v in region.outputs)
    same = outputs == region.outputs and all(a is b for a, b in zip(nodes, region.nodes, strict=True))
    return region if same else region.with_(nodes=nodes, outputs=outputs)
