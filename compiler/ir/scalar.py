"""Scalar expressions: what an elementwise op computes for one element, as data.

Ops declare them, fusion composes them, kernel builders inline them at loads and stores, and the interpreter evaluates them in
numpy. The same function names are the value operations of Loop IR, so that each has one meaning in the whole compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from compiler.errors import BY_ZERO
from compiler.ir.types import Array as Array
from compiler.ir.types import DType, compute_dtype, is_coded


@dataclass(frozen=True, slots=True)
class Arg:
    """The element of operand ``index``."""

    index: int
    dtype: DType

    def __str__(self) -> str:
        return f"${self.index}:{self.dtype.value}"


@dataclass(frozen=True, slots=True)
class Const:
    """A literal."""

    value: float | int | bool
    dtype: DType

    def __str__(self) -> str:
        return f"{self.value!r}:{self.dtype.value}"


@dataclass(frozen=True, slots=True)
class Call:
    """A scalar function of other expressions; ``dtype`` is the result's."""

    fn: str
    args: tuple[Scalar, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.fn}:{self.dtype.value}({', '.join(map(str, self.args))})"


Scalar = Union[Arg, Const, Call]


@dataclass(frozen=True, slots=True)
class Function:
    """A scalar function's meaning. ``result`` is ``same`` (as the first argument), ``bool``, ``second`` (as argument 1) or ``cast``."""

    arity: int
    numpy: Callable[..., Array]
    result: str = "same"


def _erf(x: Array) -> Array:
    from math import erf

    result: Array = np.vectorize(erf, otypes=[np.float64])(x)
    return result.astype(x.dtype)


def _divide(x: Array, y: Array) -> Array:
    """Integers round towards zero; a zero divisor counts as one, and the most negative number over -1 wraps."""
    if x.dtype.kind not in "iu":
        return np.true_divide(x, y)
    divisor = np.where(y == 0, np.ones_like(y), y)
    quotient: Array = np.floor_divide(x, divisor)
    inexact: Array = quotient * divisor != x
    opposed: Array = (x < 0) != (divisor < 0)
    return np.add(quotient, np.logical_and(inexact, opposed), dtype=x.dtype)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


FUNCTIONS: dict[str, Function] = {
    "add": Function(2, np.add),
    "sub": Function(2, np.subtract),
    "mul": Function(2, np.multiply),
    "div": Function(2, _divide),
    "mod": Function(2, np.mod),
    "fmod": Function(2, np.fmod),
    "pow": Function(2, np.power),
    "max": Function(2, np.maximum),
    "min": Function(2, np.minimum),
    "fma": Function(3, lambda x, y, z: x * y + z),
    "neg": Function(1, np.negative),
    "abs": Function(1, np.abs),
    "sign": Function(1, np.sign),
    "floor": Function(1, np.floor),
    "ceil": Function(1, np.ceil),
    "rint": Function(1, np.rint),
    "trunc": Function(1, np.trunc),
    "sqrt": Function(1, np.sqrt),
    "exp": Function(1, np.exp),
    "log": Function(1, np.log),
    "tanh": Function(1, np.tanh),
    "sigmoid": Function(1, _sigmoid),
    "erf": Function(1, _erf),
    "sin": Function(1, np.sin),
    "cos": Function(1, np.cos),
    "tan": Function(1, np.tan),
    "asin": Function(1, np.arcsin),
    "acos": Function(1, np.arccos),
    "atan": Function(1, np.arctan),
    "sinh": Function(1, np.sinh),
    "cosh": Function(1, np.cosh),
    "asinh": Function(1, np.arcsinh),
    "acosh": Function(1, np.arccosh),
    "atanh": Function(1, np.arctanh),
    "and": Function(2, np.bitwise_and),
    "or": Function(2, np.bitwise_or),
    "xor": Function(2, np.bitwise_xor),
    "not": Function(1, np.invert),
    "shl": Function(2, np.left_shift),
    "shr": Function(2, np.right_shift),
    "eq": Function(2, np.equal, "bool"),
    "ne": Function(2, np.not_equal, "bool"),
    "lt": Function(2, np.less, "bool"),
    "le": Function(2, np.less_equal, "bool"),
    "gt": Function(2, np.greater, "bool"),
    "ge": Function(2, np.greater_equal, "bool"),
    "isnan": Function(1, np.isnan, "bool"),
    "isinf": Function(1, np.isinf, "bool"),
    "select": Function(3, np.where, "second"),
    "cast": Function(1, lambda x: x, "cast"),
}


