"""Softmax and its logarithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import product
from compiler.ir.op import FormBuild, FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import TensorType
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, first_type, normalize_axis, part_of_rows, reshape

_X = np.array([[[1.0, -2.0, 0.5], [90.0, 91.0, -90.0]], [[0.0, 0.0, 0.0], [-1e30, 3.0, 2.0]]], np.float32)
_OPERATORS = ("Softmax", "LogSoftmax")


@register
class Softmax(Op):
    """``exp(x) / sum(exp(x))`` along ``axis`` (non-negative), or its logarithm where ``log``."""

    name = "softmax"
    families = ("softmax",)
    computes = True
    samples = (
        *(Sample(op, (_X,)) for op in _OPERATORS),
        *(Sample(op, (_X,), {"axis": 1}) for op in _OPERATORS),
        *(Sample(op, (_X,), {"axis": 1}, opset=11) for op in _OPERATORS),
        *(Sample(op, (_X,), {"axis": 2}, opset=11) for op in _OPERATORS),
        Sample("Softmax", (np.zeros((0, 3), np.float32),)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (first_type(inputs),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        return part_of_rows(inputs[0], attrs, box, (attr_int(attrs, "axis"),))

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, axis = array(inputs[0]), attr_int(attrs, "axis")
        if x.size == 0:
            return (x,)
        wide = x.astype(np.float64)
        with np.errstate(all="ignore"):
            shifted = wide - wide.max(axis, keepdims=True)
            total = np.exp(shifted).sum(axis, keepdims=True)
            return ((shifted - np.log(total) if attrs["log"] else np.exp(shifted) / total).astype(x.dtype),)


def _softmax(log: bool) -> FormBuild:
    """Before version 13 all axes from ``axis`` on are normalised together."""

    def build(context: FormContext) -> Value:
        x = context.input(0)
        axis = normalize_axis(int(context.attrs.get("axis", -1 if context.opset >= 13 else 1)), x.type.rank)
        if context.opset >= 13 or axis == x.type.rank - 1:
            return context.emit("softmax", x, axis=axis, log=log)
        flat = reshape(context, x, (*x.type.shape[:axis], product(x.type.shape[axis:])))
        return reshape(context, context.emit("softmax", flat, axis=axis, log=log), x.type.shape)

    return build


Softmax.forms = (OnnxForm("Softmax", _softmax(False)), OnnxForm("LogSoftmax", _softmax(True)))
