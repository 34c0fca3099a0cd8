"""From a planned graph to a Program: each group becomes a workload, each distinct workload under its schedule one kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import InternalError, UnsupportedError
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.half import compute_dtype, widen
from compiler.ir.loop import Access, Function
from compiler.ir.op import lookup
from compiler.ir.program import Address, KernelCall, Program, Space
from compiler.ir.scalar import Arg, Array, Const, Scalar, substitute
from compiler.ir.types import TensorType
from compiler.ir.verify import ARENA_ALIGNMENT, is_elementwise, is_view
from compiler.kernels.base import Family, Operand, Workload, family
from compiler.target import Target
from passes.analysis.liveness import memory_roots
from passes.graph.plan import require_static

Choose = Callable[[Family, Workload, Target], Any]
"""Picks the schedule of a workload."""


def heuristic(family_: Family, workload: Workload, target: Target) -> Any:
    """The family's own default schedule."""
    return family_.heuristic(workload, target)


@dataclass(frozen=True)
class LoweredGroup:
    """A group as a workload; ``reads`` are the group's operands behind ``workload.inputs`` and ``workload.operands``, in order."""

    workload: Workload
    families: tuple[str, ...]
    reads: tuple[Value, ...]


def lower(graph: Graph, target: Target, threads: int, choose: Choose = heuristic) -> Program:
    """The program of a graph in the planned stage.

    Raises UserError for symbolic dims that are not bound, and UnsupportedError, listing every such node, where no kernel family
    builds one.
    """
    require_static(graph)
    lowered, families = _select(graph, target, threads)
    writer = _Writer(graph, target, choose)
    for node, group, chosen in zip(_groups(graph), lowered, families, strict=True):
        writer.call(node, group, chosen)
    return writer.program()


def workloads(graph: Graph, target: Target, threads: int) -> tuple[tuple[Family, Workload], ...]:
    """Each group's workload and the family that builds it, in execution order; raises as ``lower`` does."""
    lowered, families = _select(graph, target, threads)
    return tuple((chosen, group.workload) for chosen, group in zip(families, lowered, strict=True))


def _groups(graph: Graph) -> tuple[Node, ...]:
    return tuple(node for node in graph.nodes if node.op == "group")


def _select(graph: Graph, target: Target, threads: int) -> tuple[list[LoweredGroup], list[Family]]:
    lowered, families, missing = [], [], []
    for node in graph.nodes:
        if node.op == "group":
            group = lower_group(node, graph.constants, threads)
            found = _family(group, target)
            lowered.append(group)
            if found is None:
                missing.append(_describe(node))
            else:
                families.append(found)
        elif not is_view(node):
            missing.append(_describe(node))
    if missing:
        raise UnsupportedError(
            f"{len(missing)} node{'s' if len(missing) > 1 else ''} cannot be compiled: no kernel builds them",
            where=f"model {graph.name}, target {target.name}",
            hint="replace these nodes in the model, or ask for the operators in these forms",
            items=tuple(missing),
        )
    return lowered, families


def _family(group: LoweredGroup, target: Target) -> Family | None:
    candidates = (family(name) for name in group.families)
    return next((found for found in candidates if found.supports(group.workload, target)), None)


def _describe(node: Node) -> str:
    """A node that cannot be built: its name, ops, and the types it reads and makes."""
    ops = [inner.op for region in node.regions for inner in region.nodes] if node.op == "group" else [node.op]
    reads = ", ".join(str(v.type) for v in node.present_inputs)
    made = ", ".join(str(v.type) for v in node.outputs)
    return f"node {node.name or node.outputs[0].name}: {' + '.join(ops)} of {reads} to {made}"


