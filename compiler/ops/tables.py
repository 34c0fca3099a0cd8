"""Tables: numbers that follow from positions and sizes alone, worked out at once where all they depend on is known, else by the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.control import attr_symbols
from compiler.ir.graph import Attr, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext, lookup
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.support import scalar_like


def computed(context: FormContext, op: str, *inputs: Value, **attrs: Attr) -> Value:
    """A node on tables; where all of them and the attributes are known, what it gives, however long they are."""
    known = [context.builder.array(value) for value in inputs]
    if any(data is None for data in known) or any(True for attr in attrs.values() for _ in attr_symbols(attr)):
        return context.emit(op, *inputs, **attrs)
    return context.const(np.asarray(lookup(op).evaluate(known, attrs)[0]))


def combined(context: FormContext, op: str, x: Value, y: Value | float, **attrs: Attr) -> Value:
    """``computed`` of two operands, the second perhaps a literal."""
    return computed(context, op, x, y if isinstance(y, Value) else scalar_like(context, x, y), **attrs)


def real(context: FormContext, dim: Dim, dtype: DType = DType.FLOAT64) -> Value:
    """A dim as a scalar of a floating-point type."""
    return computed(context, "cast", number(context, dim), to=dtype)


def laid(context: FormContext, vector: Value, axis: int, rank: int) -> Value:
    """A vector along one axis of a tensor of that rank."""
    return computed(context, "reshape", vector, shape=tuple(vector.type.shape[0] if a == axis else 1 for a in range(rank)))


def converted(context: FormContext, x: Value, dtype: DType) -> Value:
    """A table in another element type."""
    return x if x.type.dtype is dtype else computed(context, "cast", x, to=dtype)


def kept_inside(context: FormContext, x: Value, length: Dim) -> Value:
    """Positions, whole or not, moved into ``0 .. length - 1``."""
    last = converted(context, number(context, length - 1), x.type.dtype)
    return combined(context, "maximum", combined(context, "minimum", x, last), 0)


def multiples(context: FormContext, count: Dim, step: Dim) -> Value:
    """``0, step, 2 * step, …`` as an i64 vector."""
    return combined(context, "mul", iota(context, count), number(context, step))


def check_sampled(context: FormContext, dims: Sequence[Dim]) -> None:
    """There is something to sample along every spatial axis."""
    for dim in dims:
        context.check(1, dim, None, "a spatial axis of its input has {value} elements, and there is nothing to sample")
