"""Depthwise convolution over blocked channels: each vector is one channel block, the taps stay in registers.

Borders cost nothing at run time: rows and columns are tiled at build time and each tile only has the taps that fall inside the input.
Where sizes are known at run time only, tiles at the borders mask what they read.
Kernels with many taps loop over their rows instead of unrolling them, and over columns that a tile reads alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype, pack_physical
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.loops import fewer, load_as, pack_plain
from compiler.kernels.windows import UNROLLED_TAPS, Axis, Read, TileRun, mask, masked_read, spatial_axes, tap_bounds, tap_runs, tile_runs
from compiler.target import Target

_UNROLLED_STEPS = 20_000
"""Multiply-accumulate steps of all kinds of tiles up to which each has code of its own: a second's worth of code generation."""

_CLONED_TAPS = 64
"""Taps along an axis up to which tiles at the borders have code of their own, for the taps that are inside, instead of masks."""

_COLUMNS = 14
"""Outputs of a row in a tile at most; half as many with strides, and where the taps are not all in registers. A tile of one long row reads
memory as it lies: 56 x 56 x 144 in 79 us, in 86 us by 2 x 7 (AMD EPYC, Zen 4)."""


@dataclass(frozen=True)
class DepthwiseSchedule:
    """Outputs per tile, ``rows`` by ``columns``, and what the workers share: ``channels`` (blocks) or ``rows``."""

    rows: int
    columns: int
    parallel: str


