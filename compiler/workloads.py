"""Groups as workloads: what a kernel family is asked to build for each, and the family that does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from compiler.errors import InternalError, UnsupportedError
from compiler.ir.control import BRANCHING, CONTROL
from compiler.ir.graph import Constant, Graph, Node, Value, ancestors
from compiler.ir.intexpr import Dim, floordiv
from compiler.ir.narrow import widen, widened
from compiler.ir.op import lookup
from compiler.ir.pieces import Piece, moved_pieces
from compiler.ir.places import Place, held_starts, memory_places, view_offset
from compiler.ir.scalar import Arg, Const, Scalar, cast, divisors, rebuilt, substitute, unchecked
from compiler.ir.shares import shares_of
from compiler.ir.strided import strided_reads, through
from compiler.ir.types import DType, TensorType, compute_dtype, is_coded
from compiler.ir.verify import computing, inner_nodes, is_elementwise, is_view
from compiler.kernels.base import Family, Further, Operand, Prologue, Workload, family
from compiler.target import Target


@dataclass(frozen=True)
class Made:
    """What inner group ``number`` of a group makes, from byte ``offset`` on."""

    number: int
    offset: Dim = 0


@dataclass(frozen=True)
class LoweredGroup:
    """A group as a workload; ``reads`` are what lies behind ``workload.inputs`` and ``workload.operands``, in order: operands of the group,
    or what those in ``inner``, which every worker computes first, one after another, make.

    ``divisions`` are the names of the nodes that divide integers, one for each different ``nonzero`` of the epilogue, in order.

    A group in shares is the workload of one of ``shares``, which are computed one after another, inner groups first; ``cut`` are the numbers of those
    ``reads`` of which each share has its own part. ``name`` is the node's.
    """

    workload: Workload
    families: tuple[str, ...]
    reads: tuple[Value | Made, ...]
    divisions: tuple[str, ...] = ()
    inner: tuple[LoweredGroup, ...] = ()
    shares: int = 1
    cut: frozenset[int] = frozenset()
    name: str = ""

    @property
    def made(self) -> dict[int, tuple[int, Dim]]:
        """Which of ``reads``, by number, inner groups make: the group's number, and the element of its result at which they begin."""
        types = [operand.type for operand in (*self.workload.inputs, *self.workload.operands)]
        pairs = enumerate(zip(self.reads, types, strict=True))
        return {i: (read.number, floordiv(read.offset, type_.dtype.itemsize)) for i, (read, type_) in pairs if isinstance(read, Made)}


