"""The register-tiled matrix multiplication that matmul and pointwise convolution share.

``out[m, n] = sum over k of a[m, k] * b[k, n]``, an accumulator tile of ``mr`` rows by ``nv`` vectors held in registers over the whole
of k. Rows and vectors are split into tiles of nearly equal size (49 rows at most 12 at a time are 10, 10, 10, 10, 9), so that no
tile is left mostly empty. Constant ``b`` is packed into panels ``[k][nv * lanes]``, one after another; otherwise it is read in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod

import numpy as np

from compiler.ir.intexpr import Dim, ceildiv, floordiv, minimum, mod, product
from compiler.ir.loop import Access, Buffer, Reg, VecType
from compiler.ir.loop_builder import Loop, LoopBuilder
from compiler.ir.scalar import Arg, Array, Call, Scalar, parts
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Panels
from compiler.kernels.loops import fewer, load_as, serial_nest, unflatten
from compiler.kernels.tiles import Tiles, imbalance, panel_tiles, register_rows, row_tiles, sections, supposed, worker_part
from compiler.target import Target

_LINE_BYTES = 64
_PREFETCHING_TILES = 4
"""Tiles of rows from which fetching the next panel ahead pays: 2 to 3 % of a MobileNetV2. With fewer, the panels themselves are what is waited
for, and fetching them ahead of the hardware costs 40 % (a language model on 4 or 12 tokens; AMD EPYC, Zen 4)."""
_ROWS_BYTES = 1 << 18
"""The most that rows which are computed take in scratch, all at once."""
_SHORT_SUM, _SHORT_TILE = 32, 20
"""Steps of k up to which a tile's epilogue weighs against its sums, and the most accumulators of such a tile."""


@dataclass(frozen=True)
class GemmSchedule:
    """``mr`` x ``nv``: the largest tile, rows by vectors. ``order``: which loop is outside, ``m`` or ``n``. ``parallel``: which one the
    workers share (``batch``, ``m`` or ``n``). ``prefetch``: fetch the next panel of b while this one is used. ``lanes``: elements of a vector."""

    mr: int
    nv: int
    order: str
    parallel: str
    prefetch: bool
    lanes: int


@dataclass(frozen=True)
class Batch:
    """An outer loop: its extent and what one step adds to the indices of a and b."""

    extent: Dim
    a: Dim
    b: Dim


@dataclass(frozen=True)
class Source:
    """A tensor that elements of a are computed from: where it begins, and what a step of each batch, of a row and of k adds to the index into it."""

    start: Dim
    batches: tuple[Dim, ...]
    row: Dim
    k: Dim


@dataclass(frozen=True)
class Gemm:
    """The shape and addressing of one multiplication, in elements.

    Element (m, k) of a is at ``a_start + m * a_row + (k // k_block) * a_block + (k % k_block) * a_lane``. b begins at ``b_start``;
    ``b_row`` is the distance of two k of an unpacked one; None: it is packed. ``coordinates`` gives the physical output coordinates
    of (batch indices, m, vector index). ``sources`` are what a is computed from, if it is.
    """

    batches: tuple[Batch, ...]
    m: Dim
    n: Dim
    k: Dim
    lanes: int
    dtype: DType
    a_row: Dim
    k_block: int
    a_block: Dim
    a_lane: Dim
    b_row: Dim | None
    coordinates: Callable[[Sequence[Dim], Dim, Dim], tuple[Dim, ...]]
    sources: tuple[Source, ...] = ()
    a_start: Dim = 0
    b_start: Dim = 0

    @property
    def vectors(self) -> Dim:
        """Vectors in a row of the output, the last perhaps partial."""
        return ceildiv(self.n, self.lanes)


