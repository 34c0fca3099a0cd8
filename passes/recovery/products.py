"""Products of three matrices, in the order that takes less."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.types import DType
from passes.pattern import Match, Pattern, either, number, op, value
from passes.rules import Rule

_EXACT = (DType.FLOAT32, DType.FLOAT64)
_A, _B, _C = value("a"), value("b"), value("c")


def _scaled(product: Pattern) -> Pattern:
    return either(op("mul", product, number(name="scale")), product)


_LEFT_FIRST = op("matmul", _scaled(op("matmul", _A, _B, name="inner")), _C)
_RIGHT_FIRST = op("matmul", _A, _scaled(op("matmul", _B, _C, name="inner")))


def _check(match: Match) -> str | None:
    factors = [match[name] for name in "abc"]
    if match.root.output.type.dtype not in _EXACT:
        return f"another order could be out of the range of {match.root.output.type.dtype.value}"
    if not all(factor.type.is_static for factor in factors):
        return "not all sizes of the factors are known"
    if sum(factor in match.builder.constants for factor in factors) > 1:
        return "two of the factors are constants"
    left, right = _work([factor.type.static_shape for factor in factors])
    now, then = (left, right) if match["inner"] in _of(match, "ab") else (right, left)
    return None if then < now else f"it takes {now} multiply-adds, and {then} in the other order"


def _of(match: Match, names: str) -> tuple[Value, ...]:
    """The inner product, where it is of the factors of these names."""
    inner = match.node("inner")
    return inner.outputs if inner.present_inputs == tuple(match[name] for name in names) else ()


def _work(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The multiply-adds of three matrices' product with the left two first, and with the right two."""
    a, b, c = shapes
    (rows, k), (_, n), (_, columns) = (shape[-2:] for shape in shapes)
    whole, left, right = (prod(np.broadcast_shapes(*(shape[:-2] for shape in some))) for some in ((a, b, c), (a, b), (b, c)))
    return left * rows * k * n + whole * rows * n * columns, right * k * n * columns + whole * rows * k * columns


def _build(match: Match, builder: GraphBuilder) -> Value:
    a, b, c, name = match["a"], match["b"], match["c"], match.root.name
    if match["inner"] in _of(match, "ab"):
        result = builder.emit("matmul", a, builder.emit("matmul", b, c, name=match.node("inner").name), name=name)
    else:
        result = builder.emit("matmul", builder.emit("matmul", a, b, name=match.node("inner").name), c, name=name)
    return builder.emit("mul", result, match["scale"], name=name) if "scale" in match else result


RULES = (Rule("cheaper-order", either(_LEFT_FIRST, _RIGHT_FIRST), _build, _check),)
"""``matmul(matmul(a, b) * s, c)`` and ``matmul(a, matmul(b, c) * s)`` become the other one of them where that takes fewer multiply-adds."""
