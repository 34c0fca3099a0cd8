"""Normalisations written out: by mean and variance (layer, instance, group), or by the root of the mean square alone.

They are found over any axes and with any factors; ``normalize`` works on trailing axes, so that others are transposed to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import numpy as np

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import product
from compiler.ir.types import compute_dtype
from compiler.ops.support import attr_int, divide
from passes.pattern import Match, Pattern, either, number, op, value
from passes.recovery.parts import Mean, inverse
from passes.regroup import Shape
from passes.rules import Rule

_CLOSE = 1e-5
"""How far a factor may be from 1 to be left out."""
_ROUNDED = 8e-3
"""How far one over the number of elements may be from it where it is rounded to 16 bits."""


class _Spread:
    """The root of the mean square of a value, perhaps with an epsilon beneath it, and the value divided by it."""

    def __init__(self, of: Pattern) -> None:
        self.square = Mean("square", op("mul", of, of))
        mean = self.square.pattern
        beneath = either(op("add", mean, number(name="epsilon")), mean, name="beneath")
        root = op("sqrt", beneath)
        inverted = either(inverse(root), op("pow", beneath, number(-0.5)))
        self.factor = either(op("mul", inverted, value("gamma")), inverted)
        self.divided = either(op("div", of, root), op("mul", of, self.factor))


_X = value("x")
_MEAN = Mean("mean", _X)
_AVERAGE = _MEAN.pattern
_CENTERED = _Spread(op("sub", _X, _AVERAGE))
_PLAIN = _Spread(_X)
_SQUARE = _PLAIN.square
_SHIFTED = op("add", op("mul", _X, _CENTERED.factor), op("sub", value("beta"), op("mul", _AVERAGE, _CENTERED.factor)))


def _check_squares(match: Match) -> str | None:
    if not match["x"].type.dtype.is_float:
        return f"%{match['x'].name} holds integers"
    if (reason := _SQUARE.reduced.not_kept(match, "beneath")) is not None:
        return reason
    if (share := _SQUARE.share(match)) is None or share <= 0:
        return "what the sum of the squares is multiplied with is not a positive number"
    if not 0 <= _epsilon(match, share) < inf:
        return f"the epsilon is {_epsilon(match, share):.8g}"
    return None


def _check_mean(match: Match) -> str | None:
    axes, of_squares = _MEAN.reduced.axes(match), _SQUARE.reduced.axes(match)
    if axes != of_squares:
        return f"the mean is over axes {list(axes)}, the squares are over axes {list(of_squares)}"
    return _check_subtracted(match) or _check_squares(match)


def _check_subtracted(match: Match) -> str | None:
    share = _MEAN.share(match)
    dtype = match["x"].type.dtype
    if share is None or abs(share - 1) > (_CLOSE if compute_dtype(dtype) is dtype else _ROUNDED):
        return f"what is subtracted is not the mean{'' if share is None else f' but {share:.8g} times the mean'}"
    return _MEAN.reduced.not_kept(match, "mean")


def _epsilon(match: Match, share: float) -> float:
    """Beneath a root of a mean, where it stands beneath ``share`` times the mean."""
    return (match.number("epsilon") if "epsilon" in match else 0.0) / share


def _build(center: bool) -> Callable[[Match, GraphBuilder], Value]:
    def build(match: Match, builder: GraphBuilder) -> Value:
        share = _SQUARE.share(match) or 1.0
        result = _normalized(match, builder, epsilon=_epsilon(match, share), center=center)
        if abs(share - 1) > _CLOSE:
            result = builder.emit("mul", result, builder.constant(np.asarray(1 / sqrt(share)).astype(result.type.dtype.numpy)))
        if "gamma" in match:
            result = builder.emit("mul", result, match["gamma"])
        return builder.emit("add", result, match["beta"]) if "beta" in match else result

    return build


def _normalized(match: Match, builder: GraphBuilder, *, epsilon: float, center: bool) -> Value:
    """x normalised over its axes, which are transposed to the end where they are not there."""
    x, name, axes = match["x"], match.root.name, _SQUARE.reduced.axes(match)
    order = (*(axis for axis in range(x.type.rank) if axis not in axes), *axes)
    moved = order != tuple(range(x.type.rank))
    rows = builder.emit("transpose", x, perm=order, name=name) if moved else x
    result = builder.emit("normalize", rows, axis=x.type.rank - len(axes), epsilon=epsilon, center=center, name=name)
    return builder.emit("transpose", result, perm=tuple(order.index(axis) for axis in range(x.type.rank)), name=name) if moved else result


_FLAT = op("reshape", op("normalize", op("reshape", value("x")), name="normal"))


def _row_split(match: Match) -> tuple[Shape, int] | None:
    """x's own shape, with one axis split where a row begins within it, and the first axis of a row; None where that cannot be told."""
    normal, shape = match.node("normal"), match["x"].type.shape
    rows = product(normal.output.type.shape[: attr_int(normal.attrs, "axis")])
    for axis in range(len(shape)):
        if product(shape[:axis]) == rows:
            return shape, axis
    for axis, dim in enumerate(shape):
        groups = divide((rows,), shape[:axis])
        if isinstance(dim, int) and isinstance(groups, int) and 0 < groups < dim and dim % groups == 0 and product((*shape[:axis], groups)) == rows:
            return (*shape[:axis], groups, dim // groups, *shape[axis + 1 :]), axis + 1
    return None


def _check_flat(match: Match) -> str | None:
    if match["x"].type.shape != match.root.output.type.shape:
        return f"the result is not of the shape of %{match['x'].name}"
    split = _row_split(match)
    if split is None:
        return f"no axis of %{match['x'].name} begins where a row does"
    return "its axes are apart" if split[0] == match["normal"].type.shape else None


def _build_apart(match: Match, builder: GraphBuilder) -> Value:
    x, normal, split = match["x"], match.node("normal"), _row_split(match)
    if split is None:
        raise InternalError("a match that its check refuses is built", where="passes.recovery")
    shape, axis = split
    rows = x if shape == x.type.shape else builder.emit("reshape", x, shape=shape, name=normal.name)
    result = builder.emit("normalize", rows, name=normal.name, **{**normal.attrs, "axis": axis})
    return result if shape == x.type.shape else builder.emit("reshape", result, shape=x.type.shape, name=match.root.name)


_OF_CENTERED = op("normalize", op("sub", _X, _AVERAGE), center=False, name="normal")


def _check_centered(match: Match) -> str | None:
    axis, axes = attr_int(match.node("normal").attrs, "axis"), _MEAN.reduced.axes(match)
    if axes != tuple(range(axis, match["x"].type.rank)):
        return f"the mean is over axes {list(axes)}, the squares are over those from axis {axis} on"
    return _check_subtracted(match)


def _build_centered(match: Match, builder: GraphBuilder) -> Value:
    return builder.emit("normalize", match["x"], name=match.root.name, **{**match.root.attrs, "center": True})


RULES = (
    Rule("normalize", _CENTERED.divided, _build(center=True), _check_mean),
    Rule("normalize-by-factor", _SHIFTED, _build(center=True), _check_mean),
    Rule("rms-normalize", _PLAIN.divided, _build(center=False), _check_squares),
    Rule("centered-normalize", _OF_CENTERED, _build_centered, _check_centered),
    Rule("unflattened-normalize", _FLAT, _build_apart, _check_flat),
)
"""``(x - mean) / sqrt(variance + epsilon)``; ``x * f + (beta - mean * f)``, where f is gamma over that root; ``x / sqrt(mean(x²) + epsilon)``.
Centered: the mean square of what is centred is its variance. Unflattened: of groups of channels that were reshaped to rows, so that what is per
channel meets it with its axes apart."""