_NONZERO = "nonzero"


def call(fn: str, *args: Scalar) -> Call:
    """The application of ``fn``, its result type derived. Use ``cast`` for casts."""
    kind = FUNCTIONS[fn].result
    dtype = DType.BOOL if kind == "bool" else args[1].dtype if kind == "second" else args[0].dtype
    return Call(fn, args, dtype)


def nonzero(x: Scalar) -> Scalar:
    """x, a divisor; where an element of it is zero a run ends with an error. No operation of Loop IR: a kernel's epilogue sees to it."""
    return Call(_NONZERO, (x,), x.dtype)


def divide(fn: str, x: Scalar, y: Scalar) -> Scalar:
    """``div``, ``mod`` or ``fmod`` of x and y, where an integer y must not be zero."""
    return call(fn, x, y if y.dtype.is_float else nonzero(y))


def divisors(expr: Scalar) -> Iterator[Call]:
    """Every ``nonzero`` in expr, left to right, with repeats."""
    if isinstance(expr, Call):
        if expr.fn == _NONZERO:
            yield expr
        for arg in expr.args:
            yield from divisors(arg)


def unchecked(expr: Scalar, which: Callable[[Scalar], bool] = lambda _: True) -> Scalar:
    """expr with ``nonzero(x)`` as x alone, for those x that ``which`` holds of."""
    if not isinstance(expr, Call):
        return expr
    args = tuple(unchecked(arg, which) for arg in expr.args)
    return args[0] if expr.fn == _NONZERO and which(expr.args[0]) else Call(expr.fn, args, expr.dtype)


def cast(x: Scalar, dtype: DType) -> Scalar:
    """x converted to dtype; x itself where it already is."""
    return x if x.dtype is dtype else Call("cast", (x,), dtype)


def const_like(value: float | int | bool, x: Scalar) -> Const:
    """A literal of x's type."""
    return Const(value, x.dtype)


def substitute(expr: Scalar, args: Sequence[Scalar]) -> Scalar:
    """expr with operand i replaced by ``args[i]``."""
    if isinstance(expr, Arg):
        return args[expr.index]
    if isinstance(expr, Const):
        return expr
    return Call(expr.fn, tuple(substitute(a, args) for a in expr.args), expr.dtype)


def leaves(expr: Scalar) -> Iterator[Arg]:
    """Every operand reference in expr, left to right, with repeats."""
    if isinstance(expr, Arg):
        yield expr
    elif isinstance(expr, Call):
        for arg in expr.args:
            yield from leaves(arg)


def apply(fn: str, args: Sequence[Array], dtype: DType) -> Array:
    """The function on numpy arrays, rounded to dtype; this is what every other execution of it is compared with.

    Raises ZeroDivisionError where ``nonzero`` meets a zero.
    """
    if fn == _NONZERO:
        if not np.all(args[0]):
            raise ZeroDivisionError(BY_ZERO)
        return args[0]
    with np.errstate(all="ignore"):
        if fn == "cast":
            return cast_array(args[0], dtype)
        operands = args if fn == "select" else [_decoded(x) for x in args]
        return cast_array(np.asarray(FUNCTIONS[fn].numpy(*operands)), dtype)


def cast_array(x: Array, dtype: DType) -> Array:
    """C-like conversion: floats truncate towards zero, out-of-range integers wrap; what is not finite in a narrow float becomes what
    stands for it there (infinity, else NaN, else the greatest number)."""
    target = dtype.numpy
    if x.dtype == target:
        return x
    x = _decoded(x)
    if is_coded(dtype):
        return cast_array(x, compute_dtype(dtype)).astype(target)
    if x.dtype.kind == "f" and target.kind in "iu":
        with np.errstate(invalid="ignore"):
            return x.astype(np.int64).astype(target) if target.itemsize < 8 else x.astype(target)
    return x.astype(target)


def _decoded(x: Array) -> Array:
    """x in the type it is computed in, where its elements are codes."""
    dtype = DType.of(x.dtype)
    return x.astype(compute_dtype(dtype).numpy) if is_coded(dtype) else x


def evaluate(expr: Scalar, args: Sequence[Array]) -> Array:
    """expr over numpy operands, with numpy broadcasting, each step rounded to its own dtype."""
    if isinstance(expr, Arg):
        return args[expr.index]
    if isinstance(expr, Const):
        return np.asarray(expr.value, expr.dtype.numpy)
    return apply(expr.fn, [evaluate(a, args) for a in expr.args], expr.dtype)
