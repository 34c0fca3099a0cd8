"""Products of quantised tensors: MatMulInteger, ConvInteger, the QLinear operators and their relatives of the ``com.microsoft`` domain.

Integers less their zero points are multiplied and summed exactly: in float32 where no partial sum can leave the integers it holds (the
weights' magnitudes bound it), in int32 elsewhere. What follows (scales, bias, rounding) is elementwise and fuses into the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Sample, register
from compiler.ir.scalar import Scalar, call, cast
from compiler.ir.types import DType, integer_range
from compiler.ops.conv import conv
from compiler.ops.quantize import MICROSOFT, quantize_dynamically, saturated, target_type
from compiler.ops.support import Attrs, cast_to, per_channel, reshape, scalar_like, transpose

EXACT = 1 << 24
"""Every integer up to here is a float32."""

_A = np.array([[11, 7, 3], [10, 6, 2], [9, 5, 255], [8, 4, 0]], np.uint8)
_B = np.array([[1, -4], [2, -128], [127, 6]], np.int8)
_IMAGE = (np.arange(2 * 2 * 5 * 4) * 37 % 256).astype(np.uint8).reshape(2, 2, 5, 4)
_FILTERS = (np.arange(4 * 2 * 3 * 2) * 29 % 256 - 128).astype(np.int8).reshape(4, 2, 3, 2)
_BIAS = np.array([100, -2000, 30, 4], np.int32)


def _f(*values: float) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def _microsoft(op_type: str, *inputs: Array | None, **attrs: Any) -> Sample:
    return Sample(op_type, inputs, attrs, opset=1, domain=MICROSOFT)


def _u8(*values: int) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.uint8)


def _i8(*values: int) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.int8)


@register
class Requantize(Elementwise):
    """``saturate(rint(x * multiplier + offset) + zero_point)`` of the integer type ``to``, for a sum ``x`` of integer products.

    Operands: x, multiplier, zero point, offset; the last may be absent, or the last two. The product and the sum are rounded to float32.
    """

    name = "requantize"
    samples = (
        Sample("MatMulInteger", (_A, _B, _u8(12), _i8(-5))),
        Sample("MatMulInteger", (_A, _B), constant=(1,)),
        Sample("MatMulInteger", (_A, _B, _u8(12), _i8(-5, 3)), constant=(1, 2, 3)),
        Sample("MatMulInteger", (np.tile(_A, (1, 300)), np.tile(_B, (300, 1))), constant=(1,)),
        Sample("ConvInteger", (_IMAGE, _FILTERS, _u8(200)), {"pads": [1, 0, 2, 1], "strides": [2, 1]}, constant=(1, 2)),
        Sample("QLinearMatMul", (_A, _f(0.0625), _u8(12), _B, _f(0.25), _i8(-5), _f(0.5), _u8(100)), opset=10),
        Sample("QLinearConv", (_IMAGE, _f(0.05), _u8(120), _FILTERS, _f(0.01), _i8(0), _f(0.75), _u8(128), _BIAS), constant=(3, 4, 5, 8)),
        Sample(
            "QLinearConv",
            (_IMAGE, _f(0.05), _u8(120), _FILTERS[:, :1], _f(0.02, 0.01, 0.03, 0.005), _i8(0, 0, 0, 0), _f(0.75), _u8(128)),
            {"group": 2, "pads": [1, 1, 1, 1]},
            constant=(3, 4, 5),
        ),
        _microsoft("QGemm", _A, _f(0.0625), _u8(12), _B, _f(0.25), _i8(-5), np.array([40, -90], np.int32), _f(0.5), _u8(100)),
        _microsoft("QGemm", _A, _f(0.0625), _u8(12), _B.T.copy(), _f(0.25), _i8(-5), None, transB=1, alpha=0.5),
        _microsoft("MatMulIntegerToFloat", _A, _B, _f(0.0625), _f(0.25, 0.5), _u8(12), _i8(-5, 7), _f(1.0, -2.0)),
        _microsoft("DynamicQuantizeMatMul", _A.astype(np.float32) / 7, _B, _f(0.25), _i8(-5), _f(1.0, -2.0)),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        x, multiplier, *zero_point = args[:3]
        result = call("mul", cast(x, DType.FLOAT32), multiplier)
        for offset in args[3:]:
            result = call("add", result, offset)
        return saturated(result, zero_point, target_type(attrs))


@register
class RequantizeSum(Elementwise):
    """``saturate(rint(a * a_ratio + (b * b_ratio + offset)))`` of the integer type ``to``, for integers a and b; ratios and offset are float32.

    Each multiplication and addition is rounded once, as by a fused multiply-add.
    """

    name = "requantize_sum"
    samples = (
        _microsoft("QLinearAdd", _IMAGE, _f(0.05), _u8(120), _IMAGE[::-1].copy(), _f(0.02), _u8(100), _f(0.07), _u8(130)),
        _microsoft("QLinearAdd", _FILTERS, _f(0.05), _i8(-20), _FILTERS[:1], _f(0.02), _i8(3), _f(0.04), _i8(-7)),
        _microsoft("QLinearAdd", _A, _f(0.5), _u8(0), _A[0], _f(0.25), _u8(1), _f(0.5), _u8(0)),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        a, a_ratio, b, b_ratio, total = (cast(arg, DType.FLOAT64) for arg in args)
        for x, ratio in ((b, b_ratio), (a, a_ratio)):
            total = cast(cast(call("add", call("mul", x, ratio), total), DType.FLOAT32), DType.FLOAT64)
        return saturated(cast(total, DType.FLOAT32), (), target_type(attrs))


Parameters = tuple[Value, Value | None]
"""A scale and a zero point."""


def requantized_sum(emit: Callable[..., Value], a: Value, a_is: Parameters, b: Value, b_is: Parameters, y_is: Parameters, to: DType) -> Value:
    """The sum of two quantised tensors as integers of the result's scale and zero point; ``emit`` makes a node."""
    zero = emit("sub", y_is[0], y_is[0])
    a_ratio, b_ratio = (emit("div", scale, y_is[0]) for scale, _ in (a_is, b_is))
    offset = zero
    for ratio, (_, point) in ((b_ratio, b_is), (a_ratio, a_is)):
        if point is not None:
            exact = emit("mul", emit("cast", ratio, to=DType.FLOAT64), emit("cast", point, to=DType.FLOAT64))
            offset = emit("cast", emit("add", exact, emit("cast", offset, to=DType.FLOAT64)), to=DType.FLOAT32)
    offset = emit("sub", zero if y_is[1] is None else emit("cast", y_is[1], to=DType.FLOAT32), offset)
    return emit("requantize_sum", a, a_ratio, b, b_ratio, offset, to=to)


