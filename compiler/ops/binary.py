"""Elementwise operations of two or three operands: arithmetic, comparison, logic, selection, clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, IntExpr, floordiv, maximum, minimum, mod
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Sample, Simplification, register
from compiler.ir.run_time import lower_bound
from compiler.ir.scalar import Scalar, call, cast, const_like, divide
from compiler.ir.types import DType, TensorType
from compiler.ops.simplify_arithmetic import (
    clip_at_zero,
    clipped_twice,
    known_condition,
    known_exponent,
    neutral_operand,
    power_of_two_divisor,
    same_operands,
    unbounded,
)
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    attr_float,
    fold_left,
    forward,
    normalize_axis,
    per_channel,
    reshape,
    scalar_like,
)

_F = np.array([[-2.5, -0.0, 1.0], [3.5, np.inf, np.nan]], np.float32)
_ROW = np.array([2.0, -1.5, 4.0], np.float32)
_I = np.array([[-7, 5, 9], [4, -2, 0]], np.int32)
_IROW = np.array([2, -3, 4], np.int32)
_B = np.array([[True, False, True]])
_BCOL = np.array([[True], [False]])
_TEXTS = np.array([["a", "b", "a"], ["", "é", ""]], object)
_EMPTY = np.zeros((0, 3), np.float32)

_MATCHING = "operands have different element types: {}"

DimFunction = Callable[[object, object], object]


def same_dtype(types: Types) -> None:
    """Refuse operands of different element types."""
    dtypes = {t.dtype for t in types if t is not None}
    if len(dtypes) > 1:
        raise UnsupportedForm(_MATCHING.format(", ".join(sorted(d.value for d in dtypes))))


class Binary(Elementwise):
    """A function of two operands of one element type; ``dims`` is its meaning on symbolic dims, for shape arithmetic."""

    dims: DimFunction | None = None

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs)
        return super().infer(inputs, attrs)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        left, right = contents
        function = self.dims
        if function is None or left is None or right is None or {left.dtype.kind, right.dtype.kind} - set("iubO"):
            return None
        pairs = np.broadcast(left.astype(object), right.astype(object))
        found = [function(a, b) for a, b in pairs]
        if any(f is None for f in found):
            return None
        content = np.empty(pairs.shape, object)
        content.reshape(-1)[:] = found
        return content


_SIMPLIFICATIONS: dict[str, tuple[Simplification, ...]] = {
    **dict.fromkeys(("add", "sub", "mul", "xor", "bitwise_xor"), (neutral_operand,)),
    **dict.fromkeys(("and", "or", "bitwise_or"), (neutral_operand, same_operands)),
    **dict.fromkeys(("maximum", "minimum", "bitwise_and"), (same_operands,)),
}


def _define(
    op_name: str, onnx_name: str, function: str, samples_: tuple[Sample, ...], dims_: DimFunction | None = None, *, variadic: bool = False
) -> None:
    """Register ``function`` as an op with one ONNX form."""

    def build(context: FormContext) -> Value:
        left, right = context.input(0), _aligned(context)
        texts = op_name == "equal" and left.type.dtype is DType.STRING
        return context.emit("equal_text" if texts else op_name, left, right)

    @register
    class Plain(Binary):
        """One scalar function of two operands."""

        name = op_name
        forms = (OnnxForm(onnx_name, fold_left(op_name) if variadic else build),)
        samples = samples_
        dims = staticmethod(dims_) if dims_ is not None else None
        simplifications = _SIMPLIFICATIONS.get(op_name, ())

        def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
            return call(function, args[0], args[1])

    del Plain


def _aligned(context: FormContext) -> Value:
    """Operand 1; before version 7 its first axis is the first operand's ``axis``, and axes of 1 are put after it."""
    left, right = context.input(0), context.input(1)
    if context.opset >= 7 or "axis" not in context.attrs:
        return right
    axis = normalize_axis(int(context.attrs["axis"]), left.type.rank)
    return reshape(context, right, (*right.type.shape, *(1,) * (left.type.rank - axis - right.type.rank)))


def _pairs(onnx_name: str, *dtypes: str) -> tuple[Sample, ...]:
    """Samples with broadcasting either way, an empty operand and a scalar one, for float (f), integer (i), boolean (b) operands."""
    operands = {"f": (_F, _ROW), "i": (_I, _IROW), "b": (_B, _BCOL)}
    found = [Sample(onnx_name, operands[d]) for d in dtypes]
    found += [Sample(onnx_name, operands[d][::-1]) for d in dtypes]
    if "f" in dtypes:
        found += [Sample(onnx_name, (_EMPTY, _ROW)), Sample(onnx_name, (np.array(1.5, np.float32), np.array(2.0, np.float32)))]
    return tuple(found)


def _truncating(a: object, b: object) -> object:
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return floordiv(a, b) if isinstance(a, (int, IntExpr)) and isinstance(b, (int, IntExpr)) and b != 0 else None


