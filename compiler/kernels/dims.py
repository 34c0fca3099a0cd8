"""Numbers that are symbolic at compile time, as a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, IntExpr
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.loops import pack_plain
from compiler.target import Target


@dataclass(frozen=True)
class DimsSchedule:
    """Nothing to choose."""


class Dims:
    """The family: param ``values``, one dim for each element of the output, an i64 vector or scalar."""

    name = "dims"

    def supports(self, workload: Workload, target: Target) -> bool:
        return True

    def heuristic(self, workload: Workload, target: Target) -> DimsSchedule:
        return DimsSchedule()

    def space(self, workload: Workload, target: Target) -> Sequence[DimsSchedule]:
        return [DimsSchedule()]

    def pack(self, workload: Workload, schedule: DimsSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: DimsSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        _, operands, out = declare_buffers(b, workload)
        epilogue = Epilogue(b, workload, operands)
        values = workload.attrs["values"]
        if not isinstance(values, tuple):
            raise InternalError(f"values are {values!r}, not dims", where="kernel family dims")
        with b.loop("p", 0, 1, parallel=True):
            for position, value in enumerate(values):
                if not isinstance(value, int | IntExpr):
                    raise InternalError(f"{value!r} is not a dim", where="kernel family dims")
                epilogue.store(out, b.index_value(value), (position,) if workload.output.rank else ())
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return 0


register_family(Dims())
