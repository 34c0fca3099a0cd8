"""What families share that reduce each row of a float tensor and then rewrite it (softmax, normalisation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.scalar import Array
from compiler.kernels.base import Workload
from compiler.kernels.loops import pack_plain
from compiler.target import Target


@dataclass(frozen=True)
class RowSchedule:
    """``vectors``: vectors handled side by side."""

    vectors: int


class RowFamily:
    """The part of a family that does not depend on what is done with a row."""

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major float tensors."""
        x = workload.inputs[0].type
        return x.dtype.is_float and x.block == 1 and workload.output.block == 1

    def heuristic(self, workload: Workload, target: Target) -> RowSchedule:
        return RowSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[RowSchedule]:
        return [RowSchedule(vectors) for vectors in (4, 1, 2, 8)]

    def pack(self, workload: Workload, schedule: RowSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)
