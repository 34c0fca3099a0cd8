"""Resampling: along some axes, weighted sums of a few elements each, at places given in tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array
from compiler.ir.intexpr import Dim
from compiler.ir.op import Layouts, Op, register
from compiler.ir.types import TensorType, compute_dtype
from compiler.ops.support import Arrays, Attrs, Types, array, attr_ints, first_type, given


@register
class Resample(Op):
    """``x`` with every one of ``axes`` replaced by sums over taps of its elements at places, times weights.

    After x come, for each axis, the places (int64, inside the axis) and the weights (the type x is computed in), ``[taps, elements]`` both.
    Linear and cubic Resize become it.
    """

    name = "resample"
    families = ("resample",)
    computes = True

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axes = first_type(inputs), attr_ints(attrs, "axes")
        shape: list[Dim] = list(x.shape)
        if len(inputs) != 1 + 2 * len(axes):
            raise UnsupportedForm(f"{len(inputs) - 1} tables for {len(axes)} axes")
        for axis, (places, weights) in zip(axes, _tables(inputs), strict=True):
            if places.rank != 2 or places.shape != weights.shape or weights.dtype is not compute_dtype(x.dtype):
                raise UnsupportedForm(f"tables {places} and {weights} do not fit {x}")
            shape[axis] = places.shape[1]
        return (TensorType(x.dtype, tuple(shape)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, axes = array(inputs[0]), attr_ints(attrs, "axes")
        tables = [(array(inputs[k]), array(inputs[k + 1])) for k in range(1, len(inputs), 2)]
        wide = x.astype(np.float64)
        shape = list(x.shape)
        for axis, (places, _) in zip(axes, tables, strict=True):
            shape[axis] = places.shape[1]
        total = np.zeros(shape)
        for taps in product(*(range(len(places)) for places, _ in tables)):
            part = wide
            for axis, tap, (places, weights) in zip(axes, taps, tables, strict=True):
                part = np.take(part, places[tap], axis) * weights[tap].reshape(-1, *(1,) * (x.ndim - 1 - axis))
            total += part
        return (total.astype(x.dtype),)

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        return Layouts.SAME if min(attr_ints(attrs, "axes")) >= 2 else Layouts.PLAIN


def _tables(inputs: Types) -> Sequence[tuple[TensorType, TensorType]]:
    return [(given(inputs[k]), given(inputs[k + 1])) for k in range(1, len(inputs), 2)]
