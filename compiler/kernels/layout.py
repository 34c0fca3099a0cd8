"""Layout conversion: row-major to channel-blocked and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, floordiv, mod, sym
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import TensorType
from compiler.kernels.base import Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.boxes import Box, BoxWriter
from compiler.kernels.loops import Axis, expression_calls, pack_plain
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
        for box in _boxes(workload.inputs[0].type, workload.output):
            writer.write(box)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.with_block(1).elements * expression_calls(workload.epilogue)


def _boxes(source: TensorType, output: TensorType) -> list[Box]:
    """Whole channel blocks, then what is left of the last."""
    batch, channels, *spatial = source.shape
    block = max(source.block, output.block)
    whole, rest = floordiv(channels, block), mod(channels, block)
    parts = [(0, whole, block), (whole, 1, rest)]
    return [_part(source, output, (batch, blocks, *spatial), first, width) for first, blocks, width in parts if blocks != 0 and width != 0]


def _part(source: TensorType, output: TensorType, extents: Sequence[Dim], first: Dim, width: Dim) -> Box:
    """``extents[1]`` channel blocks from number ``first`` on, ``width`` channels of each."""
    block = max(source.block, output.block)
    rank = len(extents)
    steps = physical_strides(source)
    channel = steps[1] if source.block == 1 else 1
    row = steps[1] * block if source.block == 1 else steps[1]
    index: Dim = row * first
    for k, step in enumerate((steps[0], row, *steps[2:rank], channel)):
        index = index + sym(f"i{k}") * step
    offset: list[Dim] = [0] * len(output.physical_shape)
    offset[1] = first * (block if output.block == 1 else 1)
    axes = [Axis(extent, k, symbol=f"i{k}") for k, extent in enumerate(extents)]
    lane = Axis(width, 1 if output.block == 1 else rank, symbol=f"i{rank}")
    if output.block == 1:
        axes[1] = Axis(extents[1], 1, block, "i1")
        axes.insert(2, lane)
    else:
        axes.append(lane)
    return Box(tuple(offset), tuple(axes), 0, index)


register_family(Layout())
