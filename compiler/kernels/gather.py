"""Gather: slices of a tensor along one axis, at positions that are data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, ceildiv
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, physical_strides, register_family
from compiler.kernels.bounds import Bounds
from compiler.kernels.gemm import column_in_panels, pack_panels
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
from compiler.kernels.tiles import supposed
from compiler.target import Target

_ROWS_OF_TABLE = 16
"""Rows of a table for each one gathered, from which on these may be columns of panels, an element in a cache line: a product with all of it reads
many more."""


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

    def reads_panels(self, workload: Workload) -> bool:
        data, indices = workload.inputs
        whole = data.type.rank == 2 and data.type.is_static and data.type.block == 1 and workload.output.elements != 0
        return whole and workload.int("axis") == 0 and data.type.static_shape[0] >= _ROWS_OF_TABLE * supposed(indices.type.elements)

    def pack(self, workload: Workload, schedule: GatherSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        packed, panels = pack_plain(workload, constants), workload.inputs[0].panels
        if panels is not None and packed[0] is not None:
            packed[0] = pack_panels(packed[0].T, panels.vectors, panels.lanes).reshape(-1)
        return packed

    def build(self, workload: Workload, schedule: GatherSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        table, panels = workload.inputs[0].type, workload.inputs[0].panels
        packed = {} if panels is None else {0: ceildiv(table.shape[0], panels.lanes) * panels.lanes * table.shape[1]}
        (data, indices), operands, out = declare_buffers(b, workload, packed)
        if workload.output.elements == 0:
            return b.function()
        epilogue = Epilogue(b, workload, operands)
        axis = workload.int("axis")
        size, checked = table.shape[axis], bool(workload.attrs.get("checked"))
        bounds = Bounds(b, size, axis, reports=checked)
        slices, which, inner = _axes(workload)
        extents = [axis.extent for axis in (*slices, *which)]
        origin = (0,) * len(workload.output.physical_shape)
        lanes = vector_lanes(target, [data.dtype, *expression_dtypes(*workload.elements)], inner[-1].extent)
        with parallel_nest(b, extents, workload.threads) as at:
            chosen = b.cast(b.load(indices, offset(which, at[len(slices) :])), DType.INT64)
            wrapped = bounds.wrapped(chosen)
            place = b.bind(bounds.inside(wrapped))
            if checked:
                bounds.check(chosen, b.bind(wrapped), place)
            start = offset(slices, at[: len(slices)]) + place * physical_strides(table)[axis]
            step: Dim = 1
            if panels is not None:
                columns, depth = table.static_shape
                start, step = (b.bind(b.index_value(dim)) for dim in column_in_panels(depth, columns, panels, place))
            there = nullcontext() if isinstance(size, int) else b.if_less(0, size)
            with there, serial_nest(b, [axis.extent for axis in inner[:-1]]) as between:

                def copy(chunks: list[Chunk]) -> None:
                    for position, count in chunks:
                        point = [*between, position]
                        value = b.load(data, start + offset(inner, point) * step, lanes, stride=step, count=count)
                        where = coordinates(origin, (*slices, *which, *inner), [*at, *point])
                        epilogue.store(out, value, where, count, axis=inner[-1].output)

                vector_loop(b, inner[-1].extent, lanes, schedule.vectors, copy)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * len(calls(*workload.elements))


def _axes(workload: Workload) -> tuple[tuple[Axis, ...], tuple[Axis, ...], tuple[Axis, ...]]:
    """The output's axes that walk data before the gathered axis, indices, and data after it; the last at least one."""
    data, indices = (operand.type for operand in workload.inputs)
    output, axis = workload.output, workload.int("axis")
    walked = (*physical_strides(data)[:axis], *physical_strides(indices), *physical_strides(data)[axis + 1 :])
    tables = [walked, workload.output_strides, *(broadcast_strides(o.type, output) for o in workload.operands)]
    axes = [Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(output.physical_shape)]
    ends = axis + indices.rank
    return collapse(axes[:axis]), collapse(axes[axis:ends]), collapse(axes[ends:]) or (Axis(1, -1, strides=(0,)),)


register_family(Gather())
