"""Quantisation: between real numbers and integers of few bits, by a scale and a zero point of the tensor, of each channel or of each block."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Node, Value
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Sample, lookup, register
from compiler.ir.scalar import Const, Scalar, call, cast
from compiler.ir.types import DType, integer_range
from compiler.ops.cast import saturating
from compiler.ops.index import slice_axis
from compiler.ops.support import Attrs, cast_to, is_uniform, known_shape, normalize_axis, onnx_dtype, reshape, scalar_like

_X = np.array([[-300.0, -2.5, -0.75, -0.0], [0.25, 1.25, 3.0, 1000.0]], np.float32)
_INT8 = np.array([[-128, -3, 0], [4, 100, 127]], np.int8)
_SCALE = np.array(0.5, np.float32)
_SCALES = np.array([0.5, 2.0], np.float32)
_FLOATS = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float4_e2m1fn)
_FLOAT_TARGETS = ((17, 1), (17, 0), (18, 1), (19, 0), (20, 1), (23, 1))
_INTEGERS_BELOW_A_BYTE = (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2)
MICROSOFT = "com.microsoft"
"""The domain of the operators that ONNX Runtime adds to the standard."""


def target_type(attrs: Attrs) -> DType:
    """Attribute ``to``: an integer type of at most 16 bits or a float of at most 8."""
    to = attrs["to"]
    fits = isinstance(to, DType) and to not in (DType.BOOL, DType.FLOAT8E8M0) and to.bits <= (8 if to.is_float else 16)
    if not isinstance(to, DType) or not fits:
        raise UnsupportedForm(f"quantisation to {to.value if isinstance(to, DType) else to} is not supported")
    return to


def saturated(x: Scalar, zero_point: Sequence[Scalar], to: DType, *, saturate: bool = True) -> Scalar:
    """``x`` rounded to nearest even plus the zero point, kept in the range of ``to``: exact in float32, which holds every integer of 16 bits.

    For a float ``to``, the sum rounded to it; without ``saturate`` what is out of its range becomes infinity or NaN.
    """
    total = cast(x if to.is_float else call("rint", x), DType.FLOAT32)
    for value in zero_point:
        total = call("add", total, cast(value, DType.FLOAT32))
    if to.is_float:
        return saturating(total, to) if saturate else cast(total, to)
    low, high = (Const(float(bound), DType.FLOAT32) for bound in integer_range(to))
    return cast(call("min", call("max", total, low), high), to)


@register
class Quantize(Elementwise):
    """``saturate(rint(x / scale) + zero_point)`` of the type ``to``; the zero point may be absent. Ties go to even.

    The quotient is rounded to the scale's type. A float ``to`` has numbers between the integers, which ``rint`` then leaves alone.
    """

    name = "quantize"
    samples = (
        Sample("QuantizeLinear", (_X, _SCALE, np.array(3, np.uint8))),
        Sample("QuantizeLinear", (_X, _SCALE, np.array([-3], np.int8)), constant=(1, 2)),
        Sample("QuantizeLinear", (_X, _SCALE), opset=13),
        Sample("QuantizeLinear", (_X, _SCALES, np.array([100, 0], np.uint8)), {"axis": 0}),
        Sample(
            "QuantizeLinear", (_X * 100, np.array([[0.5, 0.01], [2.0, 3.0]], np.float32)), {"axis": -1, "block_size": 2, "output_dtype": 5}, opset=21
        ),
        Sample("QuantizeLinear", (_X, _SCALE, np.array(9, np.uint16)), opset=21),
        Sample("QuantizeLinear", (np.array(2.6, np.float32), _SCALE)),
        Sample("QuantizeLinear", (_X[:, :0], _SCALE)),
        *(Sample("QuantizeLinear", (_X * 100, _SCALE), {"output_dtype": to, "saturate": saturate}, opset=23) for to, saturate in _FLOAT_TARGETS),
        *(Sample("QuantizeLinear", (_X, _SCALES, np.array([1, 0], zero)), {"axis": 0}, opset=25) for zero in _INTEGERS_BELOW_A_BYTE),
        Sample("QuantizeLinear", (_X, _SCALE, np.array(0, ml_dtypes.float8_e4m3fn)), opset=19),
        Sample("QuantizeLinear", (_X.clip(-9, 9).astype(np.float16) / 3, _SCALE, np.array(3, np.uint8)), {"precision": 10}, opset=23),
        Sample("DynamicQuantizeLinear", (_X,), outputs=3),
        Sample("DynamicQuantizeLinear", (np.array([0.5, 2.0, 7.0], np.float32),), outputs=3),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        quotient = call("div", *(cast(x, DType.FLOAT32) for x in args[:2]))
        return saturated(cast(quotient, args[1].dtype), args[2:], target_type(attrs), saturate=bool(attrs.get("saturate", True)))


@register
class Dequantize(Elementwise):
    """``(x - zero_point) * scale``, of the type ``to``; the zero point may be absent."""

    name = "dequantize"
    samples = (
        Sample("DequantizeLinear", (_INT8, _SCALE, np.array(-3, np.int8))),
        Sample("DequantizeLinear", (_INT8.view(np.uint8), _SCALE, np.array(200, np.uint8)), constant=(1, 2)),
        Sample("DequantizeLinear", (_INT8, _SCALES, np.array([-128, 127], np.int8)), {"axis": 0}),
        Sample("DequantizeLinear", (_INT8.astype(np.int32) * 70000, _SCALE)),
        Sample("DequantizeLinear", (_INT8.astype(np.int16) * 250, _SCALE, np.array(-30000, np.int16)), opset=21),
        Sample("DequantizeLinear", (_INT8.repeat(2, 1), np.array([[0.5, 2.0, 0.25], [1.0, 3.0, 4.0]], np.float32)), {"block_size": 2}, opset=21),
        *(Sample("DequantizeLinear", ((_X / 4).clip(-6, 6).astype(x), _SCALE), opset=23) for x in _FLOATS),
        *(
            Sample("DequantizeLinear", (np.array([[0, 1], [-2, 1]]).astype(x), _SCALES, np.array([1, 0], x)), opset=25)
            for x in _INTEGERS_BELOW_A_BYTE
        ),
        Sample("DequantizeLinear", (_INT8, np.array(4, ml_dtypes.float8_e8m0fnu)), {"output_dtype": 1}, opset=28),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        to, exact = attrs["to"], DType.FLOAT32 if args[0].dtype.is_float else DType.INT32
        if not isinstance(to, DType) or not to.is_float or to.bits < 16:
            raise UnsupportedForm(
                f"dequantisation to {to.value if isinstance(to, DType) else to!r} is not supported; output_dtype names the result's type"
            )
        x = cast(args[0], exact)
        for zero_point in args[2:]:
            x = call("sub", x, cast(zero_point, exact))
        return cast(call("mul", cast(x, DType.FLOAT32), cast(args[1], DType.FLOAT32)), to)


def _aligned(context: FormContext, parameter: Value, x: Value) -> Value:
    """A scale or zero point in a shape that broadcasts against x: of the tensor, of each index of ``axis``, or of blocks along it."""
    if parameter.type.elements == 1:
        return reshape(context, parameter, ())
    axis = normalize_axis(int(context.attrs.get("axis", 1)), x.type.rank)
    if parameter.type.rank == 1:
        return reshape(context, parameter, (*parameter.type.shape, *(1,) * (x.type.rank - axis - 1)))
    block = int(context.attrs.get("block_size", 0))
    if parameter.type.rank != x.type.rank or block < 1:
        raise UnsupportedForm(f"a scale or zero point {parameter.type} does not fit {x.type} with axis {axis} and block_size {block}")
    return _repeated(context, parameter, axis, block, known_shape(x, "a tensor quantised in blocks")[axis])


def _repeated(context: FormContext, x: Value, axis: int, times: int, length: int) -> Value:
    """Every index of one axis ``times`` times, cut to ``length``."""
    data = context.builder.array(x)
    if data is not None:
        return context.const(np.repeat(data, times, axis)[(slice(None),) * axis + (slice(length),)])
    before, after = x.type.shape[:axis], x.type.shape[axis + 1 :]
    count = x.type.shape[axis]
    wide = context.emit("expand", reshape(context, x, (*before, count, 1, *after)), shape=(*before, count, times, *after))
    whole = reshape(context, wide, (*before, count * times, *after))
    if count * times == length:
        return whole
    rank = x.type.rank
    return context.emit("slice", whole, starts=(0,) * rank, sizes=(*before, length, *after), steps=(1,) * rank)


def quantize(context: FormContext, x: Value, scale: Value, zero_point: Value | None, to: DType) -> Value:
    """x as integers; scale and zero point broadcast against it."""
    return context.emit("quantize", x, scale, *(() if zero_point is None else (zero_point,)), to=to)


def dequantize(context: FormContext, x: Value, scale: Value, zero_point: Value | None, to: DType = DType.FLOAT32) -> Value:
    """The real numbers that the integers x stand for; scale and zero point broadcast against it."""
    return context.emit("dequantize", x, scale, *(() if zero_point is None else (zero_point,)), to=to)


def _quantize_linear(context: FormContext) -> Value:
    x, scale, zero_point = context.input(0), context.input(1), context.optional(2)
    to = DType.UINT8 if zero_point is None else zero_point.type.dtype
    if zero_point is None and context.attrs.get("output_dtype", 0):
        to = onnx_dtype(context.attrs["output_dtype"])
    if to.is_float and is_uniform(context.builder, zero_point, 0):
        zero_point = None
    precision = _precision(context, x.type.dtype, scale.type.dtype)
    x, scale = cast_to(context, x, precision), cast_to(context, scale, precision)
    parameters = (_aligned(context, parameter, x) for parameter in (scale, zero_point) if parameter is not None)
    overflowing = {"saturate": False} if to.is_float and not context.attrs.get("saturate", 1) else {}
    return context.emit("quantize", x, *parameters, to=to, **overflowing)


def _precision(context: FormContext, x: DType, scale: DType) -> DType:
    """The type that the quotient of x and the scale is rounded to: attribute ``precision``, else the scale's where x may have it."""
    if context.attrs.get("precision", 0):
        precision = onnx_dtype(context.attrs["precision"])
        if precision not in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16):
            raise UnsupportedForm(f"division in {precision.value} (attribute precision) is not supported")
        return precision
    exact = scale.is_float and scale.bits >= 16 and (x is scale or not x.is_float)
    return scale if exact else DType.FLOAT32


