"""Products of matrices that lie anywhere, in register tiles: what a kernel of several products is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.ir.intexpr import Dim, floordiv, minimum, mod
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.loops import load_as, transpose_square

_UNROLL = 8
"""Steps of a sum in one iteration."""


@dataclass(frozen=True)
class Matrix:
    """Elements of a buffer at ``base + row * row_step + column * column_step``."""

    buffer: Buffer
    base: Dim
    row_step: Dim
    column_step: Dim

    def at(self, row: Dim, column: Dim = 0) -> Dim:
        """Where an element is."""
        return self.base + row * self.row_step + column * self.column_step

    def moved(self, row: Dim, column: Dim = 0) -> Matrix:
        """What begins at an element of it."""
        return replace(self, base=self.at(row, column))


Counts = Sequence[Dim | None]
"""The lanes in use of each of some vectors side by side; None: all."""


@dataclass(frozen=True)
class Products:
    """Writes products computed in ``dtype``, in vectors of ``lanes``."""

    b: LoopBuilder
    dtype: DType
    lanes: int

    def multiply(self, left: Matrix, right: Matrix, rows: int, counts: Counts, depth: Dim) -> list[Reg]:
        """``left [rows, depth] @ right [depth, vectors]``, row by row; the columns of right lie side by side."""
        b = self.b
        accs = [b.const(0, VecType(self.dtype, self.lanes))] * (rows * len(counts))
        blocks, rest = floordiv(depth, _UNROLL), mod(depth, _UNROLL)
        if blocks != 0:
            with b.loop("k", 0, blocks, carried=accs) as loop:
                accs = list(loop.carried)
                for k in range(_UNROLL):
                    accs = self._step(left, right, rows, counts, loop.var * _UNROLL + k, accs)
                loop.yield_(accs)
            accs = list(loop.results)
        if isinstance(rest, int):
            for k in range(rest):
                accs = self._step(left, right, rows, counts, blocks * _UNROLL + k, accs)
            return accs
        with b.loop("k", blocks * _UNROLL, depth, carried=accs) as loop:
            loop.yield_(self._step(left, right, rows, counts, loop.var, list(loop.carried)))
        return list(loop.results)

    def _step(self, left: Matrix, right: Matrix, rows: int, counts: Counts, k: Dim, accs: list[Reg]) -> list[Reg]:
        b, lanes = self.b, self.lanes
        vectors = [b.load(right.buffer, right.at(k, v * lanes), lanes, count=count) for v, count in enumerate(counts)]
        factors = (b.load(left.buffer, left.at(r, k), lanes, stride=0) for r in range(rows))
        return [b.fma(factor, vector, accs[r * len(counts) + v]) for r, factor in enumerate(factors) for v, vector in enumerate(vectors)]

    def bring(self, source: Matrix, rows: Dim, counts: Counts, target: Buffer) -> Matrix:
        """Rows of some vectors, converted and side by side in ``target``; lanes not in use may hold anything."""
        width = len(counts) * self.lanes
        done: Dim = 0
        if source.row_step == 1 and source.column_step != 1 and self.lanes > 1:
            done = floordiv(rows, self.lanes) * self.lanes
            with self.b.loop("r", 0, floordiv(rows, self.lanes)) as loop:
                self._bring_square(source.moved(loop.var * self.lanes), counts, target, loop.var * (self.lanes * width))
        with self.b.loop("r", done, rows) as loop:
            for v, count in enumerate(counts):
                place = source.at(loop.var, v * self.lanes)
                value = load_as(self.b, self.dtype, source.buffer, place, self.lanes, stride=source.column_step, count=count)
                self.b.store(target, loop.var * width + v * self.lanes, value)
        return Matrix(target, 0, width, 1)

    def _bring_square(self, source: Matrix, counts: Counts, target: Buffer, place: Dim) -> None:
        """As many rows as lanes, read along the columns, in which they lie side by side."""
        b, lanes = self.b, self.lanes
        for v, count in enumerate(counts):
            last = lanes - 1 if count is None else count - 1
            columns = [load_as(b, self.dtype, source.buffer, source.at(0, minimum(lane, last) + v * lanes), lanes) for lane in range(lanes)]
            for r, row in enumerate(transpose_square(b, columns)):
                b.store(target, place + (r * len(counts) + v) * lanes, row)
