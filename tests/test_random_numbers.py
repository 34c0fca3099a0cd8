"""Random numbers: their distributions, that nodes and elements are independent, and that they are the same wherever they are made."""

from __future__ import annotations

from math import erf, sqrt
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import tensorsmith

_SHAPE = [300, 700]


def model(op_type: str, *inputs: np.ndarray, shape: list[int] | None = None, nodes: int = 1, outputs: int = 1, **attrs: Any) -> onnx.ModelProto:
    """Nodes of one operator on the same inputs, with results ``y0_0``, ``y0_1``, …"""
    names = [f"x{k}" for k in range(len(inputs))]
    if shape is not None:
        attrs["shape"] = shape
    results = [[f"y{node}_{k}" for k in range(outputs)] for node in range(nodes)]
    made = [helper.make_node(op_type, names, result, **attrs) for result in results]
    types = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in zip(names, inputs, strict=True)]
    graph = helper.make_graph(made, "random", types, [onnx.ValueInfoProto(name=name) for result in results for name in result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(proto: onnx.ModelProto, *inputs: np.ndarray, threads: int = 1) -> list[np.ndarray]:
    module = tensorsmith.compile(proto, cache=False, threads=threads)
    return [np.array(y) for y in module.run({f"x{k}": x for k, x in enumerate(inputs)}).values()]


def distance(sample: np.ndarray, distribution: Any) -> float:
    """The largest difference between the sample's distribution function and the one given (Kolmogorov and Smirnov), times √n.

    It exceeds 1.95 with a probability of 0.001.
    """
    ordered = np.sort(sample.reshape(-1).astype(np.float64))
    want = distribution(ordered)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max(np.abs(want - steps[1:]).max(), np.abs(want - steps[:-1]).max()) * sqrt(len(ordered)))


@pytest.mark.parametrize("dtype", [1, 11])
def test_uniform_numbers_are_uniform_and_independent(dtype: int) -> None:
    (y,) = run(model("RandomUniform", shape=_SHAPE, low=-1.0, high=3.0, seed=7.0, dtype=dtype))
    assert y.shape == tuple(_SHAPE)
    assert y.min() >= -1
    assert y.max() < 3
    assert distance(y, lambda x: (x + 1) / 4) < 1.95
    flat = y.reshape(-1)
    for lag in (1, 2, 7, 700, 701):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 4 / sqrt(flat.size)
    assert len(np.unique(flat)) > 0.98 * flat.size


@pytest.mark.parametrize("dtype", [1, 10, 11])
def test_normal_numbers_are_normal(dtype: int) -> None:
    (y,) = run(model("RandomNormal", shape=_SHAPE, mean=2.0, scale=0.5, seed=7.0, dtype=dtype))
    assert np.isfinite(y).all()
    values = y.astype(np.float64)
    if dtype != 10:
        assert distance(values, np.vectorize(lambda x: (1 + erf((x - 2) / 0.5 / sqrt(2))) / 2)) < 1.95
    assert abs(values.mean() - 2) < 4 * 0.5 / sqrt(values.size)
    assert abs(values.std() / 0.5 - 1) < 4 / sqrt(2 * values.size)


def test_numbers_do_not_depend_on_threads_or_runs() -> None:
    proto = model("RandomNormal", shape=_SHAPE)
    module = tensorsmith.compile(proto, cache=False, threads=1)
    first = np.array(module.run({})["y0_0"])
    np.testing.assert_array_equal(np.array(module.run({})["y0_0"]), first)
    (other,) = run(proto, threads=3)
    np.testing.assert_array_equal(other, first)


def test_nodes_without_a_seed_differ_and_equal_seeds_agree() -> None:
    first, second = run(model("RandomUniform", shape=_SHAPE, nodes=2))
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 4 / sqrt(first.size)
    first, second = run(model("RandomUniform", shape=_SHAPE, nodes=2, seed=3.0))
    np.testing.assert_array_equal(first, second)
    (third,) = run(model("RandomUniform", shape=_SHAPE, seed=4.0))
    assert abs(np.corrcoef(first.reshape(-1), third.reshape(-1))[0, 1]) < 4 / sqrt(first.size)


def test_bernoulli_draws_with_the_given_probability() -> None:
    chance = np.repeat(np.array([[0.0], [0.1], [0.5], [0.9], [1.0]], np.float32), 40000, 1)
    (y,) = run(model("Bernoulli", chance, seed=1.0), chance)
    assert set(np.unique(y)) == {0.0, 1.0}
    np.testing.assert_allclose(y.mean(1), chance[:, 0], atol=4 * 0.5 / sqrt(40000))
    assert y[0].max() == 0
    assert y[4].min() == 1


def test_multinomial_draws_in_proportion() -> None:
    chances = np.array([[0.5, 0.25, 0.0, 0.25], [0.01, 0.0, 0.98, 0.01]])
    with np.errstate(divide="ignore"):
        logits = (np.log(chances) + 3).astype(np.float32)
    (y,) = run(model("Multinomial", logits, sample_size=40000, seed=1.0), logits)
    assert (y.dtype, y.shape) == (np.int32, (2, 40000))
    for row, want in zip(y, chances, strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=4) / row.size, want, atol=4 * 0.5 / sqrt(row.size))
        assert not np.isin(row, np.flatnonzero(want == 0)).any()


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9])
def test_dropout_in_training_keeps_the_mean(ratio: float) -> None:
    x = np.full(_SHAPE, 2.0, np.float32)
    feeds = (x, np.array(ratio, np.float32), np.array(True))
    y, mask = run(model("Dropout", *feeds, outputs=2, seed=5), *feeds)
    np.testing.assert_array_equal(y != 0, mask)
    np.testing.assert_allclose(y[mask], 2 / (1 - ratio), rtol=1e-6)
    assert abs(mask.mean() - (1 - ratio)) < 4 * 0.5 / sqrt(x.size)
    feeds = (*feeds[:2], np.array(False))
    y, mask = run(model("Dropout", *feeds, outputs=2, seed=5), *feeds)
    np.testing.assert_array_equal(y, x)
    assert mask.all()


def test_sizes_that_only_a_run_knows() -> None:
    proto = model("RandomNormalLike", np.zeros((2, 3), np.float32), seed=3.0)
    for axis, name in enumerate(("rows", "columns")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    module = tensorsmith.compile(proto, cache=False, threads=1)
    for shape in ((2, 3), (40, 7), (0, 5)):
        x = np.zeros(shape, np.float32)
        (want,) = run(model("RandomNormalLike", x, seed=3.0), x)
        np.testing.assert_allclose(module.run({"x0": x})["y0_0"], want, rtol=1e-6)
