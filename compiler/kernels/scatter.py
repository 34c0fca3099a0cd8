"""Scatter: rows written, or combined with what is there, at positions that are data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, ceildiv, floordiv, minimum
from compiler.ir.loop import Buffer, Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import Chunk, pack_plain, vector_lanes, vector_loop
from compiler.target import Target


@dataclass(frozen=True)
class ScatterSchedule:
    """``vectors``: vectors of a row updated in one iteration."""

    vectors: int


class Scatter:
    """The family: inputs data ``[N, S]``, positions ``[K]`` (int64) and updates ``[K, S]``; param ``kind``: the scalar function
    that combines an element with its update, or ``none``, which replaces it.

    Each worker owns a contiguous part of the rows: it copies them, then goes through all updates in order and applies those that
    fall into its part. So equal positions are updated in order whatever the number of workers, and positions outside ``0..N-1`` write
    nothing.
    """

    name = "scatter"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors, int64 positions, no epilogue."""
        data, positions, updates = (operand.type for operand in workload.inputs)
        return positions.dtype is DType.INT64 and data.block == updates.block == 1 and workload.stores_plainly

    def heuristic(self, workload: Workload, target: Target) -> ScatterSchedule:
        return ScatterSchedule(4)

    def space(self, workload: Workload, target: Target) -> Sequence[ScatterSchedule]:
        return [ScatterSchedule(vectors) for vectors in (4, 1, 2, 8)]

    def pack(self, workload: Workload, schedule: ScatterSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: ScatterSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (data, positions, updates), _, out = declare_buffers(b, workload)
        rows, row = workload.output.shape
        if rows * row == 0:
            return b.function()
        lanes = vector_lanes(target, [data.dtype], rows * row)
        # Parts are whole vectors of rows, so that only the last part that is not empty ends within a vector.
        part = ceildiv(rows, workload.threads * lanes) * lanes
        parts = ceildiv(rows, part) if isinstance(part, int) else workload.threads
        with b.loop("part", 0, parts, parallel=True) as loop:
            first = loop.var * part
            last = minimum(first + part, rows)
            _copy(b, data, out, (first * row, last * row), rows * row, lanes)
            self._update(b, workload, schedule, target, (positions, updates, out), (first, last))
        return b.function()

    def _update(
        self,
        b: LoopBuilder,
        workload: Workload,
        schedule: ScatterSchedule,
        target: Target,
        buffers: tuple[Buffer, Buffer, Buffer],
        part: tuple[Dim, Dim],
    ) -> None:
        """Apply the updates that fall into the rows of ``part``."""
        positions, updates, out = buffers
        count, row = workload.inputs[2].type.shape
        lanes = vector_lanes(target, [out.dtype], row)
        kind = workload.attrs["kind"]
        if not isinstance(kind, str):
            raise InternalError(f"kind is {kind!r}", where="kernel family scatter")
        with b.loop("k", 0, count) as loop:
            place = b.bind(b.load(positions, loop.var))

            def apply(chunks: list[Chunk]) -> None:
                for position, used in chunks:
                    value = b.load(updates, loop.var * row + position, lanes, count=used)
                    at = place * row + position
                    if kind != "none":
                        value = b.op(kind, b.load(out, at, lanes, count=used), value)
                    b.store(out, at, value, count=used)

            with b.if_less(place, part[1]), b.if_less(part[0] - 1, place):
                vector_loop(b, row, lanes, schedule.vectors, apply)

    def flops(self, workload: Workload) -> Dim:
        return 0 if workload.attrs["kind"] == "none" else workload.inputs[2].type.elements


def _copy(b: LoopBuilder, source: Buffer, target: Buffer, part: tuple[Dim, Dim], total: Dim, lanes: int) -> None:
    """Copy the elements of ``part``, which begins at a multiple of lanes and ends at one or at ``total``."""
    whole = floordiv(total, lanes) * lanes
    with b.loop("c", part[0], minimum(part[1], whole), lanes) as loop:
        b.store(target, loop.var, b.load(source, loop.var, lanes))
    if whole != total:
        with b.if_less(total - 1, part[1]), b.if_less(part[0], total), b.if_less(whole, total):
            b.store(target, whole, b.load(source, whole, lanes, count=total - whole), count=total - whole)


register_family(Scatter())