def centered(context: FormContext, x: Value, zero_point: Value | None, dtype: DType) -> Value:
    """``x - zero_point`` in a type that holds it; the zero point broadcasts."""
    wide = cast_to(context, x, dtype)
    return wide if zero_point is None else context.emit("sub", wide, cast_to(context, zero_point, dtype))


def _magnitude(context: FormContext, x: Value, zero_point: Value | None) -> int:
    """A bound of ``|x - zero_point|``."""
    low, high = integer_range(x.type.dtype)
    if zero_point is None:
        return max(-low, high)
    data = context.builder.array(zero_point)
    if data is None or data.size == 0:
        return high - low
    return max(high - int(data.min()), int(data.max()) - low)


def _weight_sum(context: FormContext, w: Value, zero_point: Value | None, axes: Sequence[int]) -> int | None:
    """A bound of the sum of ``|w - zero_point|`` over axes; None where a dim is not known."""
    data = context.builder.array(w)
    shift = np.array(0) if zero_point is None else context.builder.array(zero_point)
    if data is not None and shift is not None:
        return int(np.abs(data.astype(np.int64) - shift).sum(axis=tuple(axes)).max(initial=0))
    dims = [w.type.shape[axis] for axis in axes]
    known = [dim for dim in dims if isinstance(dim, int)]
    return _magnitude(context, w, zero_point) * prod(known) if len(known) == len(dims) else None


def accumulator(
    context: FormContext, x: Value, x_zero: Value | None, w: Value, w_zero: Value | None, axes: Sequence[int], bias: Value | None = None
) -> DType:
    """The type in which the products of x and w, summed over w's ``axes`` and added to bias, are exact and cheapest; float32 for floats."""
    if x.type.dtype.is_float or w.type.dtype.is_float:
        return DType.FLOAT32
    total = _weight_sum(context, w, w_zero, axes)
    if total is None:
        return DType.INT32
    start = 0
    if bias is not None:
        data = context.builder.array(bias)
        start = EXACT if data is None else int(np.abs(data.astype(np.int64)).max(initial=0))
    return DType.FLOAT32 if total * _magnitude(context, x, x_zero) + start < EXACT else DType.INT32


