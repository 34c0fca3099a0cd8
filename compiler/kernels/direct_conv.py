"""Dense and grouped convolution, direct (implicit GEMM): no copy of the input is ever made.

A tile is a run of output pixels in one row by some vectors of output channels, accumulated in registers over all taps. Kernel rows
loop over those inside the input; kernel columns are unrolled, each in a loop of its own (one basic block over several columns makes
LLVM share broadcasts between taps and spill), with the left and right border tiles as clones that skip the taps outside, or mask
them where the width is known at run time only or the taps of a row are many. Many columns that are read alike are one loop.

Each output channel takes as many multiply-accumulate steps as its group has input channels, whatever the size of the groups. A vector
that lies in one group takes an input channel into every lane; in one of several groups each lane takes a channel of its own group, by a
permutation of the pixel's block or from broadcasts. In tiles of one vector a kernel row's taps share what is so made of an input pixel.

Weights of run time are brought into the order in which constant ones are packed, panel by panel, in scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd

from compiler.ir.intexpr import Dim, floordiv, minimum, mod, product
from compiler.ir.loop import Access, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Epilogue, Workload, declare_buffers, flat_axis, physical_strides, register_family
from compiler.kernels.conv_panels import Grouping, Panels, Periods
from compiler.kernels.loops import load_as, pack_plain, unflatten
from compiler.kernels.tiles import imbalance, register_rows, sections, supposed, worker_part
from compiler.kernels.windows import (
    UNROLLED_TAPS,
    Axis,
    Read,
    TapRun,
    TileRun,
    mask,
    masked_read,
    spatial_axes,
    tap_bounds,
    tap_runs,
    tile_runs,
    window_pads,
)
from compiler.target import Target

_UNROLL_STEPS = 32
"""Multiply-accumulate steps (taps x channels) up to which one basic block is made of a whole kernel column."""
_UNROLLED_COLUMNS = 6
"""The most output pixels of a tile in such a block: LLVM loads the broadcasts of them all before it needs them."""
_PERMUTED_STEPS = 96
"""Steps of all vectors of a period up to which each has code of its own, so that it is known at which lanes its input channels are."""
_SHARED_TAPS = 3
"""Taps of a kernel row that share the vectors made of an input pixel: each keeps a vector of weights in a register."""
_COLUMNS = 14
"""Output pixels of a tile at most, where the registers hold more."""
_EVEN = 1.15
"""Time of the slowest worker over the ideal up to which there is no need of another way to share."""


@dataclass(frozen=True)
class DirectSchedule:
    """The largest tile: ``columns`` output pixels by ``vectors`` of channels, or ``single`` by one vector.

    ``parallel``: what the workers share, ``filters``, ``rows`` or ``columns``. ``unroll`` writes the few steps of a thin input (an image's three
    channels) as one basic block instead of loops.
    """

    columns: int
    vectors: int
    single: int
    parallel: str
    unroll: bool


class DirectConv:
    """The family: spatial rank 1 to 3, any groups, input blocked or row-major, output blocked, float weights of a known shape."""

    name = "direct_conv"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Float operands, weights of a known shape, spatial rank 1 to 3, and an output in blocks."""
        if workload.prologue is not None:
            return False
        (x, w), out = (operand.type for operand in workload.inputs), workload.output
        floats = compute_dtype(x.dtype) is compute_dtype(w.dtype) is DType.FLOAT32
        blocked = out.block == workload.anchor.block == target.lanes and x.block in (1, target.lanes) and w.block == 1
        return floats and w.is_static and x.rank in (3, 4, 5) and blocked

    def heuristic(self, workload: Workload, target: Target) -> DirectSchedule:
        shape = _Shape(workload)
        vectors = min((1, 2, 3, 4), key=lambda v: self._cost(shape, v, target))
        columns = min(register_rows(target, vectors), _COLUMNS)
        # One block over several taps needs registers for the broadcasts that they share: with 16 it spills (stem of MobileNetV2,
        # AVX2: 88 % of peak unrolled, 96 % in loops), with 32 it is the faster (AMD EPYC, Zen 4: 89 % with 6 x 4, 87 % in loops).
        unroll = target.vector_registers >= 32
        if unroll and shape.thin:
            columns = min(columns, _UNROLLED_COLUMNS)
        return DirectSchedule(columns, vectors, shape.single_columns(target), self._shared(shape, columns, vectors, workload.threads), unroll)

    @staticmethod
    def _shared(shape: _Shape, columns: int, vectors: int, threads: int) -> str:
        """What the workers share: the first of filters, rows and columns that is about even, or the one that comes nearest."""
        batch = shape.batch if isinstance(shape.batch, int) else 1
        panels = [batch * run.count * found.count for run in shape.grouping.periods(vectors) for found in run.panels]
        pixels = [section.count for section in sections(supposed(shape.columns.out), columns)]
        uneven = {"filters": panels, "rows": [supposed(shape.rows.out)], "columns": pixels}
        return min(uneven, key=lambda choice: max(_EVEN, imbalance(uneven[choice], threads)))

    @staticmethod
    def _cost(shape: _Shape, vectors: int, target: Target) -> float:
        cost = 0.0
        for run in shape.grouping.periods(vectors):
            for panels in run.panels:
                largest = shape.single_columns(target) if panels.size == 1 else register_rows(target, panels.size)
                for columns in sections(supposed(shape.columns.out), min(largest, _COLUMNS)):
                    fma, loads = columns.size * panels.size, columns.size + panels.size
                    cost += columns.count * run.count * panels.count * max(fma / 2, loads / 2, 4) * (1 + 0.15 * loads / fma)
        return cost

    def space(self, workload: Workload, target: Target) -> Sequence[DirectSchedule]:
        first = self.heuristic(workload, target)
        found = [first]
        choices = ("filters", "rows", "columns") if workload.threads > 1 else (first.parallel,)
        for vectors in (1, 2, 3, 4):
            limit = min(register_rows(target, vectors), 16)
            for columns in sorted({limit, max(1, limit - 2), max(1, limit // 2)}):
                single = first.single if columns == limit else max(1, first.single // 2)
                tile = columns, vectors, single
                found += [DirectSchedule(*tile, shared, unroll) for shared in choices for unroll in (first.unroll, not first.unroll)]
        return list(dict.fromkeys(found))

    def pack(self, workload: Workload, schedule: DirectSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        weights, packed, shape = constants[1], pack_plain(workload, constants), _Shape(workload)
        if weights is not None:
            packed[1] = shape.grouping.pack(weights.reshape(*weights.shape[:2], shape.kernel), schedule.vectors)
        return packed

    def build(self, workload: Workload, schedule: DirectSchedule, target: Target, name: str) -> Function:
        return _Writer(workload, schedule, name).write()

    def flops(self, workload: Workload) -> Dim:
        per_output = 2
        for dim in workload.inputs[1].type.static_shape[1:]:
            per_output *= dim
        return workload.anchor.with_block(1).elements * per_output


class _Shape:
    """The sizes of a convolution as one with three spatial axes: planes, rows and columns; axes that are missing have one element.

    The pixels of a pointwise one are all columns of one row, which runs along physical axis ``flat`` of the output.
    """

    def __init__(self, workload: Workload) -> None:
        x, w, out = workload.inputs[0].type, workload.inputs[1].type.static_shape, workload.output
        axes = spatial_axes(workload, w[2:])
        self.flat = flat_axis(workload, range(2, x.rank)) if _is_pointwise(workload) else None
        if self.flat is not None:
            pixels = product(out.shape[2:])
            axes = [Axis(pixels, pixels, 1, 1, 1, 0)]
        self.planes, self.rows, self.columns = [Axis(1, 1, 1, 1, 1, 0)] * (3 - len(axes)) + axes
        self.batch = x.shape[0]
        self.channels = w[1]
        self.lanes = out.block
        self._image = self.planes.size * self.rows.size * self.columns.size
        self.blocked = x.block != 1
        self.batch_step = physical_strides(x)[0]
        self.pixel = self.lanes if self.blocked else 1
        self.channel_step = 1 if self.blocked else self._image
        self.kernel = self.planes.kernel * self.rows.kernel * self.columns.kernel
        self.grouping = self._grouping(workload.int("group"), w[0])
        self.thin = self.channels * self.columns.kernel * self.grouping.period <= _UNROLL_STEPS
        whole = self.grouping.group == 1 or not self.blocked or self.channels % self.lanes == 0
        self.chunk = self.lanes if whole else gcd(self.channels, self.lanes)

    def _grouping(self, group: int, filters: int) -> Grouping:
        found = Grouping(group, filters // group, self.channels, self.lanes, aligned=True)
        few = found.vectors * self.channels * min(self.columns.kernel, _SHARED_TAPS) <= _PERMUTED_STEPS
        aligned = self.blocked and self.channels <= self.lanes and found.filters % self.lanes != 0 and few
        return found if aligned else Grouping(group, filters // group, self.channels, self.lanes, aligned=False)

    def channel(self, number: Dim) -> tuple[Dim, Dim]:
        """Where a channel is: the first element of its block, and how far from it."""
        if not self.blocked:
            return number * self._image, 0
        return floordiv(number, self.lanes) * (self._image * self.lanes), mod(number, self.lanes)

    def single_columns(self, target: Target) -> int:
        """Output pixels whose sums fit the registers beside the weights of shared taps and what is made of a pixel's channels."""
        return max(1, min(_COLUMNS, target.vector_registers - min(self.columns.kernel, _SHARED_TAPS) - 3))


def _is_pointwise(workload: Workload) -> bool:
    kernel = workload.inputs[1].type.static_shape[2:]
    return all(size == 1 for size in (*kernel, *workload.ints("strides"))) and not any(pad != 0 for pad in window_pads(workload))


@dataclass(frozen=True)
class _Vectors:
    """One panel: of image ``n`` the vectors from ``first`` on, which read channels of the groups from ``group`` on."""

    n: Dim
    group: Dim
    first: Dim
    panels: Panels


class _Writer:
    def __init__(self, workload: Workload, schedule: DirectSchedule, name: str) -> None:
        self._builder = LoopBuilder(name)
        self._workload = workload
        self._shape = shape = _Shape(workload)
        self._threads = workload.threads
        self._parallel = schedule.parallel if workload.threads > 1 else "filters"
        self._vector = shape.lanes * shape.channels * shape.kernel
        self._packed = workload.inputs[1].constant
        packed = {1: shape.grouping.total * self._vector} if self._packed else {}
        (self._x, self._w), operands, self._out = declare_buffers(self._builder, workload, packed)
        self._epilogue = Epilogue(self._builder, workload, operands, row_axes=range(2, len(workload.output.physical_shape) - 1))
        self._periods = shape.grouping.periods(schedule.vectors)
        self._weights = self._w
        if not self._packed:
            largest = max((panels.size for _, panels in self._panels()), default=0)
            self._weights = self._builder.buffer("panel", DType.FLOAT32, largest * self._vector, Access.SCRATCH)
        self._small = schedule.unroll and shape.thin
        few = shape.columns.kernel <= UNROLLED_TAPS or not shape.columns.cut  # of many taps, each tile at a border reads others
        self._columns = tile_runs(shape.columns, schedule.columns, known=few)
        self._single_columns = tile_runs(shape.columns, schedule.single, known=few)

    def write(self) -> Function:
        b, shape = self._builder, self._shape
        if self._parallel == "filters":
            for run, panels in self._panels():
                extents = (shape.batch, run.count, panels.count)
                with b.loop("p", 0, product(extents), parallel=True) as p:
                    self._rows(self._vectors(run, panels, *unflatten(p.var, extents)), None)
        else:
            with b.loop("s", 0, self._threads, parallel=True) as part, b.loop("n", 0, shape.batch) as n:
                for run, panels in self._panels():
                    with b.loop("g", 0, run.count) as g, b.loop("p", 0, panels.count) as p:
                        self._rows(self._vectors(run, panels, n.var, g.var, p.var), part.var)
        return b.function()

    def _panels(self) -> list[tuple[Periods, Panels]]:
        return [(run, panels) for run in self._periods for panels in run.panels]

    def _vectors(self, run: Periods, panels: Panels, n: Dim, number: Dim, tile: Dim) -> _Vectors:
        grouping = self._shape.grouping
        period = number + run.first
        return _Vectors(n, period * grouping.period, period * grouping.vectors + tile * panels.size + panels.start, panels)

    def _shares(self, panels: Panels) -> bool:
        """Whether the taps of a kernel row share what is made of an input pixel."""
        return panels.mixed or (panels.size == 1 and self._shape.columns.kernel > 1)

    def _rows(self, vectors: _Vectors, part: Dim | None) -> None:
        """The rows and columns of one panel, or the worker ``part``'s of them."""
        b, shape = self._builder, self._shape
        bounds = {axis: partial(worker_part, worker=part, threads=self._threads) for axis in (self._parallel,) if part is not None}
        whole: tuple[Dim, Dim] = (0, shape.rows.out)
        start, stop = bounds["rows"](shape.rows.out) if "rows" in bounds else whole
        if not self._packed:
            self._pack(vectors)
        with b.loop("z", 0, shape.planes.out) as z, b.loop("y", start, stop) as y:
            for number, run in enumerate(self._single_columns if self._shares(vectors.panels) else self._columns):
                tiles: tuple[Dim, Dim] = bounds["columns"](run.count, number=number) if "columns" in bounds else (0, run.count)
                with b.loop("x", *tiles) as x:
                    self._tile(vectors, (z.var, y.var), run, run.position(x.var))

    def _pack(self, vectors: _Vectors) -> None:
        """Bring the weights of one panel into scratch."""
        b, shape, filters = self._builder, self._shape, self._workload.inputs[1].type.static_shape[0]
        lanes, size, step = shape.lanes, vectors.panels.size, shape.channels * shape.kernel
        with b.loop("t", 0, shape.kernel) as tap, b.loop("k", 0, shape.channels) as channel:
            for v in range(size):
                first = (vectors.first + v) * lanes
                count = lanes if filters % lanes == 0 else minimum(lanes, filters - first)
                at = first * step + channel.var * shape.kernel + tap.var
                value = load_as(b, DType.FLOAT32, self._w, at, lanes, stride=step, count=count)
                b.store(self._weights, ((tap.var * shape.channels + channel.var) * size + v) * lanes, value)

    def _tile(self, vectors: _Vectors, row: tuple[Dim, Dim], run: TileRun, x0: Dim) -> None:
        b, shape = self._builder, self._shape
        lanes, size = shape.lanes, vectors.panels.size
        loads: dict[object, Reg] = {}
        places = [[self._place(vectors.n, vectors.first + v, row, x0 + c) for v in range(size)] for c in range(run.size)]
        type_ = VecType(DType.FLOAT32, lanes)
        start = [self._epilogue.initial(places[0][v], type_, loads) for v in range(size)]
        accs = [start[v] for _ in range(run.size) for v in range(size)]
        kernel_row = self._shared_row if self._shares(vectors.panels) else self._kernel_row
        x_base, w_base = vectors.n * shape.batch_step, vectors.first * self._vector if self._packed else 0
        first_plane, first_row = (axis.first(at) for at, axis in zip(row, (shape.planes, shape.rows), strict=True))
        with b.loop("kz", *tap_bounds(shape.planes, first_plane), carried=accs) as kz:
            plane = (first_plane + kz.var * shape.planes.dilation) * shape.rows.size
            with b.loop("ky", *tap_bounds(shape.rows, first_row), carried=kz.carried) as ky:
                inputs = x_base + (plane + first_row + ky.var * shape.rows.dilation) * (shape.columns.size * shape.pixel)
                tap = (kz.var * shape.rows.kernel + ky.var) * shape.columns.kernel
                ky.yield_(kernel_row(vectors, inputs, w_base + tap * (shape.channels * size * lanes), run, x0, list(ky.carried)))
            kz.yield_(ky.results)
        for c in range(run.size):
            for v in range(size):
                self._epilogue.store(self._out, kz.results[c * size + v], places[c][v], None, loads)

    def _kernel_row(self, vectors: _Vectors, inputs: Dim, weights: Dim, run: TileRun, x0: Dim, accs: list[Reg]) -> list[Reg]:
        """One row of taps for vectors of one group: ``inputs`` is the input row, ``weights`` are those of its taps."""
        shape, b, size = self._shape, self._builder, vectors.panels.size
        width = size * shape.lanes
        first = (vectors.group + vectors.panels.groups[0]) * shape.channels
        blocks, rest = divmod(shape.channels, shape.chunk)

        def at(chunk: Dim) -> Dim:
            return inputs + sum(shape.channel(first + chunk * shape.chunk))

        def tap(outputs: Sequence[int], kx: Dim, accs: list[Reg]) -> list[Reg]:
            used = {c: self._read(run, x0, c, kx) for c in outputs}
            w_at = weights + kx * (shape.channels * width)
            if self._small:
                for block in range(blocks):
                    accs = self._steps(at(block), w_at + block * shape.chunk * width, used, size, shape.chunk, accs)
            elif blocks:
                with b.loop("k", 0, blocks, carried=accs) as k:
                    k.yield_(self._steps(at(k.var), w_at + k.var * (shape.chunk * width), used, size, shape.chunk, list(k.carried)))
                accs = list(k.results)
            w_rest = w_at + blocks * shape.chunk * width
            if rest and (self._small or blocks):
                accs = self._steps(at(blocks), w_rest, used, size, rest, accs)
            elif rest:
                with b.loop("k", 0, rest, carried=accs) as k:
                    x_at = at(blocks) + k.var * shape.channel_step
                    k.yield_(self._steps(x_at, w_rest + k.var * width, used, size, 1, list(k.carried)))
                accs = list(k.results)
            return accs

        for taps in tap_runs(run, shape.columns.kernel):
            outputs = [c for c in range(run.size) if taps.first in run.taps[c]]
            if outputs:
                accs = taps.walk(b, accs, partial(tap, outputs))
        return accs

    def _read(self, run: TileRun, x0: Dim, c: int, kx: Dim) -> Read:
        """What output c of a tile reads with tap kx of its row."""
        axis = self._shape.columns
        place = axis.first(x0 + c) + kx * axis.dilation
        return masked_read(self._builder, axis, place, self._shape.lanes) if run.masked else Read(place)

    def _steps(self, x_at: Dim, w_at: Dim, used: Mapping[int, Read], vectors: int, depth: int, accs: list[Reg]) -> list[Reg]:
        shape, b, lanes = self._shape, self._builder, self._shape.lanes
        accs = list(accs)
        for k in range(depth):
            right = [b.load(self._weights, w_at + (k * vectors + v) * lanes, lanes) for v in range(vectors)]
            for c, read in used.items():
                at = x_at + (k * shape.channel_step + read.place * shape.pixel)
                left = mask(b, load_as(b, DType.FLOAT32, self._x, at, lanes, stride=0), [read.inside])
                for v in range(vectors):
                    accs[c * vectors + v] = b.fma(left, right[v], accs[c * vectors + v])
        return accs

    def _shared_row(self, vectors: _Vectors, inputs: Dim, weights: Dim, run: TileRun, x0: Dim, accs: list[Reg]) -> list[Reg]:
        """One row of taps for one vector; those that read the same pixels share what is made of these."""
        shape, b = self._shape, self._builder
        depth = shape.channels if shape.grouping.aligned else gcd(shape.channels, shape.lanes)
        chunks = shape.channels // depth

        def together(used: Mapping[int, Sequence[tuple[int, int]]], size: int, first_tap: Dim, accs: list[Reg]) -> list[Reg]:
            reads = {offset: self._read(run, x0, c, first_tap + tap) for offset, ((c, tap), *_) in used.items()}
            with b.loop("k", 0, chunks, carried=accs) as k:
                sums, first = list(k.carried), k.var * depth if chunks > 1 else 0
                for channel in (first + step for step in range(depth)):
                    places = [weights + (channel + (first_tap + tap) * shape.channels) * shape.lanes for tap in range(size)]
                    right = [b.load(self._weights, place, shape.lanes) for place in places]
                    channels = [(vectors.group + group) * shape.channels + channel for group in vectors.panels.groups]
                    for offset, read in reads.items():
                        left = mask(b, self._pick(inputs + read.place * shape.pixel, channels), [read.inside])
                        for c, tap in used[offset]:
                            sums[c] = b.fma(left, right[tap], sums[c])
                k.yield_(sums)
            return list(k.results)

        for taps in tap_runs(run, shape.columns.kernel, _SHARED_TAPS):
            accs = taps.walk(b, accs, partial(together, _uses(shape.columns, run, taps), taps.size))
        return accs

    def _pick(self, pixel: Dim, channels: Sequence[Dim]) -> Reg:
        """A vector of the channels of a pixel, one for each lane: permutations of blocks in which several are known to be, and broadcasts."""
        b, lanes = self._builder, self._shape.lanes
        sources: dict[Dim, dict[int, int]] = {}
        for lane, channel in enumerate(channels):
            block, inside = self._shape.channel(channel)
            origin, place = (block, inside) if isinstance(inside, int) else (block + inside, 0)
            sources.setdefault(pixel + origin, {})[lane] = place
        vector: Reg | None = None
        for origin, places in sources.items():
            alike = len(set(places.values())) == 1
            at = origin + next(iter(places.values())) if alike else origin
            found = load_as(b, DType.FLOAT32, self._x, at, lanes, stride=0 if alike else 1)
            order = tuple(places.get(lane, 0) for lane in range(lanes))
            if vector is not None:
                vector = b.shuffle(vector, found, tuple(lanes + order[lane] if lane in places else lane for lane in range(lanes)))
            elif alike or order == tuple(range(lanes)):
                vector = found
            else:
                vector = b.shuffle(found, found, order)
        return b.const(0, VecType(DType.FLOAT32, lanes)) if vector is None else vector

    def _place(self, n: Dim, channel_block: Dim, row: tuple[Dim, Dim], x: Dim) -> tuple[Dim, ...]:
        rank = self._workload.output.rank
        if self._shape.flat is not None:
            return (n, channel_block, *(x if axis == self._shape.flat else 0 for axis in range(2, rank)), 0)
        return (n, channel_block, *(*row, x)[5 - rank :], 0)


def _uses(axis: Axis, run: TileRun, taps: TapRun) -> dict[int, list[tuple[int, int]]]:
    """For each input column of a tile, by how far it is from the first: the outputs it goes to and by which of the first ``taps.size`` taps."""
    found: dict[int, list[tuple[int, int]]] = {}
    for c, inside in enumerate(run.taps):
        for tap in range(taps.size):
            if taps.first + tap in inside:
                found.setdefault(c * axis.stride + tap * axis.dilation, []).append((c, tap))
    return dict(sorted(found.items()))


register_family(DirectConv())
