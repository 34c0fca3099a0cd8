"""Emits the nodes that operators on sequences become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext
from compiler.ir.types import DType
from compiler.ops.gather import running


@dataclass(frozen=True)
class Emitter:
    """Emits what one node becomes; ``place`` names it for messages."""

    builder: GraphBuilder
    place: str

    # -- numbers --------------------------------------------------------------------------------------------------

    def number(self, dim: Dim) -> Value:
        """A dim as an int64 scalar."""
        return self.builder.emit("dims", values=(dim,), scalar=True)

    def vector(self, dims: Sequence[Dim]) -> Value:
        """Dims as an int64 vector."""
        return self.builder.emit("dims", values=tuple(dims), scalar=False)

    def filled(self, number: int, shape: Sequence[Dim]) -> Value:
        """An int64 tensor of one number."""
        one = self.builder.constant(np.full((1,) * len(shape), number, np.int64))
        return self.builder.emit("expand", one, shape=tuple(shape))

    def blank(self, dtype: DType, shape: Sequence[int | None]) -> Value:
        """A tensor of zeros, or empty texts, that stands for none; dims that are not known are 0."""
        dims = [dim or 0 for dim in shape]
        return self.builder.constant(np.full(dims, "", object) if dtype is DType.STRING else np.zeros(dims, dtype.numpy))

    def sizes(self, *values: Value) -> tuple[Dim, ...]:
        """The numbers in int64 vectors and scalars, none of them negative, as dims."""
        return self.builder.bind(self.joined(values), natural=True)

    def check(self, low: Dim | None, value: Dim, high: Dim | None, message: str) -> None:
        """See ``GraphBuilder.check``."""
        self.builder.check(low, value, high, message, self.place)

    # -- tensors --------------------------------------------------------------------------------------------------

    def reshaped(self, value: Value, *shape: Dim) -> Value:
        """value under another shape."""
        return value if value.type.shape == shape else self.builder.emit("reshape", value, shape=shape)

    def part(self, value: Value, begin: Dim, size: Dim, axis: int = 0) -> Value:
        """``size`` elements of value along an axis."""
        shape = value.type.shape
        if shape[axis] == size:
            return value
        starts = tuple(begin if a == axis else 0 for a in range(len(shape)))
        return self.builder.emit("slice", value, starts=starts, sizes=(*shape[:axis], size, *shape[axis + 1 :]), steps=(1,) * len(shape))

    def as_int64(self, value: Value) -> Value:
        """An integer tensor as int64."""
        return value if value.type.dtype is DType.INT64 else self.builder.emit("cast", value, to=DType.INT64)

    def joined(self, values: Sequence[Value], axis: int = 0) -> Value:
        """Tensors one after another along an axis; scalars as vectors."""
        parts = [self.reshaped(value, 1) if value.type.rank == 0 else value for value in values]
        return parts[0] if len(parts) == 1 else self.builder.emit("concat", *parts, axis=axis)

    def folded(self, kind: str, value: Value, axis: int) -> Value:
        """A reduction along one axis."""
        return self.builder.emit("reduce", value, kind=kind, axes=(axis,), keepdims=False)

    def running_sum(self, vector: Value) -> Value:
        """The sum of the numbers before each."""
        return self._running(vector, "add", 0, exclusive=1)

    def running_max(self, vector: Value) -> Value:
        """The largest of the numbers up to each, or 0."""
        return self._running(vector, "maximum", 0, exclusive=0)

    def _running(self, vector: Value, op: str, identity: int, *, exclusive: int) -> Value:
        context = FormContext("CumSum", (vector,), {"exclusive": exclusive}, 0, self.builder, 1, self.place)
        return running(context, vector, 0, op, identity)
