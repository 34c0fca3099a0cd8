"""Quantised forms of operators that are not products: real arithmetic between dequantised inputs and a quantised result, in one kernel.

They belong to the ``com.microsoft`` domain: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormBuild, FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.pool import pool
from compiler.ops.quantize import MICROSOFT, Dequantize, dequantize, quantize
from compiler.ops.reduce import mean
from compiler.ops.support import normalize_axis, reshape, transpose

_X = (np.arange(48) * 37 % 256).astype(np.uint8).reshape(1, 3, 4, 4)
_ROW = np.array([0, 100, 128, 255], np.uint8)
_IN = (np.array(0.05, np.float32), np.array(120, np.uint8))
_OTHER = (np.array(0.02, np.float32), np.array(100, np.uint8))
_OUT = (np.array(0.07, np.float32), np.array(130, np.uint8))


def _sample(op_type: str, *inputs: Array | None, **attrs: Any) -> Sample:
    constant = tuple(i for i, x in enumerate(inputs) if x is not None and x.ndim == 0)
    return Sample(op_type, inputs, attrs, opset=1, constant=constant, domain=MICROSOFT)


def _parameter(context: FormContext, index: int) -> Value | None:
    """A scale or zero point of a whole tensor, as a scalar."""
    value = context.optional(index)
    if value is None:
        return None
    if value.type.elements != 1:
        raise UnsupportedForm(f"input {index} must be the scale or zero point of a whole tensor, not {value.type}")
    return reshape(context, value, ())


def _scale(context: FormContext, index: int) -> Value:
    value = _parameter(context, index)
    if value is None:
        raise UnsupportedForm(f"the scale (input {index}) is missing")
    return value


def _real(context: FormContext, index: int) -> Value:
    """The real numbers of the quantised input ``index``; its scale and zero point follow it."""
    return dequantize(context, context.input(index), _scale(context, index + 1), _parameter(context, index + 2))


def _quantized(context: FormContext, x: Value, index: int, like: DType) -> Value:
    """x in the result's scale and zero point, which are inputs ``index`` and the next one."""
    zero_point = _parameter(context, index + 1)
    return quantize(context, x, _scale(context, index), zero_point, like if zero_point is None else zero_point.type.dtype)


def _binary(op: str) -> FormBuild:
    """Inputs a, its scale and zero point, b, its scale and zero point, the result's scale and zero point."""

    def build(context: FormContext) -> Value:
        result = context.emit(op, _real(context, 0), _real(context, 3))
        return _quantized(context, result, 6, context.input(0).type.dtype)

    return build


def _unary(function: Callable[[FormContext, Value], Value]) -> FormBuild:
    """Inputs x, its scale and zero point, the result's scale and zero point."""

    def build(context: FormContext) -> Value:
        return _quantized(context, function(context, _real(context, 0)), 3, context.input(0).type.dtype)

    return build


def _leaky_relu(context: FormContext, x: Value) -> Value:
    return context.emit("leaky_relu", x, alpha=float(context.attrs.get("alpha", 0.01)))


def _softmax(context: FormContext, x: Value) -> Value:
    """Before version 13 of the operator it stands for, all axes from ``axis`` on are normalised together."""
    axis = normalize_axis(int(context.attrs.get("axis", -1)), x.type.rank)
    if int(context.attrs.get("opset", 13)) < 13 and axis != x.type.rank - 1:
        raise UnsupportedForm("softmax over several axes (opset below 13) is not supported")
    return context.emit("softmax", x, axis=axis, log=False)


def _channels_first(function: Callable[[FormContext, Value], Value]) -> Callable[[FormContext, Value], Value]:
    """The function between transposes where attribute ``channels_last`` says that axis 1 is the last one."""

    def build(context: FormContext, x: Value) -> Value:
        if not context.attrs.get("channels_last", 0):
            return function(context, x)
        rank = x.type.rank
        result = function(context, transpose(context, x, (0, rank - 1, *range(1, rank - 1))))
        return transpose(context, result, (0, *range(2, rank), 1))

    return build


def _average_pool(context: FormContext, x: Value) -> Value:
    return pool("average")(replace(context, inputs=(x,)))


def _global_average(context: FormContext, x: Value) -> Value:
    return mean(context, x, tuple(range(2, x.type.rank)))


def _concat(context: FormContext) -> Value:
    """Inputs: the result's scale and zero point, then each operand with its own."""
    parts = [_real(context, index) for index in range(2, len(context.inputs), 3)]
    axis = normalize_axis(int(context.attrs["axis"]), parts[0].type.rank)
    joined = context.emit("concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
    return _quantized(context, joined, 0, context.input(2).type.dtype)


def _where(context: FormContext) -> Value:
    """Inputs: condition, x, its scale and zero point, y, its scale and zero point, the result's scale and zero point."""
    result = context.emit("where", context.input(0), _real(context, 1), _real(context, 4))
    return _quantized(context, result, 7, context.input(1).type.dtype)


extend(
    Dequantize,
    forms=tuple(
        OnnxForm(name, build, domain=MICROSOFT)
        for name, build in (
            ("QLinearMul", _binary("mul")),
            ("QLinearSigmoid", _unary(lambda context, x: context.emit("sigmoid", x))),
            ("QLinearLeakyRelu", _unary(_leaky_relu)),
            ("QLinearSoftmax", _unary(_softmax)),
            ("QLinearAveragePool", _unary(_channels_first(_average_pool))),
            ("QLinearGlobalAveragePool", _unary(_channels_first(_global_average))),
            ("QLinearConcat", _concat),
            ("QLinearWhere", _where),
        )
    ),
    samples=(
        _sample("QLinearMul", _X, *_IN, _ROW, *_OTHER, *_OUT),
        _sample("QLinearSigmoid", _X, *_IN, np.array(1 / 256, np.float32), np.array(0, np.uint8)),
        _sample("QLinearLeakyRelu", _X, *_IN, *_OUT, alpha=0.25),
        _sample("QLinearSoftmax", _X, *_IN, np.array(1 / 256, np.float32), np.array(0, np.uint8), axis=-1, opset=13),
        _sample("QLinearAveragePool", _X, *_IN, *_OUT, kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 0, 1]),
        _sample("QLinearGlobalAveragePool", _X, *_IN, *_OUT),
        _sample("QLinearGlobalAveragePool", _X, *_IN, *_OUT, channels_last=1),
        _sample("QLinearConcat", *_OUT, _X, *_IN, _X[:, :2], *_OTHER, axis=1),
        _sample("QLinearWhere", _X > 100, _X, *_IN, _X[:, ::-1].copy(), *_OTHER, *_OUT),
    ),
)
