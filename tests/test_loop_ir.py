"""Loop IR and programs: text, rules and meaning."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import ROOM, kernels

from backends.llvm.engine import jit
from backends.reference import run_program
from compiler.errors import InternalError, UserError
from compiler.ir.graph import Value
from compiler.ir.intexpr import sym
from compiler.ir.loop import Access, Buffer, Function, Let, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.loop_interp import run_function
from compiler.ir.loop_text import parse_function, print_function
from compiler.ir.loop_verify import verify_function
from compiler.ir.program import Address, KernelCall, Program, Space
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.ir.scalar import FUNCTIONS, apply
from compiler.ir.types import DType, TensorType, pack_physical
from compiler.target import native

F32, I32, I64 = DType.FLOAT32, DType.INT32, DType.INT64
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCALE = """func @scale(in x: f32[N], out y: f32[N], scratch t: f32[8]) params(N) {
  %1: f32 = const 2.0
  %2: f32x8 = splat %1
  parallel i1 = 0 to 8*floordiv(N, 8) step 8 {
    %3: f32x8 = load x[i1]
    prefetch x[i1 + 64]
    %4: f32x8 = mul %2, %3
    store y[i1], %4
  }
  for i2 = 8*floordiv(N, 8) to N step 1 carry (%5: f32 = %1) {
    %6: f32 = load x[i2]
    %7: f32 = mul %6, %1
    %8: i64 = index <i2>
    bind j = %8
    if j < N {
      store y[j], %7
    } else {
      store t[0], %7
    }
    yield %5
  } -> %9: f32
}
"""


def inputs(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=ROOM).astype(np.float32)
    x[::17] = [np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38, 0.5, 1.5, 2.5, 0.0][: len(x[::17])]
    return x, rng.integers(-(2**31), 2**31, ROOM).astype(np.int32)


# -- text ---------------------------------------------------------------------------------------------------------


@QUICK
@given(kernels())
def test_every_function_reads_back(function: Function) -> None:
    parsed = parse_function(print_function(function))
    assert print_function(parsed) == print_function(function)
    assert repr(parsed) == repr(function)


def test_the_text_is_the_documented_one() -> None:
    function = parse_function(SCALE)
    assert print_function(function) == SCALE
    assert function.params == ("N",)
    assert [b.access for b in function.buffers] == [Access.READ, Access.WRITE, Access.SCRATCH]
    verify_function(function)


@pytest.mark.parametrize("value", [0.1, -0.0, float("inf"), float("nan"), 3, True, False, (0, 1), (2,), sym("N") * 2 + 1, 1e-45])
def test_every_literal_reads_back(value: Any) -> None:
    function = Function("f", (), (Let(Reg(1, VecType(F32, 8)), "const", (), value),), ("N",))
    (let,) = parse_function(print_function(function)).body
    assert isinstance(let, Let)
    assert type(let.value) is type(value)
    assert repr(let.value) == repr(value)


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("mul %2, %3", "mul %2, %33", 7, "%33 is not defined"),
        ("f32x8 = mul", "f33x8 = mul", 7, "not a type of values"),
        ("load x[i1]", "load x(i1)", 5, "not an element of a buffer"),
        ("for i2", "four i2", 10, "not a statement"),
        ("func", "fun", 1, "not a func"),
        ("  } -> %9: f32\n}\n", "  } -> %9: f32\n", 21, "ends before the block"),
    ],
)
def test_errors_name_the_line(old: str, new: str, line: int, what: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_function(SCALE.replace(old, new, 1))
    assert caught.value.where == f"Loop IR text, line {line}"
    assert what in caught.value.what


def test_large_functions_print_and_parse_in_seconds() -> None:
    b = LoopBuilder("large")
    x, y = b.buffer("x", F32, 1 << 20, Access.READ), b.buffer("y", F32, 1 << 20, Access.WRITE)
    with b.loop("i", 0, 8) as loop:
        acc = b.load(x, loop.var)
        for k in range(20000):
            acc = b.fma(acc, b.load(x, loop.var * 8 + 8 * k, 1), acc)
        b.store(y, loop.var, acc)
    function = b.function()
    begin = time.process_time()
    text = print_function(function)
    assert text.count("\n") > 40000
    assert parse_function(text) == function
    verify_function(function)
    assert time.process_time() - begin < 5


# -- rules --------------------------------------------------------------------------------------------------------


@QUICK
@given(kernels())
def test_functions_of_the_builder_keep_the_rules(function: Function) -> None:
    verify_function(function)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("%2: f32x8 = splat %1", "%2: f32x8 = splat %1\n%2: f32x8 = splat %1", "%2 is defined twice"),
        ("%7: f32 = mul %6, %1", "%7: f32 = mul %6, %4", "%4 of type f32x8 is not defined here"),
        ("%7: f32 = mul %6, %1", "%7: f32 = mul %6, %2", "mul of f32, f32x8 as f32"),
        ("%4: f32x8 = mul %2, %3", "%4: i32x8 = mul %2, %3", "mul of f32x8, f32x8 as i32x8"),
        ("%4: f32x8 = mul %2, %3", "%4: f32x8 = frobnicate %2", "no operation is called frobnicate"),
        ("%4: f32x8 = mul %2, %3", "%4: f32x8 = fma %2, %3", "fma takes 3 operands"),
        ("%4: f32x8 = mul %2, %3", "%4: f32x4 = shuffle %2, %3, [0, 1, 2, 16]", "no lanes (0, 1, 2, 16)"),
        ("%4: f32x8 = mul %2, %3", "%4: f32 = extract %2, 8", "extract gives one lane"),
        ("%4: f32x8 = mul %2, %3", "%4: f32x8 = lt %2, %3", "lt gives bool"),
        ("load x[i1]", "load z[i1]", "no buffer is called z"),
        ("load x[i1]", "load x[i2]", "i2 is not known"),
        ("load x[i1]", "load x[i1] count 9", "a count of 9 for 8 lanes"),
        ("load x[i1]", "load x[i1] stride 0 count 3", "a stride of 0 has no count"),
        ("%6: f32 = load x[i2]", "%6: i32 = load x[i2]", "x holds f32"),
        ("store y[i1], %4", "store x[i1], %4", "x is only read"),
        ("store y[i1], %4", "store y[i1], %4 stride 0", "stores lanes over each other"),
        ("for i2", "parallel i2", "a parallel loop carries nothing"),
        ("    prefetch x[i1 + 64]", "parallel q = 0 to 1 step 1 {\n}", "at the top level only"),
        ("    prefetch x[i1 + 64]", "for i1 = 0 to 1 step 1 {\n}", "i1 is known already"),
        ("step 1 carry", "step 0 carry", "the step is not positive"),
        ("    yield %5\n", "", "differ in number or type"),
        ("yield %5", "yield %8", "differ in number or type"),
        ("bind j = %8", "bind j = %6", "only an i64 scalar can be bound"),
        ("bind j = %8", "bind N = %8", "N is known already"),
        ("scratch t: f32[8]", "scratch x: f32[8]", "two buffers are called x"),
        ("scratch t: f32[8]", "scratch t: f32[M]", "M is not known"),
    ],
)
def test_broken_rules_are_named(old: str, new: str, what: str) -> None:
    assert old in SCALE
    with pytest.raises(InternalError) as caught:
        verify_function(parse_function(SCALE.replace(old, new, 1)))
    assert what in caught.value.what
    assert "kernel scale" in caught.value.where


# -- meaning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "buffer"), [("a.b", "x"), ("a b", "x"), ("f", "x.y"), ("f", "é")])
def test_names_are_identifiers(name: str, buffer: str) -> None:
    with pytest.raises(InternalError, match="is not an identifier"):
        verify_function(Function(name, (Buffer(buffer, F32, 1, Access.READ),), ()))


def test_symbols_may_have_dots() -> None:
    text = SCALE.replace("N", "a.N").replace("i1", "i.1").replace("bind j", "bind j.0").replace("y[j]", "y[j.0]").replace("if j", "if j.0")
    function = parse_function(text)
    verify_function(function)
    assert print_function(function) == text
    y = np.zeros(9, np.float32)
    run_function(function, [np.arange(9, dtype=np.float32), y, None], {"a.N": 9})
    np.testing.assert_array_equal(y, 2 * np.arange(9))


@settings(QUICK, max_examples=150)
@given(kernels(), st.integers(1, 5))
def test_interpretation_is_what_the_machine_does(function: Function, workers: int) -> None:
    outputs = []
    for run in (lambda arrays: run_function(function, arrays, workers=workers), lambda arrays: jit(function, native())(arrays)):
        y, m = np.zeros(ROOM, np.float32), np.zeros(ROOM, np.int32)
        run([*inputs(), y, m])
        outputs.append((y, m))
    for interpreted, machine in zip(*outputs, strict=True):
        np.testing.assert_array_equal(interpreted, machine)


@pytest.mark.parametrize("n", [0, 1, 8, 21])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_params_and_parallel_parts(n: int, workers: int) -> None:
    x, y = np.arange(n, dtype=np.float32), np.full(n, np.nan, np.float32)
    run_function(parse_function(SCALE), [x, y, None], {"N": n}, workers)
    np.testing.assert_array_equal(y, 2 * x)


COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}
BITS = {"and", "or", "xor", "not"}
OF_FLOATS = set(FUNCTIONS) - BITS - {"cast", "select", "fma", "shl", "shr"}
OF_INTEGERS = {"add", "sub", "mul", "div", "mod", "fmod", "max", "min", "neg", "abs", "sign", "shl", "shr", "fma"} | COMPARE | BITS
FUNCTIONS_OF = {
    **dict.fromkeys((DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16), OF_FLOATS),
    **dict.fromkeys((DType.INT64, DType.INT32, DType.INT8, DType.UINT8), OF_INTEGERS),
    DType.BOOL: BITS | {"eq", "ne"},
}


@pytest.mark.parametrize(("dtype", "fn"), [(dtype, fn) for dtype, fns in FUNCTIONS_OF.items() for fn in sorted(fns)])
def test_every_function_is_the_scalar_one(dtype: DType, fn: str) -> None:
    data = np.random.default_rng(3).uniform(0, 3, (3, 8)).astype(dtype.numpy)
    kind = DType.BOOL if FUNCTIONS[fn].result == "bool" else dtype
    expected = apply(fn, [data[i] for i in range(FUNCTIONS[fn].arity)], kind)
    b = LoopBuilder("f")
    x = b.buffer("x", dtype, 24, Access.READ)
    regs = [b.load(x, 8 * i, 8) for i in range(FUNCTIONS[fn].arity)]
    result = b.op(fn, *regs)
    b.store(b.buffer("y", result.type.dtype, 8, Access.WRITE), 0, result)
    function = b.function()
    verify_function(function)
    y = np.zeros(8, result.type.dtype.numpy)
    run_function(function, [data.reshape(-1), y])
    np.testing.assert_array_equal(y.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT64, DType.UINT8])
def test_integer_division_rounds_towards_zero(dtype: DType) -> None:
    numbers = [n for n in range(-9, 10) if n >= 0 or dtype.is_signed]
    pairs = [(x, y) for x in numbers for y in numbers]
    x, y = (np.array(column, dtype.numpy) for column in zip(*pairs, strict=True))
    expected = [abs(x) // abs(y or 1) * (-1 if (x < 0) != (y < 0) else 1) for x, y in pairs]
    assert apply("div", [x, y], dtype).tolist() == expected


def test_the_lowest_integer_over_minus_one_wraps() -> None:
    assert apply("div", [np.array([-128], np.int8), np.array([-1], np.int8)], DType.INT8).tolist() == [-128]


def test_a_multiply_add_is_rounded_once() -> None:
    b = LoopBuilder("f")
    x, y = b.buffer("x", F32, 3, Access.READ), b.buffer("y", F32, 2, Access.WRITE)
    p, q, r = (b.load(x, i) for i in range(3))
    b.store(y, 0, b.fma(p, q, r))
    b.store(y, 1, b.op("add", b.op("mul", p, q), r))
    e = np.float32(2**-13)
    out = np.zeros(2, np.float32)
    run_function(b.function(), [np.array([1 + e, 1 + e, -1 - 2 * e], np.float32), out])
    assert list(out) == [e * e, 0]


@pytest.mark.parametrize(
    ("access", "elements"),
    [
        ("load x[i1 + 9]", "16 to 16"),
        ("load x[i1 + -1]", "-1 to -1"),
        ("load x[i1] stride 3", None),
    ],
)
def test_accesses_outside_a_buffer_are_found(access: str, elements: str | None) -> None:
    text = f"func @f(in x: f32[16], out y: f32[8]) {{\nfor i1 = 0 to 8 step 1 {{\n%1: f32 = {access.replace('+ -', '- ')}\nstore y[i1], %1\n}}\n}}"
    arrays = [np.zeros(16, np.float32), np.zeros(8, np.float32)]
    if elements is None:
        run_function(parse_function(text), arrays)
        return
    with pytest.raises(InternalError) as caught:
        run_function(parse_function(text), arrays)
    assert f"elements {elements} of a buffer of 16" in caught.value.what
    assert "statement %1: f32 = load x[i1" in caught.value.where


@pytest.mark.parametrize("suffix", ["", " stride 2", " stride -2", " count 3", " stride 0"])
@pytest.mark.parametrize("store", [False, True])
def test_the_last_lane_is_checked(suffix: str, store: bool) -> None:
    if store and suffix == " stride 0":
        return
    reach = {"": 3, " stride 2": 6, " stride -2": -6, " count 3": 2, " stride 0": 0}[suffix]
    statement = f"store y[i], %1{suffix}" if store else f"%2: f32x4 = load x[i]{suffix}"
    text = f"func @f(in x: f32[16], out y: f32[16]) params(i) {{\n%1: f32x4 = const 1.0\n{statement}\n}}"
    for at in range(-2, 18):
        arrays = [np.zeros(16, np.float32), np.zeros(16, np.float32)]
        if min(at, at + reach) >= 0 and max(at, at + reach) < 16:
            run_function(parse_function(text), arrays, {"i": at})
            assert arrays[1].sum() == (0 if not store else 3 if "count" in suffix else 4)
        else:
            with pytest.raises(InternalError, match="of a buffer of 16"):
                run_function(parse_function(text), arrays, {"i": at})


def test_scratch_is_private_and_begins_undefined() -> None:
    text = "func @f(out y: f32[2], scratch t: f32[1]) {\nparallel i = 0 to 2 step 1 {\n%1: f32 = load t[0]\nstore y[i], %1\n"
    text += "%2: f32 = const 1.0\nstore t[0], %2\n}\n}"
    for workers, expected in ((1, [np.nan, 1]), (2, [np.nan, np.nan])):
        y = np.zeros(2, np.float32)
        run_function(parse_function(text), [y, None], workers=workers)
        np.testing.assert_array_equal(y, np.array(expected, np.float32))


@pytest.mark.parametrize("array", [None, np.zeros(7, np.float32), np.zeros(8), np.zeros(16, np.float32)[::2]])
def test_arrays_that_do_not_fit_are_refused(array: Any) -> None:
    function = parse_function(SCALE)
    with pytest.raises(InternalError, match=r"buffer x is f32\[8\] in memory"):
        run_function(function, [array, np.zeros(8, np.float32), None], {"N": 8})
    with pytest.raises(InternalError, match="params"):
        run_function(function, [np.zeros(8, np.float32), np.zeros(8, np.float32), None])


# -- programs -----------------------------------------------------------------------------------------------------


def program() -> Program:
    """y = (2 * x + w) * 2 over N elements, by way of an arena of one value; x comes in a blocked layout."""
    scale = parse_function(SCALE)
    add = parse_function(
        "func @add(in x: f32[N], in w: f32[1], out y: f32[N]) params(N) {\n%1: f32 = load w[0]\nparallel i = 0 to N step 1 {\n"
        "%2: f32 = load x[i]\n%3: f32 = add %1, %2\nstore y[i], %3\n}\n}"
    )
    n = sym("N")
    x, y = Value("x y", TensorType(F32, (1, n, 1), 1)), Value("out", TensorType(F32, (n,)))
    weight = np.array([3], np.float32)
    calls = (
        KernelCall(0, (Address(Space.INPUT), Address(Space.ARENA, 64), Address(Space.ARENA, 0)), "first", "injective", "Schedule(n=1)", 8, 64, (n,)),
        KernelCall(
            1, (Address(Space.ARENA, 64), Address(Space.WEIGHTS, 64), Address(Space.ARENA, 256)), 'the "second"', "injective", "", 8, 64, (n,)
        ),
        KernelCall(0, (Address(Space.ARENA, 256), Address(Space.OUTPUT), Address(Space.ARENA, 0)), "third", "injective", "S()", 8, 64, (n,)),
    )
    return Program("net", (x,), (y,), (scale, add), calls, ((64, weight),), 128, 512, 400, symbols=("N",))


def test_programs_read_back() -> None:
    original = program()
    text = print_program(original)
    parsed = parse_program(text, weights_of(original))
    assert print_program(parsed) == text
    assert parsed.functions == original.functions
    assert parsed.calls == original.calls
    assert [repr(v) for v in (*parsed.inputs, *parsed.outputs)] == [repr(v) for v in (*original.inputs, *original.outputs)]
    assert (parsed.name, parsed.weights_bytes, parsed.arena_bytes, parsed.arena_bound_bytes) == ("net", 128, 512, 400)
    assert [(o, a.tolist()) for o, a in parsed.weights] == [(64, [3])]


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("call @add", "call @sub", 7, "no function is called @sub"),
        ("weights + 64", "weight + 64", 7, "not an address"),
        ("program", "programme", 1, "not a program"),
        ("  weight 64", "  wait 64", 5, "not a part of a program"),
        ("%2: f32 = load x[i]", "%2: f32 = lord", 36, "not a part"),
    ],
)
def test_errors_in_programs_name_the_line(old: str, new: str, line: int, what: str) -> None:
    text = print_program(program()).replace(old, new, 1)
    if "lord" in new:
        text = text.replace("add %1, %2", "add %1, %4", 1)
        line, what = next(n for n, t in enumerate(text.splitlines(), 1) if "add %1, %4" in t), "%4 is not defined"
    with pytest.raises(UserError) as caught:
        parse_program(text, weights_of(program()))
    assert what in caught.value.what
    assert caught.value.where.endswith(f"line {line}")


def test_a_program_without_its_weights_is_refused() -> None:
    with pytest.raises(UserError, match="was not given"):
        parse_program(print_program(program()), {})


@pytest.mark.parametrize("workers", [1, 2])
def test_programs_run_in_their_planned_memory(workers: int) -> None:
    x = np.arange(10, dtype=np.float32).reshape(1, 10, 1)
    out = run_program(program(), {"x y": x}, workers)
    np.testing.assert_array_equal(out["out"], (2 * x.reshape(-1) + 3) * 2)


def _change_call(number: int, argument: int, address: Address) -> Program:
    original = program()
    args = list(original.calls[number].args)
    args[argument] = address
    calls = list(original.calls)
    old = calls[number]
    calls[number] = KernelCall(old.function, tuple(args), old.name, old.family, old.schedule, old.flops, old.nbytes, old.params)
    return replace(original, body=tuple(calls))


@pytest.mark.parametrize(
    ("number", "argument", "address", "what"),
    [
        (0, 1, Address(Space.ARENA, 480), "buffer y is bytes 480 to 520 of arena, which has 512"),
        (0, 1, Address(Space.INPUT), "buffer y writes to input"),
        (1, 1, Address(Space.WEIGHTS, 128), "buffer w is bytes 128 to 132 of weights"),
    ],
)
def test_buffers_outside_their_memory_are_found(number: int, argument: int, address: Address, what: str) -> None:
    with pytest.raises(InternalError) as caught:
        run_program(_change_call(number, argument, address), {"x y": np.zeros((1, 10, 1), np.float32)})
    assert what in caught.value.what


def test_arena_memory_begins_undefined() -> None:
    unwritten = _change_call(1, 0, Address(Space.ARENA, 384))
    assert np.isnan(run_program(unwritten, {"x y": np.zeros((1, 10, 1), np.float32)})["out"]).all()


def test_a_bad_plan_shows_in_the_results() -> None:
    x = np.arange(10, dtype=np.float32).reshape(1, 10, 1)
    overlapping = _change_call(1, 2, Address(Space.ARENA, 80))
    bad = run_program(overlapping, {"x y": x})["out"]
    assert not np.array_equal(bad, (2 * x.reshape(-1) + 3) * 2)


@pytest.mark.parametrize("block", [1, 4])
def test_blocked_inputs_and_outputs_are_packed_and_unpacked(block: int) -> None:
    type_ = TensorType(F32, (1, 6, 2), block)
    copy = parse_function(
        f"func @copy(in x: f32[{type_.elements}], out y: f32[{type_.elements}]) {{\n"
        f"for i = 0 to {type_.elements} step 1 {{\n%1: f32 = load x[i]\nstore y[i], %1\n}}\n}}"
    )
    call = KernelCall(0, (Address(Space.INPUT), Address(Space.OUTPUT)), "copy", "layout", "", 0, 0)
    x = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    out = run_program(Program("p", (Value("x", type_),), (Value("y", type_),), (copy,), (call,), (), 0, 0, 0), {"x": x})
    np.testing.assert_array_equal(out["y"], x)
    assert pack_physical(x, block).size == type_.elements