def lower_group(node: Node, constants: Mapping[Value, Constant], threads: int, stored_strides: tuple[Dim, ...] | None = None) -> LoweredGroup:
    """The workload of a group: its anchor's operands, or what they are computed from, are the inputs, what its epilogue reads the operands.

    ``stored_strides`` say how its result lies where that is not together (``Place``).
    """
    shares = shares_of(node)
    region, threads = shares.region, threads if shares.count == 1 else 1
    sources: dict[Value, Value | Made] = dict(zip(region.inputs, node.present_inputs, strict=True))
    held = {value: constants[outside] for value, outside in zip(region.inputs, node.present_inputs, strict=True) if outside in constants}
    inner_groups, apart = _inner(region, sources, held, shares.cut), inner_nodes(region)
    region = region.with_(nodes=tuple(inner for inner in region.nodes if inner not in apart))
    moved = moved_pieces(region, held, stored_strides)
    if moved is not None:
        workload, values = _moved(region, *moved, held, threads)
        workload = replace(workload, stored_strides=stored_strides)
        return LoweredGroup(workload, ("moved",), tuple(sources[value] for value in values), (), inner_groups)
    anchor = next((inner for inner in reversed(region.nodes) if not is_elementwise(inner)), None)
    brought = {} if anchor is None else strided_reads(anchor, computing(anchor, region.producers), region.producers)
    before = ancestors(region, () if anchor is None else anchor.present_inputs) - set(chain(*brought.values()))
    behind = ancestors(region, region.outputs, anchor)
    prologue, inputs = _prologue(region, anchor, before, held)
    computed = 0 if prologue is None else prologue.reads
    epilogue = _Expression(held, 1)
    if anchor is not None:
        epilogue.elements[anchor.output] = Arg(0, anchor.output.type.dtype)
    for inner in region.nodes:
        if inner in behind:
            epilogue.add(inner)
    result, *others = (value.type for value in region.outputs)
    computes = anchor is not None and lookup(anchor.op).computes
    stored = [epilogue.elements[value] for value in region.outputs]
    extra = [Operand(_ranked(v.type, result.rank), v in held) for v in epilogue.operands]
    if not all(isinstance(element, Arg) for element in stored):
        extra = list(map(_unless_coded, extra))
    arrives = {1 + i: Arg(1 + i, operand.type.dtype) for i, operand in enumerate(extra)}
    first = result if anchor is None else anchor.output.type
    if computes:
        first = _computed(first)
        arrives[0] = Arg(0, first.dtype)
    views = {v: through(nodes) for v, nodes in brought.items()}
    operands = [_widened(operand) if computes else operand for operand in (Operand(v.type, v in held, views.get(v)) for v in inputs[computed:])]
    if prologue is not None:
        operands = [*(_unless_coded(Operand(_ranked(v.type, prologue.type.rank), v in held, views.get(v))) for v in inputs[:computed]), *operands]
    element, *more = (widen(each, arrives) for each in stored)
    workload = Workload(
        family="",
        params=_params(anchor),
        inputs=tuple(operands),
        anchor=first,
        output=result,
        epilogue=element,
        operands=tuple(extra),
        threads=threads,
        prologue=prologue,
        stored_strides=stored_strides,
        further=tuple(map(Further, others, more)),
    )
    dividing = {widened(divisor, arrives): epilogue.dividing[divisor] for divisor in reversed(divisors(*stored))}
    divisions = tuple(dividing[divisor] for divisor in divisors(*workload.elements))
    families = lookup((anchor or region.nodes[-1]).op).families
    starts = {v: nodes[0].present_inputs[0] for v, nodes in brought.items()}
    reads = [starts.get(v, v) for v in (*inputs, *epilogue.operands)]
    found = LoweredGroup(_in_memory(workload), families, tuple(sources[v] for v in reads), divisions, inner_groups)
    return replace(found, shares=shares.count, cut=_numbers(reads, shares.cut), name=node.name)


def _numbers(values: Sequence[Value], cut: frozenset[Value]) -> frozenset[int]:
    return frozenset(number for number, value in enumerate(values) if value in cut)


def _moved(
    region: Graph, found: Sequence[Piece], values: tuple[Value, ...], held: Mapping[Value, Constant], threads: int
) -> tuple[Workload, tuple[Value, ...]]:
    """The workload of a group of nodes that move elements, and what its kernel reads."""
    result = region.outputs[0].type
    copies = all(isinstance(piece.element, Arg) for piece in found)
    inputs = [Operand(v.type, v in held) if copies else _unless_coded(Operand(v.type, v in held)) for v in values]
    written = []
    for piece in found:
        arrives = {k: Arg(k, inputs[read.source].type.dtype) for k, read in enumerate(piece.reads)}
        written.append(piece._replace(element=widen(piece.element, arrives)))
    workload = Workload("", (("pieces", tuple(written)),), tuple(inputs), result, result, Arg(0, result.dtype), threads=threads)
    return workload, values


