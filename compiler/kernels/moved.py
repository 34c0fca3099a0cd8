"""Elementwise kernels over elements that lie elsewhere: ``params["pieces"]`` are the boxes of the output (``compiler/ir/pieces.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, product
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.pieces import Piece
from compiler.ir.scalar import Array, calls
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import Axis, Chunk, collapse, expression_dtypes, load_used_lanes, pack_plain, vector_lanes, vector_nest
from compiler.target import Target

_CHEAP_CALLS = 6
"""Scalar functions up to which a loop's own cost shows, so that several vectors share one iteration."""


@dataclass(frozen=True)
class MovedSchedule:
    """``vectors``: vectors computed in one iteration."""

    vectors: int


class Moved:
    """The family: inputs and output row-major, the epilogue is part of the pieces' elements."""

    name = "moved"

    def supports(self, workload: Workload, target: Target) -> bool:
        return "pieces" in workload.attrs and workload.output.block == 1 and not workload.operands

    def heuristic(self, workload: Workload, target: Target) -> MovedSchedule:
        return MovedSchedule(2 if max(_work(workload), default=0) <= _CHEAP_CALLS else 1)

    def space(self, workload: Workload, target: Target) -> Sequence[MovedSchedule]:
        first = self.heuristic(workload, target)
        return [first, *(MovedSchedule(vectors) for vectors in (1, 2, 4) if vectors != first.vectors)]

    def pack(self, workload: Workload, schedule: MovedSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: MovedSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, _, out = declare_buffers(b, workload)
        for piece in _pieces(workload):
            if 0 not in piece.extents:
                _write(b, piece, workload, target, (inputs, out), schedule.vectors)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        parts = zip(_pieces(workload), _work(workload), strict=True)
        return sum((product(piece.extents) * count for piece, count in parts), start=0)


def _pieces(workload: Workload) -> list[Piece]:
    found = workload.attrs.get("pieces")
    return [piece for piece in found if isinstance(piece, Piece)] if isinstance(found, tuple) else []


def _work(workload: Workload) -> list[int]:
    return [len(calls(piece.element)) for piece in _pieces(workload)]


def _write(b: LoopBuilder, piece: Piece, workload: Workload, target: Target, buffers: tuple[Sequence[Buffer], Buffer], vectors: int) -> None:
    """The loops of one piece, lanes along its last axis."""
    inputs, out = buffers
    tables = (piece.strides, *(read.strides for read in piece.reads))
    every = [Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(piece.extents)]
    *outer, last = collapse(every) or (Axis(1, 0, strides=(0,) * len(tables)),)
    lanes = vector_lanes(target, [*expression_dtypes(piece.element), workload.output.dtype], last.extent)

    def at(table: int, indices: Sequence[Dim], position: Dim) -> Dim:
        found: Dim = piece.offset if table == 0 else piece.reads[table - 1].offset
        for axis, index in zip((*outer, last), (*indices, position), strict=True):
            found = found + index * (axis.strides[table] or 0)
        return found

    def row(indices: Sequence[Dim], chunks: Sequence[Chunk]) -> None:
        loads: dict[object, Reg] = {}
        for position, count in chunks:
            values = [
                load_used_lanes(b, inputs[read.source], lambda lane, k=k: at(k, indices, position + lane), count, lanes, loads)  # type: ignore[misc]  # noqa: B023 # called at once
                for k, read in enumerate(piece.reads, 1)
            ]
            value = b.splat(b.scalar(piece.element, values), lanes) if not values else b.scalar(piece.element, values)
            b.store(out, at(0, indices, position), value, stride=last.strides[0] or 0, count=count)

    vector_nest(b, [axis.extent for axis in outer], last.extent, lanes, vectors, workload.threads, row)


register_family(Moved())
