"""Reductions over any axes.

Where the innermost axis stays, lanes run along it and every lane folds on its own; otherwise lanes run along the innermost
reduced axis and are folded at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, floordiv, maximum, minimum, mod, product
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, physical_strides, register_family
from compiler.kernels.folds import Fold, accumulator_dtype
from compiler.kernels.loops import (
    Axis,
    Chunk,
    collapse,
    coordinates,
    expression_dtypes,
    fewer,
    mask_tail,
    pack_plain,
    parallel_nest,
    vector_lanes,
    vector_nest,
)
from compiler.target import Target


@dataclass(frozen=True)
class ReduceSchedule:
    """``vectors``: neighbouring result vectors folded at once; ``accumulators``: vectors that fold side by side, all counted."""

    vectors: int
    accumulators: int


@dataclass(frozen=True)
class ReducedAxes:
    """The axes of x after joining neighbours: those of the result, and those folded away. An axis has the strides of every input first.

    ``padded``: what is folded away are channels in blocks, the last of which has lanes that are not in use.
    """

    kept: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    lanes_kept: bool
    padded: bool


def reduced_axes(workload: Workload, axes: Sequence[int]) -> ReducedAxes:
    """The loops of a reduction of ``workload.x`` over logical ``axes``; the output keeps them as 1 where it has x's rank."""
    x, output = workload.x, workload.output
    walked = [broadcast_strides(o.type, x) for o in workload.inputs] if workload.prologue is not None else [physical_strides(x)]
    tables = [workload.output_strides, *(broadcast_strides(o.type, output) for o in workload.operands)]
    found = []
    place = 0
    padded = x.block != 1 and 1 in axes and mod(x.shape[1], x.block) != 0
    for number, extent in enumerate(x.physical_shape):
        folded = (1 if x.block != 1 and number == x.rank else number) in axes
        strides = (*(table[number] for table in walked), *(0 if folded else table[place] for table in tables))
        apart = (None if padded and number == 1 else 0,)
        found.append(Axis(extent, -1 if folded else place, strides=(*strides, *apart)))
        place += not folded or x.rank == output.rank
    joined = collapse(found)
    reduced = tuple(axis for axis in joined if axis.output < 0)
    kept = tuple(axis for axis in joined if axis.output >= 0)
    return ReducedAxes(kept, reduced or (Axis(1, -1, strides=(1,) * len(walked)),), bool(joined) and joined[-1].output >= 0, padded)


