"""Integers divided by zero: a run ends with an error that names the node, whatever the division is fused with; nothing else does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbolic_models import compiled, model_of, wave

import tensorsmith as ts
from backends.llvm.codegen import assembly
from backends.llvm.engine import kernel_text
from backends.reference import run_program
from compiler.errors import UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.interp import interpret
from compiler.ir.loop import Access
from compiler.ir.program import Program
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.ir.types import DType, TensorType
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
OPS = {"Div": "Div(x, y)", "Mod": "Mod(x, y)", "fmod": "Mod<fmod = 1>(x, y)"}
MESSAGE = "an integer is divided by zero"


def program_of(model: bytes, threads: int = 1, opt_level: int = 3) -> Program:
    target = resolve("x86-64-v3")
    return lower(optimize(import_model(model), target, opt_level)[0], target, threads)


def results(model: bytes, feeds: dict[str, Array], threads: int = 1) -> list[dict[str, Array]]:
    """What compiled code and both interpreters give."""
    graph = import_model(model)
    return [compiled(model, threads).run(feeds), interpret(graph, feeds), run_program(program_of(model, threads), feeds, threads)]


def refused(model: bytes, feeds: dict[str, Array], node: str, threads: int = 1) -> None:
    """Compiled code and both interpreters end with the error, which names the node."""
    pattern = f"(?s)node '?{node}.*: {MESSAGE}.*what to do"
    with pytest.raises(UserError, match=pattern):
        compiled(model, threads).run(feeds)
    with pytest.raises(UserError, match=pattern):
        interpret(import_model(model), feeds)
    with pytest.raises(UserError, match=pattern):
        run_program(program_of(model, threads), feeds, threads)


def expected(op: str, x: Array, y: Array) -> Array:
    """By Python's integers, wrapped to x's type."""

    def one(a: int, b: int) -> int:
        if op == "Mod":
            return a % b
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if op == "Div" else a - b * quotient

    bits = 8 * x.itemsize
    flat = [one(int(a), int(b)) & (1 << bits) - 1 for a, b in np.broadcast(x, y)]
    return np.array(flat, f"uint{bits}").view(x.dtype).reshape(np.broadcast_shapes(x.shape, y.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_integer_type(op: str, dtype: str, data: st.DataObject) -> None:
    model = model_of(f"g ({dtype}[n, m] x, {dtype}[p, m] y) => ({dtype}[n, m] z) {{ z = {OPS[op]} }}", 18)
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 8, 17, 33, 70]))
    rng, info = np.random.default_rng(data.draw(st.integers(0, 99))), np.iinfo(dtype)
    x = rng.integers(info.min, info.max, (rows, columns), dtype, endpoint=True)
    y = rng.integers(info.min, info.max, (data.draw(st.sampled_from([1, rows])), columns), dtype, endpoint=True)
    y[y == 0] = 3
    x[:, -1] = info.min
    y[:, -1] = y.dtype.type(-1 if info.min else 1)
    threads = data.draw(st.sampled_from([1, 3]))
    for found in results(model, {"x": x, "y": y}, threads):
        np.testing.assert_array_equal(found["z"], expected(op, x, y))
    y[data.draw(st.integers(0, y.shape[0] - 1)), data.draw(st.integers(0, columns - 1))] = 0
    refused(model, {"x": x, "y": y}, "z", threads)


FUSED = {
    "chain": "g (int32[n, 21] x, int32[n, 21] y) => (int32[n, 21] z) { a = Add(x, x) q = Div(a, y) z = Mul(q, x) }",
    "sum as divisor": "g (int32[n, 21] x, int32[n, 21] y) => (int32[n, 21] z) { c = Mul(y, y) q = Div(x, c) z = Add(q, x) }",
    "transposed": "g (int32[n, 21] x, int32[21, n] y) => (int32[21, n] z) { t = Transpose(x) q = Div(t, y) z = Neg(q) }",
    "gathered": "g (int32[n, 21] x, int32[3, 21] y) => (int32[3, 21] z) { t = Gather(x, i) q = Div(t, y) z = Neg(q) }",
    "reduced": "g (int32[n, 21] x, int32[1, 21] y) => (int32[1, 21] z) { t = ReduceMax(x, a) q = Mod(t, y) z = Neg(q) }",
    "product": "g (int32[n, 21] x, int32[n, 5] y) => (int32[n, 5] z) { t = MatMul(x, w) q = Div(t, y) z = Neg(q) }",
    "concatenated": "g (int32[n, 21] x, int32[m, 21] y) => (int32[m, 21] z) { t = Concat<axis = 0>(x, x) q = Div(t, y) z = Neg(q) }",
}
NAMES = {"i": np.array([0, 2, 1]), "a": np.array([0]), "w": (np.arange(105) % 7).astype(np.int32).reshape(21, 5)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", FUSED)
def test_fused_divisions(name: str, threads: int) -> None:
    text = FUSED[name]
    model = model_of(text, 18, **{key: value for key, value in NAMES.items() if f", {key})" in text})
    graph = import_model(model)
    x = (np.arange(63, dtype=np.int32) * 37 % 101 - 50).reshape(3, 21)
    shape = {"transposed": (21, 3), "reduced": (1, 21), "product": (3, 5), "concatenated": (6, 21)}.get(name, (3, 21))
    y = np.where(np.arange(np.prod(shape)) % 2, 3, -2).astype(np.int32).reshape(shape)
    native, _, planned = results(model, {"x": x, "y": y}, threads)
    for found in (native, planned):
        np.testing.assert_array_equal(found["z"], interpret(graph, {"x": x, "y": y})["z"])
    y[-1, -1] = 0
    refused(model, {"x": x, "y": y}, "q", threads)


def test_the_node_is_the_one_that_divides() -> None:
    model = model_of("g (int32[n] x, int32[n] y, int32[n] w) => (int32[n] z) { a = Div(x, y) b = Mod(a, w) z = Div(b, y) }", 18)
    one, zero = np.ones(9, np.int32), np.zeros(9, np.int32)
    refused(model, {"x": one, "y": one, "w": zero}, "b")
    refused(model, {"x": one, "y": zero, "w": one}, "a")
    assert sum(len(call.divisions) for call in program_of(model).calls) == 2  # y is checked once


@pytest.mark.parametrize("lanes_along", ["channels", "all"])
def test_padding_is_no_divisor(lanes_along: str) -> None:
    """Five channels in blocks of eight: the three others are zero, and no data."""
    text = """g (float[1, 8, 6, 6] x, int32[1, 5, 1, 1] s) => (float[1, 8, 6, 6] z) {
        a = Conv(x, w) b = Conv(x, v) i = Cast<to = 6>(a) r = Ceil(b) j = Cast<to = 6>(r) q = %s f = Cast<to = 1>(q) z = Conv(f, u)
    }""" % ("Div(i, j)" if lanes_along == "all" else "Div(i, s)")  # fmt: skip
    model = model_of(text, 18, w=40 * wave(5, 8, 1, 1), v=wave(5, 8, 1, 1) ** 2 + 1, u=wave(8, 5, 1, 1))
    x, s = np.abs(np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)) + 0.1, np.full((1, 5, 1, 1), 3, np.int32)
    groups = [node for node in _planned(model).nodes if node.op == "group"]
    kept = [node.output.type for group in groups for node in (group, *group.regions[0].nodes) if node.op == "group"]
    assert any(type_.block > 1 and not type_.dtype.is_float for type_ in kept)
    native, plain, planned = results(model, {"x": x, "s": s})
    for found in (native, planned):
        np.testing.assert_allclose(found["z"], plain["z"], rtol=0, atol=1e-4 * float(np.abs(plain["z"]).max()))
    if lanes_along == "all":
        x[0, :, -1, -1] = 0
    else:
        s[0, -1] = 0
    refused(model, {"x": x, "s": s}, "q")


def _planned(model: bytes) -> Any:
    return optimize(import_model(model), resolve("x86-64-v3"))[0]


def test_constant_divisors_cost_nothing() -> None:
    for text in ("Div(x, c)", "Mod(x, c)", "Div(x, k)"):
        model = model_of(f"g (int32[n, 3] x) => (int32[n, 3] z) {{ z = {text} }}", 18, c=np.array([2, -3, 4], np.int32), k=np.int32(7))
        program = program_of(model)
        assert not any(call.divisions for call in program.calls)
        assert not any(buffer.access is Access.STATUS for function in program.functions for buffer in function.buffers)


@pytest.mark.parametrize("divisor", [np.array([2, 0, 4], np.int32), np.int32(0)], ids=["vector", "scalar"])
@pytest.mark.parametrize("constant_dividend", [False, True])
def test_constant_zeros_are_reported_by_a_run(divisor: Array, constant_dividend: bool) -> None:
    text = "g (int32[n, 3] x) => (int32[n, 3] z) { q = Div(%s, c) z = Add(q, x) }" % ("k" if constant_dividend else "x")
    model = model_of(text, 18, c=divisor, k=np.array([[4, 5, 6]], np.int32))
    refused(model, {"x": np.ones((2, 3), np.int32)}, "q")


def test_no_element_no_division() -> None:
    model = model_of("g (int32[n, m] x, int32[m] y) => (int32[n, m] z) { z = Div(x, y) }", 18)
    for found in results(model, {"x": np.ones((0, 3), np.int32), "y": np.zeros(3, np.int32)}):
        assert found["z"].shape == (0, 3)


BRANCHES = """g (bool c, int32[n] x, int32[n] y) => (int32[n] z) {
    z = If (c) <
        then_branch = t () => (int32[n] a) { d = Div(x, y) e = Div(d, k) a = Add(e, x) },
        else_branch = e () => (int32[n] b) { b = Div(x, zero) }
    >
}"""


def test_in_the_branch_that_is_taken() -> None:
    model = model_of(BRANCHES, 18, k=np.int32(2), zero=np.int32(0))
    x = np.arange(20, dtype=np.int32)
    y = np.full(20, 3, np.int32)
    for found in results(model, {"c": np.array(True), "x": x, "y": y}, 3):
        np.testing.assert_array_equal(found["z"], x // 3 // 2 + x)
    y[19] = 0
    refused(model, {"c": np.array(True), "x": x, "y": y}, "z/d", 3)
    refused(model, {"c": np.array(False), "x": x, "y": y}, "z/b", 3)


LOOP = """g (int64 trips, int64[n] x, int64[n] y) => (int64[n] z) {
    z = Loop (trips, , x) <body = body (int64 i, bool go, int64[n] v) => (bool again, int64[n] w) {
        again = Identity(go) d = Sub(y, i) q = Mod(v, d) w = Add(q, v)
    }>
}"""


@pytest.mark.parametrize("threads", [1, 3])
def test_in_an_iteration_of_a_loop(threads: int) -> None:
    model = model_of(LOOP, 18)
    feeds = {"x": np.arange(40), "y": np.full(40, 3)}
    wanted = feeds["x"]
    for i in range(3):
        wanted = wanted % (feeds["y"] - i) + wanted
    for found in results(model, {"trips": np.array(3), **feeds}, threads):
        np.testing.assert_array_equal(found["z"], wanted)
    refused(model, {"trips": np.array(4), **feeds}, "z/q", threads)


def test_dims_divided_by_dims() -> None:
    model = model_of(
        "g (float[n, m] x) => (float[k] z) { s = Shape<start = 0, end = 1>(x) t = Shape<start = 1>(x) q = Div(s, t) z = Expand(one, q) }",
        18,
        one=np.float32([1]),
    )
    for found in results(model, {"x": np.zeros((7, 2), np.float32)}):
        assert found["z"].shape == (3,)
    refused(model, {"x": np.zeros((7, 0), np.float32)}, "q")


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_numbers_of_run_time_do_not_trap(op: str) -> None:
    """Sizes from data: zero is reported, the least number over -1 wraps."""
    text = f"g (int64[1] a, int64[1] b) => (float[k] z) {{ q = {op}(a, b) c = Max(q, two) d = Min(c, four) z = Expand(one, d) }}"
    model = model_of(text, 18, one=np.float32([1]), two=np.array([2]), four=np.array([4]))
    least = np.array([np.iinfo(np.int64).min])
    for found in results(model, {"a": least, "b": np.array([-1])})[::2]:
        assert found["z"].shape == (2,)
    for found in results(model, {"a": np.array([17]), "b": np.array([6 if op == "Div" else 7])}):
        assert found["z"].shape == (2 if op == "Div" else 3,)
    refused(model, {"a": np.array([17]), "b": np.array([0])}, "q")


def test_a_program_and_a_file_keep_the_names(tmp_path: Path) -> None:
    model = model_of("g (int32[n] x, int32[n] y) => (int32[n] z) { q = Div(x, y) z = Add(q, x) }", 18)
    program = program_of(model)
    assert parse_program(print_program(program), weights_of(program)).calls == program.calls
    compiled(model, 1).save(tmp_path / "m.tsm")
    with pytest.raises(UserError, match="node q"):
        ts.load(tmp_path / "m.tsm").run({"x": np.ones(3, np.int32), "y": np.zeros(3, np.int32)})


def test_floats_divide_by_zero() -> None:
    model = model_of("g (float[n] x, float[n] y) => (float[n] z) { z = Div(x, y) }", 18)
    for found in results(model, {"x": np.float32([1, -1, 0]), "y": np.zeros(3, np.float32)}):
        np.testing.assert_array_equal(found["z"], np.float32([np.inf, -np.inf, np.nan]))


def divisions(op: str, dtype: DType, divisor: Array | None) -> int:
    """The division instructions of a kernel; None: a run gives the divisors."""
    target, b = resolve("x86-64-v3"), GraphBuilder("g", folding=False)
    x, y = b.input("x", TensorType(dtype, (64, 4))), b.input("y", TensorType(dtype, (64, 4)))
    attrs = {"fmod": False} if op == "mod" else {}
    planned, _ = optimize(b.graph([b.emit(op, x, y if divisor is None else b.constant(divisor), **attrs)]), target)
    (function,) = lower(planned, target, 1).functions
    return len(re.findall(r"^\s+i?div[bwlq]\s", assembly(kernel_text(function, target), target), re.MULTILINE))


@pytest.mark.parametrize("op", ["div", "mod"])
@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT8, DType.INT32, DType.UINT32, DType.INT64, DType.UINT64])
def test_known_divisors_take_no_division(op: str, dtype: DType) -> None:
    """Products and shifts instead, for one number and for one in the place of many; the loop is shared out among workers by a few."""
    loop = divisions("add", dtype, np.array(7, dtype.numpy))
    assert divisions(op, dtype, np.array(7, dtype.numpy)) == loop
    assert divisions(op, dtype, np.full((1, 4), 100, dtype.numpy)) == loop
    assert divisions(op, dtype, None) > loop
