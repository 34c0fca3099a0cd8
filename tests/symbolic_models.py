"""Models of symbolic dims for tests: made from text, compiled once, compared with ONNX Runtime at every size."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
from onnx import parser

import tensorsmith as ts


def model_of(text: str, opset: int, **constants: np.ndarray) -> bytes:
    """The serialized model of a graph's text and its initializers."""
    model = onnx.ModelProto(ir_version=9, opset_import=[onnx.helper.make_opsetid("", opset)])
    model.graph.CopyFrom(parser.parse_graph(text))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    return bytes(model.SerializeToString())


@cache
def compiled(model: bytes, threads: int) -> ts.Module:
    """The module of a model, compiled once for a number of threads."""
    return ts.compile(model, threads=threads, cache=False)


@cache
def _session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def check(model: bytes, feeds: dict[str, np.ndarray], threads: int, tolerance: float = 1e-5) -> None:
    """Every output differs from ONNX Runtime's by at most ``tolerance`` of its scale."""
    found = compiled(model, threads).run(feeds)
    for (name, array), expected in zip(found.items(), _session(model).run(list(found), feeds), strict=True):
        assert array.shape == expected.shape, name
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def wave(*shape: int) -> np.ndarray:
    """Float32 weights that are the same in every run."""
    return np.asarray(np.sin(np.arange(np.prod(shape)) * 1.7), np.float32).reshape(shape)


def random(*shape: int) -> np.ndarray:
    """Float32 data that depends on the shape alone."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
