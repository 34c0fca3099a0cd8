"""The register-tiled matrix multiplication that matmul and pointwise convolution share.

``out[m, n] = sum over k of a[m, k] * b[k, n]``, an accumulator tile of ``mr`` rows by ``nv`` vectors held in registers over the whole
of k. Rows and vectors are split into tiles of nearly equal size (49 rows at most 12 at a time are 10, 10, 10, 10, 9), so that no
tile is left mostly empty. Constant ``b`` is packed into panels ``[k][nv * lanes]``, one after another; otherwise it is read in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from compiler.ir.intexpr import Dim, floordiv, minimum, mod, product
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import Loop, LoopBuilder
from compiler.ir.scalar import Array
from compiler.kernels.base import Epilogue, Panels
from compiler.kernels.gemm_operands import Gemm, MadeRows, ScaledPanels
from compiler.kernels.loops import fewer, load_as, serial_nest, unflatten
from compiler.kernels.tiles import Tiles, imbalance, panel_tiles, register_rows, row_tiles, sections, supposed, worker_part
from compiler.target import Target

_LINE_BYTES = 64
_PREFETCHING_TILES = 4
"""Tiles of rows from which fetching the next panel ahead pays: 2 to 3 % of a MobileNetV2. With fewer, the panels themselves are what is waited
for, and fetching them ahead of the hardware costs 40 % (a language model on 4 or 12 tokens; AMD EPYC, Zen 4)."""
_SHORT_SUM, _SHORT_TILE = 32, 20
"""Steps of k up to which a tile's epilogue weighs against its sums, and the most accumulators of such a tile."""


