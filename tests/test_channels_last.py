"""Convolutions with the channels last, for which ONNX Runtime has no float32 kernel, against those with the channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
from test_ops import assert_same, feeds_of, one_node_model

from compiler.ir.interp import interpret
from compiler.ir.op import Sample
from frontend.onnx.importer import import_model

_RNG = np.random.default_rng(0)
_X, _W, _B, _Z = (_RNG.normal(size=shape).astype(np.float32) for shape in ((2, 4, 6, 5), (8, 2, 3, 3), (8,), (2, 8, 3, 5)))
_ATTRS = {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}


def interpreted(op_type: str, *inputs: np.ndarray, **attrs: Any) -> np.ndarray:
    sample = Sample(op_type, inputs, {**_ATTRS, **attrs}, opset=1, domain="com.microsoft")
    (found,) = interpret(import_model(one_node_model(sample)), feeds_of(sample)).values()
    return np.asarray(found)


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def test_channels_last() -> None:
    assert_same(interpreted("NhwcConv", last(_X), _W, _B), last(interpreted("FusedConv", _X, _W, _B)))
    want = interpreted("FusedConv", _X, _W, _B, _Z, activation="Relu")
    assert_same(interpreted("NhwcFusedConv", last(_X), _W, _B, last(_Z), activation="Relu"), last(want))
