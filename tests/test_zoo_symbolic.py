"""Real models whose dims are symbolic, or become so: compiled once, run at many sizes, each as ONNX Runtime has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference, session

import tensorsmith as ts

MODELS = [
    "bert_tiny",
    "bert_tiny_dynamo",
    "bert_tiny_int8_dynamic",
    "llama_mobilellm_kv",
    "llama_mobilellm_kv_q4",
    "llama_mobilellm_prefill",
    "lstm_streaming",
    "mobilebert_4l",
    "mobilebert_4l_legacy",
    "nmt_transformer",
    "nmt_transformer_dynamo",
]
SIZES = 20
LARGEST = {"batch": 3}
"""Sizes are drawn up to 40 where nothing stands here."""
BOUNDS = {"bert_tiny_int8_dynamic": 5e-2, "llama_mobilellm_kv_q4": 5e-2}
"""Of the outputs' scale, where activations are rounded to 8 bits in between: a float sum in another order turns a rounding over now and then.
Everything else is held to 5e-5."""


def _dims(model: onnx.ModelProto) -> dict[str, list[str | int]]:
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs}


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_one_compilation_serves_every_size(name: str) -> None:
    model, feeds = load(name)
    module = ts.compile(model, threads=2, cache=False)
    reference = session(model)
    dims = _dims(model)
    rng = np.random.default_rng(0)
    for _ in range(SIZES):
        size = {str(dim): int(rng.integers(1, LARGEST.get(str(dim), 40) + 1)) for shape in dims.values() for dim in shape}
        shapes = {key: [size[dim] if isinstance(dim, str) else dim for dim in shape] for key, shape in dims.items()}
        arrays = {key: np.resize(feeds[key], shape) for key, shape in shapes.items()}
        found = module.run(arrays)
        for (key, array), expected in zip(found.items(), reference.run(list(found), arrays), strict=True):
            assert array.shape == expected.shape, (key, size)
            assert relative_difference(array, expected) < BOUNDS.get(name, 5e-5), (key, size)


IMAGES = ("batch", None, "height", "width")
RENAMED: dict[str, tuple[tuple[str | None, ...], list[dict[str, int]]]] = {
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
@pytest.mark.parametrize("name", RENAMED)
def test_dims_made_symbols_serve_every_size(name: str) -> None:
    dims, wanted = RENAMED[name]
    model, feeds = load(name)
    model, first = renamed(model, dims)
    module = ts.compile(model, threads=2, cache=False)
    for sizes in wanted:
        given = resized(feeds, first, dims, sizes)
        for output, expected in zip(module.run(given).values(), onnxruntime_outputs(model, given), strict=True):
            assert output.shape == expected.shape
            assert relative_difference(output, expected) <= 5e-5
