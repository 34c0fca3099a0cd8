"""Simplifications of arithmetic: operands that change nothing, functions that undo or repeat what their operand is, cheaper functions."""

from __future__ import annotations

from math import inf

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Node, Value
from compiler.ir.types import DType
from compiler.ops.support import attr_ints, is_uniform

_NEUTRAL: dict[str, tuple[int, bool]] = {
    "add": (0, True),
    "sub": (0, False),
    "mul": (1, True),
    "div": (1, False),
    "and": (1, True),
    "or": (0, True),
    "xor": (0, True),
    "bitwise_or": (0, True),
    "bitwise_xor": (0, True),
    "shift": (0, False),
}
"""The operand an op changes nothing with, and whether it may stand on the left."""

_FLOATS = {DType.FLOAT16: (11, 15), DType.BFLOAT16: (8, 127), DType.FLOAT32: (24, 127), DType.FLOAT64: (53, 1023)}
"""The floats that arithmetic is done on: the bits of their significands, and the exponent of their greatest power of two."""


def neutral_operand(node: Node, builder: GraphBuilder) -> Value | None:
    """``x + 0``, ``x - 0``, ``x * 1``, ``x / 1`` and their like, where the constant does not broadcast x."""
    left, right = node.present_inputs
    number, commutes = _NEUTRAL[node.op]
    if left.type == node.output.type and is_uniform(builder, right, number):
        return left
    if commutes and right.type == node.output.type and is_uniform(builder, left, number):
        return right
    return None


def same_operands(node: Node, _: GraphBuilder) -> Value | None:
    """The larger, the smaller, the conjunction, … of a value and itself; a choice between a value and itself."""
    left, right = node.present_inputs[-2:]
    return left if left is right and left.type == node.output.type else None


def power_of_two_divisor(node: Node, builder: GraphBuilder) -> Value | None:
    """A division of floats by powers of two: the product with their reciprocals, which is as exact."""
    left, right = node.present_inputs
    data = builder.array(right)
    if data is None or data.size == 0 or right.type.dtype not in _FLOATS:
        return None
    numbers = data.astype(np.float64)
    halves, exponents = np.frexp(numbers)
    if not np.all((np.abs(halves) == 0.5) & (np.abs(exponents - 1) < _FLOATS[right.type.dtype][1])):
        return None
    return builder.emit("mul", left, builder.constant((1 / numbers).astype(data.dtype)), name=node.name)


def known_exponent(node: Node, builder: GraphBuilder) -> Value | None:
    """The powers 1, 2, 3 and, of floats, -1 and 1/2, as products, reciprocals and roots. (The root of minus infinity is not a number.)"""
    base, exponent = node.present_inputs
    if base.type != node.output.type:
        return None
    if is_uniform(builder, exponent, 1):
        return base
    if is_uniform(builder, exponent, 2):
        return builder.emit("mul", base, base, name=node.name)
    if is_uniform(builder, exponent, 3):
        return builder.emit("mul", builder.emit("mul", base, base, name=node.name), base, name=node.name)
    for number, op in ((-1, "reciprocal"), (0.5, "sqrt")):
        if is_uniform(builder, exponent, number) and base.type.dtype.is_float:
            return builder.emit(op, base, name=node.name)
    return None


def known_condition(node: Node, builder: GraphBuilder) -> Value | None:
    """A choice that is made: what it falls on, where that is not broadcast."""
    condition, left, right = node.present_inputs
    for chosen, truth in ((left, True), (right, False)):
        if chosen.type == node.output.type and is_uniform(builder, condition, truth):
            return chosen
    return None


def clip_at_zero(node: Node, builder: GraphBuilder) -> Value | None:
    """Floats clipped at zero from below alone: a relu."""
    x = node.present_inputs[0]
    if node.attrs["low"] != 0 or node.attrs["high"] not in (None, inf) or not x.type.dtype.is_float:
        return None
    return builder.emit("relu", x, name=node.name)


