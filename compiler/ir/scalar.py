"""Scalar expressions: what an elementwise op computes for one element, as data.

Ops declare them, fusion composes them, kernel builders inline them at loads and stores, and the interpreter evaluates them in
numpy. The same function names are the value operations of Loop IR, so that each has one meaning in the whole compiler.

An expression is a graph, not a tree: what it uses twice is in it once, and whatever goes over one goes over its ``parts``. As a tree, a
chain of n squares has 2ⁿ leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Union
from weakref import WeakValueDictionary

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


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A literal. Equal ones have the same text: -0.0 is not 0.0, and NaN is itself."""

    value: float | int | bool
    dtype: DType

    def __str__(self) -> str:
        return f"{self.value!r}:{self.dtype.value}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True, slots=True, weakref_slot=True, init=False, eq=False)
class Call:
    """A scalar function of other expressions; ``dtype`` is the result's. Equal calls are the same object, so that nothing is compared twice."""

    fn: str
    args: tuple[Scalar, ...]
    dtype: DType
    _hash: int = field(init=False, repr=False)

    def __new__(cls, fn: str, args: tuple[Scalar, ...], dtype: DType) -> Call:
        key = (fn, args, dtype)
        found = _CALLS.get(key)
        if found is None:
            found = object.__new__(cls)
            for name, value in zip(("fn", "args", "dtype", "_hash"), (*key, hash(key)), strict=True):
                object.__setattr__(found, name, value)
            _CALLS[key] = found
        return found

    def __eq__(self, other: object) -> bool:
        """Two threads may make the same call at once."""
        if self is other or not isinstance(other, Call) or self._hash != other._hash:
            return self is other
        return (self.fn, self.args, self.dtype) == (other.fn, other.args, other.dtype)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        """Its calls in order: ``%0 = mul:f32($0:f32, $0:f32); %1 = sqrt:f32(%0)``."""
        names: dict[Scalar, str] = {}
        lines: list[str] = []
        for part in parts(self):
            if isinstance(part, Call):
                names[part] = f"%{len(lines)}"
                lines.append(f"{names[part]} = {part.fn}:{part.dtype.value}({', '.join(names[arg] for arg in part.args)})")
            else:
                names[part] = str(part)
        return "; ".join(lines)


Scalar = Union[Arg, Const, Call]

_CALLS: WeakValueDictionary[tuple[str, tuple[Scalar, ...], DType], Call] = WeakValueDictionary()


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


def parts(*exprs: Scalar) -> list[Scalar]:
    """Every different sub-expression of exprs, each behind those that it uses, left to right."""
    found: dict[Scalar, None] = {}
    pending = list(reversed(exprs))
    while pending:
        expr = pending[-1]
        missing = [arg for arg in expr.args if arg not in found] if isinstance(expr, Call) and expr not in found else []
        if missing:
            pending += reversed(missing)
        else:
            found[pending.pop()] = None
    return list(found)


def rebuilt(expr: Scalar, rule: Callable[[Scalar], Scalar]) -> Scalar:
    """expr with each part, its operands replaced already, replaced by what ``rule`` gives for it."""
    made: dict[Scalar, Scalar] = {}
    for part in parts(expr):
        made[part] = rule(Call(part.fn, tuple(made[arg] for arg in part.args), part.dtype) if isinstance(part, Call) else part)
    return made[expr]


def leaves(*exprs: Scalar) -> list[Arg]:
    """The operands that exprs read, left to right."""
    return [part for part in parts(*exprs) if isinstance(part, Arg)]


def calls(*exprs: Scalar) -> list[Call]:
    """The functions that exprs apply, each behind those whose results it takes."""
    return [part for part in parts(*exprs) if isinstance(part, Call)]


def divisors(*exprs: Scalar) -> list[Call]:
    """Every different ``nonzero`` in exprs, left to right."""
    return [part for part in calls(*exprs) if part.fn == _NONZERO]


def unchecked(expr: Scalar, which: Callable[[Scalar], bool] = lambda _: True) -> Scalar:
    """expr with ``nonzero(x)`` as x alone, for those x that ``which`` holds of."""
    return rebuilt(expr, lambda part: part.args[0] if isinstance(part, Call) and part.fn == _NONZERO and which(part.args[0]) else part)


def cast(x: Scalar, dtype: DType) -> Scalar:
    """x converted to dtype; x itself where it already is."""
    return x if x.dtype is dtype else Call("cast", (x,), dtype)


def const_like(value: float | int | bool, x: Scalar) -> Const:
    """A literal of x's type."""
    return Const(value, x.dtype)


def substitute(expr: Scalar, args: Sequence[Scalar]) -> Scalar:
    """expr with operand i replaced by ``args[i]``."""
    return rebuilt(expr, lambda part: args[part.index] if isinstance(part, Arg) else part)


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
    steps = parts(expr)
    uses = Counter(arg for step in steps if isinstance(step, Call) for arg in step.args)
    values: dict[Scalar, Array] = {}
    for step in steps:
        if isinstance(step, Call):
            values[step] = apply(step.fn, [values[arg] for arg in step.args], step.dtype)
            uses.subtract(step.args)
            for arg in step.args:
                if not uses[arg]:
                    values.pop(arg, None)
        else:
            values[step] = args[step.index] if isinstance(step, Arg) else np.asarray(step.value, step.dtype.numpy)
    return values[expr]