def _column(context: FormContext, parameter: Value | None) -> Value | None:
    """A parameter of each row of a left operand: a vector becomes a column."""
    if parameter is None or parameter.type.rank != 1 or parameter.type.elements == 1:
        return _row(context, parameter)
    return reshape(context, parameter, (*parameter.type.shape, 1))


def _row(context: FormContext, parameter: Value | None) -> Value | None:
    """A parameter of each column of a right operand; one of the whole tensor becomes a scalar."""
    if parameter is None or parameter.type.elements != 1:
        return parameter
    return reshape(context, parameter, ())


def _filter(context: FormContext, parameter: Value | None, rank: int) -> Value | None:
    """A parameter of each filter, or of all of them, against weights ``[O, C, *K]``."""
    if parameter is None or parameter.type.elements == 1:
        return _row(context, parameter)
    return reshape(context, parameter, (*parameter.type.shape, *(1,) * (rank - 1)))


def _channel(context: FormContext, parameter: Value, rank: int) -> Value:
    """A parameter of each channel, or of all of them, against ``[N, C, *S]``."""
    return reshape(context, parameter, ()) if parameter.type.elements == 1 else per_channel(context, parameter, rank)


def _product(context: FormContext, a: Value, a_zero: Value | None, b: Value, b_zero: Value | None, bias: Value | None = None) -> Value:
    """The exact matrix product of two integer tensors less their zero points, plus an int32 bias; its type is ``accumulator``'s."""
    left, right = a.type.rank == 1, b.type.rank == 1
    a = reshape(context, a, (1, *a.type.shape)) if left else a
    b = reshape(context, b, (*b.type.shape, 1)) if right else b
    dtype = accumulator(context, a, a_zero, b, b_zero, (b.type.rank - 2,), bias)
    result = context.emit("matmul", centered(context, a, a_zero, dtype), centered(context, b, b_zero, dtype))
    if left or right:
        shape = [
            dim
            for axis, dim in enumerate(result.type.shape)
            if not (right and axis == result.type.rank - 1) and not (left and axis == result.type.rank - 2)
        ]
        result = reshape(context, result, shape)
    return result if bias is None else context.emit("add", result, cast_to(context, bias, dtype))


def _matmul_integer(context: FormContext) -> Value:
    zeros = _column(context, context.optional(2)), _row(context, context.optional(3))
    return cast_to(context, _product(context, context.input(0), zeros[0], context.input(1), zeros[1]), DType.INT32)


def _convolution(context: FormContext, x: Value, x_zero: Value | None, w: Value, w_zero: Value | None, bias: Value | None) -> Value:
    rank = x.type.rank
    w_zero = _filter(context, w_zero, rank)
    dtype = accumulator(context, x, x_zero, w, w_zero, range(1, rank), bias)
    parts = centered(context, x, _row(context, x_zero), dtype), centered(context, w, w_zero, dtype)
    result = conv(replace(context, inputs=parts))
    return result if bias is None else context.emit("add", result, cast_to(context, per_channel(context, bias, rank), dtype))


def _conv_integer(context: FormContext) -> Value:
    result = _convolution(context, context.input(0), context.optional(2), context.input(1), context.optional(3), None)
    return cast_to(context, result, DType.INT32)


def _requantized(context: FormContext, x: Value, scale: Value, y_scale: Value, y_zero: Value | None) -> Value:
    """A sum of integer products in units of ``scale`` as integers of the result's."""
    multiplier = context.emit("div", scale, y_scale)
    to = DType.UINT8 if y_zero is None else y_zero.type.dtype
    return context.emit("requantize", x, multiplier, *(() if y_zero is None else (y_zero,)), to=to)


def _required(value: Value | None) -> Value:
    if value is None:
        raise UnsupportedForm("a scale is missing")
    return value


def _qlinear_matmul(context: FormContext) -> Value:
    """Inputs a, its scale and zero point, b, its scale and zero point, the result's scale and zero point."""
    a_scale, a_zero, y_scale, y_zero = (_column(context, context.optional(i)) for i in (1, 2, 6, 7))
    b_scale, b_zero = (_row(context, context.optional(i)) for i in (4, 5))
    result = _product(context, context.input(0), a_zero, context.input(3), b_zero)
    scale = context.emit("mul", _required(a_scale), _required(b_scale))
    return _requantized(context, result, scale, _required(y_scale), y_zero)


