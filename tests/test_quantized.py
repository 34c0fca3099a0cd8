"""Quantised operators and their relatives as native code, against the interpreter, which test_ops.py compares with the standard."""

from __future__ import annotations

import numpy as np
import pytest
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