def _inner(region: Graph, sources: dict[Value, Value | Made], held: Mapping[Value, Constant], cut: frozenset[Value]) -> tuple[LoweredGroup, ...]:
    """The inner groups of a group's region, in order; what they make, and views of it, is added to ``sources``."""
    found: list[LoweredGroup] = []
    for node in region.nodes:
        source = sources.get(node.present_inputs[0]) if node.present_inputs else None
        if node.op == "group":
            lowered = lower_group(node, held, threads=1)
            reads = [read for read in lowered.reads if not isinstance(read, Made)]  # it has no inner groups itself
            sources[node.output] = Made(len(found))
            found.append(replace(lowered, reads=tuple(sources[read] for read in reads), cut=_numbers(reads, cut)))
        elif isinstance(source, Made) and (offset := view_offset(node)) is not None:
            sources[node.output] = Made(source.number, source.offset + offset)
    return tuple(found)


class _Expression:
    """Elementwise nodes as expressions: ``elements`` of their values, and the ``operands`` they read, numbered from ``first`` on.

    ``held`` are the constants among the values; ``dividing`` has the name of the node that divides by each checked divisor.
    """

    def __init__(self, held: Mapping[Value, Constant], first: int) -> None:
        self._held = held
        self._first = first
        self.elements: dict[Value, Scalar] = {}
        self.operands: dict[Value, int] = {}
        self.dividing: dict[Scalar, str] = {}

    def add(self, node: Node) -> None:
        """The element of a node's result, in those of its operands."""
        args = [self._element(value) for value in node.present_inputs]
        expr = lookup(node.op).scalar([Arg(i, a.dtype) for i, a in enumerate(args)], node.attrs)
        if expr is None:
            raise InternalError(f"{node.op} has no scalar expression", where=f"node {node.name}")
        safe = [Arg(i, v.type.dtype) for i, v in enumerate(node.present_inputs) if _has_no_zero(self._held.get(v))]
        expr = unchecked(expr, safe.__contains__)
        for divisor in divisors(expr):
            self.dividing.setdefault(substitute(divisor, args), node.name or node.output.name)
        self.elements[node.output] = substitute(expr, args)

    def _element(self, value: Value) -> Scalar:
        """The element of a value; constants of one element become literals."""
        if value not in self.elements:
            constant, dtype = self._held.get(value), value.type.dtype
            if constant is not None and constant.array.size == 1 and dtype is not DType.STRING:
                self.elements[value] = Const(constant.array.astype(compute_dtype(dtype).numpy).item(), dtype)
            else:
                self.elements[value] = Arg(self._first + self.operands.setdefault(value, len(self.operands)), dtype)
        return self.elements[value]


def _prologue(region: Graph, anchor: Node | None, before: set[Node], held: Mapping[Value, Constant]) -> tuple[Prologue | None, list[Value]]:
    """What an anchor's first operand is computed from and how, and what the kernel reads for its anchor."""
    if anchor is None or not before:
        return None, [] if anchor is None else list(anchor.present_inputs)
    found, x = _Expression(held, 0), anchor.present_inputs[0]
    for inner in region.nodes:
        if inner in before:
            found.add(inner)
    arrives = {i: Arg(i, _unless_coded(Operand(v.type, v in held)).type.dtype) for v, i in found.operands.items()}
    type_ = _computed(x.type)
    element = widen(cast(found.elements[x], type_.dtype), arrives)
    return Prologue(type_, element, len(found.operands)), [*found.operands, *anchor.present_inputs[1:]]


def _has_no_zero(constant: Constant | None) -> bool:
    return constant is not None and bool(np.all(constant.array))


def _in_memory(workload: Workload) -> Workload:
    """The workload on what lies in memory: kernels know strings as integers."""
    return replace(
        workload,
        inputs=tuple(replace(operand, type=operand.type.in_memory) for operand in workload.inputs),
        anchor=workload.anchor.in_memory,
        output=workload.output.in_memory,
        epilogue=_on_memory(workload.epilogue),
        prologue=workload.prologue
        and replace(workload.prologue, type=workload.prologue.type.in_memory, element=_on_memory(workload.prologue.element)),
        operands=tuple(replace(operand, type=operand.type.in_memory) for operand in workload.operands),
        further=tuple(Further(each.type.in_memory, _on_memory(each.element)) for each in workload.further),
    )


