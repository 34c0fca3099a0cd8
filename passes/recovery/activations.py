"""Activation functions written out in elementary ones."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Attr, Value
from passes.pattern import Match, either, number, op, value
from passes.recovery.parts import inverse, scaled, times
from passes.rules import Rule

_X = value("x")
_HALF = number(0.5)


def _function(name: str, **attrs: Attr) -> Callable[[Match, GraphBuilder], Value]:
    """x under an elementwise operator."""
    return lambda match, builder: builder.emit(name, match["x"], name=match.root.name, **attrs)


def _quick(match: Match, builder: GraphBuilder) -> Value:
    return builder.emit("swish", match["x"], alpha=match.number("alpha"), name=match.root.name)


_ERF = op("erf", scaled(_X, sqrt(0.5)))
_GELU = either(times(_X, _HALF, op("add", _ERF, number(1))), op("mul", _X, op("add", op("mul", _ERF, _HALF), _HALF)))

_SQUARED = op("mul", _X, _X)
_CUBED = op("mul", _SQUARED, _X)
_CUBIC = either(
    scaled(op("add", _X, op("mul", _CUBED, number(0.044715))), sqrt(2 / pi)),
    times(_X, number(sqrt(2 / pi)), op("add", op("mul", _SQUARED, number(0.044715)), number(1))),
)
_GELU_TANH = times(_X, _HALF, op("add", op("tanh", _CUBIC), number(1)))

_LOGISTIC = inverse(op("add", op("exp", op("neg", _X)), number(1)))
_SWISH = either(op("mul", _X, op("sigmoid", _X)), op("div", _X, op("add", op("exp", op("neg", _X)), number(1))))
_QUICK = op("mul", _X, op("sigmoid", op("mul", _X, number(name="alpha"))))

_SOFTPLUS = op("log", op("add", op("exp", _X), number(1)))
_MISH = op("mul", _X, op("tanh", op("softplus", _X)))

_SIXTH = 1 / 6
_RAISED = either(op("clip", op("add", _X, number(3)), low=0.0, high=6.0), op("minimum", op("relu", op("add", _X, number(3))), number(6)))
_HARD_SIGMOID = scaled(_RAISED, _SIXTH)
_HARD_SWISH = either(
    op("mul", _X, scaled(_RAISED, _SIXTH)),
    scaled(op("mul", _X, _RAISED), _SIXTH),
    op("mul", scaled(_X, _SIXTH), _RAISED),
    op("mul", _X, op("hard_sigmoid", _X, alpha=_SIXTH, beta=0.5)),
)

RULES = (
    Rule("gelu", _GELU, _function("gelu", approximate="none")),
    Rule("gelu-tanh", _GELU_TANH, _function("gelu", approximate="tanh")),
    Rule("sigmoid", _LOGISTIC, _function("sigmoid")),
    Rule("swish", _SWISH, _function("swish", alpha=1.0)),
    Rule("scaled-swish", _QUICK, _quick),
    Rule("softplus", _SOFTPLUS, _function("softplus")),
    Rule("mish", _MISH, _function("mish")),
    Rule("hard-sigmoid", _HARD_SIGMOID, _function("hard_sigmoid", alpha=_SIXTH, beta=0.5)),
    Rule("hard-swish", _HARD_SWISH, _function("hard_swish")),
)
