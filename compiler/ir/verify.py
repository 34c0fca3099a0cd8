"""The rules of Graph IR, checked.

At every stage:
- Every value is defined once (an input, a constant or one output of one node), and names are unique, those in groups included; the
  regions of ``if`` and ``loop`` are name spaces of their own.
- A node reads values that are defined before it in its own graph. A region reads its inputs and constants alone.
- A symbol in a type or an attribute is in the types of the graph's inputs or is defined before it, here or around (``control``), once.
- The operands, regions and results of ``if`` and ``loop`` fit one another; every output of their regions is made by a node there.
- A graph's outputs are defined in it or around it.
- A node's output types are what its op infers from its operands (layout apart); a constant's array has its value's dtype and shape.
- Attributes are of the kinds that ``graph.Attr`` lists.
- A layout block is at least 1, and is more than 1 only for values of rank 2 or more.
- Symbolic dims are named by identifiers.

canonical: every value is row-major; there are no ``to_layout`` and no ``group`` nodes.

laid out, and inside groups later: the layouts of a node's operands and result are among ``Op.layouts``.

grouped: the nodes are groups, views, joins, whose operands are made where they lie in the result, and control flow. A group has one region, whose
inputs and outputs have the types of the group's own; and in the region at most one node that is not elementwise, its anchor, apart from nodes that
bring what the anchor reads into order (``strided_reads``) and inner groups of known sizes, which have one output and no inner groups, and views of
what these make, of the same element type (``inner_nodes``). Its outputs are of one shape and layout, and nothing that makes one comes before its
anchor. A group with the attribute ``shares`` has one output and can be computed in so many (``compiler/ir/shares.py``).
Or any number of nodes that move elements between row-major tensors, and elementwise ones before, between and behind them, if the one
result is few boxes of them (``pieces``).

planned: as grouped, and ``arena_bytes`` is set. Every output of a group has an entry in ``offset``, a multiple of 64 (or where a join holds it) with
the value inside the arena, or its memory is a graph output's. Two values that are alive at one node do not overlap: a value is alive from the node
that makes it to the last one that reads it, a view of it or a join that holds it. The one exception is an output of a group over the operand
that its entry in ``in_place`` numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from compiler.errors import InternalError, UnsupportedForm
from compiler.ir.control import BRANCHING, CONTROL, If, Loop, defined_symbols, own_symbols, planned_sizes, type_symbols, verify_branching
from compiler.ir.graph import Graph, Node, Value, ancestors, captured
from compiler.ir.intexpr import Dim, symbols
from compiler.ir.op import Layouts, lookup
from compiler.ir.pieces import moved_pieces
from compiler.ir.places import held_starts, unfit_joins, view_offset
from compiler.ir.printer import print_node, print_value
from compiler.ir.scalar import Arg
from compiler.ir.shares import shares_of
from compiler.ir.strided import strided_reads
from compiler.ir.types import TensorType
from compiler.ir.verify_plan import ARENA_ALIGNMENT as ARENA_ALIGNMENT
from compiler.ir.verify_plan import verify_plan


class Stage(Enum):
    """How far a graph has come, in order."""

    CANONICAL = "canonical"
    LAID_OUT = "laid out"
    GROUPED = "grouped"
    PLANNED = "planned"


def verify_graph(graph: Graph, stage: Stage) -> None:
    """Raises InternalError, naming the node, where graph breaks a rule of stage."""
    _Verifier(stage).graph(graph)


def is_view(node: Node) -> bool:
    """Whether a node only gives another type to (a part of) its first input's memory."""
    return view_offset(node) is not None


def inner_nodes(region: Graph) -> set[Node]:
    """The inner groups of a group's region, and the views of what they make."""
    found: set[Node] = set()
    for node in region.nodes:
        if node.op == "group" or (is_view(node) and region.producers.get(node.present_inputs[0]) in found):
            found.add(node)
    return found


def is_elementwise(node: Node) -> bool:
    """Whether a node's op has a scalar expression for these operands."""
    args = [Arg(i, v.type.dtype) for i, v in enumerate(node.present_inputs)]
    return node.op != "group" and lookup(node.op).scalar(args, node.attrs) is not None


def computing(anchor: Node, producers: Mapping[Value, Node]) -> set[Node]:
    """The elementwise nodes that make the first operand of an anchor whose kernels compute it; ``producers`` are those looked at."""
    found: set[Node] = set()
    pending = [*anchor.present_inputs[:1]]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node not in found and is_elementwise(node):
            found.add(node)
            pending += node.present_inputs
    return found


