"""Quantised operators and their relatives as native code, against the interpreter, which test_ops.py compares with the standard."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from test_ops import feeds_of, one_node_model

import tensorsmith as ts
from compiler.ir.interp import interpret
from compiler.ir.op import Sample, all_ops
from frontend.onnx.importer import import_model
from passes.graph.integer_products import IntegerProducts

OPS = ("quantize", "dequantize", "requantize")
SAMPLES = [
    pytest.param(s, id=f"{op.name}-{k}-{s.op_type}")
    for op in all_ops()
    for k, s in enumerate(op.samples)
    if op.name in OPS or s.domain == "com.microsoft"
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_native_code_agrees_with_the_interpreter(sample: Sample) -> None:
    model = one_node_model(sample)
    want = interpret(import_model(model), feeds_of(sample))
    got = ts.compile(model, threads=2, cache=False).run(feeds_of(sample))
    for name, value in got.items():
        assert value.dtype == want[name].dtype
        np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6)


def test_skip_layer_normalization_hands_out_its_sum() -> None:
    x, skip = np.linspace(-3, 5, 24, dtype=np.float32).reshape(2, 3, 4), np.linspace(2, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    scale = helper.make_tensor("scale", onnx.TensorProto.FLOAT, [4], [1.0, -2.0, 0.5, 0.25])
    node = helper.make_node("SkipLayerNormalization", ["x", "skip", "scale"], ["y", "", "", "sum"], domain="com.microsoft", epsilon=1e-5)
    values = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, x.shape) for name in ("x", "skip", "y", "sum")}
    graph = helper.make_graph([node], "skip", [values["x"], values["skip"]], [values["y"], values["sum"]], [scale])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    got = ts.compile(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=1, cache=False).run({"x": x, "skip": skip})
    total = x + skip
    normal = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got["sum"], total)
    np.testing.assert_allclose(got["y"], normal * [1.0, -2.0, 0.5, 0.25], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 1.37])
def test_quantized_convolution_is_integer_arithmetic(ratio: float, per_channel: bool) -> None:
    """Also with a bias that is no whole number of the products' units, which is added behind the exact sum."""
    rng = np.random.default_rng(3)
    x, w = rng.integers(0, 256, (1, 16, 9, 9), np.uint8), rng.integers(-127, 128, (24, 16, 3, 3), np.int8)
    w_scale = rng.uniform(0.001, 0.01, 24).astype(np.float32) if per_channel else np.float32(0.005)
    bias, x_scale, y_scale = rng.integers(-3000, 3000, 24, np.int32), np.float32(0.02), np.float32(0.25)
    arrays = {"xs": x_scale, "xz": np.uint8(130), "w": w, "ws": w_scale, "b": bias, "ys": y_scale, "yz": np.int8(-5)}
    arrays["bs"] = np.asarray(x_scale * w_scale * np.float32(ratio))
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["real"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["weights"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bias"], axis=0),
        helper.make_node("Conv", ["real", "weights", "bias"], ["sum"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["sum", "ys", "yz"], ["y"]),
    ]
    values = [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape), onnx.ValueInfoProto(name="y")]
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "conv", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    got = ts.compile(model, threads=2, cache=False).run({"x": x})["y"]
    padded = np.pad(x.astype(np.int64) - 130, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    whole = bias if ratio == 1 else np.zeros_like(bias)
    total = np.einsum("nchwij,ocij->nohw", windows, w.astype(np.int64)) + whole[:, None, None]
    multiplier = np.asarray(x_scale * w_scale / y_scale).reshape(-1, 1, 1)
    offset = ((bias - whole) * arrays["bs"].astype(np.float64) / y_scale).astype(np.float32)
    want = np.rint(total.astype(np.float32) * multiplier + offset[:, None, None]) - 5
    np.testing.assert_array_equal(got, np.clip(want, -128, 127).astype(np.int8))


@st.composite
def quantized_layers(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A quantised layer between DequantizeLinear and QuantizeLinear, with its input: any kind, scales, zero points, bias and activation."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    kind = draw(st.sampled_from(["Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool"]))
    types = [draw(st.sampled_from([np.uint8, np.int8])) for _ in range(3)]
    rows, inner, columns = (draw(st.integers(1, 5)) for _ in range(3))
    shape = (rows, inner, 3, 4) if kind in ("Conv", "GlobalAveragePool") else (rows, inner)
    other = {"Conv": (columns, inner, 2, 2), "Gemm": (columns, inner), "MatMul": (inner, columns), "Add": shape}.get(kind, ())
    channels = {"Conv": 0, "Gemm": 0, "MatMul": 1}.get(kind)

    def of(dtype: type, size: tuple[int, ...]) -> np.ndarray:
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, size, dtype, endpoint=True)

    x_scale, y_scale = (np.float32(draw(st.sampled_from([0.5, 0.01, 0.037]))) for _ in range(2))
    w_scale = np.float32(0.02) if channels is None or draw(st.booleans()) else rng.uniform(0.001, 0.1, other[channels]).astype(np.float32)
    arrays = {"xs": x_scale, "xz": of(types[0], ()), "w": of(types[1], other), "ws": w_scale, "ys": y_scale, "yz": of(types[2], ())}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["real"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["weights"], axis=channels or 0),
    ]
    operands = ["real"] if kind == "GlobalAveragePool" else ["real", "weights"]
    bias = draw(st.sampled_from(["", "float", "int32", "mixed"])) if kind in ("Conv", "Gemm") else ""
    if bias == "float":
        arrays["bias"] = rng.uniform(-3, 3, columns).astype(np.float32)
    elif bias:
        ratios = np.float32(1) if bias == "int32" else rng.choice([1, 1.37], columns).astype(np.float32)
        arrays |= {"b": rng.integers(-3000, 3000, columns, np.int32), "bs": x_scale * w_scale * ratios}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bias"], axis=0))
    attrs = {"alpha": draw(st.sampled_from([1.0, 0.3])), "transB": 1} if kind == "Gemm" else {}
    nodes.append(helper.make_node(kind, [*operands, *(["bias"] if bias else [])], ["sum"], **attrs))
    activation = draw(st.sampled_from(["", "Relu", "Clip"]))
    if activation:
        arrays |= {"low": np.float32(-0.4), "high": np.float32(6)} if activation == "Clip" else {}
        nodes.append(helper.make_node(activation, ["sum", *(["low", "high"] if activation == "Clip" else [])], ["active"]))
    nodes.append(helper.make_node("QuantizeLinear", ["active" if activation else "sum", "ys", "yz"], ["y"]))
    value = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(types[0])), shape)
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "layer", [value], [onnx.ValueInfoProto(name="y")], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {"x": of(types[0], shape)}


@settings(max_examples=120, deadline=None)
@given(quantized_layers())
def test_integers_give_what_real_numbers_do(case: tuple[onnx.ModelProto, dict[str, np.ndarray]]) -> None:
    model, feeds = case
    graph = import_model(model)
    integers = IntegerProducts().run(graph)
    assert integers.changed
    (want,), (got,) = interpret(graph, feeds).values(), interpret(integers.graph, feeds).values()
    assert got.dtype == want.dtype
    assert np.abs(got.astype(np.int32) - want.astype(np.int32)).max(initial=0) <= 1


@pytest.mark.parametrize("to", [onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.INT4])
def test_other_results_keep_real_arithmetic(to: int) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["a"]),
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "s"], ["y"], output_dtype=to),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [4])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.float32(0.5).reshape(()), "s")],
    )
    imported = import_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    assert not IntegerProducts().run(imported).changed