def _on_memory(expr: Scalar) -> Scalar:
    return rebuilt(expr, lambda part: replace(part, dtype=DType.INT64) if part.dtype is DType.STRING else part)


def _computed(type_: TensorType) -> TensorType:
    return replace(type_, dtype=compute_dtype(type_.dtype))


def _widened(operand: Operand) -> Operand:
    """A constant in half precision is packed in the type it is computed in."""
    return replace(operand, type=_computed(operand.type)) if operand.constant else operand


def _unless_coded(operand: Operand) -> Operand:
    """As ``_widened``; codes stay what they are until they are cast."""
    return operand if is_coded(operand.type.dtype) else _widened(operand)


def _params(anchor: Node | None) -> tuple[tuple[str, Any], ...]:
    if anchor is None:
        return ()
    regions = lookup(anchor.op).regions([v.type for v in anchor.present_inputs], anchor.attrs)
    return (("regions", regions),) if regions is not None else tuple(sorted(anchor.attrs.items()))


def _ranked(type_: TensorType, rank: int) -> TensorType:
    """The type with leading ones up to rank: the same bytes."""
    return type_ if type_.rank >= rank else TensorType(type_.dtype, (1,) * (rank - type_.rank) + type_.shape)


def copied(value: Value, constant: bool, threads: int) -> LoweredGroup:
    """The workload that copies a row-major value."""
    type_ = value.type.in_memory
    epilogue = Arg(1, type_.dtype)
    workload = Workload("", (), (), type_, type_, epilogue, (Operand(type_, constant),), threads)
    return LoweredGroup(workload, ("injective",), (value,))


@dataclass(frozen=True)
class Selected:
    """A group and the family that builds its kernel; ``inner`` are its inner groups."""

    family: Family
    group: LoweredGroup
    inner: tuple[Selected, ...] = ()


def select(graph: Graph, target: Target, threads: int) -> dict[Node, Selected]:
    """Each group's families, regions included. Raises UnsupportedError, listing every such node, where none builds one."""
    found, missing = {}, []
    for around, node, places in _nodes(graph):
        if node.op == "group":
            chosen = _selected(lower_group(node, around.constants, threads, places[node.outputs[0]].strides), target)
            if chosen is None:
                missing.append(_describe(node))
            else:
                found[node] = chosen
        elif node.op not in CONTROL and not is_view(node) and not held_starts(node):
            missing.append(_describe(node))
    if missing:
        raise UnsupportedError(
            f"{len(missing)} node{'s' if len(missing) > 1 else ''} cannot be compiled: no kernel builds them",
            where=f"model {graph.name}, target {target.name}",
            hint="replace these nodes in the model, or ask for the operators in these forms",
            items=tuple(missing),
        )
    return found


def _selected(group: LoweredGroup, target: Target) -> Selected | None:
    candidates = (family(name) for name in group.families)
    chosen = next((found for found in candidates if found.supports(group.workload, target)), None)
    inner = [_selected(made, target) for made in group.inner]
    found = tuple(part for part in inner if part is not None)
    return None if chosen is None or len(found) < len(inner) else Selected(chosen, group, found)


def _nodes(graph: Graph) -> Iterator[tuple[Graph, Node, Mapping[Value, Place]]]:
    """Every node with the graph it stands in and where the values of that lie, those of branches and loops included."""
    places = memory_places(graph)
    for node in graph.nodes:
        yield graph, node, places
        for region in node.regions if node.op in BRANCHING else ():
            yield from _nodes(region)


def _describe(node: Node) -> str:
    """A node that cannot be built: its name, ops, and the types it reads and makes."""
    ops = [inner.op for region in node.regions for inner in region.nodes] if node.op == "group" else [node.op]
    reads = ", ".join(str(v.type) for v in node.present_inputs)
    made = ", ".join(str(v.type) for v in node.outputs)
    return f"node {node.name or node.outputs[0].name}: {' + '.join(ops)} of {reads} to {made}"