class _Verifier:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._names: set[str] = set()
        self._defined: set[Value] = set()
        self._symbols: set[str] = set()
        self._depth = 0

    def graph(self, graph: Graph) -> None:
        where = f"graph {graph.name} ({self._stage.value})"
        symbols_ = {name for value in graph.inputs for name in type_symbols(value.type)} | {name for name, _ in planned_sizes(graph)}
        self._symbols.update(symbols_)
        self._scope(graph, symbols_, where, grouped=self._stage in (Stage.GROUPED, Stage.PLANNED))
        if self._stage is Stage.PLANNED:
            verify_plan(graph, where)

    def _scope(self, graph: Graph, symbols_: set[str], where: str, *, grouped: bool) -> None:
        """``symbols_`` are known where graph begins; those it defines are added."""
        known: set[Value] = set()
        for value in (*graph.inputs, *graph.constants):
            self._define(value, where)
            known.add(value)
        for value, constant in graph.constants.items():
            array, type_ = constant.array, value.type
            if array.dtype != type_.dtype.numpy or array.shape != type_.shape:
                raise InternalError(f"constant {print_value(value)} holds {array.dtype}{list(array.shape)}", where=where)
        for node in graph.nodes:
            place = f"{where}, node {print_node(node)}"
            for value in node.present_inputs:
                if value not in known:
                    raise InternalError(f"%{value.name} is read before it is defined", where=place)
            for value in node.outputs:
                self._define(value, place)
            self._node(node, symbols_, place, grouped=grouped)
            known.update(node.outputs)
            self._define_symbols(defined_symbols(node), symbols_, place)
        for value in graph.outputs:
            if value not in known:
                raise InternalError(f"output %{value.name} is not defined", where=where)
        for node in unfit_joins(graph) if grouped else ():
            raise InternalError("its operands cannot all be made in its result", where=f"{where}, node {print_node(node)}")

    def _define(self, value: Value, where: str) -> None:
        if value in self._defined:
            raise InternalError(f"%{value.name} is defined twice", where=where)
        if value.name in self._names:
            raise InternalError(f"two values are called %{value.name}", where=where)
        self._defined.add(value)
        self._names.add(value.name)
        type_ = value.type
        if type_.block < 1 or (type_.block > 1 and type_.rank < 2):
            raise InternalError(f"{print_value(value)} has no such layout", where=where)
        if type_.block > 1 and self._stage is Stage.CANONICAL:
            raise InternalError(f"{print_value(value)} is not row-major", where=where)
        for dim in type_.shape:
            for name in symbols(dim):
                if not name.replace(".", "_").isidentifier():
                    raise InternalError(f"{print_value(value)} has a symbolic dim {name!r} that is not an identifier", where=where)

    def _define_symbols(self, found: tuple[str, ...], symbols_: set[str], where: str) -> None:
        for name in found:
            if name in self._symbols:
                raise InternalError(f"symbol {name} is defined twice", where=where)
            self._symbols.add(name)
            symbols_.add(name)

    def _node(self, node: Node, symbols_: set[str], where: str, *, grouped: bool) -> None:
        unknown = own_symbols(node) - symbols_
        if unknown:
            raise InternalError(f"symbol {min(unknown)} is used before it is defined", where=where)
        if self._stage is Stage.CANONICAL and node.op in ("group", "to_layout"):
            raise InternalError(f"{node.op} has no place in this stage", where=where)
        if node.op == "group":
            if not grouped and self._depth != 1:
                raise InternalError("a group has no place here", where=where)
            self._group(node, symbols_, where)
            return
        if node.op in BRANCHING:
            self._branching(node, symbols_, where, grouped=grouped)
            return
        if grouped and not is_view(node) and not held_starts(node) and node.op not in CONTROL:
            raise InternalError("a node outside groups is not a view, nor does it hold its operands", where=where)
        try:
            inferred = lookup(node.op).infer([None if v is None else v.type for v in node.inputs], node.attrs)
        except UnsupportedForm as error:
            raise InternalError(f"the operands do not fit {node.op}: {error}", where=where) from error
        expected = [(t.dtype, t.shape) for t in inferred]
        if [(v.type.dtype, v.type.shape) for v in node.outputs] != expected:
            raise InternalError(f"{node.op} infers {', '.join(map(str, inferred))}", where=where)
        if not grouped:
            _verify_layouts(node, where)

    def _branching(self, node: Node, symbols_: set[str], where: str, *, grouped: bool) -> None:
        verify_branching(node, where)
        inside: tuple[str, ...] = ()
        merged: list[tuple[Dim, ...]]
        if node.op == "loop":
            loop = Loop.of(node)
            inside = (loop.iteration, *(merge.symbol for merge in loop.merges))
            merged = [(merge.second,) for merge in loop.merges]
        else:
            merged = [(merge.first, merge.second) for merge in If.of(node).merges]
        names, self._names = self._names, set()
        for number, region in enumerate(node.regions):
            known, place = symbols_.union(inside), f"{where}, region {region.name}"
            self._names = set()
            self._scope(region, known, place, grouped=grouped)
            for dims in merged:
                unknown = set(symbols(dims[number])) - known
                if unknown:
                    raise InternalError(f"symbol {min(unknown)} is not known at the region's end", where=place)
        self._names = names

    def _group(self, node: Node, symbols_: set[str], where: str) -> None:
        if len(node.regions) != 1 or not node.outputs or None in node.inputs:
            raise InternalError("a group has one region, outputs and no absent inputs", where=where)
        (region,) = node.regions
        if [v.type for v in region.inputs] != [v.type for v in node.present_inputs]:
            raise InternalError("the region's inputs are not of the types of the group's", where=where)
        if [v.type for v in region.outputs] != [v.type for v in node.outputs]:
            raise InternalError("the region's outputs are not of the types of the group's", where=where)
        if len({(v.type.shape, v.type.block) for v in node.outputs}) > 1:
            raise InternalError("the outputs are of more than one shape or layout", where=where)
        free = next(captured(region), None)
        if free is not None:
            raise InternalError(f"the region reads %{free.name} from outside", where=where)
        self._depth += 1
        self._scope(region, set(symbols_), f"{where}, region {region.name}", grouped=False)
        self._depth -= 1
        shares_of(node)
        before = inner_nodes(region)
        anchors = [inner for inner in region.nodes if inner not in before and not is_elementwise(inner)]
        if len(anchors) > 1:
            reads = strided_reads(anchors[-1], computing(anchors[-1], region.producers), region.producers)
            brought = {inner for nodes in reads.values() for inner in nodes}
            rest = region.with_(nodes=tuple(inner for inner in region.nodes if inner not in before))
            if not brought.issuperset(anchors[:-1]) and moved_pieces(rest, {}) is None:
                raise InternalError(f"the region has more than one anchor: {', '.join(inner.op for inner in anchors)}", where=where)
        ahead = ancestors(region, anchors[-1].present_inputs) if anchors else set()
        early = next((value for value in region.outputs if value not in region.producers or region.producers[value] in ahead), None)
        if early is not None:
            raise InternalError(f"output %{early.name} of the region is there before its anchor", where=where)
        for inner in before:
            if len(inner.outputs) != 1:
                raise InternalError("an inner group has one output", where=where)
            types = [value.type for value in (*inner.present_inputs, inner.output)]
            if not all(type_.is_static for type_ in types):
                raise InternalError(f"%{inner.output.name} of an inner group is of a size that only a run knows", where=where)
            if inner.op != "group" and types[0].dtype is not types[-1].dtype:
                raise InternalError(f"%{inner.output.name} views what an inner group makes as another type", where=where)


