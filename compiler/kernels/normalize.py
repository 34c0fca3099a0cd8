"""Normalisation over any axes: mean, then variance, then the result, over what then lies in cache.

Elements that share a mean and variance are a *row*, wherever they lie. Lanes run along the innermost axis: where rows are along it, the lanes of
a sum are added up at the end, and short rows are taken several at a time, which hides what follows a sum; otherwise every lane has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from compiler.ir.intexpr import Dim, ceildiv, product
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, physical_strides, register_family
from compiler.kernels.folds import Fold
from compiler.kernels.loops import (
    Axis,
    Chunk,
    collapse,
    coordinates,
    expression_dtypes,
    fewer,
    mask_tail,
    offset,
    serial_nest,
    vector_lanes,
    vector_loop,
    vector_nest,
)
from compiler.kernels.moments import Center, Factors, Moments, element_dtypes, is_short_sum
from compiler.kernels.normalize_groups import write_groups
from compiler.kernels.rows import RowFamily, RowSchedule
from compiler.target import Target


class Normalize(RowFamily):
    """The family: params ``axes``, ``groups``, ``epsilon``, ``center``, the op's."""

    name = "normalize"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Float tensors, row-major, or with channels in blocks that are normalised one by one, a pixel's together, or in groups with all pixels."""
        x, axes = workload.inputs[0].type, workload.ints("axes")
        pixel = axes == (1,) and workload.int("groups") == 1
        legal = x.block == 1 or axes[0] > 1 or pixel or axes == tuple(range(1, x.rank))
        return x.dtype.is_float and x.block == workload.output.block and legal

    def build(self, workload: Workload, schedule: RowSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            parts = b, workload, schedule, target, (x, out), Epilogue(b, workload, operands)
            if _has_mixed_blocks(workload):
                write_groups(*parts)
            else:
                _Writer(*parts).write()
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * 7


def _has_mixed_blocks(workload: Workload) -> bool:
    """Whether channels of several groups lie in one block."""
    x, groups = workload.inputs[0].type, workload.int("groups")
    channels = x.shape[1] if x.block != 1 else 0
    return groups != 1 and isinstance(channels, int) and channels // groups % x.block != 0


@dataclass(frozen=True)
class _Part:
    """A box of each row: block ``start`` of channels on, ``axes`` of it."""

    start: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class _Rows:
    """The axes in memory along which rows differ, and the boxes that make up a row: whole blocks of channels, and what is used of the last."""

    kept: tuple[Axis, ...]
    parts: tuple[_Part, ...]
    lanes_kept: bool


_ONE = Axis(1, -1, strides=(0,))
"""An axis where there is none."""


def _rows(workload: Workload) -> _Rows:
    x, output, axes, groups = workload.inputs[0].type, workload.output, workload.ints("axes"), workload.int("groups")
    tables = [physical_strides(x), workload.output_strides, *(broadcast_strides(o.type, output) for o in workload.operands)]
    channels = x.shape[1] if x.block != 1 else 0
    whole, used = divmod(channels if isinstance(channels, int) else 0, x.block)
    kept, along = list[Axis](), list[Axis]()
    for k, extent in enumerate(x.physical_shape):
        # Joined axes have no coordinates that tell padding from channels.
        strides = (*(table[k] for table in tables), *((None,) if used else ()))
        if (1 if k == x.rank else k) not in axes:
            kept.append(Axis(extent, k, strides=strides))
        elif k == axes[0] and groups != 1 and isinstance(extent, int):
            width = extent // groups
            kept.append(Axis(groups, k, width, strides=tuple(None if s is None else s * width for s in strides)))
            along.append(Axis(width, k, strides=strides))
        else:
            along.append(Axis(extent, k, strides=strides))
    joined, inner = collapse(kept), collapse(along)
    lanes_kept = bool(joined) and (not inner or joined[-1].output > inner[-1].output)
    parts = [_Part(0, tuple(along))]
    if used and 1 in axes:
        first, *others, last = along
        parts = [_Part(0, (replace(first, extent=whole), *others, last)), _Part(whole, (*others, replace(last, extent=used)))][whole == 0 :]
    return _Rows(joined or (_ONE,), tuple(parts), lanes_kept)


Spread = TypeVar("Spread", Center, Factors)


class _Writer:
    """Writes what is done with rows side by side: of each *member*, a vector has one row in every lane, or elements of one row."""

    def __init__(
        self, b: LoopBuilder, workload: Workload, schedule: RowSchedule, target: Target, buffers: tuple[Buffer, Buffer], epilogue: Epilogue
    ) -> None:
        self._b = b
        self._threads = workload.threads
        self._anchor = workload.anchor.dtype
        self._x, self._out = buffers
        self._epilogue = epilogue
        self._vectors = schedule.vectors
        self._origin = (0,) * len(workload.output.physical_shape)
        self._block_stride = physical_strides(workload.inputs[0].type)[1] if workload.output.block != 1 else 0
        self._rows = rows = _rows(workload)
        self._summed = [collapse([replace(axis, strides=axis.strides[:1]) for axis in part.axes]) or (_ONE,) for part in rows.parts]
        innermost = (rows.kept if rows.lanes_kept else self._summed[0])[-1].extent
        self._lanes = vector_lanes(target, [*element_dtypes(workload), *expression_dtypes(*workload.elements)], innermost)
        self._step = 1 if rows.lanes_kept else self._lanes
        if rows.lanes_kept:
            self._members = fewer(schedule.vectors, innermost, self._lanes)
        else:
            self._members = fewer(schedule.vectors, rows.kept[-1].extent) if is_short_sum(workload, self._steps(1)) else 1
        self._unroll = max(1, fewer(schedule.vectors // self._members, self._summed[0][-1].extent, self._step))
        self._moments = Moments(b, workload, self._steps(self._unroll))

    def _steps(self, unroll: int) -> Dim:
        """Vectors of one row that each of so many sums of it takes."""
        return sum((product([a.extent for a in axes[:-1]]) * ceildiv(axes[-1].extent, self._step * unroll) for axes in self._summed), start=0)

    def write(self) -> None:
        *outer, last = self._rows.kept
        lanes = self._lanes if self._rows.lanes_kept else 1
        vector_nest(self._b, [axis.extent for axis in outer], last.extent, lanes, self._members, self._threads, self._side_by_side)

    def _side_by_side(self, at: Sequence[Dim], chunks: list[Chunk]) -> None:
        """Every step for the rows of ``chunks`` along the last of the axes that are kept."""
        moments, points = self._moments, [[*at, position] for position, _ in chunks]
        counts, centers = [count for _, count in chunks], list[Center | None]([None] * len(chunks))
        if moments.centers:
            centers = [moments.center(total) for (total,) in self._totals(moments.sum, 1, points, counts, centers)]
        totals = self._totals(moments.squares, moments.squares.width, points, counts, [center and self._spread(center) for center in centers])
        factors = [self._spread(moments.factors(total, center)) for total, center in zip(totals, centers, strict=True)]
        for part in self._rows.parts:
            self._apply(part, points, counts, factors)

    def _totals(
        self, fold: Fold, width: int, points: Sequence[Sequence[Dim]], counts: Sequence[Dim], centers: Sequence[Center | None]
    ) -> list[list[Reg]]:
        """The ``width`` sums over each row that a fold makes of deviations from a center, or of elements where there is none yet."""
        kept, lanes_kept = self._rows.kept, self._rows.lanes_kept
        rows = [[fold.start(self._lanes)] * width * len(points)] * self._unroll
        for part, axes in zip(self._rows.parts, self._summed, strict=True):

            def elements(at: Sequence[Dim], position: Dim, count: Dim, part: _Part = part, axes: Sequence[Axis] = axes) -> list[Reg]:
                inside, found = part.start * self._block_stride + offset(axes, [*at, position]), list[Reg]()
                for point, used, center in zip(points, counts, centers, strict=True):
                    axis, lanes = (kept[-1], used) if lanes_kept else (axes[-1], count)
                    value = self._moments.deviation(self._read(offset(kept, point) + inside, axis, lanes), center)
                    found.append(value if lanes_kept else mask_tail(self._b, value, count, fold.start(self._lanes)))
                return found

            rows = fold.over(axes, self._step, rows, elements)
        totals = fold.join(rows)
        totals = totals if lanes_kept else [fold.across(total) for total in totals]
        return [totals[k : k + width] for k in range(0, len(totals), width)]

    def _apply(self, part: _Part, points: Sequence[Sequence[Dim]], counts: Sequence[Dim], factors: Sequence[Factors]) -> None:
        axes = collapse(part.axes) or (_ONE,)
        kept = self._rows.kept
        with serial_nest(self._b, [axis.extent for axis in axes[:-1]]) as at:

            def write(chunks: list[Chunk]) -> None:
                for position, count in chunks:
                    inside = [*at, position]
                    for point, used, found in zip(points, counts, factors, strict=True):
                        lanes, axis = (used, kept[-1]) if self._rows.lanes_kept else (count, axes[-1])
                        index = offset(kept, point) + offset(axes, inside) + part.start * self._block_stride
                        value = self._b.cast(self._moments.apply(self._read(index, axis, lanes), found), self._anchor)
                        place = list(coordinates(coordinates(self._origin, kept, point), axes, inside))
                        if part.start:
                            place[1] = place[1] + part.start
                        self._epilogue.store(self._out, value, place, lanes, axis=axis.output)

            unroll = 1 if len(points) > 1 else self._vectors
            vector_loop(self._b, axes[-1].extent, self._step, unroll, write)

    def _read(self, index: Dim, axis: Axis, count: Dim) -> Reg:
        stride = axis.stride if self._lanes != 1 else 1
        return self._b.cast(self._b.load(self._x, index, self._lanes, stride=stride, count=count), self._moments.dtype)

    def _spread(self, found: Spread) -> Spread:
        """Numbers of one row for the lanes of a vector."""
        return found if self._rows.lanes_kept else found.spread(self._b, self._lanes)


register_family(Normalize())