def unbounded(node: Node, _: GraphBuilder) -> Value | None:
    """Numbers clipped nowhere."""
    return node.present_inputs[0] if _bounds(node) == (-inf, inf) else None


def clipped_twice(node: Node, builder: GraphBuilder) -> Value | None:
    """A clip or relu of another: one clip."""
    inner = builder.producer(node.present_inputs[0])
    bounds = None if inner is None else _bounds(inner)
    own = _bounds(node)
    if inner is None or bounds is None or own is None or bounds[0] > bounds[1] or inner.op == node.op == "relu":
        return None
    x, limited = inner.present_inputs[0], [min(max(bound, own[0]), own[1]) for bound in bounds]
    number = float if x.type.dtype.is_float else int
    low, high = (None if abs(bound) == inf else number(bound) for bound in limited)
    return builder.emit("clip", x, name=node.name, low=low, high=high)


def _bounds(node: Node) -> tuple[float, float] | None:
    """Between what numbers a node brings its operand."""
    if node.op == "relu":
        return 0, inf
    low, high = (node.attrs.get(name) for name in ("low", "high"))
    if node.op != "clip" or not isinstance(low, int | float | None) or not isinstance(high, int | float | None):
        return None
    return -inf if low is None else low, inf if high is None else high


def undone(node: Node, builder: GraphBuilder) -> Value | None:
    """A function that undoes itself, done twice."""
    inner = builder.producer(node.present_inputs[0])
    return inner.present_inputs[0] if inner is not None and inner.op == node.op else None


def repeated(node: Node, builder: GraphBuilder) -> Value | None:
    """A function that changes nothing the second time, done twice."""
    inner = builder.producer(node.present_inputs[0])
    return inner.output if inner is not None and inner.op == node.op else None


def unconverted(node: Node, _: GraphBuilder) -> Value | None:
    """A conversion to the type that there is, unless it takes infinities away."""
    x = node.present_inputs[0]
    return x if x.type == node.output.type and not node.attrs.get("saturate", False) else None


def converted_twice(node: Node, builder: GraphBuilder) -> Value | None:
    """A conversion of what was converted to a type that has all its values: as if that had not been, and back again not at all."""
    inner = builder.producer(node.present_inputs[0])
    if inner is None or inner.op != "cast":
        return None
    x, to = inner.present_inputs[0], node.output.type.dtype
    first, between = x.type.dtype, inner.output.type.dtype
    if not _holds(between, first):
        return None
    if to is first:
        return None if node.attrs.get("saturate", False) else x
    # An integer that is out of range wraps around, a float is clamped or undefined: only integers between integers convert as one step.
    alike = first is DType.BOOL or to is DType.BOOL or to.is_float or not (first.is_float or between.is_float)
    return builder.emit("cast", x, name=node.name, **node.attrs) if alike else None


def _holds(wide: DType, narrow: DType) -> bool:
    """Whether all numbers of one type are among those of another."""
    if narrow is DType.STRING or wide in (DType.STRING, DType.BOOL):
        return wide is narrow
    if narrow is DType.BOOL:
        return wide in _FLOATS or not wide.is_float
    if narrow.is_float:
        return narrow in _FLOATS and wide in (DType.FLOAT32, DType.FLOAT64) and wide.bits >= narrow.bits
    if wide.is_float:
        return narrow.bits - narrow.is_signed <= _FLOATS.get(wide, (0, 0))[0]
    return wide.bits >= narrow.bits + (wide.is_signed and not narrow.is_signed) and wide.is_signed >= narrow.is_signed


def single_elements(node: Node, builder: GraphBuilder) -> Value | None:
    """A sum, product or extreme of one element at a time: that element."""
    x = node.present_inputs[0]
    if any(x.type.shape[axis] != 1 for axis in attr_ints(node.attrs, "axes")):
        return None
    return x if x.type == node.output.type else builder.emit("reshape", x, name=node.name, shape=node.output.type.shape)
