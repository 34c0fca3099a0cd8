"""Normalisations written out: by mean and variance (layer, instance, group), or by the root of the mean square alone.

They are found over any axes and with any factors.
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
from compiler.ops.support import attr_int, attr_ints, divide
from passes.pattern import Match, Pattern, either, number, op, value
from passes.recovery.parts import Mean, inverse
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
        axes, epsilon = _SQUARE.reduced.axes(match), _epsilon(match, share)
        result = builder.emit("normalize", match["x"], axes=axes, groups=1, epsilon=epsilon, center=center, name=match.root.name)
        if abs(share - 1) > _CLOSE:
            result = builder.emit("mul", result, builder.constant(np.asarray(1 / sqrt(share)).astype(result.type.dtype.numpy)))
        if "gamma" in match:
            result = builder.emit("mul", result, match["gamma"])
        return builder.emit("add", result, match["beta"]) if "beta" in match else result

    return build


_FLAT = op("reshape", op("normalize", op("reshape", value("x")), name="normal"))


def _row_axes(match: Match) -> tuple[tuple[int, ...], int] | None:
    """The axes of the result that are those of a row, and the groups of the first of them; None where that cannot be told."""
    normal, shape = match.node("normal"), match.root.output.type.shape
    axes = attr_ints(normal.attrs, "axes")
    if axes != tuple(range(axes[0], normal.output.type.rank)):
        return None
    rows = product(normal.output.type.shape[: axes[0]]) * attr_int(normal.attrs, "groups")
    for axis, dim in enumerate(shape):
        if product(shape[:axis]) == rows:
            return tuple(range(axis, len(shape))), 1
        groups = divide((rows,), shape[:axis])
        if isinstance(dim, int) and isinstance(groups, int) and 0 < groups < dim and dim % groups == 0 and product((*shape[:axis], groups)) == rows:
            return tuple(range(axis, len(shape))), groups
    return None


def _check_flat(match: Match) -> str | None:
    shape = match.root.output.type.shape
    if shape == match.node("normal").output.type.shape:
        return "the result is not reshaped"
    return f"no axis of {list(shape)} begins where a row does" if _row_axes(match) is None else None


def _build_apart(match: Match, builder: GraphBuilder) -> Value:
    x, found, shape = match["x"], _row_axes(match), match.root.output.type.shape
    if found is None:
        raise InternalError("a match that its check refuses is built", where="passes.recovery")
    axes, groups = found
    apart = x if x.type.shape == shape else builder.emit("reshape", x, shape=shape, name=match.root.name)
    return builder.emit("normalize", apart, name=match.root.name, **{**match.node("normal").attrs, "axes": axes, "groups": groups})


_OF_CENTERED = op("normalize", op("sub", _X, _AVERAGE), center=False, name="normal")


def _check_centered(match: Match) -> str | None:
    of_squares, axes = attr_ints(match.node("normal").attrs, "axes"), _MEAN.reduced.axes(match)
    if axes != of_squares:
        return f"the mean is over axes {list(axes)}, the squares are over axes {list(of_squares)}"
    if match.node("normal").attrs["groups"] != 1:
        return "the squares are of groups"
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
