"""Folding many elements into few: sums, products and extremes in several vector accumulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from compiler.ir.intexpr import Dim, ceildiv, floordiv
from compiler.ir.loop import Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType, compute_dtype, integer_range
from compiler.kernels.loops import Axis, used_lanes

LONGEST_FLOAT32_CHAIN = 32
"""Additions in a row that keep a float32 sum within 1e-6 of the exact one even where every rounding errs in the same direction."""


@dataclass(frozen=True)
class FoldKind:
    """A reduction: the function of two elements, and across the lanes of one vector."""

    fn: str
    across: str


FOLDS = {
    "sum": FoldKind("add", "reduce_add"),
    "prod": FoldKind("mul", "reduce_mul"),
    "max": FoldKind("max", "reduce_max"),
    "min": FoldKind("min", "reduce_min"),
}


def identity(kind: str, dtype: DType) -> float | int | bool:
    """The value that leaves every other one as it is."""
    if kind in ("sum", "prod"):
        return int(kind == "prod")
    lowest = kind == "max"
    if dtype.is_float:
        return -inf if lowest else inf
    if dtype is DType.BOOL:
        return not lowest
    low, high = integer_range(dtype)
    return low if lowest else high


def accumulator_dtype(kind: str, dtype: DType, chain: Dim) -> DType:
    """The type to fold in when each accumulator takes ``chain`` elements: wider where the rounding of a long sum would show."""
    if kind in ("max", "min") or not dtype.is_float or dtype is DType.FLOAT64:
        return compute_dtype(dtype)
    short = isinstance(chain, int) and chain <= LONGEST_FLOAT32_CHAIN
    return DType.FLOAT32 if short or kind != "sum" else DType.FLOAT64


class Fold:
    """A fold of one kind and accumulator type, written into a builder."""

    def __init__(self, b: LoopBuilder, kind: str, dtype: DType) -> None:
        self._b = b
        self._kind = FOLDS[kind]
        self.dtype = dtype
        self._identity = identity(kind, dtype)

    def start(self, lanes: int) -> Reg:
        """An accumulator that has seen nothing."""
        return self._b.const(self._identity, VecType(self.dtype, lanes))

    def along(
        self,
        extent: Dim,
        step: int,
        accumulators: Sequence[Sequence[Reg]],
        elements: Callable[[Dim, Dim], Sequence[Reg]],
    ) -> list[list[Reg]]:
        """Fold ``extent`` positions, ``step`` at a time, into ``accumulators``: rows used in turn.

        ``elements(position, count)`` are the values of ``count`` positions (fewer than step at the end alone).
        """
        unroll, width = len(accumulators), len(accumulators[0])
        rows = [list(row) for row in accumulators]
        groups = floordiv(extent, step * unroll)
        if groups != 0:
            with self._b.loop("r", 0, groups, carried=[value for row in rows for value in row]) as loop:
                inside = _rows(loop.carried, width)
                for u in range(unroll):
                    inside[u] = self.accumulate(inside[u], elements(loop.var * (step * unroll) + u * step, step))
                loop.yield_([value for row in inside for value in row])
            rows = _rows(loop.results, width)
        if not isinstance(extent, int):
            with self._b.loop("r", groups * unroll, ceildiv(extent, step), carried=rows[0]) as loop:
                position = loop.var * step
                loop.yield_(self.accumulate(loop.carried, elements(position, used_lanes(position, extent, step))))
            rows[0] = list(loop.results)
            return rows
        for u, start in enumerate(range(extent - extent % (step * unroll), extent, step)):
            rows[u] = self.accumulate(rows[u], elements(start, min(step, extent - start)))
        return rows

    def over(
        self,
        axes: Sequence[Axis],
        step: int,
        accumulators: Sequence[Sequence[Reg]],
        elements: Callable[[Sequence[Dim], Dim, Dim], Sequence[Reg]],
        at: Sequence[Dim] = (),
    ) -> list[list[Reg]]:
        """As ``along`` over several axes, the last innermost; ``elements`` is given the indices along the others, too, which begin with ``at``."""
        if len(axes) == 1:
            return self.along(axes[0].extent, step, accumulators, lambda position, count: elements(at, position, count))
        width = len(accumulators[0])
        with self._b.loop("r", 0, axes[0].extent, carried=[value for row in accumulators for value in row]) as loop:
            rows = _rows(loop.carried, width)
            rows = self.over(axes[1:], step, rows, elements, (*at, loop.var))
            loop.yield_([value for row in rows for value in row])
        return _rows(loop.results, width)

    def join(self, rows: Sequence[Sequence[Reg]]) -> list[Reg]:
        """Rows of accumulators as one row, pairwise."""
        rows = [list(row) for row in rows]
        while len(rows) > 1:
            half = (len(rows) + 1) // 2
            rows = [self.combine(rows[i], rows[i + half]) if i + half < len(rows) else list(rows[i]) for i in range(half)]
        return list(rows[0])

    def across(self, vector: Reg) -> Reg:
        """The lanes of one accumulator folded into a scalar."""
        return self._b.reduce(self._kind.across, vector)

    def accumulate(self, accumulators: Sequence[Reg], elements: Sequence[Reg]) -> list[Reg]:
        """A row of accumulators with a row of elements folded in."""
        return self.combine(accumulators, elements)

    def combine(self, left: Sequence[Reg], right: Sequence[Reg]) -> list[Reg]:
        """Two rows of accumulators, pairwise."""
        return [self._b.op(self._kind.fn, a, b) for a, b in zip(left, right, strict=True)]


def _rows(values: Sequence[Reg], width: int) -> list[list[Reg]]:
    return [list(values[at : at + width]) for at in range(0, len(values), width)]
