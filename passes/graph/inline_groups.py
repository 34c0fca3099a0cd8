"""Small groups go into those that read them: every worker computes their results for itself, and none waits for another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.control import own_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.places import memory_roots
from compiler.ir.types import DType
from compiler.ir.verify import Stage, inner_nodes, is_view
from passes.analysis.estimate import estimate, group_work
from passes.analysis.reports import reports_nothing
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute

KERNEL_WORK = 1 << 14
"""What meeting the other workers costs, in simple instructions on one element: 0.2 microseconds or so."""

_SHARE = 64
"""The part of a kernel's own work that more work in front of it may be: with two workers its time grows by half as much, less the meeting."""

_STREAMED = 8
"""What reading a weight that is used once costs beside the multiplications of a convolution: 0.115 ns against 0.017 (the small layers of a
squeeze-and-excitation of 672 channels, and the projection behind them; AMD EPYC)."""

_RESULT_BYTES = 1 << 14
"""The largest result of an inner group: half of a first-level cache."""

_KEPT_BYTES = 1 << 12
"""The largest value that may have to live longer for it, where it is larger than the result."""


@register_pass
@dataclass(frozen=True)
class InlineGroups:
    """Takes groups whose whole work is less than a kernel costs, or than a part of their readers' own work, into all groups that read them.

    ``%m = group(%x) {reduce}; %y = group(%x, %m) {sub}`` becomes ``%y = group(%x)`` with ``%m.1 = group(%x.1) {reduce}`` and the ``sub`` inside.
    """

    name: ClassVar[str] = "inline-groups"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        inliner = _Inliner(graph)
        groups = [node for node in graph.nodes if node.op == "group"]
        while sum(inliner.place(node) for node in groups):
            pass
        return inliner.result()


class _Inliner:
    """``_parts`` has the nodes of every group's region as nodes of the graph, ``_work`` what they cost, ``_extra`` what their inner groups do;
    groups that were taken into their readers have them in ``_hosts``. ``_origin`` has the value that one inside of a group is a copy of."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._builder = builder_for(graph)
        self._roots = memory_roots(graph)
        self._lasting = {*graph.inputs, *graph.constants, *(self._roots[v] for v in graph.outputs)}
        self._parts = {node: _spread(node) for node in graph.nodes if node.op == "group"}
        self._work = {node: group_work(part for part in parts if part.op != "group") for node, parts in self._parts.items()}
        self._extra = {node: group_work(part for part in parts if part.op == "group") for node, parts in self._parts.items()}
        self._origin: dict[Value, Value] = {part.output: part.output for parts in self._parts.values() for part in parts}
        self._changed: set[Node] = set()
        self._hosts: dict[Node, Sequence[Node]] = {}

    def place(self, node: Node) -> bool:
        """Take a group into its readers, if it may be and that pays; whether it was."""
        views, readers = self._readers(node.outputs[0]) if node not in self._hosts and _may_repeat(node) else ([], [])
        whole = self._work[node] + self._extra[node]
        if not readers or (whole > KERNEL_WORK // len(readers) and not self._is_little(node, whole, readers)):
            return False
        if any(self._keeps(value, node, readers) for value in node.present_inputs):
            return False
        for reader in readers:
            self._take(node, views, reader)
        self._changed.update(readers)
        self._hosts.update(dict.fromkeys((node, *views), readers))
        return True

    def _is_little(self, node: Node, whole: int, readers: Sequence[Node]) -> bool:
        """Whether a group's work, ``whole`` of it, is a small part of each reader's own."""
        weights = {v for part in self._parts[node] for v in part.present_inputs if v in self._graph.constants}
        cost = max(whole, _STREAMED * sum(estimate(v.type.elements) for v in weights))
        return all(cost <= self._work[reader] // _SHARE for reader in readers)

    def result(self) -> PassResult:
        """The graph without the groups that are inside of others now."""
        for node in self._graph.nodes:
            if node not in self._hosts:
                changed = node in self._changed
                self._builder.append(replace(self._closed(self._parts[node], *node.outputs), name=node.name) if changed else node)
        groups = sum(node.op == "group" for node in self._hosts)
        return PassResult(finish(self._builder, self._graph, self._graph.outputs), groups > 0, (f"{groups} groups in others",) if groups else ())

    def _readers(self, value: Value) -> tuple[list[Node], list[Node]]:
        """The views of a value, in order, and the groups that read it or one of them; no groups where anything else does."""
        views: list[Node] = []
        readers: dict[Node, None] = {}
        pending = [value]
        for current in pending:
            for user in self._graph.users.get(current, ()):
                if user.op == "group" and DType.STRING not in {made.type.dtype for made in user.outputs} and "shares" not in user.attrs:
                    readers.update(dict.fromkeys(self._around(user)))
                elif is_view(user) and user.present_inputs == (current,) and user.output.type.dtype is current.type.dtype and not own_symbols(user):
                    views.append(user)
                    pending.append(user.output)
                else:
                    return [], []
        inside = not any(current in self._graph.outputs for current in pending)
        return (views, [*readers]) if inside else ([], [])

    def _around(self, group: Node) -> Iterator[Node]:
        """A group, or those it is inside of."""
        for host in self._hosts.get(group, ()):
            yield from self._around(host)
        if group not in self._hosts:
            yield group

    def _keeps(self, value: Value, node: Node, readers: Sequence[Node]) -> bool:
        """Whether a value of some size would live longer than it does now if readers read it in a group's place."""
        root = self._roots[value]
        if root in self._lasting or _fits(root, max(_KEPT_BYTES, estimate(node.output.type.nbytes))):
            return False
        return not all(any(self._roots.get(v) is root for part in self._parts[reader] for v in part.present_inputs) for reader in readers)

    def _take(self, node: Node, views: Sequence[Node], reader: Node) -> None:
        """Put a group and those views of its result that reader reads before what reader does."""
        wanted = {value for part in self._parts[reader] for value in part.present_inputs}
        needed: list[Node] = []
        for view in reversed(views):
            if view.output in wanted:
                wanted.update(view.present_inputs)
                needed.insert(0, view)
        before, body = _split(self._parts[node])
        inner, own = _split(self._parts[reader])
        there = {self._origin[part.output]: part.output for part in inner}
        twins: dict[Value, Value] = {}
        for part in (*before, replace(self._closed(body, node.output), name=node.name), *needed):
            origin = self._origin.get(part.output, part.output)
            if origin in there:
                twins[part.output] = there[origin]
            else:
                inner.append(self._copy(part, twins))
                self._origin[inner[-1].output] = origin
        self._parts[reader] = [*_in_order([substitute(part, twins) for part in inner]), *(substitute(part, twins) for part in own)]
        self._extra[reader] = group_work(part for part in inner if part.op == "group")

    def _copy(self, node: Node, twins: dict[Value, Value]) -> Node:
        """node with values of its own for all that it makes, ``twins`` for what it reads; what it makes is added to them."""
        for value in node.outputs:
            twins[value] = Value(self._builder.unique(value.name), value.type)
        regions = tuple(self._copy_region(region) for region in node.regions)
        inputs = tuple(None if v is None else twins.get(v, v) for v in node.inputs)
        return replace(node, inputs=inputs, outputs=tuple(twins[v] for v in node.outputs), regions=regions)

    def _copy_region(self, region: Graph) -> Graph:
        twins = {value: Value(self._builder.unique(value.name), value.type) for value in region.inputs}
        nodes = tuple(self._copy(node, twins) for node in region.nodes)
        return region.with_(inputs=tuple(twins[v] for v in region.inputs), outputs=tuple(twins[v] for v in region.outputs), nodes=nodes)

    def _closed(self, nodes: Sequence[Node], *outputs: Value) -> Node:
        """Nodes as one group that makes outputs."""
        made = {value for node in nodes for value in node.outputs}
        outer = tuple(dict.fromkeys(v for node in nodes for v in node.present_inputs if v not in made))
        twins = {v: Value(self._builder.unique(v.name), v.type) for v in (*outer, *outputs)}
        inner = tuple(substitute(node, twins) for node in nodes)
        region = Graph("body", tuple(twins[v] for v in outer), tuple(twins[v] for v in outputs), inner)
        return Node("group", outer, outputs, {}, (region,))


