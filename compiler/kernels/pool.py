"""Max and average pooling over one to three spatial axes.

Blocked tensors have channels in the lanes and a tile of neighbouring outputs in registers; row-major ones have neighbouring outputs in
the lanes. Taps along the innermost axis are unrolled, with those of border outputs known here, or masked where sizes are known at run time
only; long windows are a loop there, too. The loops over the other axes of the window are cut to what lies inside the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

from compiler.ir.intexpr import Dim, floordiv, maximum, minimum, product
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.folds import Fold, accumulator_dtype
from compiler.kernels.loops import Chunk, expression_dtypes, load_used_lanes, pack_plain, parallel_nest, vector_lanes, vector_loop
from compiler.kernels.windows import Axis, Read, masked_read, spatial_axes, static_taps, tap_bounds, tile_runs, window_pads
from compiler.target import Target

_MOST_UNROLLED_TAPS = 32
_LONG_WINDOW = 64
"""Taps along the innermost axis above which they are a loop: code grows with them, and the time to make it faster than that."""
_MOST_BORDER_TAPS = 2048
"""Taps of all border outputs of an axis above which these are a loop."""
_SHORT_SUM = 8
"""Parts a window's sum is thought of in when its accumulator's type is chosen: float32 serves windows of up to 256 taps."""


@dataclass(frozen=True)
class PoolSchedule:
    """``tile``: output vectors computed side by side."""

    tile: int


@dataclass(frozen=True)
class _Unit:
    """One output vector: its position along the innermost spatial axis, lanes in use, and taps inside the input, or perhaps inside if ``masked``.

    ``divisor`` is what an average of its window's extent along that axis is divided by.
    """

    position: Dim
    count: Dim
    taps: Sequence[Dim]
    divisor: Dim
    masked: bool = False


class Pool:
    """The family: params ``kind`` (max, average), ``kernel_shape``, ``strides``, ``pads``, ``dilations``, ``count_include_pad``."""

    name = "pool"

    def supports(self, workload: Workload, target: Target) -> bool:
        """One layout; averages of floats."""
        x, output = workload.inputs[0].type, workload.output
        return x.rank >= 3 and x.block == output.block and (workload.attrs["kind"] == "max" or x.dtype.is_float)

    def heuristic(self, workload: Workload, target: Target) -> PoolSchedule:
        kernel = workload.ints("kernel_shape")[-1]
        return PoolSchedule(4 if kernel > _LONG_WINDOW else max(1, min(4, _MOST_UNROLLED_TAPS // kernel)))

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
                dtypes = [x.dtype, writer.fold.dtype, *expression_dtypes(*workload.elements)]
                writer.row_major(vector_lanes(target, dtypes, workload.output.shape[-1]), schedule.tile)
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
        x = workload.inputs[0].type
        kernel, pads = workload.ints("kernel_shape"), window_pads(workload)
        self._axes = spatial_axes(workload, kernel)
        self._long = kernel[-1] > _LONG_WINDOW
        borders = _border_outputs(self._axes[-1])
        self._known = not self._long and isinstance(borders, int) and borders * kernel[-1] <= _MOST_BORDER_TAPS
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
            for run in tile_runs(last, tile, known=self._known):
                with self._b.loop("t", 0, run.count) as loop:
                    first = run.position(loop.var)
                    units = [
                        _Unit(first + i, block, taps, self._divisor(first + i if run.masked else run.start + i, taps, run.masked), run.masked)
                        for i, taps in enumerate(run.taps)
                    ]
                    self._windows(at, units, block)

    def row_major(self, lanes: int, tile: int) -> None:
        """Lanes are neighbouring outputs whose taps are all inside the input; the others are computed one by one."""
        last = self._axes[-1]
        every = tuple(range(last.kernel))
        start = minimum(last.start, last.out) if last.cut else 0
        stop = maximum(start, minimum(last.stop, last.out)) if last.cut else last.out
        with self._outer() as at:

            def interior(chunks: list[Chunk]) -> None:
                self._windows(at, [_Unit(position + start, count, every, last.kernel) for position, count in chunks], lanes)

            vector_loop(self._b, stop - start, lanes, tile, interior)
            if self._known and isinstance(start, int) and isinstance(stop, int) and isinstance(last.out, int):
                for position in (*range(start), *range(stop, last.out)):
                    taps = static_taps(last, position)
                    self._windows(at, [_Unit(position, 1, taps, self._divisor(position, taps))], 1)
                return
            for begin, end in ((0, start), (stop, last.out)):
                with self._b.loop("t", begin, end) as loop:
                    self._windows(at, [_Unit(loop.var, 1, every, self._divisor(loop.var, every, masked=True), masked=True)], 1)

    @contextmanager
    def _outer(self) -> Iterator[list[Dim]]:
        """Loops over everything but the innermost spatial axis and the lanes: physical output coordinates."""
        extents = self._workload.output.physical_shape[: 2 + len(self._axes) - 1]
        with parallel_nest(self._b, extents, self._workload.threads) as at:
            yield at

    def _windows(self, at: Sequence[Dim], units: Sequence[_Unit], lanes: int) -> None:
        """Fold the windows of several outputs and store them; ``at`` are the outer coordinates."""
        rows = at[2:]
        firsts = [axis.first(row) for row, axis in zip(rows, self._axes, strict=False)]
        bounds = [tap_bounds(axis, first) for axis, first in zip(self._axes, firsts, strict=False)]
        base = at[0] * self._steps[0] + at[1] * self._steps[1]
        accumulators = self._taps(units, lanes, base, list(zip(self._axes, firsts, bounds, strict=False)), 0, [self.fold.start(lanes)] * len(units))
        divisor = product([self._divisor_along(axis, first) for axis, first in enumerate(firsts)])
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
        if not self._long:
            return self._folded(units, lanes, index, accumulators)
        last, alone = self._axes[-1], len(units) == 1
        low, high = tap_bounds(last, last.first(units[0].position)) if alone and units[0].masked else (0, last.kernel)
        with self._b.loop("k", low, high, carried=accumulators) as loop:
            tapped = [replace(unit, taps=(loop.var,), masked=unit.masked and not alone) for unit in units]
            loop.yield_(self._folded(tapped, lanes, index, loop.carried))
        return list(loop.results)

    def _folded(self, units: Sequence[_Unit], lanes: int, index: Dim, accumulators: Sequence[Reg]) -> list[Reg]:
        """The taps of some outputs folded, which lie on the row of the input that begins at ``index``."""
        loads: dict[object, Reg] = {}
        last, step = self._axes[-1], self._steps[1 + len(self._axes)]
        folded = list(accumulators)
        for number, unit in enumerate(units):
            for tap in unit.taps:
                position = last.first(unit.position) + tap * last.dilation
                read = masked_read(self._b, last, position, lanes) if unit.masked else Read(position)
                between = last.stride if self._workload.output.block == 1 else 1
                value = load_used_lanes(self._b, self._x, _spaced(index + read.place * step, between), unit.count, lanes, loads)
                value = self._b.cast(value, self.fold.dtype)
                if read.inside is not None:
                    inside = self._b.op("ne", read.inside, self._b.const(0, read.inside.type))
                    value = self._b.op("select", inside, value, self.fold.start(lanes))
                folded[number : number + 1] = self.fold.combine([folded[number]], [value])
        return folded

    def _divisor(self, position: Dim, taps: Sequence[Dim], masked: bool = False) -> Dim:
        """What an average is divided by for its window's extent along the innermost axis."""
        if not masked and (self._reach is None or len(taps) == self._axes[-1].kernel):
            return max(1, len(taps))
        return self._divisor_along(len(self._axes) - 1, self._axes[-1].first(position))

    def _divisor_along(self, number: int, first: Dim) -> Dim:
        """What an average is divided by for the extent, along an axis, of the window whose tap 0 reads ``first``: its taps inside the input,
        or inside the input and its padding."""
        axis = self._axes[number]
        if self._reach is None:
            low, high = tap_bounds(axis, first)
            return maximum(high - low, 1)
        beyond = self._reach[number] + axis.pad - (axis.out - 1) * axis.stride - (axis.kernel - 1) * axis.dilation
        if isinstance(beyond, int) and beyond > 0:
            return axis.kernel
        return maximum(minimum(axis.kernel, floordiv(self._reach[number] - 1 - first, axis.dilation) + 1), 1)

    def _divided(self, value: Reg, divisor: Dim) -> Reg:
        b, lanes = self._b, value.type.lanes
        if isinstance(divisor, int):
            return b.op("div", value, b.const(divisor, VecType(value.type.dtype, lanes)))
        return b.op("div", value, b.splat(b.cast(b.index_value(divisor), value.type.dtype), lanes))


def _border_outputs(axis: Axis) -> Dim:
    """How many outputs have taps outside the input."""
    if not axis.cut:
        return 0
    start = minimum(axis.start, axis.out)
    return start + axis.out - maximum(start, minimum(axis.stop, axis.out))


def _spaced(start: Dim, step: int) -> Callable[[Dim], Dim]:
    """The index of each lane."""
    return lambda lane: start + lane * step


register_family(Pool())
