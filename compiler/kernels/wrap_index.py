"""Indices along an axis as positions from 0, those out of range reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, IntExpr
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.bounds import Bounds
from compiler.kernels.loops import (
    Axis,
    Chunk,
    axes_of,
    collapse,
    coordinates,
    expression_dtypes,
    load_as,
    mask_tail,
    offset,
    pack_plain,
    vector_lanes,
    vector_nest,
)
from compiler.target import Target


@dataclass(frozen=True)
class WrapIndexSchedule:
    """``vectors``: vectors of indices that are checked at once."""

    vectors: int


class WrapIndex:
    """The family: an integer tensor in, i64 out; params ``size`` and ``axis``, of the axis that is indexed."""

    name = "wrap_index"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors."""
        return workload.inputs[0].type.block == workload.output.block == 1

    def heuristic(self, workload: Workload, target: Target) -> WrapIndexSchedule:
        return WrapIndexSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[WrapIndexSchedule]:
        return [WrapIndexSchedule(vectors) for vectors in (4, 1, 2, 8)]

    def pack(self, workload: Workload, schedule: WrapIndexSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: WrapIndexSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        size, axis = workload.attrs["size"], workload.int("axis")
        if not isinstance(size, int | IntExpr):
            raise InternalError(f"size is {size!r}", where="kernel family wrap_index")
        if workload.output.elements == 0:
            return b.function()
        epilogue, bounds = Epilogue(b, workload, operands), Bounds(b, size, axis)
        *outer, last = collapse(axes_of(workload)) or (Axis(1, -1, strides=(0,)),)
        lanes = vector_lanes(target, [DType.INT64, *expression_dtypes(*workload.elements)], last.extent)
        origin = (0,) * workload.output.rank

        def convert(at: Sequence[Dim], chunks: list[Chunk]) -> None:
            loads = [load_as(b, DType.INT64, x, offset(outer, at) + position, lanes, count=count) for position, count in chunks]
            loads = [mask_tail(b, value, count, b.const(0, value.type)) for value, (_, count) in zip(loads, chunks, strict=True)]
            wrapped = [bounds.wrapped(value) for value in loads]
            inside = [bounds.inside(value) for value in wrapped]
            with b.if_less(0, bounds.outside(wrapped, inside)):
                for position, count in chunks:
                    with b.loop("l", 0, count) as lane:
                        index = load_as(b, DType.INT64, x, offset(outer, at) + position + lane.var, 1)
                        again = bounds.wrapped(index)
                        bounds.check(index, b.bind(again), b.bind(bounds.inside(again)))
            for value, (position, count) in zip(inside, chunks, strict=True):
                epilogue.store(out, value, coordinates(origin, (*outer, last), [*at, position]), count, axis=last.output)

        vector_nest(b, [axis.extent for axis in outer], last.extent, lanes, schedule.vectors, workload.threads, convert)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * len(calls(*workload.elements))


register_family(WrapIndex())
