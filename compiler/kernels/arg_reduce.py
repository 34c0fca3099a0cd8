"""The position of the largest or smallest element along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.loops import Axis, Chunk, coordinates, expression_dtypes, load_as, offset, pack_plain, vector_lanes, vector_nest
from compiler.kernels.reduce import reduced_axes
from compiler.target import Target


@dataclass(frozen=True)
class ArgReduceSchedule:
    """``vectors``: neighbouring result vectors searched at once."""

    vectors: int


class ArgReduce:
    """The family: params ``kind`` (max or min), ``axis``, ``last`` (of equal ones, the last); int64 result.

    NaN counts as the extreme, as in numpy.
    """

    name = "arg_reduce"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors, the searched axis not known to be empty."""
        x = workload.inputs[0].type
        return x.block == 1 and workload.output.block == 1 and x.shape[workload.int("axis")] != 0

    def heuristic(self, workload: Workload, target: Target) -> ArgReduceSchedule:
        return ArgReduceSchedule(2)

    def space(self, workload: Workload, target: Target) -> Sequence[ArgReduceSchedule]:
        return [ArgReduceSchedule(vectors) for vectors in (2, 1, 4)]

    def pack(self, workload: Workload, schedule: ArgReduceSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: ArgReduceSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements == 0:
            return b.function()
        epilogue = Epilogue(b, workload, operands)
        loops = reduced_axes(workload, (workload.int("axis"),))
        searched = loops.reduced[0]
        *outer, last = loops.kept if loops.lanes_kept else (*loops.kept, Axis(1, -1, strides=(0,)))
        lanes = vector_lanes(target, [x.dtype, DType.INT64, *expression_dtypes(*workload.elements)], last.extent)
        dtype = compute_dtype(x.dtype)
        better = _Better(b, workload)

        def search(indices: Sequence[Dim], chunks: list[Chunk]) -> None:
            base = offset(outer, indices)
            starts = [base + position * last.stride for position, _ in chunks]
            counts = [count for _, count in chunks]
            first = [load_as(b, dtype, x, start, lanes, count=count) for start, count in zip(starts, counts, strict=True)]
            zero = b.const(0, VecType(DType.INT64, lanes))
            with b.loop("r", 1, searched.extent, carried=[*first, *[zero] * len(chunks)]) as loop:
                here = b.splat(b.index_value(loop.var), lanes)
                values, places = list(loop.carried[: len(chunks)]), list(loop.carried[len(chunks) :])
                for k, (start, count) in enumerate(zip(starts, counts, strict=True)):
                    value = load_as(b, dtype, x, start + loop.var * searched.stride, lanes, count=count)
                    wins = better(value, values[k])
                    values[k], places[k] = b.op("select", wins, value, values[k]), b.op("select", wins, here, places[k])
                loop.yield_([*values, *places])
            for (position, _), count, place in zip(chunks, counts, loop.results[len(chunks) :], strict=True):
                point = [*indices, position] if loops.lanes_kept else indices
                axis = last.output if loops.lanes_kept else -1
                origin = (0,) * len(workload.output.physical_shape)
                epilogue.store(out, place, coordinates(origin, loops.kept, point), count, axis=axis)

        vector_nest(b, [axis.extent for axis in outer], last.extent, lanes, schedule.vectors, workload.threads, search)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.inputs[0].type.elements


class _Better:
    """Whether a later element takes the place of the best so far."""

    def __init__(self, b: LoopBuilder, workload: Workload) -> None:
        self._b = b
        self._last = bool(workload.attrs["last"])
        largest = workload.attrs["kind"] == "max"
        self._compare = ("ge" if largest else "le") if self._last else ("gt" if largest else "lt")
        self._float = workload.inputs[0].type.dtype.is_float

    def __call__(self, value: Reg, best: Reg) -> Reg:
        b = self._b
        wins = b.op(self._compare, value, best)
        if self._float:
            nan = b.op("isnan", value)
            wins = b.op("or", wins, nan if self._last else b.op("and", nan, b.op("not", b.op("isnan", best))))
        return wins


register_family(ArgReduce())
