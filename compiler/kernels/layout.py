"""Layout conversion: row-major to channel-blocked and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.graph import Region
from compiler.ir.intexpr import Dim, sym
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import TensorType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.boxes import BoxWriter
from compiler.kernels.loops import pack_plain
from compiler.kernels.region_boxes import region_boxes
from compiler.target import Target


@dataclass(frozen=True)
class LayoutSchedule:
    """``vectors``: vectors moved in one iteration where nothing is to be transposed."""

    vectors: int


class Layout:
    """The family: ``inputs[0].type.block`` to ``output.block``; one of the two is 1, or they are equal."""

    name = "layout"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Tensors of rank 2 or more with a known number of channels, blocked on one side."""
        source, output = workload.inputs[0].type, workload.output
        one_side = 1 in (source.block, output.block) or source.block == output.block
        return source.rank >= 2 and isinstance(source.shape[1], int) and one_side

    def heuristic(self, workload: Workload, target: Target) -> LayoutSchedule:
        return LayoutSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[LayoutSchedule]:
        return [LayoutSchedule(vectors) for vectors in (4, 1, 2)]

    def pack(self, workload: Workload, schedule: LayoutSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: LayoutSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        writer = BoxWriter(b, workload, target, declare_buffers(b, workload), schedule.vectors)
        source = workload.inputs[0].type
        for box in region_boxes(_same(source), source, workload.output) or ():
            writer.write(box)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.with_block(1).elements * len(calls(*workload.elements))


def _same(type_: TensorType) -> Region:
    """Every element as it is."""
    return Region((0,) * type_.rank, type_.shape, 0, tuple(sym(f"i{k}") for k in range(type_.rank)))


register_family(Layout())
