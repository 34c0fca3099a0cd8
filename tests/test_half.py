"""float16 and bfloat16: computed in float32, rounded once at the store of each kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import defs, helper
from test_ops import expected, feeds_of, one_node_model
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

import tensorsmith as ts
from compiler.ir.builder import GraphBuilder
from compiler.ir.interp import interpret
from compiler.ir.narrow import widen
from compiler.ir.op import Sample, all_ops
from compiler.ir.scalar import Arg, Call, Const, Scalar, call, cast
from compiler.ir.types import DType, TensorType
from compiler.pipeline import optimize
from compiler.target import native
from frontend.onnx.schema import schema_of

F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
HALF_ULP = {F16: 2.0**-11, BF16: 2.0**-8}
ROUNDINGS = 5
"""Most kernels in a row that an operator of the samples becomes, each of which rounds its result."""

OTHER_RESULTS = {
    "BitCast": "it takes the bits, not the number",
    "Cast": "its attribute names the result's type",
    "MelWeightMatrix": "its attribute names the result's type",
    "GridSample": "positions follow from an input, and their rounding moves what is read",
    "RoiAlign": "positions follow from an input, and their rounding moves what is read",
    "QLinearConv": "an error of the scale's rounding moves a step",
    "QuantizeLinear": "a large input becomes infinite",
}


def rounded(array: np.ndarray | None, dtype: DType, to: DType) -> np.ndarray | None:
    """A float32 array rounded to dtype, as an array of ``to``; anything else as it is."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype.numpy).astype(to.numpy)


def in_type(sample: Sample, dtype: DType, to: DType) -> Sample:
    attrs = {key: rounded(value, dtype, to) if isinstance(value, np.ndarray) else value for key, value in sample.attrs.items()}
    return replace(sample, inputs=tuple(rounded(x, dtype, to) for x in sample.inputs), attrs=attrs)


def first_opset(sample: Sample, dtype: DType) -> int | None:
    """The first opset, from the sample's on, in which the operator takes its float32 inputs as dtype; None: there is none.

    The standard does not know every operator; others are taken as they are.
    """
    name = f"tensor({dtype.numpy.name})"
    floats = [i for i, x in enumerate(sample.inputs) if isinstance(x, np.ndarray) and x.dtype == np.float32]
    for opset in range(sample.opset, defs.onnx_opset_version() + 1):
        schema = schema_of(sample.op_type, opset, sample.domain)
        if schema is None or (not schema.deprecated and all(name in schema.inputs[min(i, len(schema.inputs) - 1)].types for i in floats)):
            return opset
    return None


def float_samples() -> Iterator[Sample]:
    """The first float32 sample of each ONNX operator that each op serves."""
    seen = set()
    for op in all_ops():
        for sample in op.samples:
            key = (op.name, sample.op_type)
            floats = any(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in sample.inputs)
            if floats and key not in seen and not sample.domain and sample.op_type not in OTHER_RESULTS:
                seen.add(key)
                yield sample