@dataclass(frozen=True)
class GemmSchedule:
    """``mr`` x ``nv``: the largest tile, rows by vectors. ``order``: which loop is outside, ``m`` or ``n``. ``parallel``: which one the
    workers share (``batch``, ``m`` or ``n``). ``prefetch``: fetch the next panel of b while this one is used. ``lanes``: elements of a vector.
    ``scaled``: the factor of each k that a is computed with goes into the panels of b, one after another (``Gemm.factored``)."""

    mr: int
    nv: int
    order: str
    parallel: str
    prefetch: bool
    lanes: int
    scaled: bool = False


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

    A factor of each k goes where there is less of it: into b, or into the rows of a.
    Rows that are computed are shared rather than panels, and are outside where there are too many to be computed before: each is computed once.
    """
    if gemm.product is not None and supposed(gemm.m) > supposed(gemm.n):
        return replace(heuristic(gemm.factored(), target, threads), scaled=True)
    gemm = gemm.in_pieces()
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
    if gemm.sources and not gemm.rows_fit:
        return GemmSchedule(mr, nv, "m", parallel, prefetch=False, lanes=gemm.lanes)
    return GemmSchedule(mr, nv, "n", parallel, prefetch, gemm.lanes)


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
                    ways = [schedule, replace(schedule, scaled=True)] if gemm.product is not None and order == "n" else [schedule]
                    found += [way for way in ways if way not in found]
    return found


def _tile_cost(gemm: Gemm, nv: int, mr: int) -> float:
    """Cycles per k of the whole output by issue slots: two multiply-adds or two loads a cycle, and their latency of 4 cycles."""
    cost = 0.0
    for rows in sections(supposed(gemm.m), mr):
        for panels in sections(-(-supposed(gemm.n) // gemm.lanes), nv):
            fma, loads = rows.size * panels.size, rows.size + panels.size
            cost += rows.count * panels.count * max(fma / 2, loads / 2, 4) * (1 + 0.15 * loads / max(fma, 1))
    return cost


def _these_rows(first: Dim, size: int) -> Callable[[], AbstractContextManager[tuple[Dim, int, Dim]]]:
    """Rows of one tile as ``MadeRows.make`` takes them, for the beginning of scratch."""
    return lambda: nullcontext((first, size, 0))


class GemmWriter:
    """Writes the loops of one multiplication.

    When rows or vectors are shared, a parallel loop over ``threads`` chunks stands outside and each tile loop is cut to its chunk.
    ``buffers`` are a (or, where it is computed, what ``Gemm.sources`` are), b and the output.
    """

    def __init__(
        self,
        builder: LoopBuilder,
        gemm: Gemm,
        schedule: GemmSchedule,
        threads: int,
        buffers: Sequence[Buffer],
        epilogue: Epilogue,
    ) -> None:
        self._builder = builder
        self._schedule = schedule
        self._threads = threads
        *sources, b, self._out = buffers
        self._b = self._right = b
        self._scaled: ScaledPanels | None = None
        if schedule.scaled and gemm.product is not None:
            number, factor = gemm.product
            gemm = gemm.factored()
            self._scaled = ScaledPanels(builder, gemm, b, sources[factor], fewer(schedule.nv, gemm.vectors))
            sources, self._right = [sources[number]], self._scaled.buffer
        self._gemm = gemm = gemm.in_pieces()
        self._before = bool(gemm.sources) and schedule.order == "n" and gemm.rows_fit
        self._made: MadeRows | None = None
        if (gemm.prologue is not None or sources[0].dtype is not gemm.dtype) and gemm.m * gemm.k != 0:
            self._made = MadeRows(builder, gemm, sources, gemm.m if self._before else fewer(schedule.mr, gemm.m))
        self._a = sources[0] if self._made is None else self._made.buffer
        self._epilogue = epilogue
        self._rows = row_tiles(gemm.m, schedule.mr)
        self._panels = panel_tiles(gemm.n, gemm.lanes, schedule.nv, padded=epilogue.padded)
        self._tail = None if epilogue.padded or not isinstance(gemm.n, int) else gemm.n % gemm.lanes or None

    def write(self) -> None:
        """Emit everything."""
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
        if self._made is not None and self._before:
            for number, section in enumerate(self._rows):
                self._made.make(indices, partial(self._all_rows, section, chunk if self._schedule.parallel == "m" else None, number))
        for first in outer:
            with self._tile_loop(first, chunk if shared else None, outer.index(first)) as x:
                if self._scaled is not None:
                    self._scaled.make(indices, self._panel_start(indices, x.var * first.size + first.start), first.size)
                if self._made is not None and self._schedule.order == "m":
                    self._made.make(indices, _these_rows(x.var * first.size + first.start, first.size))
                for second in inner:
                    with self._tile_loop(second, None if shared else chunk, inner.index(second)) as y:
                        (rows, row), (panels, panel) = ((first, x.var), (second, y.var))[:: 1 if self._schedule.order == "m" else -1]
                        self._tile(indices, rows, row, panels, panel)

    def _tile_loop(self, section: Tiles, chunk: Dim | None, number: int) -> AbstractContextManager[Loop]:
        """A loop over a section's tiles, or over one chunk's part of them."""
        if chunk is None:
            return self._builder.loop("t", 0, section.count)
        return self._builder.loop("t", *worker_part(section.count, chunk, self._threads, number))

    @contextmanager
    def _all_rows(self, section: Tiles, chunk: Dim | None, number: int) -> Iterator[tuple[Dim, int, Dim]]:
        """A loop over the rows of a section's tiles, or of one chunk's part of them, as ``MadeRows.make`` takes it: each goes to its own row."""
        with self._tile_loop(section, chunk, number) as tile:
            first = tile.var * section.size + section.start
            yield first, section.size, first

    def _panel_start(self, indices: Sequence[Dim], vector: Dim) -> Dim:
        """Where the panel that begins with a vector of b's rows is."""
        gemm = self._gemm
        start = gemm.b_start + vector * gemm.lanes * (gemm.k if gemm.b_row is None else 1)
        for index, batch in zip(indices, gemm.batches, strict=True):
            start = start + index * batch.b
        return start

    def _tile(self, indices: list[Dim], rows: Tiles, row: Dim, panels: Tiles, panel: Dim) -> None:
        b, gemm, lanes = self._builder, self._gemm, self._gemm.lanes
        m0, v0 = row * rows.size + rows.start, panel * panels.size + panels.start
        a0, b0 = gemm.a_start + m0 * gemm.a_row, self._panel_start(indices, v0)
        for index, batch in zip(indices, gemm.batches, strict=True):
            a0 = a0 + index * batch.a
        places = [[gemm.coordinates(indices, m0 + r, v0 + v) for v in range(panels.size)] for r in range(rows.size)]
        loads: dict[object, Reg] = {}
        counts = [self._count(panels, v, v0) for v in range(panels.size)]
        start = [self._epilogue.initial(places[0][v], VecType(gemm.dtype, lanes), loads, count) for v, count in enumerate(counts)]
        accs = [start[v] for _ in range(rows.size) for v in range(panels.size)]
        lines, distance = self._prefetch_lines(rows, panels)
        blocks, rest = floordiv(gemm.k, lanes), mod(gemm.k, lanes)
        if self._made is not None:
            if self._schedule.order != "m" and not self._before:
                self._made.make(indices, _these_rows(m0, rows.size))
            a0 = m0 * self._made.row if self._before else 0
        right = b0 if self._scaled is None else 0
        if blocks != 0:
            with b.loop("k", 0, blocks, carried=accs) as loop:
                for line in range(lines):
                    at = (row * blocks + loop.var) * lines + line
                    b.prefetch(self._b, b0 + distance(at * (_LINE_BYTES // gemm.dtype.itemsize)))
                loop.yield_(self._block(a0, right, loop.var, range(lanes), rows.size, counts, list(loop.carried)))
            accs = list(loop.results)
        if not isinstance(rest, int):
            with b.loop("k", 0, rest, carried=accs) as loop:
                loop.yield_(self._block(a0, right, blocks, (loop.var,), rows.size, counts, list(loop.carried)))
            accs = list(loop.results)
        elif rest:
            accs = self._block(a0, right, blocks, range(rest), rows.size, counts, accs)
        for r in range(rows.size):
            for v in range(panels.size):
                self._epilogue.store(self._out, accs[r * panels.size + v], places[r][v], counts[v], loads)

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
        if not self._schedule.prefetch or not isinstance(panel, int) or not isinstance(gemm.k, int) or gemm.k < gemm.lanes or tiles == 0:
            return 0, lambda element: element
        lines = min(8, -(-panel * gemm.dtype.itemsize // _LINE_BYTES // (tiles * (gemm.k // gemm.lanes))))
        if isinstance(rows.count, int):
            return lines, lambda element: element + panel
        pays = minimum(1, floordiv(rows.count, _PREFETCHING_TILES))
        return lines, lambda element: (minimum(element, panel) + panel) * pays

    def _block(self, a0: Dim, b0: Dim, block: Dim, steps: Sequence[Dim], rows: int, counts: Sequence[Dim | None], accs: list[Reg]) -> list[Reg]:
        """Steps of k in block ``block``; ``counts`` are the lanes in use of each vector of b."""
        b, gemm, lanes, vectors = self._builder, self._gemm, self._gemm.lanes, len(counts)
        b_row: Dim = vectors * lanes if gemm.b_row is None else gemm.b_row
        a_row, a_block, a_lane = (gemm.a_row, gemm.a_block, gemm.a_lane) if self._made is None else (self._made.row, self._made.block, 1)
        a_index, b_index = a0 + block * a_block, b0 + block * (b_row * lanes)
        for k in steps:
            right = [
                load_as(
                    b,
                    gemm.dtype,
                    self._right,
                    b_index + (b_row * k + v * lanes),
                    lanes,
                    count=count if gemm.b_row is not None else None,
                )
                for v, count in enumerate(counts)
            ]
            for r in range(rows):
                left = b.load(self._a, a_index + (a_row * r + k * a_lane), lanes, stride=0)
                for v in range(vectors):
                    accs[r * vectors + v] = b.fma(left, right[v], accs[r * vectors + v])
        return accs