def lower_group(node: Node, constants: Mapping[Value, Constant], threads: int) -> LoweredGroup:
    """The workload of a group: its anchor's operands are the inputs, what its elementwise nodes read are the operands."""
    (region,) = node.regions
    outer = dict(zip(region.inputs, node.present_inputs, strict=True))
    anchors = [inner for inner in region.nodes if not is_elementwise(inner)]
    anchor = anchors[0] if anchors else None
    result = region.outputs[0].type
    operands: dict[Value, int] = {}
    exprs: dict[Value, Scalar] = {}
    if anchor is not None:
        exprs[anchor.output] = Arg(0, anchor.output.type.dtype)
    for inner in region.nodes:
        if inner is anchor:
            continue
        args = []
        for value in inner.present_inputs:
            if value not in exprs:
                exprs[value] = _leaf(value, constants.get(outer[value]), operands)
            args.append(exprs[value])
        expr = lookup(inner.op).scalar([Arg(i, a.dtype) for i, a in enumerate(args)], inner.attrs)
        if expr is None:
            raise InternalError(f"{inner.op} has no scalar expression", where=f"group {node.name}")
        exprs[inner.output] = substitute(expr, args)
    inputs = anchor.present_inputs if anchor is not None else ()
    computes = anchor is not None and lookup(anchor.op).computes
    reads = [Operand(v.type, outer[v] in constants) for v in inputs]
    extra = [_widened(Operand(_ranked(v.type, result.rank), outer[v] in constants)) for v in operands]
    arrives = {1 + i: Arg(1 + i, operand.type.dtype) for i, operand in enumerate(extra)}
    first = result if anchor is None else anchor.output.type
    if computes:
        first = _computed(first)
        arrives[0] = Arg(0, first.dtype)
    workload = Workload(
        family="",
        params=_params(anchor),
        inputs=tuple(_widened(operand) if computes else operand for operand in reads),
        anchor=first,
        output=result,
        epilogue=widen(exprs[region.outputs[0]], arrives),
        operands=tuple(extra),
        threads=threads,
    )
    return LoweredGroup(workload, lookup((anchor or region.nodes[-1]).op).families, tuple(outer[v] for v in (*inputs, *operands)))


def _computed(type_: TensorType) -> TensorType:
    return replace(type_, dtype=compute_dtype(type_.dtype))


def _widened(operand: Operand) -> Operand:
    """A constant in half precision is packed in the type it is computed in."""
    return replace(operand, type=_computed(operand.type)) if operand.constant else operand


def _leaf(value: Value, constant: Constant | None, operands: dict[Value, int]) -> Scalar:
    """An operand of the epilogue; constants of one element become literals."""
    if constant is not None and constant.array.size == 1:
        return Const(constant.array.astype(compute_dtype(value.type.dtype).numpy).item(), value.type.dtype)
    return Arg(1 + operands.setdefault(value, len(operands)), value.type.dtype)


def _params(anchor: Node | None) -> tuple[tuple[str, Any], ...]:
    if anchor is None:
        return ()
    regions = lookup(anchor.op).regions([v.type for v in anchor.present_inputs], anchor.attrs)
    return (("regions", regions),) if regions is not None else tuple(sorted(anchor.attrs.items()))


def _ranked(type_: TensorType, rank: int) -> TensorType:
    """The type with leading ones up to rank: the same bytes."""
    return type_ if type_.rank >= rank else TensorType(type_.dtype, (1,) * (rank - type_.rank) + type_.shape)


