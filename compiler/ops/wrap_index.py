"""Indices that the model computes, as positions along the axis that they index."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext, Op, register
from compiler.ir.types import DType, TensorType
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, first_type


@register
class WrapIndex(Op):
    """Integers in ``[-size, size)`` as i64 positions from 0, negative ones counted from the end; one out of range ends the run with an error.

    ``axis`` is the axis that they index, for the error.
    """

    name = "wrap_index"
    families = ("wrap_index",)
    dims_foldable = True

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(DType.INT64, first_type(inputs).shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        indices, size = array(inputs[0]), attr_int(attrs, "size")
        check_indices(indices, size, attr_int(attrs, "axis"))
        return (np.where(indices < 0, indices + size, indices).astype(np.int64),)


def check_indices(indices: Array, size: int, axis: int) -> None:
    """Raises IndexError, naming the first of them, where indices are outside ``[-size, size)``."""
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise IndexError(f"index {indices[outside].flat[0]} is out of range for axis {axis} of size {size}")


def checked(context: FormContext, indices: Value, size: Dim, axis: int) -> Value:
    """Indices along an axis as i64 positions from 0; a run reports those out of range."""
    return context.emit("wrap_index", indices, size=size, axis=axis)
