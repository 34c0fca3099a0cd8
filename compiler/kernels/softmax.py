"""Softmax and its logarithm along one axis, in three passes over what then lies in cache: largest, sum of exponentials, result.

Lanes run along the axis where it is the innermost, otherwise along what is inside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim, floordiv
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.folds import Fold, accumulator_dtype
from compiler.kernels.loops import (
    Axis,
    Chunk,
    axes_of,
    collapse,
    coordinates,
    expression_dtypes,
    fewer,
    mask_tail,
    offset,
    parallel_nest,
    vector_lanes,
    vector_loop,
    vector_nest,
)
from compiler.kernels.rows import RowFamily, RowSchedule
from compiler.target import Target


class Softmax(RowFamily):
    """The family: params ``axis``, ``log``."""

    name = "softmax"

    def build(self, workload: Workload, schedule: RowSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements == 0:
            return b.function()
        axis = workload.int("axis")
        axes = axes_of(workload)
        outer, along, inner = collapse(axes[:axis]), axes[axis], collapse(axes[axis + 1 :])
        writer = _SoftmaxWriter(b, workload, (x, out), Epilogue(b, workload, operands), along)
        dtypes = [x.dtype, writer.dtype, *expression_dtypes(*workload.elements)]
        threads = workload.threads
        if inner:
            rest, last = (*outer, *inner[:-1]), inner[-1]
            lanes = vector_lanes(target, dtypes, last.extent)
            vectors = min(2, schedule.vectors)
            extents = [a.extent for a in rest]
            vector_nest(b, extents, last.extent, lanes, vectors, threads, lambda at, chunks: writer.columns((*rest, last), at, chunks, lanes))
        else:
            lanes = vector_lanes(target, dtypes, along.extent)
            with parallel_nest(b, [a.extent for a in outer], threads) as at:
                writer.row(outer, at, lanes, fewer(schedule.vectors, along.extent, lanes))
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * 12


class _SoftmaxWriter:
    def __init__(self, b: LoopBuilder, workload: Workload, buffers: tuple[Buffer, Buffer], epilogue: Epilogue, along: Axis) -> None:
        self._b = b
        self._x, self._out = buffers
        self._epilogue = epilogue
        self._along = along
        self._anchor = workload.anchor.dtype
        self._log = bool(workload.attrs["log"])
        self._origin = (0,) * len(workload.output.physical_shape)
        self.dtype = DType.FLOAT64 if self._x.dtype is DType.FLOAT64 else DType.FLOAT32
        """The type computed in."""
        self._keeps = not self._log and self._out.dtype is self.dtype

    def row(self, outer: Sequence[Axis], at: Sequence[Dim], lanes: int, unroll: int) -> None:
        """One row, lanes along it."""
        base = offset(outer, at)
        axes = (*outer, self._along)
        extent = self._along.extent
        largest = Fold(self._b, "max", self.dtype)
        total = Fold(self._b, "sum", accumulator_dtype("sum", self.dtype, floordiv(extent, lanes * unroll)))

        def read(position: Dim, count: Dim) -> Reg:
            return self._read(base + position * self._along.stride, lanes, count)

        def masked(position: Dim, count: Dim) -> list[Reg]:
            return [mask_tail(self._b, read(position, count), count, largest.start(lanes))]

        def exponentials(position: Dim, count: Dim) -> list[Reg]:
            value = self._exponential(read(position, count), top, coordinates(self._origin, axes, [*at, position]), count, self._along)
            return [mask_tail(self._b, self._b.cast(value, total.dtype), count, total.start(lanes))]

        def write(chunks: list[Chunk]) -> None:
            for position, count in chunks:
                place = coordinates(self._origin, axes, [*at, position])
                self._write(base + position * self._along.stride, lanes, count, top, scale, place, self._along)

        (found,) = largest.join(largest.along(extent, lanes, [[largest.start(lanes)]] * unroll, masked))
        top = self._b.splat(largest.across(found), lanes)
        (found,) = total.join(total.along(extent, lanes, [[total.start(lanes)]] * unroll, exponentials))
        scale = self._b.splat(self._scale(total.across(found)), lanes)
        vector_loop(self._b, extent, lanes, unroll, write)

    def columns(self, axes: Sequence[Axis], at: Sequence[Dim], chunks: list[Chunk], lanes: int) -> None:
        """Rows side by side, one in each lane; the last of ``axes`` is the lanes'."""
        b, extent = self._b, self._along.extent
        bases = [offset(axes, [*at, position]) for position, _ in chunks]
        counts = [count for _, count in chunks]
        largest = Fold(b, "max", self.dtype)
        total = Fold(b, "sum", accumulator_dtype("sum", self.dtype, extent))

        def values(position: Dim, _: Dim) -> list[Reg]:
            return [self._read(base + position * self._along.stride, lanes, count) for base, count in zip(bases, counts, strict=True)]

        def exponentials(position: Dim, _: Dim) -> list[Reg]:
            read = zip(values(position, 1), tops, chunks, strict=True)
            places = [coordinates(self._origin, (*axes, self._along), [*at, first, position]) for first, _ in chunks]
            return [
                b.cast(self._exponential(value, top, place, count, axes[-1]), total.dtype)
                for (value, top, (_, count)), place in zip(read, places, strict=True)
            ]

        (tops,) = largest.along(extent, 1, [[largest.start(lanes)] * len(chunks)], values)
        (sums,) = total.along(extent, 1, [[total.start(lanes)] * len(chunks)], exponentials)
        scales = [self._scale(value) for value in sums]
        with b.loop("r", 0, extent) as loop:
            for (position, count), base, top, scale in zip(chunks, bases, tops, scales, strict=True):
                place = coordinates(self._origin, (*axes, self._along), [*at, position, loop.var])
                self._write(base + loop.var * self._along.stride, lanes, count, top, scale, place, axes[-1])

    def _read(self, index: Dim, lanes: int, count: Dim) -> Reg:
        return self._b.cast(self._b.load(self._x, index, lanes, count=count), self.dtype)

    def _exponential(self, value: Reg, top: Reg, place: Sequence[Dim], count: Dim, axis: Axis) -> Reg:
        """``exp(value - top)``, kept in the output for the last pass where it has the type for that."""
        result = self._b.op("exp", self._b.op("sub", value, top))
        if self._keeps:
            index, step = self._epilogue.at(place, axis.output)
            self._b.store(self._out, index, result, stride=step, count=count)
        return result

    def _scale(self, total: Reg) -> Reg:
        """What the last pass multiplies by, or subtracts from a logarithm."""
        if self._log:
            return self._b.cast(self._b.op("log", total), self.dtype)
        one = self._b.const(1, total.type)
        return self._b.cast(self._b.op("div", one, total), self.dtype)

    def _write(self, index: Dim, lanes: int, count: Dim, top: Reg, scale: Reg, place: Sequence[Dim], axis: Axis) -> None:
        b = self._b
        if self._keeps:
            kept, step = self._epilogue.at(place, axis.output)
            value = b.op("mul", b.load(self._out, kept, lanes, stride=step, count=count), scale)
        else:
            shifted = b.op("sub", self._read(index, lanes, count), top)
            value = b.op("sub", shifted, scale) if self._log else b.op("mul", b.op("exp", shifted), scale)
        self._epilogue.store(self._out, b.cast(value, self._anchor), place, count, axis=axis.output)


register_family(Softmax())