def _verify_layouts(node: Node, where: str) -> None:
    values = (*node.present_inputs, *node.outputs)
    block = max((v.type.block for v in values), default=1)
    if node.op == "to_layout":
        if node.attrs.get("block") != node.output.type.block:
            raise InternalError("to_layout's block is not its result's", where=where)
        return
    if block == 1:
        return
    types = [None if v is None else v.type for v in node.inputs]
    result = node.outputs[0].type
    match lookup(node.op).layouts(types, node.attrs, block):
        case Layouts.PLAIN:
            legal = False
        case Layouts.SAME:
            same = all(v.type.block == result.block for v in node.outputs)
            tied = types if is_elementwise(node) else types[:1]
            legal = same and all(t is None or t.block == result.block or _one_channel(t, result) for t in tied)
        case Layouts.ANY:
            legal = True
        case Layouts.BLOCKED_OUT:
            legal = result.block > 1 and all(t is None or t.block == 1 for t in types[1:])
    if not legal:
        raise InternalError(f"{node.op} cannot run in these layouts", where=where)


def _one_channel(operand: TensorType, result: TensorType) -> bool:
    """Whether an operand gives one element to all channels of a result: in any layout where it has their axis, else row-major."""
    axis = 1 - (result.rank - operand.rank)
    return axis == 1 and operand.shape[1] == 1 if operand.block != 1 else axis < 0 or operand.shape[axis] == 1
