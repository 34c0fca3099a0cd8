"""UnfoldTensor: the windows of an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Region, Value
from compiler.ir.intexpr import Dim, floordiv
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import TensorType
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, axis_symbol, first_type, normalize_axis

_DOMAIN = "com.microsoft"
_X = np.arange(42, dtype=np.float32).reshape(2, 7, 3)


def _build(context: FormContext) -> Value:
    x, size, step = context.input(0), int(context.attrs["size"]), int(context.attrs.get("step", 1))
    axis = normalize_axis(int(context.attrs.get("dim", -1)), x.type.rank)
    if size < 1 or step < 1:
        raise UnsupportedForm(f"windows of {size} elements every {step}")
    context.check(size, x.type.shape[axis], None, "a window of {low} elements does not fit into {value}")
    return context.emit("unfold", x, axis=axis, size=size, step=step)


@register
class Unfold(Op):
    """Windows of ``size`` elements every ``step`` along ``axis``, which counts them; their elements are a last axis more.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """

    name = "unfold"
    families = ("injective",)
    forms = (OnnxForm("UnfoldTensor", _build, domain=_DOMAIN),)
    samples = (
        Sample("UnfoldTensor", (_X,), {"dim": 1, "size": 3, "step": 2}, opset=1, domain=_DOMAIN),
        Sample("UnfoldTensor", (_X,), {"size": 2}, opset=1, domain=_DOMAIN),
        Sample("UnfoldTensor", (_X.astype(np.int64),), {"dim": -2, "size": 7, "step": 5}, opset=1, domain=_DOMAIN),
        Sample("UnfoldTensor", (_X[:0],), {"dim": 1, "size": 1}, opset=1, domain=_DOMAIN),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axis, size, step = first_type(inputs), attr_int(attrs, "axis"), attr_int(attrs, "size"), attr_int(attrs, "step")
        windows = floordiv(x.shape[axis] - size, step) + 1
        return (TensorType(x.dtype, (*x.shape[:axis], windows, *x.shape[axis + 1 :], size)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        axis, step = attr_int(attrs, "axis"), attr_int(attrs, "step")
        windows = np.lib.stride_tricks.sliding_window_view(array(inputs[0]), attr_int(attrs, "size"), axis)
        return (windows[(slice(None),) * axis + (slice(None, None, step),)],)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        (result,) = self.infer(inputs, attrs)
        axis, rank = attr_int(attrs, "axis"), inputs[0].rank
        index: list[Dim] = [axis_symbol(k) for k in range(rank)]
        index[axis] = index[axis] * attr_int(attrs, "step") + axis_symbol(rank)
        return (Region((0,) * result.rank, result.shape, 0, tuple(index)),)
