"""Real models whose dims are symbolic, or become so: compiled once, run at many sizes, each as ONNX Runtime has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from quantized_models import cut, runtime_outputs, with_outputs
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
ROUNDING = {"bert_tiny_int8_dynamic": "DynamicQuantizeLinear", "llama_mobilellm_kv_q4": "MatMulNBits"}
"""The operators whose first operand is rounded to 8 bits; everything between two of them is held to ``CLOSE``."""
CLOSE = 5e-6
STEPS = 4 / 127
"""How far whole models with such operators may be off: a value near a tie rounds to either side, and what follows spreads it. ONNX Runtime with
basic optimisations is up to 2.6 steps of 1/127 from itself with all of them, at these sizes of llama_mobilellm_kv_q4."""


def _dims(model: onnx.ModelProto) -> dict[str, list[str | int]]:
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs}


def _sizes(model: onnx.ModelProto, rng: np.random.Generator) -> dict[str, int]:
    """A size for each symbol in the types of the model's inputs."""
    names = dict.fromkeys(dim for shape in _dims(model).values() for dim in shape if isinstance(dim, str))
    return {name: int(rng.integers(1, LARGEST.get(name, 40) + 1)) for name in names}


def _feeds(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """feeds repeated or cut to these sizes."""
    return {key: np.resize(feeds[key], [sizes[dim] if isinstance(dim, str) else dim for dim in shape]) for key, shape in _dims(model).items()}


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_one_compilation_serves_every_size(name: str) -> None:
    model, feeds = load(name)
    module = ts.compile(model, threads=2, cache=False)
    reference = session(model)
    rng = np.random.default_rng(0)
    for _ in range(SIZES):
        sizes = _sizes(model, rng)
        arrays = _feeds(model, feeds, sizes)
        found = module.run(arrays)
        for (key, array), expected in zip(found.items(), reference.run(list(found), arrays), strict=True):
            assert array.shape == expected.shape, (key, sizes)
            assert relative_difference(array, expected) < (STEPS if name in ROUNDING else 5e-5), (key, sizes)


def _with_symbols(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """model with the symbol of each size in its place in the types of its inputs, and no shapes of its outputs."""
    symbols = {size: name for name, size in sizes.items()}
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value in symbols:
                dim.dim_param = symbols[dim.dim_value]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


@needs_zoo
@pytest.mark.parametrize("name", ROUNDING)
def test_one_compilation_serves_every_size_between_roundings(name: str) -> None:
    """Each operand that is rounded, and each output, as ONNX Runtime has it from the operands that it rounded before, and a module of fixed sizes."""
    model, feeds = load(name)
    operands = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == ROUNDING[name]))
    wide = with_outputs(model, operands)
    sizes = dict(zip(_sizes(model, np.random.default_rng(0)), (17, 19, 23), strict=False))
    values = runtime_outputs(wide, _feeds(model, feeds, sizes))
    parts = _with_symbols(cut(model, {key: values[key] for key in operands}, values), sizes)
    module = ts.compile(parts, threads=2, cache=False)
    reference = session(wide)
    rng = np.random.default_rng(0)
    for _ in range(SIZES):
        sizes = _sizes(model, rng)
        arrays = _feeds(model, feeds, sizes)
        want = dict(zip(values, reference.run(list(values), arrays), strict=True))
        given = {**arrays, **{f"{key}/given": want[key] for key in operands}}
        found = module.run(given)
        for key, array in found.items():
            assert array.shape == want[key].shape, (key, sizes)
            assert relative_difference(array, want[key]) < CLOSE, (key, sizes)
    fixed = ts.compile(parts, threads=2, cache=False, input_shapes={key: x.shape for key, x in given.items()}).run(given)
    for key, array in found.items():
        assert relative_difference(array, fixed[key]) < CLOSE, key


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
