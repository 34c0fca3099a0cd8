"""Normalisation of the innermost axes: mean, then variance, then the result, over a row that stays in cache."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, floordiv, product
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
    number,
    offset,
    parallel_nest,
    serial_nest,
    vector_lanes,
    vector_loop,
)
from compiler.kernels.rows import RowFamily, RowSchedule
from compiler.target import Target


class Normalize(RowFamily):
    """The family: params ``axis`` (the first normalised), ``epsilon``, ``center`` (subtract the mean; otherwise divide by the RMS)."""

    name = "normalize"

    def build(self, workload: Workload, schedule: RowSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            axis, axes = workload.int("axis"), axes_of(workload)
            outer, inner = collapse(axes[:axis]), collapse(axes[axis:]) or (axes[-1],)
            writer = _NormalizeWriter(b, workload, schedule, target, (x, out), Epilogue(b, workload, operands))
            with parallel_nest(b, [a.extent for a in outer], workload.threads) as at:
                writer.row(outer, at, inner)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * 7


class _NormalizeWriter:
    def __init__(
        self, b: LoopBuilder, workload: Workload, schedule: RowSchedule, target: Target, buffers: tuple[Buffer, Buffer], epilogue: Epilogue
    ) -> None:
        self._b = b
        self._schedule = schedule
        self._target = target
        self._x, self._out = buffers
        self._epilogue = epilogue
        self._anchor = workload.anchor.dtype
        epsilon = workload.attrs["epsilon"]
        if not isinstance(epsilon, float | int):
            raise InternalError(f"epsilon is {epsilon!r}, not a number", where="kernel family normalize")
        self._epsilon = epsilon
        self._center = bool(workload.attrs["center"])
        self._origin = (0,) * len(workload.output.physical_shape)
        self._dtype = DType.FLOAT64 if self._x.dtype is DType.FLOAT64 else DType.FLOAT32
        self._dtypes = [self._x.dtype, self._dtype, *expression_dtypes(workload.epilogue)]

    def row(self, outer: Sequence[Axis], at: Sequence[Dim], inner: Sequence[Axis]) -> None:
        """Everything that shares one mean and variance."""
        b, base = self._b, offset(outer, at)
        extent = product([axis.extent for axis in inner])
        lanes = vector_lanes(self._target, self._dtypes, extent)
        unroll = fewer(self._schedule.vectors, extent, lanes)
        fold = Fold(b, "sum", accumulator_dtype("sum", self._dtype, floordiv(extent, lanes * unroll)))
        mean: Reg | None = None

        def deviation(position: Dim, count: Dim) -> Reg:
            value = b.cast(self._read(base + position, lanes, count), fold.dtype)
            return value if mean is None else b.op("sub", value, b.splat(mean, lanes))

        def deviations(position: Dim, count: Dim) -> list[Reg]:
            return [mask_tail(b, deviation(position, count), count, fold.start(lanes))]

        def squares(position: Dim, count: Dim) -> list[Reg]:
            value = deviation(position, count)
            return [mask_tail(b, b.op("mul", value, value), count, fold.start(lanes))]

        count = number(b, extent, fold.dtype)
        start = [[fold.start(lanes)]] * unroll
        if self._center:
            (total,) = fold.join(fold.along(extent, lanes, start, deviations))
            mean = b.op("div", fold.across(total), count)
        (total,) = fold.join(fold.along(extent, lanes, start, squares))
        variance = b.op("add", b.op("div", fold.across(total), count), b.const(self._epsilon, count.type))
        scale = b.op("div", b.const(1, count.type), b.op("sqrt", variance))
        self._write((*outer, *inner), at, len(outer), None if mean is None else b.cast(mean, self._dtype), b.cast(scale, self._dtype))

    def _write(self, axes: Sequence[Axis], at: Sequence[Dim], outer: int, mean: Reg | None, scale: Reg) -> None:
        b, last = self._b, axes[-1]
        lanes = vector_lanes(self._target, self._dtypes, last.extent)
        shift, factor = None if mean is None else b.splat(mean, lanes), b.splat(scale, lanes)
        with serial_nest(b, [axis.extent for axis in axes[outer:-1]]) as between:

            def write(chunks: list[Chunk]) -> None:
                for position, count in chunks:
                    point = [*at, *between, position]
                    value = self._read(offset(axes, point), lanes, count)
                    value = b.op("mul", value if shift is None else b.op("sub", value, shift), factor)
                    place = coordinates(self._origin, axes, point)
                    self._epilogue.store(self._out, b.cast(value, self._anchor), place, count, axis=last.output)

            vector_loop(b, last.extent, lanes, self._schedule.vectors, write)

    def _read(self, index: Dim, lanes: int, count: Dim) -> Reg:
        return self._b.cast(self._b.load(self._x, index, lanes, count=count), self._dtype)


register_family(Normalize())