def _qlinear_conv(context: FormContext) -> Value:
    """Inputs x, its scale and zero point, w, its scale and zero point, the result's scale and zero point, bias."""
    x, w, rank = context.input(0), context.input(3), context.input(0).type.rank
    result = _convolution(context, x, context.optional(2), w, context.optional(5), context.optional(8))
    x_scale, y_scale, y_zero = (_row(context, context.optional(i)) for i in (1, 6, 7))
    scale = context.emit("mul", _required(x_scale), _channel(context, context.input(4), rank))
    return _requantized(context, result, scale, _required(y_scale), y_zero)


def _qlinear_add(context: FormContext) -> Value:
    """Inputs a, its scale and zero point, b, its scale and zero point, the result's scale and zero point."""
    a, b, y = ((_required(_row(context, context.optional(i))), _row(context, context.optional(i + 1))) for i in (1, 4, 6))
    for scale, _ in (a, b, y):
        if scale.type.rank != 0:
            raise UnsupportedForm(f"the scale of a whole tensor is needed, not {scale.type}")
    to = context.input(0).type.dtype if y[1] is None else y[1].type.dtype
    return requantized_sum(context.emit, context.input(0), a, context.input(3), b, y, to)


def _qgemm(context: FormContext) -> Value:
    """Inputs a, its scale and zero point, b, its scale and zero point, an int32 c, the result's scale and zero point; without them a float32."""
    a, b = context.input(0), context.input(3)
    a = transpose(context, a, (1, 0)) if context.attrs.get("transA", 0) else a
    b = transpose(context, b, (1, 0)) if context.attrs.get("transB", 0) else b
    (a_scale, a_zero), (b_scale, b_zero) = ([_row(context, context.optional(i)) for i in pair] for pair in ((1, 2), (4, 5)))
    result = _product(context, a, a_zero, b, b_zero, context.optional(6))
    scale = context.emit("mul", _required(a_scale), _required(b_scale))
    alpha = float(context.attrs.get("alpha", 1.0))
    if alpha != 1:
        scale = context.emit("mul", scale, scalar_like(context, scale, alpha))
    y_scale, y_zero = (_row(context, context.optional(i)) for i in (7, 8))
    if y_scale is None:
        return context.emit("mul", cast_to(context, result, DType.FLOAT32), scale)
    return _requantized(context, result, scale, y_scale, y_zero)


def _scaled(context: FormContext, result: Value, a_scale: Value, b_scale: Value, bias: Value | None) -> Value:
    scaled = context.emit("mul", cast_to(context, result, DType.FLOAT32), context.emit("mul", a_scale, b_scale))
    return scaled if bias is None else context.emit("add", scaled, bias)


def matmul_integer_to_float(context: FormContext) -> Value:
    """Inputs a, b, their scales, their zero points, bias."""
    a_scale, a_zero = (_column(context, context.optional(i)) for i in (2, 4))
    b_scale, b_zero = (_row(context, context.optional(i)) for i in (3, 5))
    result = _product(context, context.input(0), a_zero, context.input(1), b_zero)
    return _scaled(context, result, _required(a_scale), _required(b_scale), context.optional(6))


def _dynamic_quantize_matmul(context: FormContext) -> Value:
    """Inputs a (float32), b, its scale and zero point, bias."""
    a, a_scale, a_zero = quantize_dynamically(context, context.input(0))
    b_scale, b_zero = (_row(context, context.optional(i)) for i in (2, 3))
    return _scaled(context, _product(context, a, a_zero, context.input(1), b_zero), a_scale, _required(b_scale), context.optional(4))


Requantize.forms = (
    OnnxForm("MatMulInteger", _matmul_integer, since=10),
    OnnxForm("ConvInteger", _conv_integer, since=10),
    OnnxForm("QLinearMatMul", _qlinear_matmul, since=10),
    OnnxForm("QLinearConv", _qlinear_conv, since=10),
    OnnxForm("QLinearConv", _qlinear_conv, domain=MICROSOFT),
    OnnxForm("QGemm", _qgemm, domain=MICROSOFT),
    OnnxForm("MatMulIntegerToFloat", matmul_integer_to_float, domain=MICROSOFT),
    OnnxForm("DynamicQuantizeMatMul", _dynamic_quantize_matmul, domain=MICROSOFT),
)
RequantizeSum.forms = (OnnxForm("QLinearAdd", _qlinear_add, domain=MICROSOFT),)
