"""Scalar expressions: graphs in which what is used twice stands once, however often a tree would hold it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from backends.reference import run_program
from compiler.ir.builder import GraphBuilder
from compiler.ir.interp import interpret
from compiler.ir.loop_text import print_function
from compiler.ir.narrow import widen
from compiler.ir.scalar import Arg, Array, Call, Const, Scalar, apply, call, calls, evaluate, leaves, parts, rebuilt, substitute
from compiler.ir.types import DType, TensorType
from compiler.lowering import lower, workloads
from compiler.pipeline import optimize
from compiler.target import resolve
from tests.graph_cases import CONV, f32
from tests.strategies import scalars
from tests.test_lowering import check_program

TARGET = resolve("x86-64-v3")
DEPTH = 60


def squares(x: Scalar, count: int = DEPTH) -> Scalar:
    """``x`` squared that many times."""
    for _ in range(count):
        x = call("mul", x, x)
    return x


def by_tree(expr: Scalar, args: list[Array]) -> Array:
    """``evaluate``, said again as a walk over a tree."""
    if isinstance(expr, Arg):
        return args[expr.index]
    if isinstance(expr, Const):
        return np.asarray(expr.value, expr.dtype.numpy)
    return apply(expr.fn, [by_tree(arg, args) for arg in expr.args], expr.dtype)


@given(scalars())
def test_going_over_parts_is_going_over_the_tree(expr: Scalar) -> None:
    found = parts(expr)
    assert found[-1] == expr
    assert len(found) == len(set(found))
    for number, part in enumerate(found):
        assert not isinstance(part, Call) or all(arg in found[:number] for arg in part.args)
    assert rebuilt(expr, lambda part: part) is expr or not isinstance(expr, Call)
    size = max((leaf.index for leaf in leaves(expr)), default=0) + 1
    dtypes = {leaf.index: leaf.dtype for leaf in leaves(expr)}
    args = [np.arange(-3, 4).astype(dtypes.get(index, DType.FLOAT32).numpy) for index in range(size)]
    np.testing.assert_array_equal(evaluate(expr, args), by_tree(expr, args))


def test_a_chain_of_squares_is_as_long_as_it_is_written() -> None:
    x = Arg(0, DType.FLOAT16)
    expr = squares(x)
    assert len(calls(expr)) == DEPTH
    assert squares(x) is expr
    assert substitute(squares(Arg(1, DType.FLOAT16)), [x, x]) is expr
    assert len(repr(expr)) < 60 * DEPTH
    assert hash(widen(expr)) == hash(widen(squares(x)))
    assert evaluate(expr, [np.float16([0, 1, -1, 2])]).tolist() == [0, 1, 1, np.inf]


def test_text_numbers_the_calls() -> None:
    x, one = Arg(0, DType.FLOAT32), Const(1.0, DType.FLOAT32)
    square = call("mul", x, x)
    text = "%0 = mul:f32($0:f32, $0:f32); %1 = max:f32(%0, 1.0:f32); %2 = add:f32(%0, %1)"
    assert repr(call("add", square, call("max", square, one))) == text


def test_literals_are_told_apart_by_their_bits() -> None:
    zero, minus, nan = (Const(value, DType.FLOAT32) for value in (0.0, -0.0, float("nan")))
    assert zero != minus
    assert nan == Const(float("nan"), DType.FLOAT32)
    assert Const(1, DType.INT32) != Const(1, DType.INT64)


def test_both_zeros_in_one_kernel() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(5))
    zeros = [b.constant(np.float32(value)) for value in (0.0, -0.0)]
    chosen = b.emit("where", b.emit("less", x, zeros[0]), *zeros)
    graph = b.graph([b.emit("div", b.constant(np.float32(1)), chosen, name="y")])
    planned = optimize(graph, TARGET, verify=True)[0]
    assert len(workloads(planned, TARGET, threads=1)) == 1
    feeds, signs = {"x": np.float32([-1, 1, 0, -2, 3])}, np.float32([1, -1, -1, 1, -1])
    for found in (interpret(planned, feeds), run_program(lower(planned, TARGET, threads=1), feeds)):
        np.testing.assert_array_equal(found["y"], signs * np.float32(np.inf))


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.INT32, DType.BFLOAT16])
def test_a_chain_of_diamonds_is_one_kernel(dtype: DType) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", TensorType(dtype, (11,)))
    half = b.constant(np.asarray(0.5 if dtype.is_float else 3).astype(dtype.numpy))
    y = x
    for number in range(DEPTH):
        y = b.emit("sub", b.emit("mul", y, y), half) if number % 2 else b.emit("mul", b.emit("maximum", y, half), half)
    graph = b.graph([y])
    planned = optimize(graph, TARGET)[0]
    assert len(workloads(planned, TARGET, threads=1)) == 1
    check_program(planned, lower(planned, TARGET, threads=1), tolerance=1e-5 if dtype is not DType.BFLOAT16 else 1e-2)


def test_a_sum_that_is_read_twice_begins_with_its_bias() -> None:
    b = GraphBuilder("g", folding=False)
    weights, bias = (b.constant(np.linspace(-1, 1, size, dtype=np.float32).reshape(-1, channels, 1, 1)) for size, channels in ((24, 3), (8, 1)))
    x = b.emit("add", b.emit("conv", b.input("x", f32(1, 3, 4, 4)), weights, **CONV), b.emit("reshape", bias, shape=(1, 8, 1, 1)))
    graph = b.graph([b.emit("mul", x, b.emit("sigmoid", x))])
    program = lower(optimize(graph, TARGET)[0], TARGET, threads=1)
    assert " = add " not in "".join(map(print_function, program.functions))
    check_program(graph, program)
