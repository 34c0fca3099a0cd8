"""Groups as workloads: what a kernel family is asked to build for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import InternalError
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.narrow import widen, widened
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, Const, Scalar, cast, divisors, rebuilt, substitute, unchecked
from compiler.ir.types import DType, TensorType, compute_dtype, is_coded
from compiler.ir.verify import is_elementwise
from compiler.kernels.base import Operand, Prologue, Workload


@dataclass(frozen=True)
class LoweredGroup:
    """A group as a workload; ``reads`` are the group's operands behind ``workload.inputs`` and ``workload.operands``, in order.

    ``divisions`` are the names of the nodes that divide integers, one for each different ``nonzero`` of the epilogue, in order.
    """

    workload: Workload
    families: tuple[str, ...]
    reads: tuple[Value, ...]
    divisions: tuple[str, ...] = ()


def lower_group(node: Node, constants: Mapping[Value, Constant], threads: int) -> LoweredGroup:
    """The workload of a group: its anchor's operands, or what they are computed from, are the inputs, what its epilogue reads the operands."""
    (region,) = node.regions
    outer = dict(zip(region.inputs, node.present_inputs, strict=True))
    held = {value: constants[outside] for value, outside in outer.items() if outside in constants}
    anchor = next((inner for inner in region.nodes if not is_elementwise(inner)), None)
    before = _ancestors(region, anchor)
    prologue, inputs = _prologue(region, anchor, before, held)
    epilogue = _Expression(held, 1)
    if anchor is not None:
        epilogue.elements[anchor.output] = Arg(0, anchor.output.type.dtype)
    for inner in region.nodes:
        if inner is not anchor and inner not in before:
            epilogue.add(inner)
    result = region.outputs[0].type
    computes = anchor is not None and lookup(anchor.op).computes
    stored = epilogue.elements[region.outputs[0]]
    extra = [Operand(_ranked(v.type, result.rank), v in held) for v in epilogue.operands]
    if not isinstance(stored, Arg):
        extra = list(map(_unless_coded, extra))
    arrives = {1 + i: Arg(1 + i, operand.type.dtype) for i, operand in enumerate(extra)}
    first = result if anchor is None else anchor.output.type
    if computes:
        first = _computed(first)
        arrives[0] = Arg(0, first.dtype)
    if prologue is not None:
        reads = [_unless_coded(Operand(_ranked(v.type, prologue.type.rank), v in held)) for v in inputs]
    else:
        reads = [_widened(operand) if computes else operand for operand in (Operand(v.type, v in held) for v in inputs)]
    workload = Workload(
        family="",
        params=_params(anchor),
        inputs=tuple(reads),
        anchor=first,
        output=result,
        epilogue=widen(stored, arrives),
        operands=tuple(extra),
        threads=threads,
        prologue=prologue,
    )
    dividing = {widened(divisor, arrives): epilogue.dividing[divisor] for divisor in reversed(divisors(stored))}
    divisions = tuple(dividing[divisor] for divisor in divisors(workload.epilogue))
    families = lookup((anchor or region.nodes[-1]).op).families
    return LoweredGroup(_in_memory(workload), families, tuple(outer[v] for v in (*inputs, *epilogue.operands)), divisions)


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


def _ancestors(region: Graph, anchor: Node | None) -> set[Node]:
    """The nodes of a group that compute what its anchor reads."""
    found: set[Node] = set()
    pending = [] if anchor is None else [anchor]
    while pending:
        made = [region.producers[value] for value in pending.pop().present_inputs if value in region.producers]
        pending += [node for node in made if node not in found]
        found.update(made)
    return found


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
    return Prologue(type_, widen(cast(found.elements[x], type_.dtype), arrives)), [*found.operands]


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
        prologue=workload.prologue and Prologue(workload.prologue.type.in_memory, _on_memory(workload.prologue.element)),
        operands=tuple(replace(operand, type=operand.type.in_memory) for operand in workload.operands),
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
