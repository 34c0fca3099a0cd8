"""Groups as workloads: what a kernel family is asked to build for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import InternalError
from compiler.ir.graph import Constant, Node, Value
from compiler.ir.narrow import widen
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, Call, Const, Scalar, divisors, substitute, unchecked
from compiler.ir.types import DType, TensorType, compute_dtype, is_coded
from compiler.ir.verify import is_elementwise
from compiler.kernels.base import Operand, Workload


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
    """The workload of a group: its anchor's operands are the inputs, what its elementwise nodes read are the operands."""
    (region,) = node.regions
    outer = dict(zip(region.inputs, node.present_inputs, strict=True))
    anchors = [inner for inner in region.nodes if not is_elementwise(inner)]
    anchor = anchors[0] if anchors else None
    result = region.outputs[0].type
    operands: dict[Value, int] = {}
    exprs: dict[Value, Scalar] = {}
    dividing: dict[Scalar, str] = {}
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
        safe = [Arg(i, v.type.dtype) for i, v in enumerate(inner.present_inputs) if _has_no_zero(constants.get(outer.get(v, v)))]
        expr = unchecked(expr, safe.__contains__)
        for divisor in divisors(expr):
            dividing.setdefault(substitute(divisor, args), inner.name or inner.output.name)
        exprs[inner.output] = substitute(expr, args)
    inputs = anchor.present_inputs if anchor is not None else ()
    computes = anchor is not None and lookup(anchor.op).computes
    reads = [Operand(v.type, outer[v] in constants) for v in inputs]
    stored = exprs[region.outputs[0]]
    extra = [Operand(_ranked(v.type, result.rank), outer[v] in constants) for v in operands]
    if not isinstance(stored, Arg):
        extra = [operand if is_coded(operand.type.dtype) else _widened(operand) for operand in extra]
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
        epilogue=widen(stored, arrives),
        operands=tuple(extra),
        threads=threads,
    )
    divisions = dict(zip(divisors(workload.epilogue), (dividing[divisor] for divisor in divisors(stored)), strict=True))
    families = lookup((anchor or region.nodes[-1]).op).families
    return LoweredGroup(_in_memory(workload), families, tuple(outer[v] for v in (*inputs, *operands)), tuple(divisions.values()))


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
        operands=tuple(replace(operand, type=operand.type.in_memory) for operand in workload.operands),
    )


def _on_memory(expr: Scalar) -> Scalar:
    dtype = DType.INT64 if expr.dtype is DType.STRING else expr.dtype
    return Call(expr.fn, tuple(map(_on_memory, expr.args)), dtype) if isinstance(expr, Call) else replace(expr, dtype=dtype)


def _computed(type_: TensorType) -> TensorType:
    return replace(type_, dtype=compute_dtype(type_.dtype))


def _widened(operand: Operand) -> Operand:
    """A constant in half precision is packed in the type it is computed in."""
    return replace(operand, type=_computed(operand.type)) if operand.constant else operand


def _leaf(value: Value, constant: Constant | None, operands: dict[Value, int]) -> Scalar:
    """An operand of the epilogue; constants of one element become literals."""
    if constant is not None and constant.array.size == 1 and value.type.dtype is not DType.STRING:
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


def copied(value: Value, constant: bool, threads: int) -> LoweredGroup:
    """The workload that copies a row-major value."""
    type_ = value.type.in_memory
    epilogue = Arg(1, type_.dtype)
    workload = Workload("", (), (), type_, type_, epilogue, (Operand(type_, constant),), threads)
    return LoweredGroup(workload, ("injective",), (value,))
