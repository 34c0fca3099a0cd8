"""Quantised operators and their relatives as native code, against the interpreter, which test_ops.py compares with the standard."""

from __future__ import annotations

import numpy as np
import pytest
from test_ops import feeds_of, one_node_model

import tensorsmith as ts
from compiler.ir.interp import interpret
from compiler.ir.op import Sample, lookup
from frontend.onnx.importer import import_model

SAMPLES = [pytest.param(s, id=f"{k}-{s.op_type}") for op in ("quantize", "dequantize", "requantize") for k, s in enumerate(lookup(op).samples)]


@pytest.mark.parametrize("sample", SAMPLES)
def test_native_code_agrees_with_the_interpreter(sample: Sample) -> None:
    model = one_node_model(sample)
    want = interpret(import_model(model), feeds_of(sample))
    got = ts.compile(model, threads=2, cache=False).run(feeds_of(sample))
    for name, value in got.items():
        assert value.dtype == want[name].dtype
        np.testing.assert_allclose(value, want[name], rtol=1e-6)