def _modulo(a: object, b: object) -> object:
    return mod(a, b) if isinstance(a, (int, IntExpr)) and isinstance(b, (int, IntExpr)) and b != 0 else None


def _dims(function: Callable[..., object]) -> DimFunction:
    return lambda a, b: function(a, b) if isinstance(a, (int, IntExpr)) and isinstance(b, (int, IntExpr)) else None


def _compare(function: Callable[[int], bool]) -> DimFunction:
    """A comparison of dims, decided by their difference, or by what is known of its sign; None while that is not enough."""

    def decide(a: object, b: object) -> object:
        if not isinstance(a, (int, IntExpr)) or not isinstance(b, (int, IntExpr)):
            return None
        difference = a - b
        if isinstance(difference, int):
            return function(difference)
        least, most = lower_bound(difference, 0), lower_bound(-difference, 0)
        possible = {sign for sign, bound in ((1, least), (-1, most)) if bound is not None and bound >= 0}
        answers = {function(sign) for sign in possible} | {function(0) for bound in (least, most) if bound == 0}
        return answers.pop() if len(answers) == 1 else None

    return decide


_define("add", "Add", "add", _pairs("Add", "f", "i"), _dims(lambda a, b: a + b))
_define("sub", "Sub", "sub", _pairs("Sub", "f", "i"), _dims(lambda a, b: a - b))
_define("mul", "Mul", "mul", _pairs("Mul", "f", "i"), _dims(lambda a, b: a * b))
_define("maximum", "Max", "max", (*_pairs("Max", "f", "i"), Sample("Max", (_F, _ROW, _F))), _dims(maximum), variadic=True)
_define("minimum", "Min", "min", (*_pairs("Min", "f", "i"), Sample("Min", (_F, _ROW, _F))), _dims(minimum), variadic=True)
_define("equal", "Equal", "eq", (*_pairs("Equal", "f", "i", "b"), Sample("Equal", (_TEXTS, _TEXTS[:, :1]))), _compare(lambda d: d == 0))
_define("less", "Less", "lt", _pairs("Less", "f", "i"), _compare(lambda d: d < 0))
_define("less_or_equal", "LessOrEqual", "le", _pairs("LessOrEqual", "f", "i"), _compare(lambda d: d <= 0))
_define("greater", "Greater", "gt", _pairs("Greater", "f", "i"), _compare(lambda d: d > 0))
_define("greater_or_equal", "GreaterOrEqual", "ge", _pairs("GreaterOrEqual", "f", "i"), _compare(lambda d: d >= 0))
_define("and", "And", "and", _pairs("And", "b"))
_define("or", "Or", "or", _pairs("Or", "b"))
_define("xor", "Xor", "xor", _pairs("Xor", "b"))
_define("bitwise_and", "BitwiseAnd", "and", _pairs("BitwiseAnd", "i"))
_define("bitwise_or", "BitwiseOr", "or", _pairs("BitwiseOr", "i"))
_define("bitwise_xor", "BitwiseXor", "xor", _pairs("BitwiseXor", "i"))


def _variadic_sum(context: FormContext) -> Value:
    return fold_left("add")(context)


def _variadic_mean(context: FormContext) -> Value:
    total = _variadic_sum(context)
    return context.emit("mul", total, scalar_like(context, total, 1 / len(context.inputs)))


class Division(Binary):
    """A division; integers divided by zero end a run with an error."""

    def divisors(self, contents: Arrays) -> Sequence[Dim]:
        numbers = () if contents[1] is None else contents[1].reshape(-1)
        return [number for number in numbers if isinstance(number, IntExpr)]


@register
class Div(Division):
    """The quotient; that of integers is rounded towards zero."""

    name = "div"
    simplifications = (neutral_operand, power_of_two_divisor)
    dims = staticmethod(_truncating)
    samples = (*_pairs("Div", "f"), Sample("Div", (_I, _IROW)))
    forms = (OnnxForm("Div", lambda context: context.emit("div", context.input(0), _aligned(context))),)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        return divide("div", args[0], args[1])


@register
class Mod(Division):
    """Remainder with the divisor's sign, or with the dividend's (``fmod``)."""

    name = "mod"
    dims = staticmethod(_modulo)
    samples = (
        Sample("Mod", (_I, _IROW)),
        Sample("Mod", (_I, _IROW), {"fmod": 1}),
        Sample("Mod", (_F, _ROW), {"fmod": 1}),
        Sample("Sum", (_F, _ROW, _F)),
        Sample("Mean", (_F, _ROW, _F)),
    )

    @staticmethod
    def _build(context: FormContext) -> Value:
        return context.emit("mod", context.input(0), context.input(1), fmod=bool(context.attrs.get("fmod", 0)))

    forms = (OnnxForm("Mod", _build), OnnxForm("Sum", _variadic_sum), OnnxForm("Mean", _variadic_mean))

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        return divide("fmod" if attrs["fmod"] else "mod", args[0], args[1])


