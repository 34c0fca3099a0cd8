"""Numbers between tensors and shapes: symbols read from tensors, derived and checked ones, and tensors of symbolic numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm, UserError
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.support import Arrays, Attrs, Types, attr_dims, attr_int, attr_ints, attr_str, first_type

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
_EMPTY = np.zeros((0, 3, 4), np.float32)


@register
class Bind(Op):
    """Names the elements of an integer tensor (or bool) of rank 0 or 1: ``symbols`` are known to the nodes after it. No result."""

    name = "bind"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, symbols = first_type(inputs), attrs["symbols"]
        if x.dtype.is_float or x.rank > 1 or not isinstance(symbols, tuple) or x.elements != len(symbols):
            raise UnsupportedForm(f"the numbers in {x} cannot be named one by one")
        return ()

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return ()


@register
class Define(Op):
    """Names a derived number: ``symbol`` stands for ``value`` (a dim) in the nodes after it. No operands, no result."""

    name = "define"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return ()

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return ()


@register
class Check(Op):
    """A condition that every run verifies: ``low <= value <= high`` (dims; None is no bound). No operands, no result.

    ``message`` names the node and what is wrong with it; ``{low}``, ``{value}`` and ``{high}`` in it stand for the numbers met.
    """

    name = "check"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return ()

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        low, value, high = attrs["low"], attr_int(attrs, "value"), attrs["high"]
        if (isinstance(low, int) and value < low) or (isinstance(high, int) and value > high):
            raise UserError(attr_str(attrs, "message").format(low=low, value=value, high=high), where="run", hint=CHECK_HINT)
        return ()


CHECK_HINT = "feed inputs that the model can work on; their shapes or the numbers in them lead to this"


@register
class Dims(Op):
    """The numbers ``values`` (dims) as an i64 vector, or one of them as a scalar where ``scalar``."""

    name = "dims"
    families = ("dims",)
    samples = (
        Sample("Shape", (_X,)),
        Sample("Shape", (_X,), {"start": 1}),
        Sample("Shape", (_X,), {"start": -2, "end": 9}),
        Sample("Shape", (_X,), {"start": 2, "end": 1}),
        Sample("Size", (_X,)),
        Sample("Size", (_EMPTY,)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        values = attr_dims(attrs, "values")
        if attrs["scalar"] and len(values) != 1:
            raise UnsupportedForm(f"{len(values)} numbers in a scalar")
        return (TensorType(DType.INT64, () if attrs["scalar"] else (len(values),)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        values = np.array(attr_dims(attrs, "values"), np.int64)
        return (values.reshape(()) if attrs["scalar"] else values,)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        content = dims_array(attr_dims(attrs, "values"))
        return content.reshape(()) if attrs["scalar"] else content


@register
class Iota(Op):
    """The integers from 0 to ``length`` - 1 (a dim) as an i64 vector."""

    name = "iota"
    families = ("iota",)

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        (length,) = attr_dims(attrs, "length")
        return (TensorType(DType.INT64, (length,)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        (length,) = attr_ints(attrs, "length")
        return (np.arange(length, dtype=np.int64),)


def number(context: FormContext, dim: Dim) -> Value:
    """A dim as an i64 scalar; a constant where it is known."""
    return context.const(np.array(dim, np.int64)) if isinstance(dim, int) else context.emit("dims", values=(dim,), scalar=True)


def iota(context: FormContext, length: Dim) -> Value:
    """The integers from 0 to length - 1; a constant where length is known."""
    return context.const(np.arange(length, dtype=np.int64)) if isinstance(length, int) else context.emit("iota", length=(length,))


def dims_array(dims: Sequence[Dim]) -> Array:
    """Dims as an object vector, symbolic ones as they are."""
    content = np.empty(len(dims), object)
    content[:] = dims
    return content


Dims.forms = (
    OnnxForm("Shape", lambda context: context.emit("dims", values=_asked(context), scalar=False)),
    OnnxForm("Size", lambda context: context.emit("dims", values=(product(context.input(0).type.shape),), scalar=True)),
)


def _asked(context: FormContext) -> tuple[Dim, ...]:
    return context.input(0).type.shape[slice(context.attrs.get("start", 0), context.attrs.get("end"))]
