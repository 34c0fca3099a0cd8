"""Indices that are data, held to the axis they index: what lies outside is reported to the run, which goes on with the nearest element."""

from __future__ import annotations

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Access, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.loops import number

STATUS_WORDS = 4
"""Words of the status: not zero where something is reported, then the index, the size and the axis."""


class Bounds:
    """The bounds of an axis of ``size`` elements, the ``axis`` of what the model indexes; make one when all other buffers are declared.

    A negative index counts from the end. Without ``reports``, indices are only kept inside.
    """

    def __init__(self, b: LoopBuilder, size: Dim, axis: int, *, reports: bool = True) -> None:
        self._b = b
        self._size = size
        self._axis = axis
        self._status = b.buffer("status", DType.INT64, STATUS_WORDS, Access.STATUS) if reports else None

    def wrapped(self, indices: Reg) -> Reg:
        """i64 indices with negative ones counted from the end."""
        b = self._b
        size, zero = self._splat(self._size, indices), b.const(0, indices.type)
        return b.op("select", b.op("lt", indices, zero), b.op("add", indices, size), indices)

    def outside(self, wrapped: Reg) -> Reg:
        """Whether each of some wrapped indices is out of range."""
        b = self._b
        return b.op("or", b.op("lt", wrapped, b.const(0, wrapped.type)), b.op("ge", wrapped, self._splat(self._size, wrapped)))

    def inside(self, wrapped: Reg) -> Reg:
        """Wrapped indices brought into the axis, which is not empty."""
        b = self._b
        return b.op("max", b.op("min", wrapped, self._splat(self._size - 1, wrapped)), b.const(0, wrapped.type))

    def check(self, index: Reg, wrapped: Reg) -> None:
        """Report an index, an i64 scalar, that is out of range."""
        b, status = self._b, self._status
        if status is None:
            return
        with b.if_less(0, b.bind(b.cast(self.outside(wrapped), DType.INT64))):
            words = (b.const(1, index.type), index, number(b, self._size, DType.INT64), b.const(self._axis, index.type))
            for place, word in reversed(list(enumerate(words))):
                b.store(status, place, word)

    def _splat(self, value: Dim, like: Reg) -> Reg:
        b = self._b
        return b.const(value, like.type) if isinstance(value, int) else b.splat(number(b, value, DType.INT64), like.type.lanes)


def any_lane(b: LoopBuilder, flags: Reg) -> Dim:
    """1 where some lane of a bool vector holds, else 0."""
    found = b.reduce("reduce_max", b.let("cast", (flags,), VecType(DType.INT32, flags.type.lanes)))
    return b.bind(b.cast(found, DType.INT64))
