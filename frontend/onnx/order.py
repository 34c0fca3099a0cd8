"""The graph's own rules: unique names, no missing inputs, no cycles. Gives the nodes that matter in an order they can run in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import onnx

from compiler.errors import UserError
from frontend.onnx.reading import initializers

_INVALID = "the model is not valid ONNX; export it again, or mend it at the node named here"


def describe(node: onnx.NodeProto) -> str:
    """A node for messages: its operator and its name, or its first output where it has none."""
    return f"{node.op_type} node {node.name!r}" if node.name else f"{node.op_type} node that makes {next(iter(node.output), '')!r}"


def ordered(nodes: Sequence[onnx.NodeProto], defined: Iterable[str], outputs: Sequence[str], where: str) -> list[onnx.NodeProto]:
    """The nodes the outputs need, sorted so that each comes after those it reads; otherwise in the order of the file.

    ``defined`` are the names known before the first node (with the names around a subgraph or function). Raises UserError for a
    name defined twice, a name read and never defined, and a cycle.
    """
    before = set(defined)
    makers: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in makers or name in before:
                raise UserError(f"value {name!r} is defined twice, the second time by the {describe(node)}", where=where, hint=_INVALID)
            makers[name] = position
    needs: list[set[int]] = []
    for node in nodes:
        needed = set()
        for name in names_read(node):
            if name in makers:
                needed.add(makers[name])
            elif name not in before:
                raise UserError(f"the {describe(node)} reads {name!r}, which nothing defines", where=where, hint=_INVALID)
        needs.append(needed)
    for name in outputs:
        if name not in makers and name not in before:
            raise UserError(f"output {name!r} is not made by any node", where=where, hint=_INVALID)
    order = _topological(needs)
    if len(order) < len(nodes):
        loop = _cycle(needs, set(range(len(nodes))) - set(order))
        path = " → ".join(describe(nodes[position]) for position in loop)
        raise UserError(f"nodes read each other's results in a circle: {path}", where=where, hint=_INVALID)
    live = _reachable(needs, (makers[name] for name in outputs if name in makers))
    return [nodes[position] for position in order if position in live]


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The names a node reads: its inputs, then what its subgraphs take from around them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else ():
            yield from captured(graph)


def captured(graph: onnx.GraphProto) -> set[str]:
    """The names a subgraph reads from around it."""
    own = {v.name for v in graph.input} | set(initializers(graph)) | {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in names_read(node)} | {v.name for v in graph.output}
    return read - own - {""}


def _topological(needs: Sequence[set[int]]) -> list[int]:
    """Kahn's algorithm, the earliest ready node first; nodes on a cycle, or after one, are left out."""
    waiting = [len(needed) for needed in needs]
    users: list[list[int]] = [[] for _ in needs]
    for position, needed in enumerate(needs):
        for maker in needed:
            users[maker].append(position)
    ready = [position for position, count in enumerate(waiting) if count == 0]
    heapify(ready)
    order = []
    while ready:
        position = heappop(ready)
        order.append(position)
        for user in users[position]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heappush(ready, user)
    return order


def _cycle(needs: Sequence[set[int]], stuck: set[int]) -> list[int]:
    """One cycle among nodes that cannot run: following what each waits for must come back."""
    seen: list[int] = []
    position = min(stuck)
    while position not in seen:
        seen.append(position)
        position = min(needs[position] & stuck)
    return [*seen[seen.index(position) :], position][::-1]


def _reachable(needs: Sequence[set[int]], roots: Iterable[int]) -> set[int]:
    found: set[int] = set()
    stack = list(roots)
    while stack:
        position = stack.pop()
        if position not in found:
            found.add(position)
            stack.extend(needs[position])
    return found
