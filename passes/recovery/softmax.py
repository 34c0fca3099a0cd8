"""Softmax and its logarithm, written as exponentials over their sum."""

from __future__ import annotations

from collections.abc import Callable

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import product
from passes.pattern import Match, either, op, value
from passes.recovery.parts import Reduced, inverse
from passes.rules import Rule

_X = value("x")
_EXP = op("exp", _X)
_SUM = Reduced("sum", _EXP)
_TOTAL = either(_SUM.pattern, name="total")

_SHIFT = value("shift")
_SHIFTED_SUM = Reduced("sum", op("exp", op("sub", _X, _SHIFT)))
_LOG_OF_SUM = op("add", op("log", either(_SHIFTED_SUM.pattern, name="total")), _SHIFT)

_LARGEST = Reduced("max", _X, "max")
_BY_LARGEST = op("softmax", op("sub", _X, either(_LARGEST.pattern, name="largest")), name="softmax")


def _check(match: Match) -> str | None:
    axes, x = _SUM.axes(match), match["x"]
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        return f"axes {list(axes)} of the sum are not neighbours"
    if "shift" in match and any(match["shift"].type.shape[axis] != 1 for axis in _in_shift(match)):
        return f"%{match['shift'].name} is not one number along axes {list(axes)}"
    if x.type.shape != match.root.output.type.shape:
        return f"%{x.name} is broadcast"
    return _SUM.not_kept(match, "total")


def _in_shift(match: Match) -> list[int]:
    """The axes of the sum as axes of the shift, which may be of lower rank."""
    missing = match["x"].type.rank - match["shift"].type.rank
    return [axis - missing for axis in _SUM.axes(match) if axis >= missing]


def _build(log: bool) -> Callable[[Match, GraphBuilder], Value]:
    """Neighbouring axes are taken together, as one."""

    def build(match: Match, builder: GraphBuilder) -> Value:
        x, axes, name = match["x"], _SUM.axes(match), match.root.name
        shape, first = x.type.shape, axes[0]
        flat = x
        if len(axes) > 1:
            flat = builder.emit("reshape", x, shape=(*shape[:first], product(_SUM.extents(match)), *shape[axes[-1] + 1 :]), name=name)
        result = builder.emit("softmax", flat, axis=first, log=log, name=name)
        return result if flat is x else builder.emit("reshape", result, shape=shape, name=name)

    return build


def _check_largest(match: Match) -> str | None:
    axis = match.node("softmax").attrs["axis"]
    if _LARGEST.axes(match) != (axis,):
        return f"the largest is along axes {list(_LARGEST.axes(match))}, the softmax along axis {axis}"
    return _LARGEST.not_kept(match, "largest")


def _build_unshifted(match: Match, builder: GraphBuilder) -> Value:
    return builder.emit("softmax", match["x"], name=match.root.name, **match.root.attrs)


RULES = (
    Rule("softmax", either(op("div", _EXP, _TOTAL), op("mul", _EXP, inverse(_TOTAL))), _build(log=False), _check),
    Rule("log-softmax", either(op("sub", _X, op("log", _TOTAL)), op("sub", _X, _LOG_OF_SUM)), _build(log=True), _check),
    Rule("unshifted-softmax", _BY_LARGEST, _build_unshifted, _check_largest),
)
"""``exp(x) / sum(exp(x))``; ``x - log(sum(exp(x)))``, perhaps shifted before and back after; ``softmax(x - max(x))``, which is ``softmax(x)``."""
