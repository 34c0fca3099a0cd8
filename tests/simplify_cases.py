"""The simplifications, each with what it replaces and what it nearly does; ``test_simplify.py`` tries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import sym
from compiler.ir.types import DType, TensorType
from passes.graph.simplify import NESTED_CONCAT

F16, F32, F64, I8, I32, U8, BOOL = DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.INT8, DType.INT32, DType.UINT8, DType.BOOL
FLOATS = (F32, F16, DType.BFLOAT16, F64)
SHAPE = (2, 3, 4)
GREATEST = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}
"""The exponents of the greatest powers of two."""


class Nodes(GraphBuilder):
    """Writes the nodes of a case over ``x`` and ``y`` of one type, ``rows`` of ``[3, 1]``, ``flags`` of booleans, and ``n`` of ``[N, 4]``."""

    def __init__(self, dtype: DType) -> None:
        super().__init__("g", folding=False)
        self.x, self.y = (self.input(name, TensorType(dtype, SHAPE)) for name in "xy")
        self.rows, self.flags = self.input("rows", TensorType(dtype, (3, 1))), self.input("flags", TensorType(BOOL, SHAPE))
        self.n = self.input("n", TensorType(dtype, (sym("N"), 4)))

    def __call__(self, op: str, *operands: Value | float | np.ndarray, **attrs: Any) -> Value:
        """A node; numbers stand for constants of the type of x, arrays for constants as they are."""
        values = [v if isinstance(v, Value) else self.constant(np.asarray(v, None if isinstance(v, np.ndarray) else self.dtype)) for v in operands]
        return self.emit(op, *values, **attrs)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.x.type.dtype.numpy

    def slice(self, value: Value, *taken: tuple[int, ...]) -> Value:
        """``(start, size)`` or ``(start, size, step)`` of each axis."""
        starts, sizes, steps = zip(*((*t, 1)[:3] for t in taken), strict=True)
        return self.emit("slice", value, starts=starts, sizes=sizes, steps=steps)

    def pad(self, value: Value, begins: tuple[int, ...], ends: tuple[int, ...], number: float = 0.0, mode: str = "constant") -> Value:
        return self.emit("pad", value, begins=begins, ends=ends, mode=mode, value=number)


Maker = Callable[[Nodes], Value]


@dataclass(frozen=True)
class Case:
    """A rule of an op: what it replaces, by what; what it leaves as it is, and ``why``; the element types it is tried with."""

    op: str
    rule: str
    before: Maker
    after: Maker
    near: Maker
    why: str
    dtypes: tuple[DType, ...] = (F32,)
    rounding: float = 0
    """How far results may be apart, relatively: nothing, or what one more rounding makes."""


def neutral(op: str, number: float, *dtypes: DType, near: float | None = None, **attrs: Any) -> Case:
    other = number + 1 if near is None else near
    return Case(
        op, "neutral-operand", lambda e: e(op, e.x, number, **attrs), lambda e: e.x, lambda e: e(op, e.x, other, **attrs), "another number", dtypes
    )


def commuted(op: str, number: float, dtype: DType) -> Case:
    near = "it makes the result larger than the operand"
    return Case(
        op,
        "neutral-operand",
        lambda e: e(op, number, e.x),
        lambda e: e.x,
        lambda e: e(op, np.full((5, 1, 1, 1), number, e.dtype), e.x),
        near,
        (dtype,),
    )


def same(op: str, *dtypes: DType) -> Case:
    return Case(op, "same-operands", lambda e: e(op, e.x, e.x), lambda e: e.x, lambda e: e(op, e.x, e.y), "they are two values", dtypes)


def doubled(op: str, rule: str, dtype: DType) -> Case:
    once: Maker = (lambda e: e.x) if rule == "undone" else (lambda e: e(op, e.x))
    other = "and" if dtype is BOOL else "add"
    why = "something else stands between them"
    return Case(op, rule, lambda e: e(op, e(op, e.x)), once, lambda e: e(op, e(other, e(op, e.x), e.y)), why, (dtype,))


ARITHMETIC = (
    neutral("add", 0, *FLOATS, I32),
    commuted("add", 0, F32),
    neutral("sub", 0, F32, I32),
    neutral("mul", 1, *FLOATS, I32),
    commuted("mul", 1, F32),
    neutral("div", 1, F32, I32, near=3),
    neutral("and", 1, BOOL, near=0),
    neutral("or", 0, BOOL),
    neutral("xor", 0, BOOL),
    neutral("bitwise_or", 0, I32, U8),
    neutral("bitwise_xor", 0, I32),
    neutral("shift", 0, U8, direction="LEFT"),
    *(same(op, F32, I32) for op in ("maximum", "minimum")),
    *(same(op, BOOL) for op in ("and", "or")),
    *(same(op, I32) for op in ("bitwise_and", "bitwise_or")),
    Case(
        "where",
        "same-operands",
        lambda e: e("where", e.flags, e.x, e.x),
        lambda e: e.x,
        lambda e: e("where", e.flags, e.rows, e.rows),
        "they are broadcast",
    ),
    *(
        Case("div", "power-of-two-divisor", lambda e, c=c: e("div", e.x, c), lambda e, c=c: e("mul", e.x, 1 / c), near, why, FLOATS)
        for c, near, why in (
            (8.0, lambda e: e("div", e.x, 3.0), "a third has no exact reciprocal"),
            (-0.25, lambda e: e("div", e.x, float(np.ldexp(1.0, GREATEST[e.dtype.name]))), "its reciprocal is denormal"),
        )
    ),
    Case(
        "div",
        "power-of-two-divisor",
        lambda e: e("div", e.x, np.array([1, 2, 4, 8], e.dtype)),
        lambda e: e("mul", e.x, np.array([1, 0.5, 0.25, 0.125], e.dtype)),
        lambda e: e("div", e.x, np.array([1, 2, 4, 6], e.dtype)),
        "one of them is no power of two",
        FLOATS,
    ),
    *(
        Case("pow", "known-exponent", lambda e, n=n: e("pow", e.x, n), after, near, why, dtypes, rounding=2e-7 if n == 3 else 0)
        for n, after, near, why, dtypes in (
            (1, lambda e: e.x, lambda e: e("pow", e.x, np.ones((5, 1, 1, 1), e.dtype)), "it makes the result larger", (F32, I8)),
            (2, lambda e: e("mul", e.x, e.x), lambda e: e("pow", e.x, 2.5), "no product", (F32, F16)),
            (3, lambda e: e("mul", e("mul", e.x, e.x), e.x), lambda e: e("pow", e.x, 4), "products are less exact", (F32,)),
            (-1, lambda e: e("reciprocal", e.x), lambda e: e("pow", e.x, -2), "products are less exact", (F32, F64)),
        )
    ),
    Case(
        "pow",
        "known-exponent",
        lambda e: e("pow", e("abs", e.x), 0.5),
        lambda e: e("sqrt", e("abs", e.x)),
        lambda e: e("pow", e("abs", e.x), -0.5),
        "of zero, the sign would tell",
        (F32, F64),
    ),
    *(
        Case(
            "where",
            "known-condition",
            lambda e, truth=truth: e("where", np.array(truth), e.x, e.y),
            after,
            lambda e: e("where", np.array([True, False, True, True]), e.x, e.y),
            "it is true here and false there",
        )
        for truth, after in ((True, lambda e: e.x), (False, lambda e: e.y))
    ),
    Case(
        "clip",
        "clip-at-zero",
        lambda e: e("clip", e.x, low=0.0, high=None),
        lambda e: e("relu", e.x),
        lambda e: e("clip", e.x, low=0.0, high=6.0),
        "it has an upper bound",
        (F32, F16),
    ),
    Case(
        "clip",
        "unbounded",
        lambda e: e("clip", e.x, low=-np.inf, high=None),
        lambda e: e.x,
        lambda e: e("clip", e.x, low=None, high=65504.0),
        "there are greater numbers",
    ),
    Case(
        "clip",
        "clipped-twice",
        lambda e: e("clip", e("clip", e.x, low=-1.0, high=6.0), low=None, high=2.0),
        lambda e: e("clip", e.x, low=-1.0, high=2.0),
        lambda e: e("clip", e("clip", e.x, low=2.0, high=1.0), low=0.0, high=3.0),
        "the first bounds contradict each other",
    ),
    Case(
        "clip",
        "clipped-twice",
        lambda e: e("clip", e("relu", e.x), low=0.0, high=6.0),
        lambda e: e("clip", e.x, low=0.0, high=6.0),
        lambda e: e("clip", e("abs", e.x), low=0.0, high=6.0),
        "the first is no bound",
    ),
    Case(
        "relu",
        "clipped-twice",
        lambda e: e("relu", e("clip", e.x, low=-1.0, high=6.0)),
        lambda e: e("clip", e.x, low=0.0, high=6.0),
        lambda e: e("relu", e("neg", e.x)),
        "the first is no bound",
    ),
    doubled("neg", "undone", F32),
    doubled("not", "undone", BOOL),
    doubled("bitwise_not", "undone", I32),
    *(doubled(op, "repeated", F32) for op in ("abs", "floor", "ceil", "round", "sign", "relu")),
    Case(
        "cast",
        "unconverted",
        lambda e: e("cast", e.x, to=F32),
        lambda e: e.x,
        lambda e: e("cast", e.x, to=F16),
        "another type",
    ),
    *(
        Case("cast", "converted-twice", lambda e, a=a, b=b: e("cast", e("cast", e.x, to=a), to=b), after, near, why, (dtype,))
        for dtype, a, b, after, near, why in (
            (F16, F32, F16, lambda e: e.x, lambda e: e("cast", e("cast", e.x, to=DType.BFLOAT16), to=F16), "bf16 has not all of its digits"),
            (I8, F32, I8, lambda e: e.x, lambda e: e("cast", e("cast", e.x, to=F32), to=U8), "floats below zero do not wrap around"),
            (
                I32,
                DType.INT64,
                U8,
                lambda e: e("cast", e.x, to=U8),
                lambda e: e("cast", e("cast", e.x, to=F32), to=I32),
                "24 bits are not enough",
            ),
            (U8, I32, F32, lambda e: e("cast", e.x, to=F32), lambda e: e("cast", e("cast", e.x, to=I8), to=F32), "half of them wrap around"),
            (BOOL, F32, I32, lambda e: e("cast", e.x, to=I32), lambda e: e("cast", e("not", e.x), to=I32), "the first is no conversion"),
        )
    ),
    Case(
        "reduce",
        "single-elements",
        lambda e: e("reduce", e.rows, kind="sum", axes=(1,), keepdims=False),
        lambda e: e("reshape", e.rows, shape=(3,)),
        lambda e: e("reduce", e.rows, kind="sum", axes=(0,), keepdims=False),
        "there are three of them",
        (F32, I32),
    ),
    Case(
        "normalize",
        "groups-of-one",
        lambda e: e("normalize", e.x, axes=(1, 2), groups=3, epsilon=0.5, center=True),
        lambda e: e("normalize", e.x, axes=(2,), groups=1, epsilon=0.5, center=True),
        lambda e: e("normalize", e.x, axes=(1, 2), groups=1, epsilon=0.5, center=True),
        "all channels share their statistics",
    ),
)

MOVES = (
    Case(
        "reshape", "unchanged", lambda e: e("reshape", e.x, shape=SHAPE), lambda e: e.x, lambda e: e("reshape", e.x, shape=(2, 12)), "another shape"
    ),
    Case(
        "reshape",
        "twice",
        lambda e: e("reshape", e("reshape", e.x, shape=(24,)), shape=(4, 6)),
        lambda e: e("reshape", e.x, shape=(4, 6)),
        lambda e: e("reshape", e("transpose", e.x, perm=(0, 2, 1)), shape=(4, 6)),
        "the first moves elements",
    ),
    Case(
        "expand",
        "unchanged",
        lambda e: e("expand", e.x, shape=SHAPE),
        lambda e: e.x,
        lambda e: e("expand", e.x, shape=(5, *SHAPE)),
        "another shape",
    ),
    Case(
        "expand",
        "twice",
        lambda e: e("expand", e("expand", e.rows, shape=(3, 4)), shape=SHAPE),
        lambda e: e("expand", e.rows, shape=SHAPE),
        lambda e: e("expand", e("reshape", e.rows, shape=(1, 3, 1)), shape=SHAPE),
        "the first is a reshape",
    ),
    Case(
        "transpose",
        "order-kept",
        lambda e: e("transpose", e.rows, perm=(1, 0)),
        lambda e: e("reshape", e.rows, shape=(1, 3)),
        lambda e: e("transpose", e.n, perm=(1, 0)),
        "N need not be 1",
    ),
    Case(
        "transpose",
        "transposed-twice",
        lambda e: e("transpose", e("transpose", e.x, perm=(1, 0, 2)), perm=(0, 2, 1)),
        lambda e: e("transpose", e.x, perm=(1, 2, 0)),
        lambda e: e("transpose", e("relu", e("transpose", e.x, perm=(1, 0, 2))), perm=(0, 2, 1)),
        "something stands between them",
    ),
    Case(
        "transpose",
        "transposed-around",
        lambda e: e("transpose", e("reshape", e("transpose", e.x, perm=(1, 0, 2)), shape=(3, 8)), perm=(1, 0)),
        lambda e: e("reshape", e("transpose", e.x, perm=(0, 2, 1)), shape=(8, 3)),
        lambda e: e("transpose", e("reshape", e("transpose", e.x, perm=(0, 2, 1)), shape=(2, 2, 6)), perm=(0, 2, 1)),
        "the reshape splits an axis",
    ),
    Case(
        "transpose",
        "expanded-before",
        lambda e: e("transpose", e("expand", e("reshape", e.x, shape=(2, 1, 12)), shape=(2, 5, 12)), perm=(2, 1, 0)),
        lambda e: e("expand", e("transpose", e("reshape", e.x, shape=(2, 1, 12)), perm=(2, 1, 0)), shape=(12, 5, 2)),
        lambda e: e("transpose", e("expand", e.rows, shape=SHAPE), perm=(2, 0, 1)),
        "the expansion adds an axis",
    ),
    Case(
        "slice",
        "whole-taken",
        lambda e: e.slice(e.x, (0, 2), (0, 3), (0, 4)),
        lambda e: e.x,
        lambda e: e.slice(e.x, (1, 2, -1), (0, 3), (0, 4)),
        "it is backwards",
    ),
    Case(
        "slice",
        "slice-of-slice",
        lambda e: e.slice(e.slice(e.x, (0, 2), (2, 3, -1), (1, 3)), (1, 1), (0, 2), (2, 2, -2)),
        lambda e: e.slice(e.x, (1, 1), (2, 2, -1), (3, 2, -2)),
        lambda e: e.slice(e("relu", e.slice(e.x, (0, 2), (0, 3), (1, 3))), (1, 1), (0, 2), (0, 2)),
        "something stands between them",
    ),
    Case(
        "slice",
        "slice-of-operand",
        lambda e: e.slice(e("concat", e.x, e.y, axis=1), (0, 2), (5, 2, -2), (1, 2)),
        lambda e: e.slice(e.y, (0, 2), (2, 2, -2), (1, 2)),
        lambda e: e.slice(e("concat", e.x, e.y, axis=1), (0, 2), (2, 2), (1, 2)),
        "it takes elements of both",
    ),
    Case(
        "slice",
        "slice-of-operand",
        lambda e: e.slice(e("concat", e.rows, e.rows, axis=1), (0, 3), (1, 1)),
        lambda e: e.rows,
        lambda e: e.slice(e("concat", e.n, e("relu", e.n), axis=0), (0, 2), (0, 4)),
        "where the first one ends is not known",
    ),
    Case(
        "slice",
        "slice-inside-padding",
        lambda e: e.slice(e.pad(e.x, (0, 1, 2), (0, 0, 1), 7.0), (0, 1), (1, 3), (5, 2, -2)),
        lambda e: e.slice(e.x, (0, 1), (0, 3), (3, 2, -2)),
        lambda e: e.slice(e.pad(e.x, (0, 1, 2), (0, 0, 1), 7.0), (0, 1), (1, 3), (1, 4)),
        "it takes padding, too",
    ),
    Case("pad", "no-padding", lambda e: e.pad(e.x, (0, 0, 0), (0, 0, 0)), lambda e: e.x, lambda e: e.pad(e.x, (0, 0, 0), (0, 0, 1)), "some"),
    Case(
        "pad",
        "no-padding",
        lambda e: e.pad(e.x, (0, -1, 0), (0, 0, -2)),
        lambda e: e.slice(e.x, (0, 2), (1, 2), (0, 2)),
        lambda e: e.pad(e.x, (0, -1, 0), (0, 1, 0)),
        "it pads at the other end",
    ),
    Case(
        "pad",
        "padded-twice",
        lambda e: e.pad(e.pad(e.x, (0, 1, 2), (0, 0, 1), 3.0), (1, 0, 1), (0, 2, 0), 3.0),
        lambda e: e.pad(e.x, (1, 1, 3), (0, 2, 1), 3.0),
        lambda e: e.pad(e.pad(e.x, (0, 1, 2), (0, 0, 1), 3.0), (1, 0, 1), (0, 2, 0), 4.0),
        "two numbers",
    ),
    Case(
        "pad",
        "padded-twice",
        lambda e: e.pad(e.pad(e.n, (0, 1), (0, 0)), (1, 0), (0, 2)),
        lambda e: e.pad(e.n, (1, 1), (0, 2)),
        lambda e: e.pad(e.pad(e.x, (0, 1, -2), (0, 0, 1)), (1, 0, 3), (0, 2, 0)),
        "the first cuts something off",
    ),
    Case(
        "concat",
        "empty-operands",
        lambda e: e("concat", e.x, np.zeros((2, 0, 4), np.float32), e.y, axis=1),
        lambda e: e("concat", e.x, e.y, axis=1),
        lambda e: e("concat", e.x, np.zeros((2, 1, 4), np.float32), e.y, axis=1),
        "it holds zeros, not nothing",
    ),
    Case(
        "concat",
        "neighbours",
        lambda e: e("concat", e.slice(e.x, (0, 2), (0, 1), (0, 4)), e.slice(e.x, (0, 2), (1, 2), (0, 4)), axis=1),
        lambda e: e.x,
        lambda e: e("concat", e.slice(e.x, (0, 2), (0, 1), (0, 4)), e.slice(e.y, (0, 2), (1, 2), (0, 4)), axis=1),
        "the second is of another value",
    ),
    Case(
        "concat",
        "exchanged",
        lambda e: e("concat", e.slice(e.x, (0, 2), (1, 2), (0, 4)), e.slice(e.x, (0, 2), (0, 1), (0, 4)), axis=1),
        lambda e: e("roll", e.x, axis=1, start=1),
        lambda e: e("concat", e.slice(e.x, (0, 2), (2, 1), (0, 4)), e.slice(e.x, (0, 2), (0, 2), (0, 4)), e.y, axis=1),
        "there is more behind them",
    ),
    Case(
        "concat",
        "exchanged",
        lambda e: e("concat", e("neg", e.slice(e.x, (0, 2), (0, 3), (2, 2))), e.slice(e.x, (0, 2), (0, 3), (0, 2)), axis=2),
        lambda e: e("mul", e("roll", e.x, axis=2, start=2), np.array([-1, -1, 1, 1], e.dtype)),
        lambda e: e("concat", e("neg", e.slice(e.x, (0, 2), (0, 3), (3, 1))), e.slice(e.x, (0, 2), (0, 3), (0, 2)), axis=2),
        "one is left out",
        FLOATS,
    ),
    Case(
        "concat",
        "neighbours",
        lambda e: e("concat", e.y, e.slice(e.x, (0, 2), (0, 3), (0, 1, 2)), e.slice(e.x, (0, 2), (0, 3), (2, 1, 2)), axis=2),
        lambda e: e("concat", e.y, e.slice(e.x, (0, 2), (0, 3), (0, 2, 2)), axis=2),
        lambda e: e("concat", e.y, e.slice(e.x, (0, 2), (0, 3), (0, 1, 2)), e.slice(e.x, (0, 2), (0, 3), (1, 1, 2)), axis=2),
        "the second begins before the first ends",
    ),
    Case(
        "concat",
        NESTED_CONCAT,
        lambda e: e("concat", e("concat", e.x, e.y, axis=1), e.x, axis=1),
        lambda e: e("concat", e.x, e.y, e.x, axis=1),
        lambda e: e("concat", e("concat", e.x, e.y, axis=2), e("concat", e.y, e.x, axis=2), axis=1),
        "another axis",
    ),
    Case(
        "gather",
        "run-of-positions",
        lambda e: e("gather", e.x, np.array([1, 2]), axis=2),
        lambda e: e.slice(e.x, (0, 2), (0, 3), (1, 2)),
        lambda e: e("gather", e.x, np.array([1, 3]), axis=2),
        "there is one between them",
    ),
    Case(
        "gather",
        "run-of-positions",
        lambda e: e("gather", e.x, np.array(-1), axis=1),
        lambda e: e("reshape", e.slice(e.x, (0, 2), (2, 1), (0, 4)), shape=(2, 4)),
        lambda e: e("gather", e.n, np.array(0), axis=0, checked=True),
        "a run is to look whether there is one",
    ),
    Case(
        "*",
        "needless-expand",
        lambda e: e("add", e.x, e("expand", e.rows, shape=SHAPE)),
        lambda e: e("add", e.x, e.rows),
        lambda e: e("concat", e.x, e("expand", e.rows, shape=SHAPE), axis=0),
        "a concatenation does not broadcast",
    ),
    Case(
        "*",
        "needless-expand",
        lambda e: e("matmul", e("expand", e("reshape", e.rows, shape=(1, 1, 3)), shape=(2, 1, 3)), e.x),
        lambda e: e("matmul", e("reshape", e.rows, shape=(1, 1, 3)), e.x),
        lambda e: e("matmul", e("expand", e.rows, shape=(3, 4)), e("reshape", e.y, shape=(4, 6))),
        "what a product adds up does not broadcast",
    ),
    Case(
        "*",
        "early-expand",
        lambda e: e("exp", e("expand", e.rows, shape=SHAPE)),
        lambda e: e("expand", e("exp", e.rows), shape=SHAPE),
        lambda e: e("softmax", e("expand", e.rows, shape=SHAPE), axis=0, log=False),
        "not elementwise",
    ),
    Case(
        "*",
        "repeated-constant",
        lambda e: e("mul", e.x, np.repeat(np.array([[[1.5], [-0.0], [np.nan]]], np.float32), 4, axis=2)),
        lambda e: e("mul", e.x, np.array([[[1.5], [-0.0], [np.nan]]], np.float32)),
        lambda e: e("mul", e.x, np.array([1.5, 1.5, 2.5, 1.5], np.float32)),
        "one is another",
    ),
    Case(
        "*",
        "repeated-constant",
        lambda e: e("maximum", e.x, np.full(SHAPE, 2, np.float32)),
        lambda e: e("maximum", e.x, np.full((1, 1, 1), 2, np.float32)),
        lambda e: e("maximum", e.rows, np.full(SHAPE, 2, np.float32)),
        "the result has its shape of it",
    ),
    Case(
        "*",
        "early-expand",
        lambda e: e("maximum", e("expand", e.rows, shape=SHAPE), 0.5),
        lambda e: e("expand", e("maximum", e.rows, 0.5), shape=SHAPE),
        lambda e: e("maximum", e("expand", e.n, shape=(sym("N") * sym("N"), 4)), 0.5),
        "whether it repeats anything depends on N",
    ),
)

CASES = (*ARITHMETIC, *MOVES)
