"""Forms of MultiHeadAttention that ONNX Runtime's CPU kernels do not have, against those that they have."""

from __future__ import annotations

from typing import Any

import numpy as np
from test_ops import assert_same, feeds_of, one_node_model

from compiler.ir.interp import interpret
from compiler.ir.op import Sample
from frontend.onnx.importer import import_model

_RNG = np.random.default_rng(0)
_Q, _K, _V = (_RNG.normal(size=(2, 3, 8)).astype(np.float32) for _ in range(3))
_BIAS = _RNG.normal(size=24).astype(np.float32)


def interpreted(*inputs: np.ndarray | None, outputs: int = 1) -> list[Any]:
    sample = Sample("MultiHeadAttention", inputs, {"num_heads": 2}, opset=1, outputs=outputs, domain="com.microsoft")
    return [np.asarray(y) for y in interpret(import_model(one_node_model(sample)), feeds_of(sample)).values()]


def heads(*parts: np.ndarray) -> np.ndarray:
    """Parts ``[B, S, heads * size]`` packed as ``[B, S, heads, parts, size]``."""
    return np.stack([part.reshape(2, 3, 2, 4) for part in parts], axis=3)


def test_packed_operands_are_the_same_as_separate_ones() -> None:
    (want,) = interpreted(_Q, _K, _V, _BIAS)
    assert_same(interpreted(heads(_Q, _K, _V), None, None, _BIAS)[0], want)
    assert_same(interpreted(_Q, heads(_K, _V), None, _BIAS)[0], want)


def test_the_fourth_output_is_the_weights() -> None:
    result, _, value, weights = interpreted(_Q, _K, _V, outputs=4)
    assert_same(weights.sum(3), np.ones((2, 2, 3), np.float32))
    assert_same((weights @ value).transpose(0, 2, 1, 3).reshape(2, 3, 8), result)
