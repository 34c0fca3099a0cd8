"""Resampling: every element of the result is a weighted sum of elements at places, and with weights, that stand in tables.

Lanes run along the innermost axis in memory, channels of a blocked tensor; where that axis itself is resampled, elements go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product as combinations
from math import prod

from compiler.ir.intexpr import Dim, maximum, minimum, product
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.loops import Chunk, expression_dtypes, load_as, pack_plain, parallel_nest, vector_lanes, vector_loop
from compiler.target import Target


@dataclass(frozen=True)
class ResampleSchedule:
    """``vectors``: vectors of the innermost axis computed in one iteration."""

    vectors: int


@dataclass(frozen=True)
class _Tap:
    """What one tap of an axis adds to the index into x, and its weight, a scalar."""

    offset: Dim
    weight: Reg


class Resample:
    """The family: inputs x, then places and weights of each of ``axes``."""

    name = "resample"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Floats in one layout, blocked where only spatial axes are resampled; those axes not known to be empty."""
        x, axes = workload.inputs[0].type, workload.ints("axes")
        if workload.output.elements != 0 and any(x.shape[axis] == 0 for axis in axes):
            return False
        same = x.block == workload.output.block and (x.block == 1 or min(axes) >= 2)
        return same and workload.anchor.dtype in (DType.FLOAT32, DType.FLOAT64)

    def heuristic(self, workload: Workload, target: Target) -> ResampleSchedule:
        return ResampleSchedule(2)

    def space(self, workload: Workload, target: Target) -> Sequence[ResampleSchedule]:
        return [ResampleSchedule(vectors) for vectors in (2, 1, 4)]

    def pack(self, workload: Workload, schedule: ResampleSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: ResampleSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            _Writer(b, workload, inputs, out, Epilogue(b, workload, operands)).write(target, schedule.vectors)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        taps = prod(tap for tap in (operand.type.shape[0] for operand in workload.inputs[1::2]) if isinstance(tap, int))
        return workload.output.with_block(1).elements * (2 * taps)


class _Writer:
    def __init__(self, b: LoopBuilder, workload: Workload, inputs: Sequence[Buffer], out: Buffer, epilogue: Epilogue) -> None:
        self._b = b
        self._workload = workload
        self._x, *tables = inputs
        self._tables = dict(zip(workload.ints("axes"), zip(tables[::2], tables[1::2], strict=True), strict=True))
        self._out = out
        self._epilogue = epilogue
        self._dtype = workload.anchor.dtype
        self._strides = physical_strides(workload.inputs[0].type)

    def write(self, target: Target, vectors: int) -> None:
        """Emit everything."""
        *outer, between, last = (1, 1, *self._workload.output.physical_shape)
        shift = 2
        single = len(outer) + 1 - shift in self._tables
        dtypes = [self._x.dtype, self._dtype, *expression_dtypes(*self._workload.elements)]
        lanes = 1 if single else vector_lanes(target, dtypes, last)
        with parallel_nest(self._b, outer, self._workload.threads) as at:
            taps = [self._taps(axis - shift, index) for axis, index in enumerate(at)]
            size = product([self._workload.inputs[0].type.shape[axis] for axis in self._tables])
            there = nullcontext() if isinstance(size, int) else self._b.if_less(0, size)
            with there, self._b.loop("i", 0, between) as row:
                inside = [*taps, self._taps(len(outer) - shift, row.var)]

                def element(chunks: list[Chunk]) -> None:
                    for position, count in chunks:
                        point = [*at, row.var, position][shift:]
                        every = [*inside, self._taps(len(outer) + 1 - shift, position)]
                        self._epilogue.store(self._out, self._sum(every, lanes, count), point, count)

                vector_loop(self._b, last, lanes, vectors, element)

    def _taps(self, axis: int, index: Dim) -> list[_Tap | Dim]:
        """The taps of an axis at a position of the result; of an axis that stays, what the position adds to the index into x."""
        if axis < 0:
            return [0]
        if axis not in self._tables:
            return [index * self._strides[axis]]
        places, weights = self._tables[axis]
        operand = self._workload.inputs[1 + 2 * self._workload.ints("axes").index(axis)]
        (count, elements), constant = operand.type.shape, operand.constant
        found: list[_Tap | Dim] = []
        for tap in range(count if isinstance(count, int) else 0):
            at = index + elements * tap
            place: Dim = self._b.bind(self._b.load(places, at))
            if not constant:
                place = minimum(maximum(place, 0), self._workload.inputs[0].type.shape[axis] - 1)
            found.append(_Tap(place * self._strides[axis], self._b.load(weights, at)))
        return found

    def _sum(self, axes: Sequence[Sequence[_Tap | Dim]], lanes: int, count: Dim) -> Reg:
        b = self._b
        total = b.const(0, VecType(self._dtype, lanes))
        for chosen in combinations(*axes):
            index: Dim = 0
            weight: Reg | None = None
            for part in chosen:
                if isinstance(part, _Tap):
                    weight = part.weight if weight is None else b.op("mul", weight, part.weight)
                    index = index + part.offset
                else:
                    index = index + part
            value = load_as(b, self._dtype, self._x, index, lanes, count=count)
            total = b.op("add", total, value) if weight is None else b.fma(value, b.splat(weight, lanes), total)
        return total


register_family(Resample())