class _Writer:
    """Collects kernels, calls and weights; equal kernels and equally packed constants are there once."""

    def __init__(self, graph: Graph, target: Target, choose: Choose) -> None:
        self._graph = graph
        self._target = target
        self._choose = choose
        self._functions: list[Function] = []
        self._calls: list[KernelCall] = []
        self._weights: list[tuple[int, Array]] = []
        self._weights_bytes = 0
        self._scratch_bytes = 0
        self._kernels: dict[tuple[Workload, Any], int] = {}
        self._packed: dict[tuple[Constant, int, Workload, Any], int] = {}
        self._roots = memory_roots(graph)
        self._places = _places(graph, self._roots)

    def call(self, node: Node, group: LoweredGroup, chosen: Family) -> None:
        """One kernel call for a group."""
        workload = replace(group.workload, family=chosen.name)
        schedule = self._choose(chosen, workload, self._target)
        function = self._function(chosen, workload, schedule)
        reads = self._reads(chosen, workload, schedule, group.reads)
        types = [*(o.type for o in (*workload.inputs, *workload.operands)), workload.output]
        flops, nbytes = _number(chosen.flops(workload)), sum(_number(t.nbytes) for t in types)
        args = (*reads, self._places[self._roots[node.output]], *self._scratch(self._functions[function]))
        self._calls.append(KernelCall(function, args, node.name, chosen.name, str(schedule), flops, nbytes))

    def program(self) -> Program:
        """The finished program."""
        graph = self._graph
        return Program(
            name=graph.name,
            inputs=graph.inputs,
            outputs=graph.outputs,
            functions=tuple(self._functions),
            calls=tuple(self._calls),
            weights=tuple(self._weights),
            weights_bytes=self._weights_bytes,
            arena_bytes=_number(graph.attrs["arena_bytes"]),
            arena_bound_bytes=_number(graph.attrs["arena_bound_bytes"]),
            scratch_bytes=self._scratch_bytes,
        )

    def _function(self, chosen: Family, workload: Workload, schedule: Any) -> int:
        number = self._kernels.get((workload, schedule))
        if number is None:
            number = self._kernels[workload, schedule] = len(self._functions)
            digest = hashlib.sha256(f"{workload!r} {schedule!r}".encode()).hexdigest()[:12]
            self._functions.append(chosen.build(workload, schedule, self._target, f"{chosen.name}_{digest}"))
        return number

    def _reads(self, chosen: Family, workload: Workload, schedule: Any, reads: Sequence[Value]) -> list[Address]:
        """Where each operand lies; constants are packed when this kernel reads them for the first time."""
        constants = [self._graph.constants.get(v) for v in reads]
        keys = [None if c is None else (c, i, workload, schedule) for i, c in enumerate(constants)]
        if any(key is not None and key not in self._packed for key in keys):
            types = [operand.type for operand in (*workload.inputs, *workload.operands)]
            arrays = [
                None if c is None else c.array.reshape(t.static_shape).astype(t.dtype.numpy, copy=False)
                for c, t in zip(constants, types, strict=True)
            ]
            for key, array in zip(keys, chosen.pack(workload, schedule, arrays), strict=True):
                if key is not None and array is not None and key not in self._packed:
                    self._packed[key] = self._store(array)
        return [
            self._places[self._roots[v]] if key is None else Address(Space.WEIGHTS, self._packed[key]) for v, key in zip(reads, keys, strict=True)
        ]

    def _scratch(self, function: Function) -> list[Address]:
        """Where a worker's scratch buffers lie: one after another from the start of its scratch, which every kernel begins anew."""
        addresses, end = [], 0
        for buffer in function.buffers:
            if buffer.access is Access.SCRATCH:
                addresses.append(Address(Space.SCRATCH, end))
                end += -(-_number(buffer.size) * buffer.dtype.itemsize // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        self._scratch_bytes = max(self._scratch_bytes, end)
        return addresses

    def _store(self, array: Array) -> int:
        """The offset of an array appended to the weights."""
        offset = -(-self._weights_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        self._weights.append((offset, array))
        self._weights_bytes = offset + array.nbytes
        return offset


def _places(graph: Graph, roots: Mapping[Value, Value]) -> dict[Value, Address]:
    """Where each root lies; constants, which are packed for each kernel, have no place."""
    places = {value: Address(Space.INPUT, index=number) for number, value in enumerate(graph.inputs)}
    places.update({roots[value]: Address(Space.OUTPUT, index=number) for number, value in enumerate(graph.outputs)})
    for node in graph.nodes:
        offset = node.attrs.get("offset")
        if isinstance(offset, int):
            places[node.outputs[0]] = Address(Space.ARENA, offset)
    return places


def _number(value: object) -> int:
    """A size that must be known by now."""
    if not isinstance(value, int):
        raise InternalError(f"{value!r} is not a number", where="lowering", hint="plan memory before lowering")
    return value
