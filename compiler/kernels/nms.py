"""Non-maximum suppression: boxes in descending order of score, each kept unless it overlaps one that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import pack_plain
from compiler.target import Target

_INDEX = VecType(DType.INT64, 1)


@dataclass(frozen=True)
class NmsSchedule:
    """Nothing to choose."""


class Nms:
    """The family: param ``limit``, the most boxes kept of a class; the op of that name says what is read and written.

    One worker does it all. A box is stored where the next one that is kept belongs, which the following store then writes over or not.
    """

    name = "nms"

    def supports(self, workload: Workload, target: Target) -> bool:
        """float32 boxes and scores, no epilogue."""
        boxes, scores = (operand.type for operand in workload.inputs[:2])
        plain = all(operand.type.block == 1 for operand in workload.inputs)
        return plain and boxes.dtype is scores.dtype is DType.FLOAT32 and workload.stores_plainly

    def heuristic(self, workload: Workload, target: Target) -> NmsSchedule:
        return NmsSchedule()

    def space(self, workload: Workload, target: Target) -> Sequence[NmsSchedule]:
        return [NmsSchedule()]

    def pack(self, workload: Workload, schedule: NmsSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: NmsSchedule, target: Target, name: str) -> Function:
        return _Writer(workload, name).write()

    def flops(self, workload: Workload) -> Dim:
        return workload.inputs[1].type.elements


class _Writer:
    def __init__(self, workload: Workload, name: str) -> None:
        self._b = LoopBuilder(name)
        (self._boxes, self._scores, self._order, *self._thresholds), _, self._out = declare_buffers(self._b, workload)
        self._batches, self._classes, self._count = workload.inputs[1].type.shape
        self._limit = workload.dim("limit")

    def write(self) -> Function:
        b = self._b
        with b.loop("p", 0, 1, parallel=True):
            overlap, least = (b.load(threshold, 0) for threshold in self._thresholds)
            zero = b.const(0, _INDEX)
            with b.loop("n", 0, self._batches, carried=[zero]) as batch:
                with b.loop("c", 0, self._classes, carried=list(batch.carried)) as class_:
                    class_.yield_([self._class(batch.var, class_.var, class_.carried[0], overlap, least)])
                batch.yield_(list(class_.results))
            b.store(self._out, 0, batch.results[0])
        return b.function()

    def _class(self, batch: Dim, class_: Dim, before: Reg, overlap: Reg, least: Reg) -> Reg:
        """Keep the boxes of one class; how many are kept with it and all before."""
        b, zero = self._b, self._b.const(0, _INDEX)
        row = (batch * self._classes + class_) * self._count
        limit = b.index_value(self._limit)
        begin = b.bind(before)
        with b.loop("i", 0, self._count, carried=[zero]) as loop:
            kept = loop.carried[0]
            place = b.bind(b.load(self._order, row + loop.var))
            scored = b.op("and", b.op("gt", b.load(self._scores, row + place), least), b.op("lt", kept, limit))
            compared = b.bind(b.op("mul", kept, b.cast(scored, DType.INT64)))
            box = self._box(batch, place)
            with b.loop("j", 0, compared, carried=[zero]) as others:
                other = b.bind(b.load(self._out, (begin + others.var) * 3 + 3))
                covered = b.cast(self._overlaps(box, self._box(batch, other), overlap), DType.INT64)
                others.yield_([b.op("max", others.carried[0], covered)])
            free = b.op("sub", b.const(1, _INDEX), others.results[0])
            spot = (begin + b.bind(kept)) * 3 + 1
            for offset, value in enumerate((batch, class_, place)):
                b.store(self._out, spot + offset, b.index_value(value))
            loop.yield_([b.op("add", kept, b.op("mul", free, b.cast(scored, DType.INT64)))])
        return b.op("add", before, loop.results[0])

    def _box(self, batch: Dim, place: Dim) -> list[Reg]:
        """The first corner, the second, and the area."""
        b = self._b
        top, left, bottom, right = (b.load(self._boxes, (batch * self._count + place) * 4 + k) for k in range(4))
        area = b.op("mul", b.op("sub", bottom, top), b.op("sub", right, left))
        return [top, left, bottom, right, area]

    def _overlaps(self, box: Sequence[Reg], other: Sequence[Reg], limit: Reg) -> Reg:
        """Whether the intersection is more than ``limit`` of the union."""
        b = self._b
        zero = b.const(0, VecType(DType.FLOAT32, 1))
        sides = [b.op("sub", b.op("min", box[k + 2], other[k + 2]), b.op("max", box[k], other[k])) for k in (0, 1)]
        shared = b.op("mul", *(b.op("max", side, zero) for side in sides))
        union = b.op("sub", b.op("add", box[4], other[4]), shared)
        return b.op("and", b.op("gt", union, zero), b.op("gt", b.op("div", shared, union), limit))


register_family(Nms())
