"""Conversions between element types, by value and by bits."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Op, Sample, register
from compiler.ir.scalar import Const, Scalar, call, cast, const_like
from compiler.ir.types import DType, TensorType
from compiler.ops.simplify_arithmetic import converted_twice, unconverted
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, attr_str, cast_to, first_type, onnx_dtype
from compiler.ops.text_numbers import cast_text

_F = np.array([[-2.5, -0.0, 1.0], [3.5, np.inf, np.nan]], np.float32)
_WIDE = np.array([-1e6, -500.0, -6.5, -0.75, -1e-9, 0.0, 0.02, 1.1, 7.0, 460.0, np.inf, -np.inf, np.nan], np.float32)
_INTEGERS = np.array([[-300, -9, -1, 0], [1, 7, 8, 200]], np.int32)
_POWERS = np.array([0.0, 1e-30, 0.124, 0.75, 1.0, 1.1, 1.5, 3.0, 3e38, np.nan], np.float32)
_CODES = np.arange(256, dtype=np.uint8)

_GREATEST = {
    DType.FLOAT8E4M3FN: 448.0,
    DType.FLOAT8E4M3FNUZ: 240.0,
    DType.FLOAT8E5M2: 57344.0,
    DType.FLOAT8E5M2FNUZ: 57344.0,
}
"""The greatest numbers of the types that have infinities or NaN for what is out of range."""


def saturating(x: Scalar, to: DType) -> Scalar:
    """x as a narrow float; what is out of range becomes its greatest number, infinities included."""
    if to not in _GREATEST:
        return cast(x, to)
    wide = cast(x, DType.FLOAT64 if x.dtype is DType.FLOAT64 else DType.FLOAT32)
    limit = _GREATEST[to]
    return cast(call("min", call("max", wide, const_like(-limit, wide)), const_like(limit, wide)), to)


@register
class Cast(Elementwise):
    """Conversion to the element type ``to``: floats truncate towards zero, anything but zero is true.

    ``saturate`` says that what is out of range of a float of 8 bits becomes its greatest number, and not infinity or NaN.
    """

    name = "cast"
    simplifications = (unconverted, converted_twice)
    samples = (
        Sample("Cast", (_F[0],), {"to": 7}),
        Sample("Cast", (_F,), {"to": 11}),
        Sample("Cast", (_F,), {"to": 9}),
        Sample("Cast", (_INTEGERS,), {"to": 1}),
        Sample("Cast", (np.array([[True, False]]),), {"to": 1}),
        Sample("Cast", (_F[0],), {"to": 10}),
        *(Sample("Cast", (_WIDE,), {"to": to, "saturate": saturate}, opset=19) for to in (17, 18, 19, 20) for saturate in (1, 0)),
        Sample("Cast", (_WIDE,), {"to": 23}, opset=23),
        *(Sample("Cast", (_INTEGERS,), {"to": to}, opset=25) for to in (21, 22, 25, 26)),
        *(Sample("Cast", (_POWERS,), {"to": 24, "round_mode": mode}, opset=25) for mode in ("up", "down", "nearest")),
        Sample("Cast", (_CODES.view(ml_dtypes.float8_e5m2),), {"to": 17}, opset=19),
        Sample("Cast", (_CODES.view(ml_dtypes.float8_e4m3fn),), {"to": 16}, opset=19),
        Sample("Cast", (_CODES[:16].view(ml_dtypes.int4),), {"to": 1}, opset=21),
        Sample("Cast", (_INTEGERS,), {"to": 8}),
        Sample("Cast", (np.array([True, False]),), {"to": 8}),
        Sample("Cast", (np.array(["-12", "+7", "0"], object),), {"to": 7}),
        Sample("Cast", (np.array(["-1.5e3", "+7", ".25", "NaN", "-inf"], object),), {"to": 1}),
        Sample("CastLike", (_INTEGERS, _F[0, :1])),
        Sample("CastLike", (_WIDE, np.zeros(1, ml_dtypes.float8_e5m2)), opset=19),
    )

    @staticmethod
    def _build(context: FormContext) -> Value:
        return _cast(context, onnx_dtype(context.attrs["to"]))

    @staticmethod
    def _like(context: FormContext) -> Value:
        return _cast(context, context.input(1).type.dtype)

    forms = (OnnxForm("Cast", _build), OnnxForm("CastLike", _like))

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        to = _target(attrs)
        if to is DType.BOOL and args[0].dtype is not DType.BOOL:
            return call("ne", args[0], const_like(0, args[0]))
        return saturating(args[0], to) if attrs.get("saturate", False) else cast(args[0], to)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        (content,) = contents
        if content is None or content.dtype.kind not in "iuO" or attrs["to"] not in (DType.INT64, DType.INT32):
            return None
        return content.astype(object)


def _target(attrs: Attrs) -> DType:
    to = attrs["to"]
    if not isinstance(to, DType):
        raise UnsupportedForm(f"attribute to is {to!r}, not an element type")
    return to


def _cast(context: FormContext, to: DType) -> Value:
    x, saturate = context.input(0), bool(context.attrs.get("saturate", 1))
    if DType.STRING in (x.type.dtype, to):
        return cast_text(context, x, to)
    if to is DType.FLOAT8E8M0 and x.type.dtype is not to:
        bits = _same_bits(context, cast_to(context, x, DType.FLOAT32), DType.UINT32)
        code = context.emit("power_code", bits, saturate=saturate, round_mode=str(context.attrs.get("round_mode", "up")))
        return _same_bits(context, code, to)
    if to in _GREATEST and saturate:
        return context.emit("cast", x, to=to, saturate=True)
    return cast_to(context, x, to)


_ROUNDING = {"up": (0x7FFFFF, 0x3FFFFF), "nearest": (0x400000, 0x200000), "down": (0, 0)}
"""What is added to the bits of a normal and of a denormal float32, so that its exponent becomes that of the power of two it rounds to."""


@register
class PowerCode(Elementwise):
    """The code of ``f8e8m0`` for the bits of a float32, whose sign is ignored.

    ``round_mode`` is ``up``, ``down`` or ``nearest`` (of two, the greater). With ``saturate`` what is out of range becomes the nearest end
    of it, zero and infinity included; without it, NaN.
    """

    name = "power_code"

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        mode = attr_str(attrs, "round_mode")
        if mode not in _ROUNDING:
            raise UnsupportedForm(f"round_mode is {mode!r}; the standard knows {', '.join(_ROUNDING)}")

        def number(value: int) -> Const:
            return Const(value, DType.UINT32)

        bits = call("and", args[0], number(0x7FFFFFFF))
        normal, denormal = _ROUNDING[mode]
        added = call("select", call("ge", bits, number(0x800000)), number(normal), number(denormal))
        code = call("shr", call("add", bits, added), number(23))
        nan = call("gt", bits, number(0x7F800000)) if attr_int(attrs, "saturate") else call("lt", bits, number(0x400000))
        greatest = number(0xFE if attrs["saturate"] else 0xFF)
        return cast(call("select", nan, number(0xFF), call("min", code, greatest)), DType.UINT8)


@register
class BitCast(Op):
    """The same bytes as elements of another type of the same width."""

    name = "bitcast"
    is_view = True
    samples = (
        Sample("BitCast", (_F,), {"to": 6}, opset=26),
        Sample("BitCast", (np.array(-2, np.int64),), {"to": 11}, opset=26),
        Sample("BitCast", (np.array([True, False]),), {"to": 2}, opset=26),
        Sample("BitCast", (_CODES,), {"to": 17}, opset=26),
        Sample("BitCast", (_CODES[:16].view(ml_dtypes.int4),), {"to": 23}, opset=26),
        Sample("BitCast", (_F.astype(np.float16),), {"to": 16}, opset=26),
        Sample("BitCast", (np.zeros((2, 0), np.float32),), {"to": 12}, opset=26),
    )

    @staticmethod
    def _build(context: FormContext) -> Value:
        x, to = context.input(0), onnx_dtype(context.attrs["to"])
        return cast_to(context, x, to) if to is DType.BOOL and x.type.dtype.bits == to.bits else _same_bits(context, x, to)

    forms = (OnnxForm("BitCast", _build, since=26),)

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        type_, to = first_type(inputs), _target(attrs)
        if type_.dtype.bits != to.bits:
            raise UnsupportedForm(f"the bits of {type_.dtype.value} are not those of {to.value}: elements must be of one width")
        return (TensorType(to, type_.shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (array(inputs[0]).view(_target(attrs).numpy),)


def _same_bits(context: FormContext, x: Value, to: DType) -> Value:
    return x if x.type.dtype is to else context.emit("bitcast", x, to=to)
