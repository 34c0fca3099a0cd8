"""The choice of layouts: which values are channel-blocked and where conversions stand, as one minimum cut over the whole graph.

Every node gets a side of the cut, blocked or row-major. A value read on the other side than it is made costs one conversion, however
many nodes read it there; some nodes prefer a side. Nodes that ``Op.layouts`` ties to one layout stand at the source or the sink. Index maps
read what lies in the other layout at little cost: they move elements anyway.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from compiler.ir.graph import Graph, Node, Value, captured
from compiler.ir.op import Layouts, lookup
from compiler.ir.types import TensorType, begins_with
from compiler.ir.verify import Stage, is_elementwise, is_view
from passes.analysis.estimate import estimate
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish, substitute

_CONVERSION_BYTES = 4096
"""What starting one more kernel costs, as memory traffic."""

_MOVES = 4
"""Bytes that an index map moves to another layout in the time in which a byte is read or written."""

_BLOCKED, _ROW_MAJOR = "blocked", "row-major"
_Side = Hashable


@register_pass
@dataclass(frozen=True)
class AssignLayout:
    """Gives every value its layout, channels in blocks of ``block`` or row-major, and inserts ``to_layout`` where both are needed.

    ``%c: f32[1, 8, 4, 4] = conv(%x, %w); return %c`` becomes
    ``%c.1: f32[1, 8, 4, 4]{8c} = conv(%x, %w); %c: f32[1, 8, 4, 4] = to_layout(%c.1) {block = 1}; return %c``.
    """

    block: int
    name: ClassVar[str] = "assign-layout"
    stage: ClassVar[Stage] = Stage.LAID_OUT

    def run(self, graph: Graph) -> PassResult:
        if any(value.type.block != 1 for node in graph.nodes for value in node.outputs):  # laid out before
            return PassResult(graph, changed=False)
        cut = _Cut(graph, self.block)
        if self.block == 1 or Layouts.BLOCKED_OUT not in cut.kinds:
            return PassResult(graph, changed=False)
        result = _Writer(graph, cut).write()
        conversions = sum(node.op == "to_layout" for node in result.nodes)
        return PassResult(result, changed=True, notes=(f"{conversions} conversions",))


class _Cut:
    """The network and its minimum cut. A side is ``_BLOCKED``, ``_ROW_MAJOR`` or the number of a node that is free to choose."""

    def __init__(self, graph: Graph, block: int) -> None:
        self._graph = graph
        self.block = block
        self.kinds = [self._kind(node) for node in graph.nodes]
        self._sides: dict[Value, _Side] = {}
        self._readers: dict[Value, list[_Side]] = {}
        self._network: nx.DiGraph[_Side] = nx.DiGraph()
        self._network.add_nodes_from((_BLOCKED, _ROW_MAJOR))
        for number, node in enumerate(graph.nodes):
            self._add_node(number, node)
        for value in graph.outputs:
            self._readers.setdefault(value, []).append(_ROW_MAJOR)
        for value, readers in self._readers.items():
            if value not in graph.constants:
                self._add_conversion(value, readers)
        self._blocked = set(nx.minimum_cut(self._network, _BLOCKED, _ROW_MAJOR)[1][0])

    def result_block(self, number: int) -> int:
        """The layout node ``number`` writes."""
        return self.block if self._result_side(number) in self._blocked else 1

    def read_block(self, number: int, operand: int) -> int | None:
        """The layout node ``number`` reads its operand in; None: the one it is made in."""
        if self._reads_any(number, operand):
            return None
        return self.block if self._read_side(number, operand) in self._blocked else 1

    def _reads_any(self, number: int, operand: int) -> bool:
        """Whether a node reads an operand as it is made."""
        kind = self.kinds[number]
        return kind is Layouts.ANY or (kind is Layouts.SAME and _is_free(self._graph.nodes[number], operand))

    def _read_side(self, number: int, operand: int) -> _Side:
        """The side on which a node reads an operand."""
        node = self._graph.nodes[number]
        value = node.inputs[operand]
        match self.kinds[number]:
            case Layouts.SAME if value is not None and _is_tied(node, operand):
                return number
            case Layouts.BLOCKED_OUT if operand == 0:
                return _BLOCKED if node.attrs.get("group", 1) != 1 else number
            case _:
                return _ROW_MAJOR

    def _result_side(self, number: int) -> _Side:
        return {Layouts.SAME: number, Layouts.ANY: number, Layouts.BLOCKED_OUT: _BLOCKED}.get(self.kinds[number], _ROW_MAJOR)

    def _kind(self, node: Node) -> Layouts:
        """``Op.layouts``, or PLAIN where channels are not known now or a value on a free side could not be blocked."""
        if node.regions:
            return Layouts.PLAIN
        kind = lookup(node.op).layouts([None if v is None else v.type for v in node.inputs], node.attrs, self.block)
        if kind is Layouts.BLOCKED_OUT:
            return kind if _blockable(node.present_inputs[0].type) else Layouts.PLAIN
        if kind is Layouts.PLAIN:
            return kind
        results = [v.type for v in node.outputs]
        if not all(map(_blockable, results)):
            return Layouts.PLAIN
        tied = [v.type for k, v in enumerate(node.inputs) if v is not None and (kind is Layouts.ANY or _is_tied(node, k))]
        return kind if all(_blockable(t) and (t.rank == results[0].rank or not is_elementwise(node)) for t in tied) else Layouts.PLAIN

    def _add_node(self, number: int, node: Node) -> None:
        for value in node.outputs:
            self._sides[value] = self._result_side(number)
        for operand, read in enumerate(node.inputs):
            if read is not None and self.kinds[number] is Layouts.ANY:
                type_ = node.output.type
                view = self._conversion(type_, type_.with_block(self.block))
                cost = view if is_view(node) else estimate(read.type.nbytes) // _MOVES
                self._add_move(self._sides.get(read, _ROW_MAJOR), number, cost)
            elif read is not None and not self._reads_any(number, operand):
                self._readers.setdefault(read, []).append(self._read_side(number, operand))
        for region in node.regions:
            for taken in captured(region):
                self._readers.setdefault(taken, []).append(_ROW_MAJOR)
        if self.kinds[number] in (Layouts.SAME, Layouts.ANY) and not is_elementwise(node):
            self._add_edge(number, _ROW_MAJOR, sum(self._padding(v.type) for v in node.outputs))
        elif self.kinds[number] is Layouts.BLOCKED_OUT:
            x = node.present_inputs[0].type
            self._add_edge(number, _ROW_MAJOR, self._padding(x))
            if estimate(x.shape[1]) >= self.block:
                self._add_edge(_BLOCKED, number, estimate(x.nbytes))

    def _add_conversion(self, value: Value, readers: list[_Side]) -> None:
        """One conversion for all who read on the other side: a node of its own stands between them and the value."""
        side, blocked = self._sides.get(value, _ROW_MAJOR), value.type.with_block(self.block)
        if side != _BLOCKED:
            self._add_edge((value, _BLOCKED), side, self._conversion(value.type, blocked))
            for reader in readers:
                if reader != _ROW_MAJOR:
                    self._network.add_edge(reader, (value, _BLOCKED))
        if side != _ROW_MAJOR:
            self._add_edge(side, (value, _ROW_MAJOR), self._conversion(blocked, value.type))
            for reader in readers:
                if reader != _BLOCKED:
                    self._network.add_edge((value, _ROW_MAJOR), reader)

    def _add_move(self, made: _Side, read: _Side, cost: int) -> None:
        """What it costs where a value is made on the other side than an index map reads it: some speed, or a kernel where there was a view."""
        for source, sink in ((made, read), (read, made)):
            if source != _ROW_MAJOR and sink != _BLOCKED:
                self._add_edge(source, sink, cost)

    def _add_edge(self, source: _Side, sink: _Side, cost: int) -> None:
        already = self._network.get_edge_data(source, sink, {"capacity": 0})["capacity"]
        self._network.add_edge(source, sink, capacity=already + cost)

    def _conversion(self, before: TensorType, after: TensorType) -> int:
        """Bytes read and written; a conversion that moves none is only a little worse than no conversion."""
        if not _blockable(before):
            return 0
        return 1 if begins_with(before, after) else _CONVERSION_BYTES + estimate(before.nbytes) + estimate(after.nbytes)

    def _padding(self, type_: TensorType) -> int:
        return estimate(type_.with_block(self.block).nbytes) - estimate(type_.nbytes)


class _Writer:
    """Builds the graph that a cut describes; ``_versions`` are a value's forms by layout."""

    def __init__(self, graph: Graph, cut: _Cut) -> None:
        self._graph = graph
        self._cut = cut
        self._builder = builder_for(graph)
        self._versions: dict[tuple[Value, int], Value] = {(v, 1): v for v in (*graph.inputs, *graph.constants)}
        self._made_in: dict[Value, int] = {}
        self._outputs = set(graph.outputs)

    def write(self) -> Graph:
        for number, node in enumerate(self._graph.nodes):
            inputs = tuple(None if v is None else self._read(v, self._cut.read_block(number, i)) for i, v in enumerate(node.inputs))
            block = self._cut.result_block(number)
            outputs = tuple(self._define(v, block) for v in node.outputs)
            around = {v: self._in(v, 1) for region in node.regions for v in captured(region)}
            regions = substitute(node, around).regions
            self._builder.append(Node(node.op, inputs, outputs, node.attrs, regions, node.name))
        return finish(self._builder, self._graph, tuple(self._in(v, 1) for v in self._graph.outputs))

    def _define(self, value: Value, block: int) -> Value:
        made = value
        if block != 1:
            name = self._builder.unique(value.name) if value in self._outputs else value.name
            made = Value(name, value.type.with_block(block))
        self._versions[value, block] = made
        self._made_in[value] = block
        return made

    def _read(self, value: Value, block: int | None) -> Value:
        """value in a layout; None: as it was made."""
        return self._in(value, self._made_in.get(value, 1) if block is None else block)

    def _in(self, value: Value, block: int) -> Value:
        """value in a layout, converted where it is first asked for."""
        found = self._versions.get((value, block))
        if found is not None:
            return found
        type_ = value.type.with_block(block)
        constant = self._graph.constants.get(value)
        if constant is not None:
            found = self._builder.adopt(Value(self._builder.unique(value.name), type_), constant)
        else:
            found = value if value in self._outputs and block == 1 else Value(self._builder.unique(value.name), type_)
            source = self._versions[value, self._made_in.get(value, 1)]
            self._builder.append(Node("to_layout", (source,), (found,), {"block": block}, name=value.name))
        self._versions[value, block] = found
        return found


def _blockable(type_: TensorType) -> bool:
    return type_.rank >= 2 and isinstance(type_.shape[1], int)


def _is_tied(node: Node, operand: int) -> bool:
    """Whether a node reads an operand in the layout of its result."""
    value = node.inputs[operand]
    if value is None or not is_elementwise(node):
        return operand == 0
    result = node.outputs[0].type
    axis = 1 - (result.rank - value.type.rank)
    return axis >= 0 and (value.type.shape[axis] != 1 or result.shape[1] == 1)


def _is_free(node: Node, operand: int) -> bool:
    """Whether a node reads an operand in any layout: elementwise, one channel for all of the result's."""
    value = node.inputs[operand]
    if value is None or not is_elementwise(node) or value.type.rank != node.outputs[0].type.rank:
        return False
    return not _is_tied(node, operand)
