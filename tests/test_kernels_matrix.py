"""Convolution and matrix multiplication families: compiled against interpreted against numpy, on shapes hypothesis makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere

from compiler.ir.intexpr import evaluate
from compiler.ir.loop import For, Let, Stmt
from compiler.ir.loop_text import print_function
from compiler.ir.scalar import Arg, Const, Scalar, call
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Family, Operand, Workload, family
from compiler.target import Target, native, resolve

FLOAT = DType.FLOAT32
HOST = native()
TARGETS = [HOST, *(t for t in map(resolve, ("x86-64-v3", "x86-64-v4")) if set(t.features) <= set(HOST.features))]
"""This machine's own code and every preset it can run."""
LIMIT = settings(max_examples=8, deadline=None)


def reference_conv(
    x: np.ndarray, w: np.ndarray, strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...], group: int
) -> np.ndarray:
    """Convolution in float64, tap by tap."""
    rank = len(strides)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    out = [(p - d * (k - 1) - 1) // s + 1 for p, d, k, s in zip(padded.shape[2:], dilations, w.shape[2:], strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per = w.shape[0] // group
    for tap in np.ndindex(*w.shape[2:]):
        window = tuple(slice(t * d, t * d + s * (o - 1) + 1, s) for t, d, s, o in zip(tap, dilations, strides, out, strict=True))
        part = padded[(slice(None), slice(None), *window)]
        for g in range(group):
            channels = part[:, g * w.shape[1] : (g + 1) * w.shape[1]]
            y[:, g * per : (g + 1) * per] += np.einsum("oc,nc...->no...", w[g * per : (g + 1) * per, :, *tap].astype(np.float64), channels)
    return y


def epilogue_of(kind: str, out: TensorType, blocked: int) -> tuple[Scalar, tuple[Operand, ...]]:
    bias_shape = (1, out.shape[1], *(1,) * (out.rank - 2))
    bias = Operand(TensorType(FLOAT, bias_shape, blocked), constant=True)
    biased = call("add", Arg(0, FLOAT), Arg(1, FLOAT))
    if kind == "none":
        return Arg(0, FLOAT), ()
    if kind == "bias":
        return biased, (bias,)
    clipped = call("min", call("max", biased, Const(0.0, FLOAT)), Const(6.0, FLOAT))
    if kind == "clip":
        return clipped, (bias,)
    scale = Operand(TensorType(FLOAT, (1, 1, *out.shape[2:])))
    return call("add", call("mul", clipped, Arg(3, FLOAT)), Arg(2, FLOAT)), (bias, Operand(out), scale)


def apply_epilogue(kind: str, y: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    if kind == "none":
        return y
    y = y + values[0]
    if kind == "bias":
        return y
    y = np.clip(y, 0, 6)
    return y if kind == "clip" else y * values[2] + values[1]


@st.composite
def convolutions(draw: st.DrawFn, kind: str, lanes: int) -> dict[str, object]:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3] if kind != "depthwise_conv" else [1, 2]))
    batch = draw(st.integers(1, 2))
    kernel = tuple(1 if kind == "pointwise_conv" else draw(st.integers(1, 5)) for _ in range(rank))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilations = tuple(1 if kind == "pointwise_conv" else draw(st.integers(1, 2)) for _ in range(rank))
    pads = (0,) * (2 * rank) if kind == "pointwise_conv" else tuple(draw(st.integers(0, 3)) for _ in range(2 * rank))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    size = tuple(max(1, r - pads[i] - pads[rank + i]) + draw(st.integers(0, 17)) for i, r in enumerate(reach))
    if kind == "depthwise_conv":
        channels = draw(st.integers(1, 20))
        group, x_channels, filters = channels, channels, channels
    else:
        group = draw(st.sampled_from([1, 1, 2] if kind == "pointwise_conv" else [1, 1, 2, 3, 5, 9, 17]))
        unit = lanes if group > 1 and kind == "pointwise_conv" else 1
        limits = (2, 3) if unit > 1 else (20, 37) if group == 1 else draw(st.sampled_from([(20, 37), (8, 8)]))
        x_channels, filters = (group * unit * draw(st.integers(1, limit)) for limit in limits)
    return {
        "x": (batch, x_channels, *size),
        "w": (filters, x_channels // group, *kernel),
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
        "threads": draw(st.integers(1, 3)),
        "epilogue": draw(st.sampled_from(["none", "bias", "clip", "all"])),
        "plain_input": draw(st.booleans()),
        "constant": kind in ("pointwise_conv", "depthwise_conv") or draw(st.sampled_from([True, True, False])),
        "pick": draw(st.integers(0, 1000)),
        "seed": draw(st.integers(0, 1000)),
    }


def check_conv(kind: str, case: dict[str, object], target: Target) -> None:
    rng = np.random.default_rng(case["seed"])
    x, w = (rng.standard_normal(case[name], dtype=np.float32) for name in ("x", "w"))
    y = reference_conv(x, w, case["strides"], case["pads"], case["dilations"], case["group"])
    block = 1 if kind == "generic_conv" else target.lanes
    x_block = 1 if case["plain_input"] and kind != "depthwise_conv" else block
    out = TensorType(FLOAT, y.shape, block)
    epilogue, operands = epilogue_of(case["epilogue"], out, block)
    params = tuple((name, case[name]) for name in ("strides", "pads", "dilations", "group"))
    inputs = (Operand(TensorType(FLOAT, x.shape, x_block)), Operand(TensorType(FLOAT, w.shape), case["constant"]))
    workload = Workload(kind, params, inputs, out, out, epilogue, operands, case["threads"])
    chosen: Family = family(kind)
    assert chosen.supports(workload, target)
    space = chosen.space(workload, target)
    schedule = space[0] if case["pick"] % 2 else space[case["pick"] % len(space)]
    extra = [rng.standard_normal(o.type.shape, dtype=np.float32) for o in operands]
    got = run_everywhere(chosen, workload, schedule, [x, w, *extra], target)
    want = apply_epilogue(case["epilogue"], y, extra)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(initial=0), np.abs(y).max(initial=0)))


