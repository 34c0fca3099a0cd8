"""The positions of the elements that are not zero, in order: how many there are is known when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, product
from compiler.ir.loop import Function, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import load_as, pack_plain
from compiler.target import Target


@dataclass(frozen=True)
class CompactSchedule:
    """``unroll``: elements looked at in one iteration."""

    unroll: int


class Compact:
    """The family: one row-major input of N elements, output i64[N + 1]: the count, then the positions; the rest is unspecified.

    Every position is stored where the next one that counts belongs, which the following store then writes over or not: no branch depends
    on data. One worker does it all.
    """

    name = "compact"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major inputs, no epilogue."""
        return workload.inputs[0].type.block == 1 and workload.stores_plainly

    def heuristic(self, workload: Workload, target: Target) -> CompactSchedule:
        return CompactSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[CompactSchedule]:
        return [CompactSchedule(unroll) for unroll in (4, 1, 2, 8)]

    def pack(self, workload: Workload, schedule: CompactSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: CompactSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), _, out = declare_buffers(b, workload)
        type_ = workload.inputs[0].type
        elements = product(type_.shape)
        dtype = compute_dtype(type_.dtype)
        whole = elements // schedule.unroll * schedule.unroll
        with b.loop("p", 0, 1, parallel=True):
            zero, count = b.const(0, VecType(dtype, 1)), b.const(0, VecType(DType.INT64, 1))
            for start, stop, step in ((0, whole, schedule.unroll), (whole, elements, 1)):
                with b.loop("i", start, stop, step, carried=[count]) as loop:
                    (count,) = loop.carried
                    for offset in range(step):
                        position = loop.var + offset
                        b.store(out, b.bind(count, "n") + 1, b.index_value(position))
                        counts = b.op("ne", load_as(b, dtype, x, position, 1), zero)
                        count = b.op("add", count, b.cast(counts, DType.INT64))
                    loop.yield_([count])
                (count,) = loop.results
            b.store(out, 0, count)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.inputs[0].type.elements


register_family(Compact())