def merged(samples: list[Sample]) -> onnx.ModelProto:
    parts = [onnx.compose.add_prefix(one_node_model(sample), f"s{k}/").graph for k, sample in enumerate(samples)]
    nodes, inputs, outputs, constants = ([x for part in parts for x in getattr(part, field)] for field in ("node", "input", "output", "initializer"))
    graph = helper.make_graph(nodes, "samples", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", samples[0].opset)], ir_version=10)


@pytest.mark.parametrize(("dtype", "target"), [(F16, "native"), (BF16, "x86-64-v3")])
def test_operators_in_half_precision_are_the_rounded_float32_ones(dtype: DType, target: str) -> None:
    by_opset: dict[int, list[Sample]] = {}
    for sample in float_samples():
        opset = first_opset(sample, dtype)
        if opset is not None:
            by_opset.setdefault(opset, []).append(sample)
    failures = []
    for opset, samples in by_opset.items():
        half = [replace(in_type(sample, dtype, dtype), opset=opset) for sample in samples]
        feeds = {f"s{k}/{name}": array for k, sample in enumerate(half) for name, array in feeds_of(sample).items()}
        got = ts.compile(merged(half), target=target, threads=1, opt_level=1, cache=False).run(feeds)
        for k, sample in enumerate(samples):
            wide = in_type(sample, dtype, F32)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                wanted = expected(one_node_model(wide), wide)
            for index, want in enumerate(wanted):
                if not agrees(got[f"s{k}/y{index}"], want, dtype):
                    failures.append(f"{sample.op_type} {sample.attrs}: {got[f's{k}/y{index}']} is not {want}")
    assert not failures, "\n".join(failures)


def agrees(got: np.ndarray, want: np.ndarray, dtype: DType) -> bool:
    if want.dtype != np.float32:
        return np.array_equal(got, want)
    wide, exact = got.astype(np.float64), np.asarray(rounded(want, dtype, F32), np.float64)
    finite = np.isfinite(exact)
    scale = np.abs(exact[finite]).max(initial=0)
    same = np.array_equal(wide[~finite], exact[~finite], equal_nan=True)
    close = np.all(np.abs(wide[finite] - exact[finite]) <= ROUNDINGS * HALF_ULP[dtype] * scale)
    return got.dtype == dtype.numpy and same and bool(close)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_a_fused_chain_rounds_once(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder("g")
    x = b.input("x", TensorType(dtype, (37,)))
    factor, shift = (rng.standard_normal(37).astype(dtype.numpy) for _ in range(2))
    b_result = b.emit("mul", b.emit("add", b.emit("mul", x, b.constant(factor)), b.constant(shift)), x)
    graph = b.graph([b_result])
    data = rng.standard_normal(37).astype(dtype.numpy)
    wide, scale, offset = (a.astype(np.float32) for a in (data, factor, shift))
    want = ((wide * scale + offset) * wide).astype(dtype.numpy)
    planned, _ = optimize(graph, native(), verify=True)
    (fused,) = interpret(planned, {"x": data}).values()
    (apart,) = interpret(graph, {"x": data}).values()
    np.testing.assert_array_equal(fused, want)
    assert (apart != want).any(), "the nodes by themselves should round more often"


def test_widened_expressions() -> None:
    x, y = Arg(0, F16), Arg(1, F16)
    wide_x, wide_y = cast(x, F32), cast(y, F32)
    cases: list[tuple[Scalar, Scalar]] = [
        (x, x),
        (call("add", x, Const(0.5, F16)), cast(call("add", wide_x, Const(0.5, F32)), F16)),
        (cast(call("mul", x, y), F32), call("mul", wide_x, wide_y)),
        (call("lt", x, y), call("lt", wide_x, wide_y)),
        (cast(cast(Arg(0, F32), F16), F32), cast(cast(Arg(0, F32), F16), F32)),
        (cast(x, BF16), cast(wide_x, BF16)),
        (call("add", Arg(0, F32), Arg(1, F32)), call("add", Arg(0, F32), Arg(1, F32))),
    ]
    for expr, want in cases:
        assert widen(expr) == want
    found = widen(call("add", x, y), {0: Arg(0, F32)})
    assert found == Call("cast", (call("add", Arg(0, F32), wide_y),), F16)


def test_a_cast_to_half_precision_rounds_inside_a_kernel() -> None:
    x = np.linspace(-3, 70000, 101, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["w"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["w", "x"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [101]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(np.float32) - x
    np.testing.assert_array_equal(ts.compile(model, threads=1, cache=False).run({"x": x})["y"], want)


CONVOLUTIONS = {
    "pointwise": ((2, 24, 5, 7), (16, 24, 1, 1), 1, (0, 0, 0, 0)),
    "pointwise of row-major input": ((1, 5, 3, 9), (40, 5, 1, 1), 1, (0, 0, 0, 0)),
    "direct": ((1, 16, 6, 6), (24, 16, 3, 3), 1, (1, 1, 1, 1)),
    "depthwise": ((1, 24, 9, 8), (24, 1, 3, 3), 24, (1, 1, 1, 1)),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 2), 2, (1, 0, 1, 1)),
}


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_round_once(case: str, dtype: DType, target: str) -> None:
    shape, weights_shape, group, pads = CONVOLUTIONS[case]
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(s).astype(dtype.numpy) for s in (shape, weights_shape))
    bias = rng.standard_normal(weights_shape[0]).astype(dtype.numpy)
    sample = Sample("Conv", (x, w, bias), {"group": group, "pads": list(pads)}, opset=22, constant=(1, 2))
    wide = in_type(replace(sample, inputs=tuple(a.astype(np.float32) for a in (x, w, bias))), dtype, F32)
    (want,) = expected(one_node_model(wide), wide)
    got = ts.compile(one_node_model(sample), target=target, threads=2, cache=False).run(feeds_of(sample))["y0"]
    assert got.dtype == dtype.numpy
    # Half a unit in the last place of each element, and what float32 sums of up to 145 terms differ by.
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=HALF_ULP[dtype], atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(("left", "right", "constant"), [((3, 7, 40), (3, 40, 21), False), ((7, 40), (40, 21), True), ((2, 130), (130, 5), True)])
def test_products_round_once(left: tuple[int, ...], right: tuple[int, ...], constant: bool, dtype: DType) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(s).astype(dtype.numpy) for s in (left, right))
    sample = Sample("MatMul", (a, b), constant=(1,) if constant else ())
    got = ts.compile(one_node_model(sample), threads=2, cache=False).run(feeds_of(sample))["y0"]
    want = np.matmul(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=HALF_ULP[dtype], atol=2e-6 * np.abs(want).max())


def test_weights_are_not_scaled_out_of_half_precision() -> None:
    x, w = np.full((1, 4), 8, np.float16), np.full((4, 3), 2.0**-12, np.float16)
    b = GraphBuilder("g")
    product = b.emit("matmul", b.input("x", TensorType(F16, x.shape)), b.constant(w))
    graph = b.graph([b.emit("mul", product, b.constant(np.full(3, 2.0**-14, np.float16)))])
    planned, _ = optimize(graph, native(), verify=True)
    (got,) = interpret(planned, {"x": x}).values()
    np.testing.assert_array_equal(got, np.full((1, 3), 2.0**-21, np.float16))


@needs_zoo
@pytest.mark.parametrize("name", ["mobilenetv2_100_fp16", "vit_tiny_fp16"])
def test_half_precision_models_agree_with_onnxruntime(name: str) -> None:
    model, feeds = load(name)
    got = ts.compile(model, threads=2, cache=False).run(feeds)
    for output, want in zip(got.values(), onnxruntime_outputs(model, feeds), strict=True):
        assert output.dtype == want.dtype
        assert relative_difference(output, want) <= 2e-3