@pytest.mark.parametrize("kind", ["pointwise_conv", "depthwise_conv", "direct_conv", "generic_conv"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_convolution_families_agree_with_float64(kind: str, target: Target) -> None:
    @LIMIT
    @given(convolutions(kind, target.lanes))
    def check(case: dict[str, object]) -> None:
        check_conv(kind, case, target)

    check()


LONG: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = [
    ("direct_conv", (1, 3, 120), (20, 3, 100), (1,), (0, 0), (1,), 1),
    ("direct_conv", (1, 3, 50), (9, 3, 61), (1,), (30, 30), (1,), 1),
    ("direct_conv", (2, 10, 50), (6, 5, 40), (2,), (30, 7), (2,), 2),
    ("direct_conv", (1, 6, 3, 40), (6, 2, 2, 34), (1, 3), (0, 20, 1, 9), (1, 1), 3),
    ("depthwise_conv", (1, 9, 150), (9, 1, 100), (1,), (0, 0), (1,), 9),
    ("depthwise_conv", (2, 9, 90), (9, 1, 70), (2,), (40, 13), (1,), 9),
    ("depthwise_conv", (1, 8, 14, 12), (8, 1, 31, 31), (1, 1), (15, 15, 15, 15), (1, 1), 8),
]
"""Windows of many taps: x, weights, strides, pads, dilations, group."""


@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[2][2:]))}")
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_long_windows_take_loops(case: tuple[str, *tuple[Any, ...]], target: Target) -> None:
    kind, *values = case
    sizes = dict(zip(("x", "w", "strides", "pads", "dilations", "group"), values, strict=True))
    for plain, threads in ((True, 1), (False, 3)):
        check_conv(kind, {**sizes, "threads": threads, "epilogue": "clip", "plain_input": plain, "constant": True, "pick": 1, "seed": 0}, target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("kind", "group"), [("direct_conv", 1), ("direct_conv", 8), ("depthwise_conv", 32)])