def _spread(group: Node) -> list[Node]:
    """The nodes of a group's region on the group's own operands and results."""
    (region,) = group.regions
    twins = dict(zip((*region.inputs, *region.outputs), (*group.present_inputs, *group.outputs), strict=True))
    return [substitute(node, twins) for node in region.nodes]


def _split(nodes: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """The inner groups among a group's nodes with the views of them, and the others."""
    inner = inner_nodes(Graph("parts", (), (), tuple(nodes)))
    return [node for node in nodes if node in inner], [node for node in nodes if node not in inner]


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """Nodes, each behind those whose results it reads."""
    makers = {node.output: node for node in nodes}
    found: dict[Node, None] = {}

    def place(node: Node) -> None:
        for value in node.present_inputs:
            if value in makers and makers[value] not in found:
                place(makers[value])
        found[node] = None

    for node in nodes:
        if node not in found:
            place(node)
    return [*found]


def is_small(group: Node) -> bool:
    """Whether a group's readers take it in if there are few of them: its whole work is less than a kernel costs."""
    return _may_repeat(group) and group_work(group.regions[0].nodes) <= KERNEL_WORK


def _may_repeat(group: Node) -> bool:
    """Whether every worker may compute a group: it has one result, of a known, small size, and reports nothing."""
    (region,) = group.regions
    inside = inner_nodes(region)
    return (
        "shares" not in group.attrs
        and len(group.outputs) == 1
        and _fits(group.output, _RESULT_BYTES)
        and all(node in inside or (reports_nothing(node) and _is_known(node)) for node in region.nodes)
    )


def _fits(value: Value, nbytes: int) -> bool:
    """Whether a value is sure to have at most so many bytes."""
    return value.type.is_static and estimate(value.type.nbytes) <= nbytes


def _is_known(node: Node) -> bool:
    """Whether no size is one of a run's, and all are of numbers."""
    types = [value.type for value in (*node.present_inputs, *node.outputs)]
    return not own_symbols(node) and all(type_.is_static and type_.dtype is not DType.STRING for type_ in types)
