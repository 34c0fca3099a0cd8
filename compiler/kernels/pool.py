"""Max and average pooling over one to three spatial axes.

Blocked tensors have channels in the lanes and a tile of neighbouring outputs in registers; row-major ones have neighbouring outputs in
the lanes. Taps along the innermost axis are unrolled, with those of border outputs known here; the loops over the other
axes of the window are cut to what lies inside the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from compiler.ir.intexpr import Dim, floordiv, maximum, minimum
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.folds import Fold, accumulator_dtype
from compiler.kernels.loops import Chunk, expression_dtypes, load_used_lanes, pack_plain, parallel_nest, vector_lanes, vector_loop
from compiler.kernels.windows import Axis, spatial_axes, tap_bounds, tile_runs
from compiler.target import Target

_MOST_UNROLLED_TAPS = 32
_SHORT_SUM = 8
"""Parts a window's sum is thought of in when its accumulator's type is chosen: float32 serves windows of up to 256 taps."""


@dataclass(frozen=True)
class PoolSchedule:
    """``tile``: output vectors computed side by side."""

    tile: int


@dataclass(frozen=True)
class _Unit:
    """One output vector: its position along the innermost spatial axis, lanes in use, and taps inside the input."""

    position: Dim
    count: Dim
    taps: Sequence[int]
    divisor: int


class Pool:
    """The family: params ``kind`` (max, average), ``kernel_shape``, ``strides``, ``pads``, ``dilations``, ``count_include_pad``."""

    name = "pool"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Static shapes in one layout; averages of floats."""
        x, output = workload.inputs[0].type, workload.output
        return x.is_static and x.rank >= 3 and x.block == output.block and (workload.attrs["kind"] == "max" or x.dtype.is_float)

    def heuristic(self, workload: Workload, target: Target) -> PoolSchedule:
        return PoolSchedule(max(1, min(4, _MOST_UNROLLED_TAPS // workload.ints("kernel_shape")[-1])))

    def space(self, workload: Workload, target: Target) -> Sequence[PoolSchedule]:
        first = self.heuristic(workload, target)
        return [first, *(PoolSchedule(tile) for tile in (1, 2, 4, 8) if tile != first.tile)]

    def pack(self, workload: Workload, schedule: PoolSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: PoolSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            writer = _PoolWriter(b, workload, (x, out), Epilogue(b, workload, operands))
            if workload.output.block == 1:
                dtypes = [x.dtype, writer.fold.dtype, *expression_dtypes(workload.epilogue)]
                writer.row_major(vector_lanes(target, dtypes, workload.output.static_shape[-1]), schedule.tile)
            else:
                writer.blocked(schedule.tile)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.with_block(1).elements * prod(workload.ints("kernel_shape"))


class _PoolWriter:
    def __init__(self, b: LoopBuilder, workload: Workload, buffers: tuple[Buffer, Buffer], epilogue: Epilogue) -> None:
        self._b = b
        self._workload = workload
        self._x, self._out = buffers
        self._epilogue = epilogue
        x, output = workload.inputs[0].type, workload.output
        kernel, pads = workload.ints("kernel_shape"), workload.ints("pads")
        strides, dilations = workload.ints("strides"), workload.ints("dilations")
        self._axes = spatial_axes(x.static_shape[2:], output.static_shape[2:], kernel, strides, dilations, pads)
        include = bool(workload.attrs.get("count_include_pad"))
        self._reach = [axis.size + pad for axis, pad in zip(self._axes, pads[len(kernel) :], strict=True)] if include else None
        self._steps = physical_strides(x)
        self._average = workload.attrs["kind"] == "average"
        kind = "sum" if self._average else "max"
        self.fold = Fold(b, kind, accumulator_dtype(kind, x.dtype, prod(kernel) // _SHORT_SUM))

    def blocked(self, tile: int) -> None:
        """Lanes are channels."""
        last, block = self._axes[-1], self._workload.output.block
        with self._outer() as at:
            for run in tile_runs(last, tile):
                with self._b.loop("t", 0, run.count) as loop:
                    first = loop.var * run.size + run.start
                    units = [_Unit(first + i, block, taps, self._divisor(run.start + i, taps)) for i, taps in enumerate(run.taps)]
                    self._windows(at, units, block)

    def row_major(self, lanes: int, tile: int) -> None:
        """Lanes are neighbouring outputs whose taps are all inside the input; the others are computed one by one."""
        last = self._axes[-1]
        every = tuple(range(last.kernel))
        inside = [position for position in range(last.out) if last.taps(position) == every]
        start, stop = (inside[0], inside[-1] + 1) if inside else (0, 0)
        with self._outer() as at:

            def interior(chunks: list[Chunk]) -> None:
                self._windows(at, [_Unit(position + start, count, every, last.kernel) for position, count in chunks], lanes)

            vector_loop(self._b, stop - start, lanes, tile, interior)
            for position in (*range(start), *range(stop, last.out)):
                taps = last.taps(position)
                self._windows(at, [_Unit(position, 1, taps, self._divisor(position, taps))], 1)

    @contextmanager
    def _outer(self) -> Iterator[list[Dim]]:
        """Loops over everything but the innermost spatial axis and the lanes: physical output coordinates."""
        extents = self._workload.output.physical_shape[: 2 + len(self._axes) - 1]
        with parallel_nest(self._b, [extent for extent in extents if isinstance(extent, int)], self._workload.threads) as at:
            yield at

    def _windows(self, at: Sequence[Dim], units: Sequence[_Unit], lanes: int) -> None:
        """Fold the windows of several outputs and store them; ``at`` are the outer coordinates."""
        rows = at[2:]
        firsts = [row * axis.stride - axis.pad for row, axis in zip(rows, self._axes, strict=False)]
        bounds = [tap_bounds(axis, first) for axis, first in zip(self._axes, firsts, strict=False)]
        base = at[0] * self._steps[0] + at[1] * self._steps[1]
        accumulators = self._taps(units, lanes, base, list(zip(self._axes, firsts, bounds, strict=False)), 0, [self.fold.start(lanes)] * len(units))
        divisor = self._outer_divisor(firsts, bounds)
        for unit, value in zip(units, accumulators, strict=True):
            result = self._divided(value, divisor * unit.divisor) if self._average else value
            result = self._b.cast(result, self._workload.anchor.dtype)
            blocked = self._workload.output.block != 1
            place = (*at, unit.position, 0) if blocked else (*at, unit.position)
            self._epilogue.store(self._out, result, place, unit.count)

    def _taps(
        self, units: Sequence[_Unit], lanes: int, index: Dim, loops: Sequence[tuple[Axis, Dim, tuple[Dim, Dim]]], depth: int, accumulators: list[Reg]
    ) -> list[Reg]:
        """The loops over the window's axes from number ``depth`` on; ``index`` is the input's element they start from."""
        if depth < len(loops):
            axis, first, (low, high) = loops[depth]
            with self._b.loop("k", low, high, carried=accumulators) as loop:
                row = index + (first + loop.var * axis.dilation) * self._steps[2 + depth]
                loop.yield_(self._taps(units, lanes, row, loops, depth + 1, list(loop.carried)))
            return list(loop.results)
        loads: dict[object, Reg] = {}
        last, step = self._axes[-1], self._steps[1 + len(self._axes)]
        folded = list(accumulators)
        for number, unit in enumerate(units):
            for tap in unit.taps:
                place = index + (unit.position * last.stride + (tap * last.dilation - last.pad)) * step
                between = last.stride if self._workload.output.block == 1 else 1
                value = load_used_lanes(self._b, self._x, _spaced(place, between), unit.count, lanes, loads)
                folded[number : number + 1] = self.fold.combine([folded[number]], [self._b.cast(value, self.fold.dtype)])
        return folded

    def _divisor(self, position: int, taps: Sequence[int]) -> int:
        """What an average is divided by for its window's extent along the innermost axis."""
        if self._reach is None:
            return max(1, len(taps))
        axis, reach = self._axes[-1], self._reach[-1]
        first = position * axis.stride - axis.pad
        return max(1, sum(first + k * axis.dilation < reach for k in range(axis.kernel)))

    def _outer_divisor(self, firsts: Sequence[Dim], bounds: Sequence[tuple[Dim, Dim]]) -> Dim:
        total: Dim = 1
        for k, (first, (low, high)) in enumerate(zip(firsts, bounds, strict=True)):
            axis = self._axes[k]
            if self._reach is None:
                total = total * maximum(high - low, 1)
            elif (axis.out - 1) * axis.stride - axis.pad + (axis.kernel - 1) * axis.dilation < self._reach[k]:
                total = total * axis.kernel
            else:
                total = total * maximum(minimum(axis.kernel, floordiv(self._reach[k] - 1 - first, axis.dilation) + 1), 1)
        return total

    def _divided(self, value: Reg, divisor: Dim) -> Reg:
        b, lanes = self._b, value.type.lanes
        if isinstance(divisor, int):
            return b.op("div", value, b.const(divisor, VecType(value.type.dtype, lanes)))
        return b.op("div", value, b.splat(b.cast(b.index_value(divisor), value.type.dtype), lanes))


def _spaced(start: Dim, step: int) -> Callable[[Dim], Dim]:
    """The index of each lane."""
    return lambda lane: start + lane * step


register_family(Pool())