@pytest.mark.parametrize(("taps", "pad"), [((1000,), 0), ((1000,), 500), ((31, 31), 15), ((5, 200), 2)])
def test_code_does_not_grow_with_the_window(kind: str, group: int, taps: tuple[int, ...], pad: int, target: Target) -> None:
    x = TensorType(FLOAT, (1, 32, 3000) if len(taps) == 1 else (1, 32, 300, 300), target.lanes)
    out = TensorType(FLOAT, (*x.static_shape[:2], *(n + 2 * pad - k + 1 for n, k in zip(x.static_shape[2:], taps, strict=True))), target.lanes)
    ones = (1,) * len(taps)
    params = (("strides", ones), ("pads", (pad,) * (2 * len(taps))), ("dilations", ones), ("group", group))
    inputs = (Operand(x), Operand(TensorType(FLOAT, (32, 32 // group, *taps)), constant=True))
    chosen, workload = family(kind), Workload(kind, params, inputs, out, out, Arg(0, FLOAT))
    function = chosen.build(workload, chosen.heuristic(workload, target), target, "kernel")
    assert print_function(function).count("\n") < 20_000


GROUPS = [(32, 4, 4), (12, 2, 2), (5, 3, 3), (24, 1, 2), (4, 6, 1), (3, 20, 80), (3, 80, 20), (2, 24, 24), (3, 25, 17), (7, 12, 12), (9, 2, 40)]
"""Groups, and the input and output channels of each."""


def grouped(group: int, channels: int, filters: int, kernel: int, target: Target) -> Workload:
    x = TensorType(FLOAT, (1, group * channels, 5, 6), target.lanes)
    out = TensorType(FLOAT, (1, group * filters, 6 - kernel, 7 - kernel), target.lanes)
    params = (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1)), ("group", group))
    inputs = (Operand(x), Operand(TensorType(FLOAT, (group * filters, channels, kernel, kernel)), constant=True))
    return Workload("direct_conv", params, inputs, out, out, Arg(0, FLOAT))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("group", "channels", "filters"), GROUPS)
def test_groups_of_any_size_take_no_step_more_than_their_channels(group: int, channels: int, filters: int, target: Target) -> None:
    chosen = family("direct_conv")
    for kernel in (1, 3):
        workload = grouped(group, channels, filters, kernel, target)
        function = chosen.build(workload, chosen.heuristic(workload, target), target, "kernel")
        assert steps(function.body, {}) == workload.output.elements // target.lanes * channels * kernel**2


def steps(body: tuple[Stmt, ...], values: dict[str, int]) -> int:
    """Multiply-accumulate instructions that run."""
    total = 0
    for stmt in body:
        if isinstance(stmt, For):
            start, stop = (evaluate(bound, values) for bound in (stmt.start, stmt.stop))
            total += sum(steps(stmt.body, {**values, stmt.var: at}) for at in range(start, stop, stmt.step))
        total += isinstance(stmt, Let) and stmt.op == "fma"
    return total


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_group_knows_nothing_of_the_others(target: Target) -> None:
    """What is not finite in one group's channels stays in that group's results."""
    chosen, rng = family("direct_conv"), np.random.default_rng(0)
    for group, channels, filters in GROUPS:
        workload = grouped(group, channels, filters, 3, target)
        x, w = (rng.standard_normal(operand.type.shape, dtype=np.float32) for operand in workload.inputs)
        want = reference_conv(x, w, (1, 1), (0,) * 4, (1, 1), group)
        bad = group // 2
        x[:, bad * channels : (bad + 1) * channels] = np.resize([np.inf, np.nan, -np.inf], (channels, 1, 1))
        got = run_everywhere(chosen, workload, chosen.heuristic(workload, target), [x, w], target)
        spoiled = slice(bad * filters, (bad + 1) * filters)
        assert not np.isfinite(got[:, spoiled]).any()
        np.testing.assert_allclose(np.delete(got, spoiled, 1), np.delete(want, spoiled, 1), rtol=0, atol=1e-5 * np.abs(want).max())


@st.composite
def products(draw: st.DrawFn) -> dict[str, object]:
    m, n, k = draw(st.integers(1, 30)), draw(st.integers(1, 40)), draw(st.integers(1, 30))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    right = draw(st.sampled_from([(), batch, tuple(1 for _ in batch)]))
    return {
        "a": (*batch, m, k),
        "b": (*right, k, n),
        "constant": draw(st.booleans()),
        "dtype": draw(st.sampled_from([FLOAT, FLOAT, DType.FLOAT64, DType.INT32])),
        "threads": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "pick": draw(st.integers(0, 1000)),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(LIMIT, max_examples=40)
@given(products())
def test_matrix_multiplication_agrees_with_numpy(case: dict[str, object]) -> None:
    target, dtype = TARGETS[0], case["dtype"]
    rng = np.random.default_rng(case["seed"])
    a, b = ((rng.standard_normal(case[name]) * 8).astype(dtype.numpy) for name in ("a", "b"))
    want = np.matmul(a, b) if dtype is DType.INT32 else np.matmul(a.astype(np.float64), b.astype(np.float64))
    out = TensorType(dtype, want.shape)
    epilogue: Scalar = Arg(0, dtype)
    operands, extra = (), []
    if case["bias"]:
        epilogue = call("add", epilogue, Arg(1, dtype))
        extra = [(rng.standard_normal((1,) * (out.rank - 1) + out.shape[-1:]) * 8).astype(dtype.numpy)]
        operands = (Operand(TensorType(dtype, extra[0].shape), constant=True),)
        want = want + extra[0]
    inputs = (Operand(TensorType(dtype, a.shape)), Operand(TensorType(dtype, b.shape), constant=case["constant"]))
    workload = Workload("matmul", (), inputs, out, out, epilogue, operands, case["threads"])
    chosen = family("matmul")
    assert chosen.supports(workload, target)
    space = chosen.space(workload, target)
    schedule = space[0] if case["pick"] % 2 else space[case["pick"] % len(space)]
    got = run_everywhere(chosen, workload, schedule, [a, b, *extra], target)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(initial=1e-30))


def test_sections_are_balanced_and_cover() -> None:
    from compiler.kernels.tiles import sections

    for total in range(200):
        for largest in range(1, 15):
            found = sections(total, largest)
            assert sum(s.count * s.size for s in found) == total
            assert len({s.size for s in found}) <= 2
            assert all(0 < s.size <= largest for s in found)
            at = 0
            for s in found:
                assert s.start == at
                at += s.count * s.size