def pack_panels(b: Array, nv: int, lanes: int) -> Array:
    """A constant ``[..., k, n]`` matrix as panels: for each tile of vectors, ``[k][nv * lanes]``; missing columns are zero."""
    k, n = b.shape[-2:]
    vectors = -(-n // lanes)
    padded = np.zeros((*b.shape[:-1], vectors * lanes), b.dtype)
    padded[..., :n] = b
    panels = []
    for section in sections(vectors, nv):
        for tile in range(section.count):
            first = (section.start + tile * section.size) * lanes
            panels.append(padded[..., first : first + section.size * lanes].reshape(*b.shape[:-2], k * section.size * lanes))
    return np.ascontiguousarray(np.concatenate(panels, axis=-1)) if panels else padded


def column_in_panels(k: int, n: int, panels: Panels, column: Dim) -> tuple[Dim, Dim]:
    """Where a column of a matrix ``[k, n]`` that is packed begins, and the distance of its elements."""
    first, *rest = sections(-(-n // panels.lanes), panels.vectors)
    width = first.size * panels.lanes
    place = floordiv(column, width) * (k * width) + mod(column, width)
    if not rest:
        return place, width
    (second,) = rest
    begin, narrow = second.start * panels.lanes, second.size * panels.lanes
    beyond, inside = minimum(1, floordiv(column, begin)), column - begin
    further = floordiv(inside, narrow) * (k * narrow) + mod(inside, narrow) + begin * k
    return place + beyond * (further - place), beyond * (narrow - width) + width


def tile_limit(gemm: Gemm, target: Target, nv: int) -> int:
    """The most rows worth having beside ``nv`` vectors: what the registers hold, less for short sums.

    With few steps of k, small tiles let the epilogue of one overlap with the sums of the next (16 to 96 channels: 99 % of the peak
    with 5 x 4 and 4 x 4, 97 % with 6 x 4 and 9 x 3, 95 % with 14 x 2; AMD EPYC, Zen 4).
    """
    most = -(-_SHORT_TILE // nv) if supposed(gemm.k) <= _SHORT_SUM else 14
    return min(register_rows(target, nv), most)


def heuristic(gemm: Gemm, target: Target, threads: int) -> GemmSchedule:
    """Tiles by the least work per register tile, panels outside so that the next one can be fetched, the parallel loop by balance.

    Rows that are computed are shared rather than panels, and are outside where there are too many to be computed before: each is computed once.
    """
    roomy = target.vector_registers >= 32
    m, vectors = supposed(gemm.m), -(-supposed(gemm.n) // gemm.lanes)
    if m < 4:
        candidates: tuple[int, ...] = (8,) if roomy else (6,)
    else:
        candidates = (1, 2, 3, 4) if roomy else (1, 2, 3)
    nv = min(candidates, key=lambda v: _tile_cost(gemm, v, tile_limit(gemm, target, v)))
    mr = tile_limit(gemm, target, nv)
    batches = prod(batch.extent for batch in gemm.batches if isinstance(batch.extent, int))
    shares = {
        "m": [s.count for s in sections(m, mr)],
        "n": [s.count for s in sections(vectors, nv)],
        "batch": [batches] if batches > 1 else [],
    }
    preference = ("batch", "n", "m") if isinstance(gemm.n, int) and not gemm.sources else ("batch", "m", "n")
    parallel = min((p for p in preference if shares[p]), key=lambda p: round(imbalance(shares[p], threads), 1), default="m")
    prefetch = gemm.b_row is None and sum(shares["m"]) >= _PREFETCHING_TILES
    if gemm.sources and not _rows_fit(gemm):
        return GemmSchedule(mr, nv, "m", parallel, prefetch=False, lanes=gemm.lanes)
    return GemmSchedule(mr, nv, "n", parallel, prefetch, gemm.lanes)


def _rows_fit(gemm: Gemm) -> bool:
    """Whether all rows of a that are computed stay in a cache of the second level beside what else it holds."""
    elements = gemm.m * gemm.k
    return isinstance(elements, int) and elements * gemm.dtype.itemsize <= _ROWS_BYTES


def space(gemm: Gemm, target: Target, threads: int) -> list[GemmSchedule]:
    """The heuristic, then every tile that fits the registers in both orders and with either loop shared."""
    first = heuristic(gemm, target, threads)
    found = [first]
    for nv in (1, 2, 3, 4) if supposed(gemm.m) >= 4 else (4, 6, 8, 12, 16):
        limit = min(register_rows(target, nv), 14)
        for mr in sorted({limit, max(1, limit - 2), max(1, limit // 2)}):
            for order in ("m", "n"):
                for parallel in ("m", "n") if threads > 1 else (order,):
                    schedule = GemmSchedule(mr, nv, order, parallel, gemm.b_row is None and order == "n", gemm.lanes)
                    if schedule not in found:
                        found.append(schedule)
    return found


def _tile_cost(gemm: Gemm, nv: int, mr: int) -> float:
    """Cycles per k of the whole output by issue slots: two multiply-adds or two loads a cycle, and their latency of 4 cycles."""
    cost = 0.0
    for rows in sections(supposed(gemm.m), mr):
        for panels in sections(-(-supposed(gemm.n) // gemm.lanes), nv):
            fma, loads = rows.size * panels.size, rows.size + panels.size
            cost += rows.count * panels.count * max(fma / 2, loads / 2, 4) * (1 + 0.15 * loads / max(fma, 1))
    return cost


class GemmWriter:
    """Writes the loops of one multiplication.

    When rows or vectors are shared, a parallel loop over ``threads`` chunks stands outside and each tile loop is cut to its chunk.
    ``buffers`` are a (or, with a ``prologue``, which gives its element from theirs, what ``Gemm.sources`` are), b and the output.
    """

    def __init__(
        self,
        builder: LoopBuilder,
        gemm: Gemm,
        schedule: GemmSchedule,
        threads: int,
        buffers: Sequence[Buffer],
        epilogue: Epilogue,
        prologue: Scalar | None = None,
    ) -> None:
        self._builder = builder
        self._gemm = gemm
        self._schedule = schedule
        self._threads = threads
        *self._sources, self._b, self._out = buffers
        self._a = self._sources[0]
        self._prologue = prologue
        self._numbers: list[Reg] = []
        self._converts = (prologue is not None or self._a.dtype is not gemm.dtype) and gemm.m * gemm.k != 0
        self._before = bool(gemm.sources) and schedule.order == "n" and _rows_fit(gemm)
        if self._converts:
            rows = gemm.m if self._before else fewer(schedule.mr, gemm.m)
            self._rows_of_a = builder.buffer("rows", gemm.dtype, gemm.k * rows, Access.SCRATCH)
        self._epilogue = epilogue
        self._rows = row_tiles(gemm.m, schedule.mr)
        self._panels = panel_tiles(gemm.n, gemm.lanes, schedule.nv, padded=epilogue.padded)
        self._tail = None if epilogue.padded or not isinstance(gemm.n, int) else gemm.n % gemm.lanes or None

    def write(self) -> None:
        """Emit everything."""
        if self._converts and self._prologue is not None:
            self._prologue = self._hoisted(self._prologue)
        b, extents = self._builder, [batch.extent for batch in self._gemm.batches]
        if self._schedule.parallel == "batch":
            with b.loop("b", 0, product(extents), parallel=True) as batch:
                self._tiles(unflatten(batch.var, extents), None)
        else:
            with b.loop("c", 0, self._threads, parallel=True) as chunk, serial_nest(b, extents) as indices:
                self._tiles(indices, None if self._threads == 1 else chunk.var)

    def _tiles(self, indices: list[Dim], chunk: Dim | None) -> None:
        outer, inner = (self._rows, self._panels) if self._schedule.order == "m" else (self._panels, self._rows)
        shared = chunk is not None and self._schedule.parallel == self._schedule.order
        if self._converts and self._before:
            for number, section in enumerate(self._rows):
                with self._tile_loop(section, chunk if self._schedule.parallel == "m" else None, number) as tile:
                    row = tile.var * section.size + section.start
                    self._convert_rows(indices, row, section.size, row)
        for first in outer:
            with self._tile_loop(first, chunk if shared else None, outer.index(first)) as x:
                if self._converts and self._schedule.order == "m":
                    self._convert_rows(indices, x.var * first.size + first.start, first.size, 0)
                for second in inner:
                    with self._tile_loop(second, None if shared else chunk, inner.index(second)) as y:
                        (rows, row), (panels, panel) = ((first, x.var), (second, y.var))[:: 1 if self._schedule.order == "m" else -1]
                        self._tile(indices, rows, row, panels, panel)

    def _tile_loop(self, section: Tiles, chunk: Dim | None, number: int) -> AbstractContextManager[Loop]:
        """A loop over a section's tiles, or over one chunk's part of them."""
        if chunk is None:
            return self._builder.loop("t", 0, section.count)
        return self._builder.loop("t", *worker_part(section.count, chunk, self._threads, number))

    def _tile(self, indices: list[Dim], rows: Tiles, row: Dim, panels: Tiles, panel: Dim) -> None:
        b, gemm, lanes = self._builder, self._gemm, self._gemm.lanes
        m0, v0 = row * rows.size + rows.start, panel * panels.size + panels.start
        a0 = gemm.a_start + m0 * gemm.a_row
        b0 = gemm.b_start + v0 * lanes * (gemm.k if gemm.b_row is None else 1)
        for index, batch in zip(indices, gemm.batches, strict=True):
            a0, b0 = a0 + index * batch.a, b0 + index * batch.b
        places = [[gemm.coordinates(indices, m0 + r, v0 + v) for v in range(panels.size)] for r in range(rows.size)]
        loads: dict[object, Reg] = {}
        counts = [self._count(panels, v, v0) for v in range(panels.size)]
        start = [self._epilogue.initial(places[0][v], VecType(gemm.dtype, lanes), loads, count) for v, count in enumerate(counts)]
        accs = [start[v] for _ in range(rows.size) for v in range(panels.size)]
        lines, distance = self._prefetch_lines(rows, panels)
        blocks, rest = floordiv(gemm.k, gemm.k_block), mod(gemm.k, gemm.k_block)
        if self._converts:
            if self._schedule.order != "m" and not self._before:
                self._convert_rows(indices, m0, rows.size, 0)
            a0 = m0 * gemm.k if self._before else 0
        if blocks != 0:
            with b.loop("k", 0, blocks, carried=accs) as loop:
                for line in range(lines):
                    at = (row * blocks + loop.var) * lines + line
                    b.prefetch(self._b, b0 + distance(at * (_LINE_BYTES // gemm.dtype.itemsize)))
                loop.yield_(self._block(a0, b0, loop.var, range(gemm.k_block), rows.size, counts, list(loop.carried)))
            accs = list(loop.results)
        if not isinstance(rest, int):
            with b.loop("k", 0, rest, carried=accs) as loop:
                loop.yield_(self._block(a0, b0, blocks, (loop.var,), rows.size, counts, list(loop.carried)))
            accs = list(loop.results)
        elif rest:
            accs = self._block(a0, b0, blocks, range(rest), rows.size, counts, accs)
        for r in range(rows.size):
            for v in range(panels.size):
                self._epilogue.store(self._out, accs[r * panels.size + v], places[r][v], counts[v], loads)

    def _convert_rows(self, indices: Sequence[Dim], m0: Dim, rows: int, to: Dim) -> None:
        """Bring rows of a to row ``to`` of scratch, row-major and in the type computed in: each element is made once for all of its uses there."""
        b, gemm = self._builder, self._gemm
        contiguous = self._prologue is not None or (gemm.a_lane == 1 and gemm.a_block == gemm.k_block)
        step = gemm.lanes if contiguous else gemm.k_block
        whole, rest = floordiv(gemm.k, step), mod(gemm.k, step)

        def part(number: Dim, count: Dim) -> None:
            for r in range(rows):
                b.store(self._rows_of_a, number * step + (to + r) * gemm.k, self._made(indices, m0 + r, number, step, count), count=count)

        with b.loop("k", 0, whole) as loop:
            part(loop.var, step)
        if isinstance(rest, int) and rest:
            part(whole, rest)
        elif rest != 0:
            with b.if_less(0, rest):
                part(whole, rest)

    def _hoisted(self, expr: Scalar) -> Scalar:
        """The prologue with operands, behind its own, for what is one number all over a: it is computed here, once."""
        b, gemm = self._builder, self._gemm
        numbers = {number for number, source in enumerate(gemm.sources) if not any(step != 0 for step in (*source.batches, source.row, source.k))}
        same: set[Scalar] = set()
        first: dict[Scalar, Scalar] = {}
        for part in parts(expr):
            if isinstance(part, Call):
                varies = [arg for arg in part.args if arg not in same]
                first.update({arg: arg for arg in part.args if varies and arg in same and isinstance(arg, Call)})
                same.update(() if varies else (part,))
            elif not isinstance(part, Arg) or part.index in numbers:
                same.add(part)
        loads = {number: b.load(self._sources[number], gemm.sources[number].start, gemm.lanes, stride=0) for number in sorted(numbers)}
        unread = next(iter(loads.values()), None)
        values = [loads.get(number, unread) for number in range(len(self._sources))]
        self._numbers = b.scalars([*first], [value for value in values if value is not None])
        for number, part in enumerate(first):
            first[part] = Arg(len(self._sources) + number, part.dtype)
        made: dict[Scalar, Scalar] = {}
        for part in parts(expr):
            made[part] = first.get(part) or (Call(part.fn, tuple(made[arg] for arg in part.args), part.dtype) if isinstance(part, Call) else part)
        return made[expr]

    def _made(self, indices: Sequence[Dim], row: Dim, number: Dim, step: int, count: Dim) -> Reg:
        """Elements of a row of a from ``number`` times ``step`` on, in the type computed in."""
        b, gemm = self._builder, self._gemm
        if self._prologue is None:
            advance = step if gemm.a_lane == 1 and gemm.a_block == gemm.k_block else gemm.a_block
            index = gemm.a_start + row * gemm.a_row + number * advance
            for position, batch in zip(indices, gemm.batches, strict=True):
                index = index + position * batch.a
            return load_as(b, gemm.dtype, self._a, index, step, stride=gemm.a_lane, count=count if gemm.a_lane != 0 else None)
        values = []
        for buffer, source in zip(self._sources, gemm.sources, strict=True):
            index = source.start + row * source.row + number * (source.k * step)
            for position, batch_step in zip(indices, source.batches, strict=True):
                index = index + position * batch_step
            values.append(b.load(buffer, index, step, stride=source.k, count=count if source.k != 0 else None))
        return b.scalar(self._prologue, [*values, *self._numbers])

    def _count(self, panels: Tiles, vector: int, first: Dim) -> Dim | None:
        """Lanes in use when not all are: the last vector of a row-major output. ``first`` is the tile's first vector."""
        if panels.ragged:
            return minimum(self._gemm.lanes, self._gemm.n - first * self._gemm.lanes)
        last = panels.count == 1 and vector == panels.size - 1 and panels.start + panels.size == self._gemm.vectors
        return self._tail if last else None

    def _prefetch_lines(self, rows: Tiles, panels: Tiles) -> tuple[int, Callable[[Dim], Dim]]:
        """Cache lines to fetch in each block of k so that the tiles of one section cover the next panel of b, and where an element of that panel is.

        Where only a run knows the number of tiles, the fewest for which it pays cover it: more stay at its end, fewer fetch what is at hand.
        """
        gemm = self._gemm
        panel = gemm.k * panels.size * gemm.lanes
        tiles = rows.count if isinstance(rows.count, int) else _PREFETCHING_TILES if rows.size == self._schedule.mr else 0
        if not self._schedule.prefetch or not isinstance(panel, int) or not isinstance(gemm.k, int) or gemm.k < gemm.k_block or tiles == 0:
            return 0, lambda element: element
        lines = min(8, -(-panel * gemm.dtype.itemsize // _LINE_BYTES // (tiles * (gemm.k // gemm.k_block))))
        if isinstance(rows.count, int):
            return lines, lambda element: element + panel
        pays = minimum(1, floordiv(rows.count, _PREFETCHING_TILES))
        return lines, lambda element: (minimum(element, panel) + panel) * pays

    def _block(self, a0: Dim, b0: Dim, block: Dim, steps: Sequence[Dim], rows: int, counts: Sequence[Dim | None], accs: list[Reg]) -> list[Reg]:
        """Steps of k in block ``block``; ``counts`` are the lanes in use of each vector of b."""
        b, gemm, lanes, vectors = self._builder, self._gemm, self._gemm.lanes, len(counts)
        b_row: Dim = vectors * lanes if gemm.b_row is None else gemm.b_row
        a_row, a_block, a_lane = (gemm.k, gemm.k_block, 1) if self._converts else (gemm.a_row, gemm.a_block, gemm.a_lane)
        a_index, b_index = a0 + block * a_block, b0 + block * (b_row * gemm.k_block)
        for k in steps:
            right = [
                load_as(
                    b,
                    gemm.dtype,
                    self._b,
                    b_index + (b_row * k + v * lanes),
                    lanes,
                    count=count if gemm.b_row is not None else None,
                )
                for v, count in enumerate(counts)
            ]
            for r in range(rows):
                left = b.load(self._rows_of_a if self._converts else self._a, a_index + (a_row * r + k * a_lane), lanes, stride=0)
                for v in range(vectors):
                    accs[r * vectors + v] = b.fma(left, right[v], accs[r * vectors + v])
        return accs
