"""The integers from zero on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.loops import Chunk, expression_dtypes, pack_plain, vector_lanes, vector_loop
from compiler.target import Target


@dataclass(frozen=True)
class IotaSchedule:
    """``vectors``: vectors computed in one iteration."""

    vectors: int


class Iota:
    """The family: no inputs, an i64 vector as output."""

    name = "iota"

    def supports(self, workload: Workload, target: Target) -> bool:
        return workload.output.rank == 1

    def heuristic(self, workload: Workload, target: Target) -> IotaSchedule:
        return IotaSchedule(2)

    def space(self, workload: Workload, target: Target) -> Sequence[IotaSchedule]:
        return [IotaSchedule(vectors) for vectors in (2, 1, 4)]

    def pack(self, workload: Workload, schedule: IotaSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: IotaSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        _, operands, out = declare_buffers(b, workload)
        epilogue = Epilogue(b, workload, operands)
        (length,) = workload.output.shape
        lanes = vector_lanes(target, [DType.INT64, *expression_dtypes(*workload.elements)], length)
        order = VecType(DType.INT64, lanes)

        def write(chunks: list[Chunk]) -> None:
            for position, count in chunks:
                value = b.op("add", b.splat(b.index_value(position), lanes), b.let("iota", (), order))
                epilogue.store(out, value, (position,), count)

        vector_loop(b, length, lanes, schedule.vectors, write, parallel=True)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements * len(calls(*workload.elements))


register_family(Iota())
