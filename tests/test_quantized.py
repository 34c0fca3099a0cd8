"""Quantised operators and their relatives as native code, against the interpreter, which test_ops.py compares with the standard."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from test_ops import feeds_of, one_node_model

import tensorsmith as ts
from compiler.ir.interp import interpret
from compiler.ir.op import Sample, all_ops
from frontend.onnx.importer import import_model

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
