"""Pointwise convolutions that compute what they read: gates, normalisations and whatever else stands before them, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import sym
from compiler.ir.loop import Access
from compiler.ir.scalar import Arg, Const, call, cast
from compiler.ir.types import DType, TensorType
from compiler.kernels import gemm_operands
from compiler.kernels.base import Operand, Prologue, Workload, family
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import Target
from tests.graph_cases import CONV, f32, kernels_apart
from tests.test_fusion import check, groups
from tests.test_kernels_matrix import FLOAT, TARGETS, reference_conv
from tests.test_lowering import TARGET, check_program


@st.composite
def computed_inputs(draw: st.DrawFn, lanes: int) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    group = draw(st.sampled_from([1, 1, 2]))
    unit = lanes if group > 1 else 1
    size = tuple(draw(st.sampled_from([1, 2, 3, 4, 12])) for _ in range(rank))
    x = (draw(st.integers(1, 2)), group * unit * draw(st.integers(1, 2 if group > 1 else 20)), *size)
    kinds = st.sampled_from([x, (1, x[1], *(1,) * rank), (x[0], x[1], *(1,) * rank), (x[0], 1, *size), (1, 1, *size[:-1], 1), (1,) * (rank + 2)])
    return {
        "x": x,
        "sources": [draw(kinds) for _ in range(draw(st.integers(1, 3)))],
        "w": (group * unit * draw(st.integers(1, 3 if group > 1 else 30)), x[1] // group, *(1,) * rank),
        "strides": tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)),
        "group": group,
        "threads": draw(st.integers(1, 3)),
        "rows_bytes": draw(st.sampled_from([1 << 18, 256, 1])),
        "narrow": draw(st.booleans()),
        "gate": draw(st.booleans()),
        "pick": draw(st.integers(0, 1000)),
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_computed_rows_agree_with_float64(target: Target) -> None:
    """Any broadcast of what is read; rows made before, in pieces, tile by tile."""

    @settings(max_examples=50, deadline=None)
    @given(computed_inputs(target.lanes))
    def agree(case: dict[str, Any]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gemm_operands, "_ROWS_BYTES", case["rows_bytes"])
            patch.setattr(gemm_operands, "_FEWEST_ROWS", 2)
            check_computed(case, target)

    agree()


def check_computed(case: dict[str, Any], target: Target) -> None:
    rng, lanes, x, w = np.random.default_rng(case["seed"]), target.lanes, case["x"], case["w"]
    dtype = DType.FLOAT16 if case["narrow"] else FLOAT
    ones = (1,) * (len(x) - 2)
    pads = (0,) * 2 * len(ones)
    values = [rng.standard_normal(shape).astype(dtype.numpy) for shape in case["sources"]]
    weights = rng.standard_normal(w, dtype=np.float32)
    elements = [cast(Arg(number, dtype), FLOAT) for number in range(len(values))]
    element, total = elements[0], values[0].astype(np.float64)
    for number, (other, value) in enumerate(zip(elements[1:], values[1:], strict=True)):
        element = call("mul" if number else "add", element, other)
        total = total * value if number else total + value
    element, total = call("max", element, Const(0.0, FLOAT)), np.maximum(total, 0)
    if case["gate"]:
        values.append(rng.standard_normal((x[0], x[1], *ones)).astype(dtype.numpy))
        element, total = call("mul", elements[0], cast(Arg(len(values) - 1, dtype), FLOAT)), values[0] * values[-1].astype(np.float64)
    want = reference_conv(np.broadcast_to(total, x), weights, case["strides"], pads, ones, case["group"])
    operands = [Operand(TensorType(dtype, value.shape, lanes if value.shape[1] == x[1] else 1)) for value in values]
    out = TensorType(FLOAT, want.shape, lanes)
    params = (("strides", case["strides"]), ("pads", pads), ("dilations", ones), ("group", case["group"]))
    inputs = (*operands, Operand(TensorType(FLOAT, w), constant=True))
    prologue = Prologue(TensorType(FLOAT, x, lanes), element, len(operands))
    workload = Workload("pointwise_conv", params, inputs, out, out, Arg(0, FLOAT), (), case["threads"], prologue)
    chosen = family("pointwise_conv")
    assert chosen.supports(workload, target)
    assert not any(family(name).supports(workload, target) for name in ("depthwise_conv", "direct_conv", "generic_conv"))
    space = chosen.space(workload, target)
    schedule = space[0] if case["pick"] % 2 else space[case["pick"] % len(space)]
    got = run_everywhere(chosen, workload, schedule, [*values, weights], target)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(initial=1e-30))


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7 - 3) / 4


def conv(b: GraphBuilder, x: Value, filters: int, **attrs: Any) -> Value:
    channels = x.type.shape[1]
    assert isinstance(channels, int)
    return b.emit("conv", x, b.constant(ramp(filters, channels, 1, 1)), **{**CONV, **attrs})


def squeeze_excite(pixels: int) -> Graph:
    """The end of a mobile block: depthwise, squeeze, two layers, gate, projection."""
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", conv(b, b.input("x", f32(1, 3, pixels, pixels)), 16))
    x = b.emit("relu", b.emit("conv", x, b.constant(ramp(16, 1, 3, 3)), **{**CONV, "group": 16, "pads": (1,) * 4}))
    mean = b.emit("mul", b.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=True), b.constant(np.float32(1 / pixels**2)))
    gate = b.emit("hard_sigmoid", conv(b, b.emit("relu", conv(b, mean, 8)), 16), alpha=0.2, beta=0.5)
    return b.graph([b.emit("add", conv(b, b.emit("mul", x, gate), 8), b.constant(ramp(1, 8, 1, 1)))])


def test_a_gate_is_applied_where_the_projection_reads() -> None:
    found = groups(check(squeeze_excite(6)))
    assert found == ["conv relu", "conv relu", "reduce", "conv relu", "conv hard_sigmoid", "mul conv add", "to_layout"]
    planned = optimize(squeeze_excite(30), TARGET, verify=True)[0]
    assert groups(planned) == ["conv relu", "conv relu", "group group group mul conv add", "to_layout"], "what is small is inside of the projection"


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_pointwise_convolutions_compute_what_they_read(data: Any) -> None:
    dtype = data.draw(st.sampled_from((DType.FLOAT32, DType.FLOAT32, DType.FLOAT16)))
    batch, channels = data.draw(st.integers(1, 2)), data.draw(st.sampled_from((8, 12, 24)))
    rows, columns = (data.draw(st.sampled_from((1, 3, 8))) for _ in range(2))
    stride = data.draw(st.sampled_from((1, 1, 2)))
    b = GraphBuilder("g", folding=False)

    def weights(*shape: int) -> Value:
        return b.constant(ramp(*shape).astype(dtype.numpy))

    first = b.input("x", TensorType(dtype, (batch, channels, rows, columns)))
    value = kept = b.emit("tanh", b.emit("conv", first, weights(channels, channels, 1, 1), **CONV))
    for _ in range(data.draw(st.integers(1, 3))):
        shape = tuple(dim if data.draw(st.booleans()) else 1 for dim in (batch, channels, rows, columns))
        other = b.emit("reduce", kept, kind="max", axes=(2, 3), keepdims=True) if data.draw(st.booleans()) else weights(*shape)
        value = b.emit(data.draw(st.sampled_from(("add", "mul", "maximum"))), value, other)
    product = b.emit(
        "conv", b.emit("relu", value), weights(data.draw(st.sampled_from((3, 8, 20))), channels, 1, 1), **{**CONV, "strides": (stride,) * 2}
    )
    other = b.emit("conv", kept, weights(8, channels, 1, 1), **CONV)
    graph = b.graph([b.emit("neg", product), other])
    planned = kernels_apart(graph, TARGET)
    # Kernels keep float16 wide between their nodes, as the interpreter does inside a group only.
    check_program(planned, lower(planned, TARGET, threads=data.draw(st.sampled_from((1, 2)))), workers=2, tolerance=1e-3)
    assert [ops for ops in groups(planned) if ops.endswith("relu")] == []


def test_what_pixels_only_a_run_knows_are_computed_too() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", conv(b, b.input("x", f32(1, 3, sym("h"), sym("w"))), 16))
    scaled = b.emit("relu", b.emit("add", b.emit("mul", x, b.constant(ramp(1, 16, 1, 1))), b.constant(ramp(1, 16, 1, 1))))
    assert "mul add relu conv" in groups(check(b.graph([conv(b, scaled, 8), conv(b, x, 8)])))


@pytest.mark.parametrize("kind", ["window", "padding", "groups", "weights", "row-major", "readers"])
def test_what_must_be_there_is_made(kind: str) -> None:
    """Where an element would be computed more than once, or the kernel cannot."""
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(1, 12, 6, 6))
    if kind != "row-major":
        x = b.emit("relu", conv(b, x, 12))
    first = b.emit("exp", b.emit("mul", x, b.constant(ramp(1, 12, 1, 1))))
    weights: dict[str, tuple[int, ...]] = {"window": (8, 12, 3, 3), "groups": (8, 3, 1, 1)}
    shape = weights.get(kind, (8, 12, 1, 1))
    attrs = {**CONV, "group": 12 // shape[1], "pads": (1 if kind == "padding" else 0,) * 4}
    results = [b.emit("conv", first, b.input("w", f32(*shape)) if kind == "weights" else b.constant(ramp(*shape)), **attrs), conv(b, x, 8)]
    if kind == "readers":
        results.append(conv(b, first, 16))
    found = groups(check(b.graph(results)))
    assert "mul exp conv" not in found
    assert any(ops.endswith("exp") for ops in found)


@pytest.mark.parametrize(("pixels", "filters", "where"), [((28, 28), 24, "panel"), ((7, 7), 160, "rows"), ((sym("h"), sym("w")), 16, "panel")])
def test_a_factor_goes_where_there_is_less_of_it(pixels: tuple[Any, ...], filters: int, where: str) -> None:
    x, out = (TensorType(FLOAT, (1, channels, *pixels), 8) for channels in (32, filters))
    inputs = (Operand(x), Operand(TensorType(FLOAT, (1, 32, 1, 1), 8)), Operand(TensorType(FLOAT, (filters, 32, 1, 1)), constant=True))
    params = (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1)), ("group", 1))
    gated = Prologue(x, call("mul", Arg(0, FLOAT), Arg(1, FLOAT)), 2)
    chosen, workload = family("pointwise_conv"), Workload("pointwise_conv", params, inputs, out, out, Arg(0, FLOAT), (), 2, gated)
    function = chosen.build(workload, chosen.heuristic(workload, TARGET), TARGET, "kernel")
    assert [buffer.name for buffer in function.buffers if buffer.access is Access.SCRATCH] == [where]


def test_layers_whose_weights_are_read_once_are_shared() -> None:
    """Each worker computes for itself what costs less than to wait for the others, not what reads many weights for one pixel."""
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", conv(b, b.input("x", f32(1, 3, 14, 14)), 240))
    mean = b.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=True)
    gate = b.emit("sigmoid", conv(b, b.emit("relu", conv(b, mean, 120)), 240))
    graph = b.graph([conv(b, b.emit("mul", x, gate), 240)])
    assert groups(optimize(graph, TARGET, verify=True)[0]) == ["conv relu", "reduce", "conv relu", "conv sigmoid", "mul conv", "to_layout"]