class Reduce:
    """The family: params ``kind`` (sum, max, min, prod), ``axes``, ``keepdims``."""

    name = "reduce"

    def supports(self, workload: Workload, target: Target) -> bool:
        """One layout; a blocked tensor keeps its channels and batch in place, or channels alone are folded. What a prologue reads follows it."""
        x, output, axes = workload.x, workload.output, workload.ints("axes")
        kept = x.rank == output.rank
        in_place = (1 not in axes and (0 not in axes or kept)) or (axes == (1,) and kept)
        return x.block == output.block and (x.block == 1 or in_place)

    def heuristic(self, workload: Workload, target: Target) -> ReduceSchedule:
        return ReduceSchedule(4, 8)

    def space(self, workload: Workload, target: Target) -> Sequence[ReduceSchedule]:
        first = self.heuristic(workload, target)
        return [first, *(s for s in (ReduceSchedule(v, a) for v in (1, 2, 4, 8) for a in (4, 8, 12)) if s != first)]

    def pack(self, workload: Workload, schedule: ReduceSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: ReduceSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            loops = reduced_axes(workload, workload.ints("axes"))
            writer = _ReduceWriter(b, workload, schedule, target, loops, inputs, out, Epilogue(b, workload, operands))
            if loops.lanes_kept:
                writer.lanes_along_result()
            else:
                writer.lanes_along_reduced()
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        applied = 0 if workload.prologue is None else len(calls(workload.prologue.element))
        return workload.x.with_block(1).elements * (1 + applied)


class _ReduceWriter:
    def __init__(
        self,
        b: LoopBuilder,
        workload: Workload,
        schedule: ReduceSchedule,
        target: Target,
        loops: ReducedAxes,
        inputs: Sequence[Buffer],
        out: Buffer,
        epilogue: Epilogue,
    ) -> None:
        self._b = b
        self._workload = workload
        self._schedule = schedule
        self._target = target
        self._loops = loops
        self._inputs = inputs
        self._out = out
        self._epilogue = epilogue
        self._kind = str(workload.attrs["kind"])
        prologue = () if workload.prologue is None else expression_dtypes(workload.prologue.element)
        self._dtypes = [workload.x.dtype, *prologue, *expression_dtypes(*workload.elements)]
        self._elements = product([axis.extent for axis in loops.reduced])
        self._origin = (0,) * len(workload.output.physical_shape)

    def lanes_along_result(self) -> None:
        """Every lane folds an element of the result."""
        *outer, last = self._loops.kept
        lanes = vector_lanes(self._target, self._dtypes, last.extent)
        width = fewer(self._schedule.vectors, last.extent, lanes)
        unroll = max(1, fewer(self._schedule.accumulators // width, self._loops.reduced[-1].extent))
        fold = self._fold(unroll)

        def body(indices: Sequence[Dim], chunks: list[Chunk]) -> None:
            rows = [[fold.start(lanes)] * len(chunks)] * unroll

            def elements(at: Sequence[Dim], position: Dim, _: Dim) -> list[Reg]:
                return [self._element(fold, [*indices, place, *at, position], last, lanes, count) for place, count in chunks]

            joined = fold.join(fold.over(self._loops.reduced, 1, rows, elements))
            for value, (position, count) in zip(joined, chunks, strict=True):
                self._store(value, [*indices, position], count)

        vector_nest(self._b, [axis.extent for axis in outer], last.extent, lanes, width, self._workload.threads, body)

    def lanes_along_reduced(self) -> None:
        """The lanes of the accumulators are folded at the end, into one element of the result."""
        last = self._loops.reduced[-1]
        lanes = vector_lanes(self._target, self._dtypes, last.extent)
        unroll = max(1, fewer(self._schedule.accumulators // 2, last.extent, lanes))
        fold = self._fold(unroll * lanes)
        with parallel_nest(self._b, [axis.extent for axis in self._loops.kept], self._workload.threads) as indices:

            def elements(at: Sequence[Dim], position: Dim, count: Dim) -> list[Reg]:
                value = self._element(fold, [*indices, *at, position], last, lanes, count)
                if self._loops.padded:
                    x = self._workload.x
                    count = minimum(lanes, maximum(x.shape[1] - (at[0] if at else 0) * x.block - position, 0))
                return [mask_tail(self._b, value, count, fold.start(lanes))]

            rows = [[fold.start(lanes)]] * unroll
            (total,) = fold.join(fold.over(self._loops.reduced, lanes, rows, elements))
            self._store(fold.across(total), indices, 1)

    def _fold(self, accumulators: int) -> Fold:
        return Fold(self._b, self._kind, accumulator_dtype(self._kind, self._workload.x.dtype, floordiv(self._elements, accumulators)))

    def _element(self, fold: Fold, point: Sequence[Dim], along: Axis, lanes: int, count: Dim) -> Reg:
        """What is folded, at indices along all axes, lanes along one of them."""
        values = []
        for number, buffer in enumerate(self._inputs):
            index: Dim = 0
            for axis, position in zip((*self._loops.kept, *self._loops.reduced), point, strict=True):
                index = index + position * (axis.strides[number] or 0)
            stride = along.strides[number] or 0
            values.append(self._b.load(buffer, index, lanes, stride=stride, count=count if stride != 0 else None))
        prologue = self._workload.prologue
        return self._b.cast(values[0] if prologue is None else self._b.scalar(prologue.element, values), fold.dtype)

    def _store(self, value: Reg, indices: Sequence[Dim], count: Dim) -> None:
        kept = self._loops.kept
        value = self._b.cast(value, self._workload.anchor.dtype)
        axis = kept[-1].output if kept else -1
        place = coordinates(self._origin, kept, indices)
        self._epilogue.store(self._out, value, place, count, axis=axis)


register_family(Reduce())
