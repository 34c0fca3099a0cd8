"""Vector math compiled for this CPU, compared with numpy's 80-bit (float64: wider than the function) results."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llvm import vecmath
from backends.llvm.writer import IrWriter, llvm_type
from compiler.errors import InternalError
from compiler.ir.loop import VecType
from compiler.ir.types import DType

Array = np.ndarray[Any, np.dtype[Any]]
F32, F64 = DType.FLOAT32, DType.FLOAT64
COUNT = 1 << 16
NUMPY: dict[DType, type[np.float32] | type[np.float64]] = {F32: np.float32, F64: np.float64}

pytestmark = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="the reference needs numpy's 80-bit long double")


def _erf(x: Array) -> Array:
    """From erfc by a continued fraction or from the Taylor series, in long double."""
    a = np.abs(x).astype(np.longdouble)
    series: Array = a.copy()
    term: Array = a.copy()
    for n in range(1, 120):
        term = term * (-a * a) / n
        series = series + term / (2 * n + 1)
    fraction: Array = a.copy()
    for n in range(120, 0, -1):
        fraction = a + (np.longdouble(n) / 2) / np.where(fraction == 0, 1, fraction)
    root_pi = np.sqrt(4 * np.arctan(np.longdouble(1)))
    value = np.where(a < 2, 2 / root_pi * series, 1 - np.exp(-a * a) / (root_pi * np.where(fraction == 0, 1, fraction)))
    return np.copysign(np.where(np.isinf(a), 1, value), x)


@dataclass(frozen=True)
class Case:
    """A function, its reference, the bounds in ULP that docs/vector-math.md states, and where they hold."""

    reference: Callable[..., Array]
    ulp: tuple[float, float]
    domains: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    arity: int = 1


def _both(*domains: tuple[float, float]) -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
    return tuple((d, d) for d in domains)


CASES = {
    "exp": Case(np.exp, (1.1, 1.1), (((-86.9, 88.72), (-708, 709.78)), ((-1, 1), (-1, 1)))),
    "log": Case(np.log, (1, 1), (((1e-37, 1e38), (1e-307, 1e308)), ((0.4, 2.1), (0.4, 2.1)), ((0.99, 1.01), (0.99, 1.01)))),
    "tanh": Case(np.tanh, (4, 4), _both((-20, 20), (-1, 1))),
    "sigmoid": Case(lambda x: 1 / (1 + np.exp(-x)), (3, 3), (((-86, 20), (-706, 40)), ((-8, 8), (-8, 8)))),
    "erf": Case(_erf, (3, 3), _both((-6, 6), (-0.5, 0.5))),
    "sin": Case(np.sin, (2, 2), (((-10, 10), (-10, 10)), ((-1e6, 1e6), (-1e9, 1e9)))),
    "cos": Case(np.cos, (2, 2), (((-10, 10), (-10, 10)), ((-1e6, 1e6), (-1e9, 1e9)))),
    "tan": Case(np.tan, (4, 4), (((-10, 10), (-10, 10)), ((-1e6, 1e6), (-1e9, 1e9)))),
    "asin": Case(np.arcsin, (2.5, 2.5), _both((-1, 1))),
    "acos": Case(np.arccos, (2, 2), _both((-1, 1))),
    "atan": Case(np.arctan, (2.5, 2.5), _both((-3, 3), (-1e6, 1e6))),
    "sinh": Case(np.sinh, (2.5, 2.5), (((-89.4, 89.4), (-710.4, 710.4)), ((-2, 2), (-2, 2)))),
    "cosh": Case(np.cosh, (2.5, 2.5), (((-89.4, 89.4), (-710.4, 710.4)), ((-2, 2), (-2, 2)))),
    "asinh": Case(np.arcsinh, (2.5, 2.5), (((-2, 2), (-2, 2)), ((-1e38, 1e38), (-1e300, 1e300)))),
    "acosh": Case(np.arccosh, (4, 4), (((1, 2), (1, 2)), ((1, 1e38), (1, 1e300)))),
    "atanh": Case(np.arctanh, (2.5, 2.5), _both((-1, 1), (-0.1, 0.1))),
    "pow": Case(np.power, (1, 2), (), 2),
    "mod": Case(np.mod, (0.5, 0.5), (), 2),
    "fmod": Case(np.fmod, (0.5, 0.5), (), 2),
}


def _kernel(fn: str, type_: VecType, name: str, writer: IrWriter) -> str:
    """LLVM text of a function that maps ``fn`` over arrays of n elements, n a positive multiple of the lanes."""
    arity = CASES[fn].arity
    vector, scalar, align = llvm_type(type_), llvm_type(VecType(type_.dtype, 1)), type_.dtype.itemsize
    args = []
    for index in range(arity):
        pointer = writer.ins(f"getelementptr {scalar}, ptr %a{index}, i64 %i")
        args.append(writer.ins(f"load {vector}, ptr {pointer}, align {align}"))
    result = vecmath.emit(writer, fn, type_, args)
    pointer = writer.ins(f"getelementptr {scalar}, ptr %out, i64 %i")
    writer.do(f"store {vector} {result}, ptr {pointer}, align {align}")
    params = ", ".join(f"ptr %a{index}" for index in range(arity))
    body = "\n".join(writer.lines)
    return f"""define void @{name}({params}, ptr %out, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{body}
  %next = add i64 %i, {type_.lanes}
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret void
}}
"""


class Library:
    """Every function in several widths, compiled once."""

    widths = ((F32, 8), (F64, 4), (F32, 1), (F64, 1), (F32, 3), (F32, 16))

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        declarations: dict[str, str] = {}
        bodies = []
        for dtype, lanes in self.widths:
            for fn in CASES:
                writer = IrWriter()
                bodies.append(_kernel(fn, VecType(dtype, lanes), self._name(fn, dtype, lanes), writer))
                declarations |= writer.declarations
        module = llvm.parse_assembly("\n".join([*declarations.values(), *bodies]))
        module.verify()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3)
        self.assembly = machine.emit_assembly(module)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    @staticmethod
    def _name(fn: str, dtype: DType, lanes: int) -> str:
        return f"{fn}_{dtype.value}_{lanes}"

    def __call__(self, fn: str, *arrays: Array, lanes: int | None = None) -> Array:
        dtype = DType.of(arrays[0].dtype)
        lanes = lanes or (8 if dtype is F32 else 4)
        size = arrays[0].size
        padded = [np.concatenate([a, np.ones(-size % lanes, a.dtype)]) for a in arrays]
        out = np.empty_like(padded[0])
        address = self._engine.get_function_address(self._name(fn, dtype, lanes))
        entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(padded) + 1), ctypes.c_int64)(address)
        entry(*(a.ctypes.data for a in padded), out.ctypes.data, out.size)
        return out[:size]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def _ulps(got: Array, exact: Array) -> Array:
    """Distance in units in the last place of the exact result; infinite where exactly one of the two is NaN or infinite."""
    rounded = exact.astype(got.dtype)
    ulp = np.spacing(np.maximum(np.abs(np.where(np.isfinite(rounded), rounded, 1)), np.finfo(got.dtype).tiny))
    distance = np.abs(got.astype(np.longdouble) - exact) / ulp
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    distance = np.where(same & ~np.isfinite(rounded), 0, distance)
    return np.where(np.isnan(distance), math.inf, distance)


def _check(fn: str, got: Array, args: tuple[Array, ...], bound: float) -> None:
    with np.errstate(all="ignore"):
        error = _ulps(got, CASES[fn].reference(*(a.astype(np.longdouble) for a in args)))
    worst = int(error.argmax())
    assert error[worst] <= bound, f"{fn}{tuple(a[worst] for a in args)} = {got[worst]!r}, off by {error[worst]:.2f} ULP (bound {bound})"


def _samples(low: float, high: float, dtype: DType) -> Array:
    """Random points evenly over the interval and over its orders of magnitude, and the points next to its ends and to 1."""
    random = np.random.default_rng(0)
    even = random.uniform(low, high, COUNT)
    scale = max(abs(low), abs(high))
    smallest = low if low > 0 else scale * 1e-20
    magnitudes = smallest * (scale / smallest) ** random.random(COUNT) * (np.where(random.random(COUNT) < 0.5, -1, 1) if low < 0 else 1)
    points = np.concatenate([even, magnitudes, [low, high, 0.5, 1.0, -1.0]]).astype(NUMPY[dtype])
    near = np.concatenate([points, np.nextafter(points[-5:], NUMPY[dtype](0)), np.nextafter(points[-5:], NUMPY[dtype](2))])
    return near[(near >= low) & (near <= high)]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fn", [fn for fn, case in CASES.items() if case.arity == 1])
def test_error_is_within_the_stated_bound(library: Library, fn: str, dtype: DType) -> None:
    wide = dtype is F64
    for domains in CASES[fn].domains:
        x = _samples(*domains[wide], dtype)
        _check(fn, library(fn, x), (x,), CASES[fn].ulp[wide])


@pytest.mark.parametrize(("dtype", "quadrants"), [(F32, 600_000), (F64, 1 << 20)])
@pytest.mark.parametrize("fn", ["sin", "cos", "tan"])
def test_circular_functions_next_to_multiples_of_half_pi(library: Library, fn: str, dtype: DType, quadrants: int) -> None:
    """Where the reduced argument is smallest, a reduction that loses bits shows."""
    multiples = (np.arange(1, quadrants, 7).astype(np.longdouble) * (2 * np.arctan(np.longdouble(1)))).astype(NUMPY[dtype])
    # Long double's own pi is too short to be the reference next to far multiples: float64 results are bounded absolutely.
    got = library(fn, multiples)
    with np.errstate(all="ignore"):
        exact = CASES[fn].reference(multiples.astype(np.longdouble))
    small = np.abs(exact) < 1
    if dtype is F32:
        _check(fn, got, (multiples,), CASES[fn].ulp[0])
    else:
        assert np.abs(got - exact)[small].max() < 1e-15


def _powers(dtype: DType) -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    reach = 125 if dtype is F32 else 1021
    x = np.concatenate([np.exp2(random.uniform(-30, 30, COUNT)), random.uniform(0.5, 2, COUNT)])
    y = random.uniform(-reach, reach, x.size) / np.log2(x)
    return x.astype(NUMPY[dtype]), y.astype(NUMPY[dtype])


@pytest.mark.parametrize("dtype", [F32, F64])
def test_pow_over_the_whole_range_of_results(library: Library, dtype: DType) -> None:
    x, y = _powers(dtype)
    _check("pow", library("pow", x, y), (x, y), CASES["pow"].ulp[dtype is F64])


@pytest.mark.parametrize("dtype", [F32, F64])
def test_integer_powers_of_negative_bases(library: Library, dtype: DType) -> None:
    x, y = np.meshgrid(np.linspace(-9, -0.1, 90), np.arange(-9, 10))
    base, exponent = x.ravel().astype(NUMPY[dtype]), y.ravel().astype(NUMPY[dtype])
    _check("pow", library("pow", base, exponent), (base, exponent), CASES["pow"].ulp[dtype is F64])


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fn", ["mod", "fmod"])
def test_remainders_are_exact(library: Library, fn: str, dtype: DType) -> None:
    random = np.random.default_rng(2)
    spread = 23 if dtype is F32 else 52
    x = (np.exp2(random.uniform(-spread, spread, COUNT)) * random.choice([-1, 1], COUNT)).astype(NUMPY[dtype])
    y = (np.exp2(random.uniform(-spread, spread, COUNT)) * random.choice([-1, 1], COUNT)).astype(NUMPY[dtype])
    x[: COUNT // 4] = np.trunc(x[: COUNT // 4])
    y[: COUNT // 4] = np.ceil(np.abs(y[: COUNT // 4]))
    np.testing.assert_array_equal(library(fn, x, y), CASES[fn].reference(x, y))


def test_a_remainder_past_the_exact_range_is_nan(library: Library) -> None:
    assert np.isnan(library("fmod", np.array([1e30], np.float32), np.array([7], np.float32)))[0]


def _sign_and_value(x: Array) -> tuple[Array, Array]:
    return np.where(np.isnan(x), 0, x), np.signbit(np.where(np.isnan(x), 0, x))


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 7.0, 1e3, -1e3]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fn", CASES)
def test_special_values(library: Library, fn: str, dtype: DType) -> None:
    """Zeros with their signs, infinities, NaN, domain edges, overflow and underflow, in every combination of two arguments."""
    values = np.array(SPECIAL, NUMPY[dtype])
    args = tuple(g.ravel() for g in np.meshgrid(*[values] * CASES[fn].arity))
    got = library(fn, *args)
    with np.errstate(all="ignore"):
        exact = CASES[fn].reference(*(a.astype(np.longdouble) for a in args)).astype(NUMPY[dtype])
        exact = np.where(np.abs(exact) < np.finfo(NUMPY[dtype]).tiny, np.copysign(0, exact), exact).astype(NUMPY[dtype])
    _, got_sign = _sign_and_value(got)
    _, want_sign = _sign_and_value(exact)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    np.testing.assert_array_equal(got_sign, want_sign)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(got.astype(np.float64), exact.astype(np.float64), rtol=4 * float(np.finfo(NUMPY[dtype]).eps), atol=0)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_exp_at_the_ends_of_its_range(library: Library, dtype: DType) -> None:
    top = np.nextafter(np.log(np.finfo(NUMPY[dtype]).max).astype(NUMPY[dtype]), NUMPY[dtype](0))
    bottom = np.log(2.0) * (-125 if dtype is F32 else -1021)
    got = library("exp", np.array([top, top * 1.001, bottom, bottom * 1.02], NUMPY[dtype]))
    assert np.isfinite(got[0])
    assert got[0] > np.finfo(NUMPY[dtype]).max * 0.99
    assert got[1] == math.inf
    assert got[2] > 0
    assert got[3] == 0


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("fn", ["log", "pow"])
def test_subnormal_arguments(library: Library, fn: str, dtype: DType) -> None:
    x = np.array([np.finfo(NUMPY[dtype]).tiny / 3, np.finfo(NUMPY[dtype]).smallest_subnormal], NUMPY[dtype])
    args = (x,) if fn == "log" else (x, np.full_like(x, 0.25))
    _check(fn, library(fn, *args), args, CASES[fn].ulp[dtype is F64])


@pytest.mark.parametrize("fn", ["sin", "cos"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_circular_functions_stay_bounded_past_their_range(library: Library, fn: str, dtype: DType) -> None:
    huge = np.geomspace(1e9, 1e38, 500).astype(NUMPY[dtype])
    assert np.abs(library(fn, huge)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(fn=st.sampled_from(sorted(CASES)), seed=st.integers(0, 1 << 30), size=st.integers(1, 40), width=st.sampled_from(Library.widths[2:]))
def test_every_width_gives_the_same_bits(library: Library, fn: str, seed: int, size: int, width: tuple[DType, int]) -> None:
    dtype, lanes = width
    random = np.random.default_rng(seed)
    args = [(random.standard_normal(size) * 4).astype(NUMPY[dtype]) for _ in range(CASES[fn].arity)]
    np.testing.assert_array_equal(library(fn, *args, lanes=lanes), library(fn, *args))


def test_nothing_calls_a_library(library: Library) -> None:
    calls = [line for line in library.assembly.splitlines() if line.split()[:1] and line.split()[0].startswith(("call", "bl", "jal"))]
    assert calls == []


def test_every_function_is_covered() -> None:
    supported = {fn for fn in vecmath.FUNCTIONS if vecmath.supports(fn, F32) and vecmath.supports(fn, F64)}
    assert supported == set(CASES)


def test_an_unsupported_function_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="no vector math for exp of f16x8"):
        vecmath.emit(IrWriter(), "exp", VecType(DType.FLOAT16, 8), ["%x"])
