"""Order along an axis: the positions of the largest or smallest elements, and TopK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.gather import take_along
from compiler.ops.support import Arrays, Attrs, Types, array, attr_dim, attr_int, first_type, normalize_axis

_X = (np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 7 % 11 - 5) / 4


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


class _Positions(Op):
    """The positions of the first ``k`` elements along ``axis``, in descending (``largest``) or ascending order, int64."""

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axis, k = first_type(inputs), attr_int(attrs, "axis"), attr_dim(attrs, "k")
        dim = x.shape[axis]
        if isinstance(k, int) and (k < 0 or (isinstance(dim, int) and k > dim)):
            raise UnsupportedForm(f"the first {k} of {dim} elements were asked for")
        return (TensorType(DType.INT64, (*x.shape[:axis], k, *x.shape[axis + 1 :])),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, axis, k = array(inputs[0]), attr_int(attrs, "axis"), attr_int(attrs, "k")
        if attrs["largest"]:
            # The reverse of the ascending order of the reverse keeps equal elements in order.
            order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
        else:
            order = np.argsort(x, axis=axis, kind="stable")
        return (np.take(order, np.arange(k), axis=axis).astype(np.int64),)


@register
class TopPositions(_Positions):
    """The positions of the first ``k`` elements along ``axis`` in descending (``largest``) or ascending order, int64.

    Equal elements stay in order; NaN counts as the largest.
    """

    name = "top_positions"
    families = ("merge_sort",)
    samples = (
        Sample("TopK", (_X, _ints(2)), constant=(1,), outputs=2),
        Sample("TopK", (_X, _ints(3)), {"axis": 1}, constant=(1,), outputs=2),
        Sample("TopK", (_X, _ints(4)), {"largest": 0, "axis": -1}, constant=(1,), outputs=2),
        Sample("TopK", (_X, _ints(2)), {"largest": 0, "axis": 0}, constant=(1,), outputs=2),
        Sample("TopK", ((_X * 4).astype(np.int64), _ints(1)), opset=11, constant=(1,), outputs=2),
        Sample("TopK", (_X[0, 0], _ints(0)), constant=(1,), outputs=2),
        Sample("TopK", (_X,), {"k": 3, "axis": 2}, opset=9, outputs=2),
    )


@register
class TextPositions(_Positions):
    """The positions of all texts along ``axis`` in ascending order of their code points, equal ones as they stand; ``k`` is how many there are."""

    name = "text_positions"
    families = ("merge_sort_texts",)
    takes_strings = True


def _top_k(context: FormContext) -> Sequence[Value]:
    """Both results; without ``sorted`` any order will do, so it is the sorted one."""
    x = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", -1)), x.type.rank)
    (asked,) = (int(context.attrs["k"]),) if "k" in context.attrs else context.require_dims(1, "k")
    dim = x.type.shape[axis]
    context.check(0, asked, dim, "the first {value} of {high} elements were asked for")
    k = context.settled((*x.type.shape[:axis], asked, *x.type.shape[axis + 1 :]))[axis]
    positions = context.emit("top_positions", x, axis=axis, k=k, largest=bool(context.attrs.get("largest", 1)))
    return [take_along(context, x, positions, axis), positions]


TopPositions.forms = (OnnxForm("TopK", _top_k),)