class DepthwiseConv:
    """The family: two spatial axes (one is taken as a height of 1), blocked in and out, one filter per channel."""

    name = "depthwise_conv"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Constant float32 weights, group == channels == filters, spatial rank 1 or 2, blocked input and output."""
        x, w, out = workload.inputs[0].type, workload.inputs[1], workload.output
        if workload.prologue is not None or not (w.constant and compute_dtype(x.dtype) is w.type.dtype is DType.FLOAT32 and x.rank in (3, 4)):
            return False
        group = workload.int("group")
        return group == x.shape[1] == out.shape[1] and x.block == out.block == workload.anchor.block == target.lanes

    def heuristic(self, workload: Workload, target: Target) -> DepthwiseSchedule:
        rows, columns = _axes(workload)
        kept = min(rows.kernel * columns.kernel, target.vector_registers // 2)
        budget = max(1, target.vector_registers - kept - 2)
        long = kept == rows.kernel * columns.kernel and columns.stride == 1
        tile_columns = fewer(min(budget, _COLUMNS if long else _COLUMNS // 2), columns.out)
        tile_rows = max(1, fewer(min(2, budget // tile_columns), rows.out))
        batch = workload.output.shape[0]
        blocks = _blocks(workload) * (batch if isinstance(batch, int) else 1)
        shared = "channels" if blocks % workload.threads == 0 or blocks >= 4 * workload.threads else "rows"
        return DepthwiseSchedule(tile_rows, tile_columns, shared)

    def space(self, workload: Workload, target: Target) -> Sequence[DepthwiseSchedule]:
        first = self.heuristic(workload, target)
        found = [first]
        choices = ("channels", "rows") if workload.threads > 1 else (first.parallel,)
        for rows in (1, 2, 3, 4):
            for columns in (1, 2, 4, 6, 7, 8, 10, 14):
                if rows * columns <= target.vector_registers - 4:
                    found += [DepthwiseSchedule(rows, columns, shared) for shared in choices]
        return list(dict.fromkeys(found))

    def pack(self, workload: Workload, schedule: DepthwiseSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        weights, packed = constants[1], pack_plain(workload, constants)
        if weights is not None:
            by_channel = weights.reshape(1, weights.shape[0], -1)
            packed[1] = np.ascontiguousarray(pack_physical(by_channel, workload.output.block)).reshape(-1)
        return packed

    def build(self, workload: Workload, schedule: DepthwiseSchedule, target: Target, name: str) -> Function:
        return _Writer(workload, schedule, target, name).write()

    def flops(self, workload: Workload) -> Dim:
        taps = 1
        for k in workload.inputs[1].type.static_shape[2:]:
            taps *= k
        return workload.anchor.with_block(1).elements * (2 * taps)


def _blocks(workload: Workload) -> int:
    return -(-workload.inputs[1].type.static_shape[0] // workload.output.block)


def _axes(workload: Workload) -> tuple[Axis, Axis]:
    axes = spatial_axes(workload, workload.inputs[1].type.static_shape[2:])
    return (Axis(1, 1, 1, 1, 1, 0), axes[0]) if len(axes) == 1 else (axes[0], axes[1])


_Sums = dict[tuple[int, int], Reg]
"""The sums of a tile by row and column."""


class _Writer:
    def __init__(self, workload: Workload, schedule: DepthwiseSchedule, target: Target, name: str) -> None:
        self._builder = LoopBuilder(name)
        self._workload = workload
        self._rows, self._columns = _axes(workload)
        self._taps = self._rows.kernel * self._columns.kernel
        self._lanes = workload.output.block
        self._blocks = _blocks(workload)
        self._in_registers = self._taps <= target.vector_registers // 2
        (x, w), operands, out = declare_buffers(self._builder, workload, {1: self._blocks * self._taps * self._lanes})
        self._x: Buffer = x
        self._w: Buffer = w
        self._out: Buffer = out
        self._epilogue = Epilogue(self._builder, workload, operands, row_axes=range(2, len(workload.output.physical_shape) - 1))
        self._row_runs, self._column_runs = (
            tile_runs(axis, largest, known=axis.kernel <= _CLONED_TAPS or not axis.cut)
            for axis, largest in ((self._rows, schedule.rows), (self._columns, schedule.columns))
        )
        steps = _steps(self._row_runs) * _steps(self._column_runs)
        self._in_loops = steps > _UNROLLED_STEPS or self._columns.kernel > UNROLLED_TAPS
        if self._in_loops:
            self._row_runs = [TileRun(0, self._rows.out, 1, ((),))]
        self._by_rows = schedule.parallel == "rows"

    def write(self) -> Function:
        batch, b = self._workload.output.shape[0], self._builder
        images = batch * self._blocks
        if self._by_rows:
            for run in self._row_runs:
                with b.loop("y", 0, run.count, parallel=True) as y, b.loop("c", 0, images) as c:
                    self._row(run, y.var, c.var, self._load_taps(c.var))
        else:
            with b.loop("c", 0, images, parallel=True) as c:
                taps = self._load_taps(c.var)
                for run in self._row_runs:
                    with b.loop("y", 0, run.count) as y:
                        self._row(run, y.var, c.var, taps)
        return b.function()

    def _channel(self, image: Dim) -> Dim:
        return image % self._blocks if self._workload.output.shape[0] != 1 else image

    def _tap(self, image: Dim, tap: int) -> Reg:
        return self._builder.load(self._w, (self._channel(image) * self._taps + tap) * self._lanes, self._lanes)

    def _load_taps(self, image: Dim) -> list[Reg] | None:
        return [self._tap(image, tap) for tap in range(self._taps)] if self._in_registers else None

    def _row(self, run: TileRun, tile: Dim, image: Dim, taps: list[Reg] | None) -> None:
        for columns in self._column_runs:
            with self._builder.loop("x", 0, columns.count) as x:
                self._tile(run, run.position(tile), columns, columns.position(x.var), image, taps)

    def _tile(self, rows: TileRun, y0: Dim, columns: TileRun, x0: Dim, image: Dim, taps: list[Reg] | None) -> None:
        lanes = self._lanes
        loads: dict[object, Reg] = {}
        type_ = VecType(DType.FLOAT32, lanes)
        places = {(r, c): self._place(image, y0 + r, x0 + c) for r in range(rows.size) for c in range(columns.size)}
        accs = {at: self._epilogue.initial(place, type_, loads) for at, place in places.items()}
        if self._in_loops:
            accs = self._walked(columns, y0, x0, image, accs)
        else:
            self._unrolled(rows, y0, columns, x0, image, taps, accs)
        for at, place in places.items():
            self._epilogue.store(self._out, accs[at], place, None, loads)

    def _walked(self, columns: TileRun, y0: Dim, x0: Dim, image: Dim, accs: _Sums) -> _Sums:
        """The sums of one row, with loops over the rows of taps that are inside and, where they are many, over the taps of each."""
        b, lanes, rows, axis = self._builder, self._lanes, self._rows, self._columns
        first, weights = rows.first(y0), self._channel(image) * self._taps
        with b.loop("ky", *tap_bounds(rows, first), carried=list(accs.values())) as ky:
            row, tap_row = (image * rows.size + first + ky.var * rows.dilation) * axis.size, weights + ky.var * axis.kernel

            def tap(outputs: Sequence[int], kx: Dim, sums: list[Reg]) -> list[Reg]:
                weight = b.load(self._w, (tap_row + kx) * lanes, lanes)
                for c in outputs:
                    read = self._reads(axis, columns, axis.first(x0 + c) + kx * axis.dilation, (0,))[0]
                    value = mask(b, load_as(b, DType.FLOAT32, self._x, (row + read.place) * lanes, lanes), [read.inside])
                    sums[c] = b.fma(value, weight, sums[c])
                return sums

            sums = list(ky.carried)
            for taps in tap_runs(columns, axis.kernel):
                outputs = [c for c in range(columns.size) if taps.first in columns.taps[c]]
                if outputs:
                    sums = taps.walk(b, sums, partial(tap, outputs))
            ky.yield_(sums)
        return dict(zip(accs, ky.results, strict=True))

    def _unrolled(self, rows: TileRun, y0: Dim, columns: TileRun, x0: Dim, image: Dim, taps: list[Reg] | None, accs: _Sums) -> None:
        """Add everything that goes to the sums, each input element read once."""
        b, lanes, row_axis, column_axis = self._builder, self._lanes, self._rows, self._columns
        found = _uses(rows, columns, row_axis, column_axis)
        reads = [
            self._reads(axis, run, axis.first(start), sorted({at[n] for at in found}))
            for n, (axis, run, start) in enumerate(((row_axis, rows, y0), (column_axis, columns, x0)))
        ]
        weights: dict[int, Reg] = {}
        for (dy, dx), uses in found.items():
            row, column = reads[0][dy], reads[1][dx]
            index = ((image * row_axis.size + row.place) * column_axis.size + column.place) * lanes
            value = mask(b, load_as(b, DType.FLOAT32, self._x, index, lanes), [row.inside, column.inside])
            for r, c, tap in uses:
                if taps is not None:
                    weight = taps[tap]
                elif tap in weights:
                    weight = weights[tap]
                else:
                    weight = weights[tap] = self._tap(image, tap)
                accs[r, c] = b.fma(value, weight, accs[r, c])

    def _reads(self, axis: Axis, run: TileRun, first: Dim, offsets: Sequence[int]) -> dict[int, Read]:
        """The positions that a tile reads, by how far they are from its first."""
        b, lanes = self._builder, self._lanes
        return {offset: masked_read(b, axis, first + offset, lanes) if run.masked else Read(first + offset) for offset in offsets}

    def _place(self, image: Dim, y: Dim, x: Dim) -> tuple[Dim, ...]:
        batch: Dim = image // self._blocks if self._workload.output.shape[0] != 1 else 0
        spatial = (x,) if self._workload.output.rank == 3 else (y, x)
        return (batch, self._channel(image), *spatial, 0)


def _steps(runs: Sequence[TileRun]) -> int:
    """The taps of all outputs of a tile of each run."""
    return sum(len(taps) for run in runs for taps in run.taps)


def _uses(rows: TileRun, columns: TileRun, row_axis: Axis, column_axis: Axis) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """For each input element of a tile (offset from its first): the outputs it goes to and by which tap."""
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for r, row_taps in enumerate(rows.taps):
        for ky in row_taps:
            for c, column_taps in enumerate(columns.taps):
                for kx in column_taps:
                    at = (r * row_axis.stride + ky * row_axis.dilation, c * column_axis.stride + kx * column_axis.dilation)
                    found.setdefault(at, []).append((r, c, ky * column_axis.kernel + kx))
    return dict(sorted(found.items()))


register_family(DepthwiseConv())
