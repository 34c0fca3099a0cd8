"""Models of the zoo whose input dims become symbols: compiled once, they give at every size what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

import tensorsmith as ts

IMAGES = ("batch", None, "height", "width")
CASES: dict[str, tuple[tuple[str | None, ...], list[dict[str, int]]]] = {
    "mobilenetv2_100": (IMAGES, [{"batch": 1, "height": 224, "width": 224}, {"batch": 3, "height": 65, "width": 97}]),
    "unet_small_bilinear": (IMAGES, [{"batch": 1, "height": 96, "width": 96}, {"batch": 2, "height": 32, "width": 80}]),
    "espcn_x3": (IMAGES, [{"batch": 1, "height": 90, "width": 90}, {"batch": 2, "height": 1, "width": 37}]),
    "lstm_streaming": (("steps", None, None), [{"steps": 5}, {"steps": 1}, {"steps": 40}]),
}


def renamed(model: onnx.ModelProto, dims: Sequence[str | None]) -> tuple[onnx.ModelProto, str]:
    """model with the dims of its first input replaced by symbols, where there is a name, and that input's name; no other shape is declared."""
    constants = {initializer.name for initializer in model.graph.initializer}
    first = next(value for value in model.graph.input if value.name not in constants)
    for dim, name in zip(first.type.tensor_type.shape.dim, dims, strict=True):
        if name is not None:
            dim.dim_param = name
    del model.graph.value_info[:]
    for number, output in enumerate(model.graph.output):
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            dim.dim_param = f"out{number}_{axis}"
    return model, first.name


def resized(feeds: Mapping[str, np.ndarray], name: str, dims: Sequence[str | None], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """feeds with another array in the place of the one whose dims are symbols."""
    shape = [have if dim is None else sizes[dim] for dim, have in zip(dims, feeds[name].shape, strict=True)]
    return {**feeds, name: np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)}


@needs_zoo
@pytest.mark.parametrize("name", CASES)
def test_one_module_serves_every_size(name: str) -> None:
    dims, wanted = CASES[name]
    model, feeds = load(name)
    model, first = renamed(model, dims)
    module = ts.compile(model, threads=2, cache=False)
    for sizes in wanted:
        given = resized(feeds, first, dims, sizes)
        for output, expected in zip(module.run(given).values(), onnxruntime_outputs(model, given), strict=True):
            assert output.shape == expected.shape
            assert relative_difference(output, expected) <= 5e-5