@register
class Pow(Elementwise):
    """The power with the type of its base, whatever the exponent's."""

    name = "pow"
    simplifications = (known_exponent,)
    forms = (OnnxForm("Pow", lambda context: context.emit("pow", context.input(0), _aligned(context))),)
    samples = (
        Sample("Pow", (np.array([0.5, 2.0, 3.0], np.float32), np.array([2.0, -1.0, 0.5], np.float32))),
        Sample("Pow", (_F, np.array(2.0, np.float32)), constant=(1,)),
        Sample("Pow", (_ROW, np.array([2, 3, 2], np.int64))),
        Sample("Pow", (_I, np.array([2, 3, 1], np.int32))),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        base, exponent = args
        if not base.dtype.is_float and exponent.dtype.is_float:
            return cast(call("pow", cast(base, DType.FLOAT64), cast(exponent, DType.FLOAT64)), base.dtype)
        return call("pow", base, cast(exponent, base.dtype))


@register
class Shift(Binary):
    """Bit shift; ``direction`` is ``LEFT`` or ``RIGHT``."""

    name = "shift"
    simplifications = (neutral_operand,)
    samples = (
        Sample("BitShift", (np.array([16, 4, 1], np.uint8), np.array([1, 2, 3], np.uint8)), {"direction": "RIGHT"}),
        Sample("BitShift", (np.array([16, 4, 1], np.uint32), np.array([1, 2, 3], np.uint32)), {"direction": "LEFT"}),
    )
    forms = (OnnxForm("BitShift", lambda context: context.emit("shift", context.input(0), context.input(1), direction=context.attrs["direction"])),)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        return call("shl" if attrs["direction"] == "LEFT" else "shr", args[0], args[1])


def _channel_slopes(context: FormContext) -> Value:
    """Before version 7: one slope for all, or one for each channel."""
    x, slope = context.input(0), context.input(1)
    shared = slope.type.rank != 1 or slope.type.shape[0] == 1
    return context.emit("prelu", x, slope if shared else per_channel(context, slope, x.type.rank))


@register
class PRelu(Binary):
    """x where it is positive, ``slope * x`` where it is negative."""

    name = "prelu"
    forms = (OnnxForm("PRelu", forward("prelu", 2), since=7), OnnxForm("PRelu", _channel_slopes, until=6))
    samples = (
        Sample("PRelu", (_F, _ROW)),
        Sample("PRelu", (_F[None], _BCOL.astype(np.float32)), constant=(1,)),
        Sample("PRelu", (_F, _ROW), opset=6),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        x, slope = args
        return call("select", call("lt", x, const_like(0, x)), call("mul", x, slope), x)


@register
class Where(Elementwise):
    """Operand 1 where operand 0 is true, else operand 2."""

    name = "where"
    simplifications = (known_condition, same_operands)
    takes_strings = True
    forms = (OnnxForm("Where", forward("where", 3)),)
    samples = (Sample("Where", (_BCOL, _F, _ROW)), Sample("Where", (_B, _I, _IROW)), Sample("Where", (np.array(True), _EMPTY, _ROW)))

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs[1:])
        return super().infer(inputs, attrs)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        return call("select", *args)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        condition, left, right = contents
        if condition is None or left is None or right is None or {left.dtype.kind, right.dtype.kind} - set("iuO"):
            return None
        return np.where(condition.astype(bool), left.astype(object), right.astype(object))


@register
class Clip(Elementwise):
    """``min(max(x, low), high)`` with literal bounds; an absent one is infinite, or None for integers."""

    name = "clip"
    simplifications = (unbounded, clip_at_zero, clipped_twice)
    samples = (
        Sample("Clip", (_F, np.array(-1.0, np.float32), np.array(2.0, np.float32)), constant=(1, 2)),
        Sample("Clip", (_F, None, np.array(2.0, np.float32)), constant=(2,)),
        Sample("Clip", (_F, np.array(-1.0, np.float32), np.array(2.0, np.float32))),
        Sample("Clip", (_F, np.array(2.0, np.float32), np.array(-1.0, np.float32)), constant=(1, 2)),
        Sample("Clip", (_I, np.array(-1, np.int32), np.array(6, np.int32)), constant=(1, 2)),
        Sample("Clip", (_F,), {"min": 0.0, "max": 6.0}, opset=7),
    )

    @staticmethod
    def _build(context: FormContext) -> Value:
        x = context.input(0)
        low, high = context.attrs.get("min"), context.attrs.get("max")
        for index, op in ((1, "maximum"), (2, "minimum")):
            bound, value = context.optional(index), context.constant(index)
            if bound is not None and value is None:
                x = context.emit(op, x, bound)
            elif value is not None and op == "maximum":
                low = value.item()
            elif value is not None:
                high = value.item()
        return context.emit("clip", x, low=low, high=high) if low is not None or high is not None else x

    forms = (OnnxForm("Clip", _build),)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        x = args[0]
        for name, function in (("low", "max"), ("high", "min")):
            if attrs[name] is not None:
                bound = attr_float(attrs, name) if x.dtype.is_float else attrs[name]
                x = call(function, x, const_like(bound, x))  # type: ignore[arg-type]
        return x
