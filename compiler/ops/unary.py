"""Elementwise functions of one operand: elementary functions and activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt

import numpy as np

from compiler.ir.graph import Array, Value
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Sample, Simplification, register
from compiler.ir.scalar import Scalar, call, const_like
from compiler.ops.simplify_arithmetic import clipped_twice, repeated, undone
from compiler.ops.support import Attrs, attr_float

_REALS = np.array([-np.inf, -1e30, -90.0, -3.5, -1.0, -0.5, -0.0, 0.0, 1e-8, 0.5, 1.0, 1.5, 2.5, 90.0, 1e30, np.inf, np.nan], np.float32)
_MODERATE = np.array([-9.0, -3.5, -1.0, -0.5, 0.0, 1e-6, 0.5, 1.0, 1.5, 2.5, 9.0, np.nan], np.float32)
_UNIT = np.array([-1.0, -0.75, -0.1, 0.0, 0.3, 0.9, 1.0], np.float32)
_POSITIVE = np.array([1.0, 1.25, 2.0, 40.0, 1e8], np.float32)
_EMPTY = np.zeros((2, 0, 3), np.float32)
_SCALAR = np.array(0.75, np.float32)
_INTEGERS = np.array([[-7, 0, 3]], np.int32)

Expression = Callable[[Scalar], Scalar]


def _define(op_name: str, onnx_name: str, expression: Expression, domain: Array, *, more: tuple[Array, ...] = (), since: int = 1) -> None:
    """Register a function without attributes."""

    @register
    class Unary(Elementwise):
        """A function of one operand without attributes."""

        name = op_name
        forms = (OnnxForm(onnx_name, lambda context: context.emit(op_name, context.input(0)), since=since),)
        simplifications = _SIMPLIFICATIONS.get(op_name, ())
        samples = tuple(Sample(onnx_name, (x,)) for x in (domain, _EMPTY, _SCALAR, *more) if onnx_name not in _LOGICAL or x.dtype == domain.dtype)

        def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
            return expression(args[0])

    del Unary


_LOGICAL = ("Not", "BitwiseNot")
_SIMPLIFICATIONS: dict[str, tuple[Simplification, ...]] = {
    **dict.fromkeys(("neg", "not", "bitwise_not"), (undone,)),
    **dict.fromkeys(("abs", "floor", "ceil", "round", "sign"), (repeated,)),
    "relu": (repeated, clipped_twice),
}


def _plain(function: str) -> Expression:
    return lambda x: call(function, x)


def _binary(function: str, x: Scalar, number: float) -> Scalar:
    return call(function, x, const_like(number, x))


def softplus(x: Scalar) -> Scalar:
    """``log(1 + exp(x))`` without overflow."""
    tail = call("log", call("add", const_like(1.0, x), call("exp", call("neg", call("abs", x)))))
    return call("add", _binary("max", x, 0.0), tail)


def _exp_minus_one(x: Scalar, inner: Scalar | None = None) -> Scalar:
    """``exp(inner) - 1``, for a branch that is only taken where x is negative."""
    return _binary("sub", call("exp", _binary("min", x if inner is None else inner, 0.0)), 1.0)


_ELEMENTARY: tuple[tuple[str, str, Expression, Array], ...] = (
    ("neg", "Neg", _plain("neg"), _REALS),
    ("abs", "Abs", _plain("abs"), _REALS),
    ("sign", "Sign", _plain("sign"), _MODERATE[:-1]),
    ("floor", "Floor", _plain("floor"), _REALS),
    ("ceil", "Ceil", _plain("ceil"), _REALS),
    ("round", "Round", _plain("rint"), _REALS),
    ("sqrt", "Sqrt", _plain("sqrt"), _REALS),
    ("exp", "Exp", _plain("exp"), _REALS),
    ("log", "Log", _plain("log"), _REALS),
    ("tanh", "Tanh", _plain("tanh"), _REALS),
    ("sigmoid", "Sigmoid", _plain("sigmoid"), _REALS),
    ("erf", "Erf", _plain("erf"), _REALS),
    ("sin", "Sin", _plain("sin"), _MODERATE),
    ("cos", "Cos", _plain("cos"), _MODERATE),
    ("tan", "Tan", _plain("tan"), _MODERATE),
    ("asin", "Asin", _plain("asin"), _UNIT),
    ("acos", "Acos", _plain("acos"), _UNIT),
    ("atan", "Atan", _plain("atan"), _REALS),
    ("sinh", "Sinh", _plain("sinh"), _MODERATE),
    ("cosh", "Cosh", _plain("cosh"), _MODERATE),
    ("asinh", "Asinh", _plain("asinh"), _MODERATE),
    ("acosh", "Acosh", _plain("acosh"), _POSITIVE),
    ("atanh", "Atanh", _plain("atanh"), _UNIT[1:-1]),
    ("reciprocal", "Reciprocal", lambda x: call("div", const_like(1, x), x), _REALS),
    ("relu", "Relu", lambda x: _binary("max", x, 0), _REALS),
    ("softplus", "Softplus", softplus, _MODERATE),
    ("softsign", "Softsign", lambda x: call("div", x, _binary("add", call("abs", x), 1)), _MODERATE),
    ("hard_swish", "HardSwish", lambda x: call("mul", x, _hard_sigmoid(x, 1 / 6, 0.5)), _MODERATE),
    ("mish", "Mish", lambda x: call("mul", x, call("tanh", softplus(x))), _MODERATE),
    ("is_nan", "IsNaN", _plain("isnan"), _REALS),
    ("not", "Not", _plain("not"), np.array([[True], [False]])),
    ("bitwise_not", "BitwiseNot", _plain("not"), _INTEGERS),
)


def _hard_sigmoid(x: Scalar, alpha: float, beta: float) -> Scalar:
    return _binary("max", _binary("min", _binary("add", _binary("mul", x, alpha), beta), 1), 0)


for _name, _onnx, _expression, _domain in _ELEMENTARY:
    _integers = (_INTEGERS,) if _name in ("neg", "abs", "sign", "relu") else ()
    _define(_name, _onnx, _expression, _domain, more=_integers)


def _select_negative(x: Scalar, negative: Scalar) -> Scalar:
    """``negative`` where x < 0, else x."""
    return call("select", _binary("lt", x, 0), negative, x)


def _leaky(x: Scalar, alpha: float) -> Scalar:
    return _select_negative(x, _binary("mul", x, alpha))


def _elu(x: Scalar, alpha: float) -> Scalar:
    return _select_negative(x, _binary("mul", _exp_minus_one(x), alpha))


def _celu(x: Scalar, alpha: float) -> Scalar:
    return _select_negative(x, _binary("mul", _exp_minus_one(x, _binary("div", x, alpha)), alpha))


def _selu(x: Scalar, alpha: float, gamma: float) -> Scalar:
    return _binary("mul", _elu(x, alpha), gamma)


def _thresholded(x: Scalar, alpha: float) -> Scalar:
    return call("select", _binary("gt", x, alpha), x, const_like(0, x))


def _shrink(x: Scalar, lambd: float, bias: float) -> Scalar:
    low = call("select", _binary("lt", x, -lambd), _binary("add", x, bias), const_like(0, x))
    return call("select", _binary("gt", x, lambd), _binary("sub", x, bias), low)


def _swish(x: Scalar, alpha: float) -> Scalar:
    return call("mul", x, call("sigmoid", x if alpha == 1 else _binary("mul", x, alpha)))


def _define_with(op_name: str, onnx_name: str, defaults: dict[str, float], expression: Callable[..., Scalar], since: int = 1) -> None:
    """Register a function with float attributes, given with their defaults."""

    def build(context: FormContext) -> Value:
        return context.emit(op_name, context.input(0), **{key: float(context.attrs.get(key, value)) for key, value in defaults.items()})

    @register
    class Parametric(Elementwise):
        """A function of one operand with float attributes."""

        name = op_name
        forms = (OnnxForm(onnx_name, build, since=since),)
        samples = (
            Sample(onnx_name, (_MODERATE,), opset=max(20, since)),
            Sample(onnx_name, (_SCALAR,), {key: value + 0.25 for key, value in defaults.items()}, opset=max(20, since)),
        )

        def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
            return expression(args[0], *(attr_float(attrs, key) for key in defaults))

    del Parametric


_define_with("leaky_relu", "LeakyRelu", {"alpha": 0.01}, _leaky)
_define_with("elu", "Elu", {"alpha": 1.0}, _elu)
_define_with("celu", "Celu", {"alpha": 1.0}, _celu)
_define_with("selu", "Selu", {"alpha": 1.6732631921768188, "gamma": 1.0507010221481323}, _selu)
_define_with("hard_sigmoid", "HardSigmoid", {"alpha": 0.2, "beta": 0.5}, _hard_sigmoid)
_define_with("thresholded_relu", "ThresholdedRelu", {"alpha": 1.0}, _thresholded)
_define_with("shrink", "Shrink", {"lambd": 0.5, "bias": 0.0}, _shrink)
_define_with("swish", "Swish", {"alpha": 1.0}, _swish, since=24)


@register
class Gelu(Elementwise):
    """``x/2 * (1 + erf(x/sqrt(2)))``, or its tanh approximation: attribute ``approximate`` is ``none`` or ``tanh``."""

    name = "gelu"

    @staticmethod
    def _build(context: FormContext) -> Value:
        return context.emit("gelu", context.input(0), approximate=context.attrs.get("approximate", "none"))

    forms = (OnnxForm("Gelu", _build, since=20),)
    samples = (Sample("Gelu", (_MODERATE,)), Sample("Gelu", (_MODERATE,), {"approximate": "tanh"}))

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        x = args[0]
        if attrs["approximate"] == "tanh":
            cube = call("mul", call("mul", x, x), x)
            inner = _binary("mul", call("add", x, _binary("mul", cube, 0.044715)), sqrt(2 / pi))
            half = call("tanh", inner)
        else:
            half = call("erf", _binary("mul", x, sqrt(0.5)))
        return call("mul", _binary("mul", x, 0.5), _binary("add", half, 1.0))


@register
class IsInf(Elementwise):
    """Whether an element is infinite; ``positive`` and ``negative`` say which signs count."""

    name = "is_inf"
    samples = (Sample("IsInf", (_REALS,)), Sample("IsInf", (_REALS,), {"detect_negative": 0}), Sample("IsInf", (_REALS,), {"detect_positive": 0}))

    @staticmethod
    def _build(context: FormContext) -> Value:
        signs = {sign: bool(context.attrs.get(f"detect_{sign}", 1)) for sign in ("positive", "negative")}
        return context.emit("is_inf", context.input(0), **signs)

    forms = (OnnxForm("IsInf", _build),)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        x = args[0]
        found = call("isinf", x)
        if not attrs["positive"]:
            found = call("and", found, _binary("lt", x, 0))
        return found if attrs["negative"] else call("and", found, _binary("gt", x, 0))


@register
class Identity(Elementwise):
    """A copy: stands only where a graph output needs a value of its own (an input or a constant handed out as it is)."""

    name = "identity"
    takes_strings = True
    samples = (Sample("Identity", (_REALS,)), Sample("Identity", (_INTEGERS,)))
    forms = (OnnxForm("Identity", lambda context: context.input(0)),)

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        return args[0]
