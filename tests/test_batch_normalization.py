"""Forms of BatchNormalization that no other implementation has, by their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_ops import assert_same, feeds_of, one_node_model

from compiler.ir.interp import interpret
from compiler.ir.op import Sample
from frontend.onnx.importer import import_model

_X = (np.sin(np.arange(3 * 4 * 5) * 1.1) * 3 + 1).astype(np.float32).reshape(3, 4, 5)


def interpreted(*inputs: np.ndarray, opset: int, outputs: int = 1, **attrs: Any) -> list[np.ndarray]:
    sample = Sample("BatchNormalization", inputs, attrs, opset=opset, outputs=outputs)
    return [np.asarray(y) for y in interpret(import_model(one_node_model(sample)), feeds_of(sample)).values()]


@pytest.mark.parametrize("spatial", [0, 1])
@pytest.mark.parametrize("opset", [6, 8])
def test_training_before_version_14_gives_running_and_batch_statistics(spatial: int, opset: int) -> None:
    shape, axes = ((4,), (0, 2)) if spatial else ((4, 5), (0,))
    scale, bias, average, variance = (np.cos(np.arange(np.prod(shape)) + k).astype(np.float32).reshape(shape) for k in range(4))
    found = interpreted(_X, scale, bias, average, variance, opset=opset, outputs=5, spatial=spatial, momentum=0.75, epsilon=0.01)

    def aligned(value: np.ndarray) -> np.ndarray:
        return value.reshape(4, -1)

    own, spread = _X.mean(axes), _X.var(axes)
    want = aligned(scale) * (_X - aligned(own)) / np.sqrt(aligned(spread) + 0.01) + aligned(bias)
    for got, wanted in zip(found, (want, 0.75 * average + 0.25 * own, 0.75 * variance + 0.25 * spread, own, spread), strict=True):
        assert_same(got, wanted.astype(np.float32))


def test_statistics_of_each_element() -> None:
    scale, bias, average, variance = (np.cos(np.arange(20) / 9 + k).astype(np.float32).reshape(4, 5) ** 2 for k in range(4))
    (got,) = interpreted(_X, scale, bias, average, variance, opset=7, spatial=0, epsilon=0.01)
    assert_same(got, scale * (_X - average) / np.sqrt(variance + np.float32(0.01)) + bias)
