"""Dense and grouped convolution, direct (implicit GEMM): no copy of the input is ever made.

A tile is a run of output pixels in one row by some vectors of output channels, accumulated in registers over all taps. Kernel rows
loop over those inside the input; kernel columns are unrolled, each in a loop of its own (one basic block over several columns makes
LLVM share broadcasts between taps and spill), with the left and right border tiles as clones that skip the taps outside, or mask
them where the width is known at run time only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir.intexpr import Dim, ceildiv, minimum, mod
from compiler.ir.loop import Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Epilogue, Workload, declare_buffers, pack_operands, physical_strides, register_family
from compiler.kernels.gemm import Section, register_rows, sections, supposed
from compiler.kernels.loops import load_as
from compiler.kernels.windows import Axis, Read, TileRun, mask, masked_read, spatial_axes, tap_bounds, tile_runs
from compiler.target import Target

_UNROLL_STEPS = 32
"""Multiply-accumulate steps (taps x channels) up to which one basic block is made of a whole kernel column."""


@dataclass(frozen=True)
class DirectSchedule:
    """The largest tile: ``columns`` output pixels by ``vectors`` of channels; what the workers share: ``filters`` or ``rows``.

    ``unroll`` writes the few steps of a thin input (an image's three channels) as one basic block instead of loops.
    """

    columns: int
    vectors: int
    parallel: str
    unroll: bool


class DirectConv:
    """The family: spatial rank 1 to 3, input blocked or row-major, output blocked, constant float32 weights."""

    name = "direct_conv"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Groups must be of whole channel blocks on both sides (a row-major input may have any)."""
        x, w, out = workload.inputs[0].type, workload.inputs[1], workload.output
        if not (w.constant and compute_dtype(x.dtype) is w.type.dtype is DType.FLOAT32 and x.rank in (3, 4, 5)):
            return False
        group = workload.int("group")
        filters, channels = w.type.static_shape[0] // group, w.type.static_shape[1]
        whole = group == 1 or (filters % target.lanes == 0 and (x.block == 1 or channels % target.lanes == 0))
        return out.block == workload.anchor.block == target.lanes and x.block in (1, target.lanes) and whole

    def heuristic(self, workload: Workload, target: Target) -> DirectSchedule:
        shape = _Shape(workload)
        vectors = min((1, 2, 3, 4), key=lambda v: self._cost(shape, v, target))
        columns = min(register_rows(target, vectors), 14)
        panels = sum(s.count for s in sections(shape.vectors, vectors)) * shape.group * (shape.batch if isinstance(shape.batch, int) else 1)
        shared = "filters" if panels % workload.threads == 0 or panels >= 4 * workload.threads else "rows"
        # One block over several taps needs registers for the broadcasts that they share: with 16 it spills (stem of MobileNetV2,
        # AVX2: 88 % of peak unrolled, 96 % in loops), with 32 it wants smaller tiles (90 % unrolled, 87 % in loops).
        unroll = target.vector_registers >= 32
        if unroll and shape.thin:
            columns = max(1, min(columns, 3 * target.vector_registers // 8 // vectors))
        return DirectSchedule(columns, vectors, shared, unroll)

    @staticmethod
    def _cost(shape: _Shape, vectors: int, target: Target) -> float:
        cost = 0.0
        for columns in sections(supposed(shape.columns.out), min(register_rows(target, vectors), 14)):
            for panels in sections(shape.vectors, vectors):
                fma, loads = columns.size * panels.size, columns.size + panels.size
                cost += columns.count * panels.count * max(fma / 2, loads / 2, 4) * (1 + 0.15 * loads / fma)
        return cost

    def space(self, workload: Workload, target: Target) -> Sequence[DirectSchedule]:
        first = self.heuristic(workload, target)
        found = [first]
        choices = ("filters", "rows") if workload.threads > 1 else (first.parallel,)
        for vectors in (1, 2, 3, 4):
            limit = min(register_rows(target, vectors), 16)
            for columns in sorted({limit, max(1, limit - 2), max(1, limit // 2)}):
                found += [DirectSchedule(columns, vectors, shared, unroll) for shared in choices for unroll in (first.unroll, not first.unroll)]
        return list(dict.fromkeys(found))

    def pack(self, workload: Workload, schedule: DirectSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        weights = constants[1]
        return [None, None if weights is None else _pack(weights, _Shape(workload), schedule), *pack_operands(workload, constants[2:])]

    def build(self, workload: Workload, schedule: DirectSchedule, target: Target, name: str) -> Function:
        return _Writer(workload, schedule, name).write()

    def flops(self, workload: Workload) -> Dim:
        per_output = 2
        for dim in workload.inputs[1].type.static_shape[1:]:
            per_output *= dim
        return workload.anchor.with_block(1).elements * per_output


class _Shape:
    """The sizes of a convolution as one with three spatial axes: planes, rows and columns; axes that are missing have one element."""

    def __init__(self, workload: Workload) -> None:
        x, w, out = workload.inputs[0].type, workload.inputs[1].type.static_shape, workload.output
        axes = spatial_axes(workload, w[2:])
        self.planes, self.rows, self.columns = [Axis(1, 1, 1, 1, 1, 0)] * (3 - len(axes)) + axes
        self.batch = x.shape[0]
        self.group = workload.int("group")
        self.channels = w[1]
        self.filters = w[0] // self.group
        self.lanes = out.block
        self.vectors = -(-self.filters // self.lanes)
        image = self.planes.size * self.rows.size * self.columns.size
        self.blocked = x.block != 1
        self.batch_step = physical_strides(x)[0]
        self.pixel = self.lanes if self.blocked else 1
        self.channel_step = 1 if self.blocked else image
        self.block_step = image * self.lanes
        self.group_step = self.channels * image
        self.kernel = self.planes.kernel * self.rows.kernel * self.columns.kernel
        self.thin = self.channels * self.columns.kernel <= _UNROLL_STEPS


def _pack(weights: Array, shape: _Shape, schedule: DirectSchedule) -> Array:
    """``[group][panel][taps][channel][panel's filters]``."""
    grouped = weights.reshape(shape.group, shape.filters, shape.channels, shape.kernel)
    padded = np.zeros((shape.group, shape.vectors * shape.lanes, *grouped.shape[2:]), weights.dtype)
    padded[:, : shape.filters] = grouped
    panels = []
    for section in sections(shape.vectors, schedule.vectors):
        for tile in range(section.count):
            first = (section.start + tile * section.size) * shape.lanes
            panel = padded[:, first : first + section.size * shape.lanes]
            panels.append(panel.transpose(0, 3, 2, 1).reshape(shape.group, -1))
    return np.ascontiguousarray(np.concatenate(panels, axis=1)).reshape(-1)


class _Writer:
    def __init__(self, workload: Workload, schedule: DirectSchedule, name: str) -> None:
        self._builder = LoopBuilder(name)
        self._workload = workload
        self._shape = shape = _Shape(workload)
        self._threads = workload.threads
        self._parallel = schedule.parallel if workload.threads > 1 else ""
        self._unroll = schedule.unroll
        size = shape.group * shape.vectors * shape.lanes * shape.channels * shape.kernel
        (self._x, self._w), operands, self._out = declare_buffers(self._builder, workload, {1: size})
        self._epilogue = Epilogue(self._builder, workload, operands, row_axes=range(2, len(workload.output.physical_shape) - 1))
        self._panels = sections(shape.vectors, schedule.vectors)
        self._columns = tile_runs(shape.columns, schedule.columns)

    def write(self) -> Function:
        b, shape = self._builder, self._shape
        if self._parallel == "rows":
            share = ceildiv(shape.rows.out, self._threads)
            with b.loop("s", 0, self._threads, parallel=True) as part:
                start = part.var * share
                stop = start + share if mod(shape.rows.out, self._threads) == 0 else minimum(start + share, shape.rows.out)
                with b.loop("n", 0, shape.batch) as n, b.loop("g", 0, shape.group) as g:
                    self._filters(n.var, g.var, start, stop, 0, None)
        else:
            for number, panels in enumerate(self._panels):
                total = shape.batch * shape.group * panels.count
                with b.loop("p", 0, total, parallel=True) as p:
                    images = p.var // panels.count if shape.batch * shape.group != 1 else 0
                    image, group = (images // shape.group, images % shape.group) if shape.batch != 1 else (0, images)
                    tile = p.var % panels.count if shape.batch * shape.group != 1 else p.var
                    self._filters(image, group, 0, shape.rows.out, number, tile)
        return b.function()

    def _filters(self, n: Dim, g: Dim, start: Dim, stop: Dim, number: int, tile: Dim | None) -> None:
        """Rows ``start`` to ``stop`` for one panel, or for all of them when ``tile`` is None."""
        if tile is not None:
            self._rows(n, g, start, stop, self._panels[number], tile)
            return
        for panels in self._panels:
            with self._builder.loop("p", 0, panels.count) as tile_loop:
                self._rows(n, g, start, stop, panels, tile_loop.var)

    def _rows(self, n: Dim, g: Dim, start: Dim, stop: Dim, panels: Section, tile: Dim) -> None:
        with self._builder.loop("z", 0, self._shape.planes.out) as z, self._builder.loop("y", start, stop) as y:
            for run in self._columns:
                with self._builder.loop("x", 0, run.count) as x:
                    self._tile(n, g, (z.var, y.var), run, run.position(x.var), panels, tile * panels.size + panels.start)

    def _tile(self, n: Dim, g: Dim, row: tuple[Dim, Dim], run: TileRun, x0: Dim, panels: Section, v0: Dim) -> None:
        b, shape = self._builder, self._shape
        lanes, vectors = shape.lanes, panels.size
        loads: dict[object, Reg] = {}
        places = [[self._place(n, g * shape.vectors + v0 + v, row, x0 + c) for v in range(vectors)] for c in range(run.size)]
        type_ = VecType(DType.FLOAT32, lanes)
        start = [self._epilogue.initial(places[0][v], type_, loads) for v in range(vectors)]
        accs = [start[v] for _ in range(run.size) for v in range(vectors)]
        x_base = n * shape.batch_step + g * shape.group_step
        w_base = (g * shape.vectors + v0) * (lanes * shape.channels * shape.kernel)
        first_plane, first_row = (axis.first(at) for at, axis in zip(row, (shape.planes, shape.rows), strict=True))
        with b.loop("kz", *tap_bounds(shape.planes, first_plane), carried=accs) as kz:
            plane = (first_plane + kz.var * shape.planes.dilation) * shape.rows.size
            with b.loop("ky", *tap_bounds(shape.rows, first_row), carried=kz.carried) as ky:
                inputs = x_base + (plane + first_row + ky.var * shape.rows.dilation) * (shape.columns.size * shape.pixel)
                tap = (kz.var * shape.rows.kernel + ky.var) * shape.columns.kernel
                ky.yield_(self._kernel_row(inputs, w_base + tap * (shape.channels * vectors * lanes), run, x0, vectors, list(ky.carried)))
            kz.yield_(ky.results)
        for c in range(run.size):
            for v in range(vectors):
                self._epilogue.store(self._out, kz.results[c * vectors + v], places[c][v], None, loads)

    def _kernel_row(self, inputs: Dim, weights: Dim, run: TileRun, x0: Dim, vectors: int, accs: list[Reg]) -> list[Reg]:
        shape, b = self._shape, self._builder
        width = vectors * shape.lanes
        small = self._unroll and shape.thin
        for kx in range(shape.columns.kernel):
            used = self._columns_read(run, x0, kx)
            if not used:
                continue
            w_at = weights + kx * shape.channels * width
            blocks, rest = divmod(shape.channels, shape.lanes)
            if small:
                for block in range(blocks):
                    accs = self._steps(inputs + block * shape.block_step, w_at + block * shape.lanes * width, used, vectors, shape.lanes, accs)
            elif blocks:
                with b.loop("k", 0, blocks, carried=accs) as k:
                    at = inputs + k.var * shape.block_step
                    k.yield_(self._steps(at, w_at + k.var * (shape.lanes * width), used, vectors, shape.lanes, list(k.carried)))
                accs = list(k.results)
            x_rest, w_rest = inputs + blocks * shape.block_step, w_at + blocks * shape.lanes * width
            if rest and (small or blocks):
                accs = self._steps(x_rest, w_rest, used, vectors, rest, accs)
            elif rest:
                with b.loop("k", 0, rest, carried=accs) as k:
                    at = x_rest + k.var * shape.channel_step
                    k.yield_(self._steps(at, w_rest + k.var * width, used, vectors, 1, list(k.carried)))
                accs = list(k.results)
        return accs

    def _columns_read(self, run: TileRun, x0: Dim, kx: int) -> dict[int, Read]:
        """What the outputs of a tile read with tap kx of their row, of those for which it is inside the input or may be."""
        axis = self._shape.columns
        places = {c: axis.first(x0 + c) + kx * axis.dilation for c in range(run.size) if kx in run.taps[c]}
        return {c: masked_read(self._builder, axis, place, self._shape.lanes) if run.masked else Read(place) for c, place in places.items()}

    def _steps(self, x_at: Dim, w_at: Dim, used: Mapping[int, Read], vectors: int, depth: int, accs: list[Reg]) -> list[Reg]:
        shape, b, lanes = self._shape, self._builder, self._shape.lanes
        accs = list(accs)
        for k in range(depth):
            right = [b.load(self._w, w_at + (k * vectors + v) * lanes, lanes) for v in range(vectors)]
            for c, read in used.items():
                at = x_at + (k * shape.channel_step + read.place * shape.pixel)
                left = mask(b, load_as(b, DType.FLOAT32, self._x, at, lanes, stride=0), [read.inside])
                for v in range(vectors):
                    accs[c * vectors + v] = b.fma(left, right[v], accs[c * vectors + v])
        return accs

    def _place(self, n: Dim, channel_block: Dim, row: tuple[Dim, Dim], x: Dim) -> tuple[Dim, ...]:
        return (n, channel_block, *(*row, x)[5 - self._workload.output.rank :], 0)


register_family(DirectConv())
