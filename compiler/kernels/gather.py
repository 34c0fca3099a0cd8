"""Gather: slices of a tensor along one axis, at positions that are data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, physical_strides, register_family
from compiler.kernels.bounds import Bounds
from compiler.kernels.loops import (
    Axis,
    Chunk,
    collapse,
    coordinates,
    expression_dtypes,
    offset,
    pack_plain,
    parallel_nest,
    serial_nest,
    vector_lanes,
    vector_loop,
)
from compiler.target import Target


@dataclass(frozen=True)
class GatherSchedule:
    """``vectors``: vectors of a slice copied in one iteration."""

    vectors: int


class Gather:
    """The family: inputs data and indices (int32 or int64), param ``axis``.

    A negative index counts from the end. One that is out of range reads the nearest element, so that nothing outside data is ever read,
    and with param ``checked`` is reported.
    """

    name = "gather"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Data and result in one layout, blocked where the gathered axis is spatial; that axis not known to be empty."""
        data = workload.inputs[0].type
        same = data.block == workload.output.block and (data.block == 1 or workload.int("axis") >= 2)
        return same and (data.shape[workload.int("axis")] != 0 or workload.output.elements == 0)

    def heuristic(self, workload: Workload, target: Target) -> GatherSchedule:
        return GatherSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[GatherSchedule]:
        return [GatherSchedule(vectors) for vectors in (4, 1, 2, 8)]

    def pack(self, workload: Workload, schedule: GatherSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: GatherSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (data, indices), operands, out = declare_buffers(b, workload)
        if workload.output.elements == 0:
            return b.function()
        epilogue = Epilogue(b, workload, operands)
        axis = workload.int("axis")
        size, checked = workload.inputs[0].type.shape[axis], bool(workload.attrs.get("checked"))
        bounds = Bounds(b, size, axis, reports=checked)
        slices, which, inner = _axes(workload)
        extents = [axis.extent for axis in (*slices, *which)]
        origin = (0,) * len(workload.output.physical_shape)
        lanes = vector_lanes(target, [data.dtype, *expression_dtypes(workload.epilogue)], inner[-1].extent)
        with parallel_nest(b, extents, workload.threads) as at:
            chosen = b.cast(b.load(indices, offset(which, at[len(slices) :])), DType.INT64)
            wrapped = bounds.wrapped(chosen)
            place = b.bind(bounds.inside(wrapped))
            if checked:
                bounds.check(chosen, b.bind(wrapped), place)
            start = offset(slices, at[: len(slices)]) + place * physical_strides(workload.inputs[0].type)[axis]
            there = nullcontext() if isinstance(size, int) else b.if_less(0, size)
            with there, serial_nest(b, [axis.extent for axis in inner[:-1]]) as between:

                def copy(chunks: list[Chunk]) -> None:
                    for position, count in chunks:
                        point = [*between, position]
                        value = b.load(data, start + offset(inner, point), lanes, count=count)
                        where = coordinates(origin, (*slices, *which, *inner), [*at, *point])
                        epilogue.store(out, value, where, count, axis=inner[-1].output)

                vector_loop(b, inner[-1].extent, lanes, schedule.vectors, copy)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * len(calls(workload.epilogue))


def _axes(workload: Workload) -> tuple[tuple[Axis, ...], tuple[Axis, ...], tuple[Axis, ...]]:
    """The output's axes that walk data before the gathered axis, indices, and data after it; the last at least one."""
    data, indices = (operand.type for operand in workload.inputs)
    output, axis = workload.output, workload.int("axis")
    walked = (*physical_strides(data)[:axis], *physical_strides(indices), *physical_strides(data)[axis + 1 :])
    tables = [walked, physical_strides(output), *(broadcast_strides(o.type, output) for o in workload.operands)]
    axes = [Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(output.physical_shape)]
    ends = axis + indices.rank
    return collapse(axes[:axis]), collapse(axes[axis:ends]), collapse(axes[ends:]) or (Axis(1, -1, strides=(0,)),)


register_family(Gather())
