"""Injective kernels: elementwise expressions with broadcasting, and index mappings given as boxes (transpose, slice, concat, pad, …).

Without inputs the kernel is its epilogue over the operands. With inputs, ``params["regions"]`` are the boxes of the anchor's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.graph import Region
from compiler.ir.intexpr import Dim, floordiv, mod, substitute
from compiler.ir.loop import Buffer, Function, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, calls
from compiler.ir.types import TensorType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.boxes import Box, BoxWriter
from compiler.kernels.loops import Axis, pack_plain, parallel_nest
from compiler.kernels.region_boxes import region_boxes
from compiler.target import Target

_CHEAP_CALLS = 6
"""Scalar functions up to which a loop's own cost shows, so that several vectors share one iteration."""


@dataclass(frozen=True)
class InjectiveSchedule:
    """``vectors``: vectors computed in one iteration."""

    vectors: int


class Injective:
    """The family."""

    name = "injective"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Operands in the output's layout, or with one channel; an anchor that is an index mapping."""
        mapped = not workload.inputs or "regions" in workload.attrs
        return mapped and all(_follows(o.type, workload.output) for o in workload.operands)

    def heuristic(self, workload: Workload, target: Target) -> InjectiveSchedule:
        return InjectiveSchedule(4 if len(calls(*workload.elements)) <= _CHEAP_CALLS else 2)

    def space(self, workload: Workload, target: Target) -> Sequence[InjectiveSchedule]:
        first = self.heuristic(workload, target)
        return [first, *(InjectiveSchedule(v) for v in (1, 2, 4, 8) if v != first.vectors)]

    def pack(self, workload: Workload, schedule: InjectiveSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: InjectiveSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        buffers = declare_buffers(b, workload)
        writer = BoxWriter(b, workload, target, buffers, schedule.vectors)
        for region in _regions(workload):
            if region is None:
                writer.write(_whole(workload.output))
                continue
            source = None if region.source is None else workload.inputs[region.source].type
            boxes = region_boxes(region, source, workload.output)
            if boxes is None:
                _write_scattered(b, workload, region, buffers)
            else:
                for box in boxes:
                    writer.write(box)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.output.with_block(1).elements * len(calls(*workload.elements))


def _follows(operand: TensorType, output: TensorType) -> bool:
    aligned = operand.rank == output.rank > 1
    one_channel = operand.shape[1] == 1 if aligned else operand.block == 1
    return operand.block == output.block or one_channel


def _regions(workload: Workload) -> list[Region | None]:
    """The boxes of an index mapping; for an elementwise kernel one None."""
    regions = workload.attrs.get("regions")
    if not isinstance(regions, tuple):
        return [None]
    return [region for region in regions if isinstance(region, Region)]


def _whole(output: TensorType) -> Box:
    """All of an elementwise kernel's output."""
    shape = output.physical_shape
    return Box((0,) * len(shape), tuple(Axis(extent, k, symbol=f"i{k}") for k, extent in enumerate(shape)), ends=True)


def _flat(index: Sequence[Dim], source: TensorType | None) -> Dim:
    """Physical coordinates as an element number."""
    flat: Dim = 0
    if source is not None:
        for coordinate, stride in zip(index, physical_strides(source), strict=True):
            flat = flat + coordinate * stride
    return flat


def _physical(logical: Sequence[Dim], block: int) -> tuple[Dim, ...]:
    if block == 1:
        return tuple(logical)
    return (logical[0], floordiv(logical[1], block), *logical[2:], mod(logical[1], block))


def _write_scattered(b: LoopBuilder, workload: Workload, region: Region, buffers: tuple[Sequence[Buffer], Sequence[Buffer], Buffer]) -> None:
    """A box that cuts or mixes channel blocks, or goes between layouts: element by element."""
    inputs, operands, out = buffers
    extents = region.extent
    if 0 in extents:
        return
    epilogue = Epilogue(b, workload, operands)
    with parallel_nest(b, extents, workload.threads) as point:
        if region.source is None:
            value = b.const(region.fill, VecType(workload.anchor.dtype, 1))
        else:
            source = workload.inputs[region.source].type
            values = {f"i{k}": index for k, index in enumerate(point)}
            place = [substitute(x, values) for x in region.index]
            value = b.load(inputs[region.source], _flat(_physical(place, source.block), source))
        place = [start + index for start, index in zip(region.offset, point, strict=True)]
        epilogue.store(out, value, _physical(place, workload.output.block))


register_family(Injective())