def _dequantize_linear(context: FormContext) -> Value:
    x, scale, zero_point = context.input(0), context.input(1), context.optional(2)
    if x.type.dtype.is_float and is_uniform(context.builder, zero_point, 0):
        zero_point = None
    to = onnx_dtype(context.attrs["output_dtype"]) if context.attrs.get("output_dtype", 0) else scale.type.dtype
    operands = [x, *(_aligned(context, parameter, x) for parameter in (scale, zero_point) if parameter is not None)]
    # Not folded, even where x is constant: passes look for integer weights behind it.
    (type_,) = lookup("dequantize").infer([v.type for v in operands], {"to": to})
    result = Value(context.builder.unique(context.name or "dequantize"), type_)
    context.builder.append(Node("dequantize", tuple(operands), (result,), {"to": to}, name=context.name))
    return result


def quantize_dynamically(context: FormContext, x: Value) -> tuple[Value, Value, Value]:
    """x as uint8 with the scale and the zero point of its own range, which is widened to hold zero."""
    zero, rank = scalar_like(context, x, 0), x.type.rank
    # The least element is the negative of the greatest of all negated: one kernel finds both.
    signs = context.const(np.array([-1, 1], x.type.dtype.numpy).reshape(2, *(1,) * rank))
    extremes = context.emit("reduce", context.emit("mul", x, signs), kind="max", axes=tuple(range(1, rank + 1)), keepdims=False)
    negative, most = (reshape(context, slice_axis(context, extremes, 0, place, 1), ()) for place in range(2))
    least, greatest = context.emit("minimum", context.emit("neg", negative), zero), context.emit("maximum", most, zero)
    spread = context.emit("sub", greatest, least)
    step = context.emit("div", spread, scalar_like(context, x, 255))
    scale = context.emit("where", context.emit("equal", spread, zero), scalar_like(context, x, 1), step)
    zero_point = quantize(context, context.emit("neg", least), scale, None, DType.UINT8)
    return quantize(context, x, scale, zero_point, DType.UINT8), scale, zero_point


Quantize.forms = (
    OnnxForm("QuantizeLinear", _quantize_linear, since=10),
    OnnxForm("QuantizeLinear", _quantize_linear, domain=MICROSOFT),
    OnnxForm("DynamicQuantizeLinear", lambda context: quantize_dynamically(context, context.input(0)), since=11),
)
Dequantize.forms = (
    OnnxForm("DequantizeLinear", _dequantize_linear, since=10),
    OnnxForm("DequantizeLinear", _dequantize_linear, domain=MICROSOFT),
)
