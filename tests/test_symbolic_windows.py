"""Convolution and pooling over sizes that only a run knows: compiled once, they give at every size what ONNX Runtime gives."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbolic_models import check, compiled, model_of, random, wave

from compiler.errors import UserError
from compiler.ir.parser import parse_graph
from compiler.ir.printer import constants_of, equal_graphs, print_graph
from frontend.onnx.importer import import_model

STEM = """
g (float[n, 3, height, width] x) => (float[n, o, p, q] y) {
  a = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x, w1, b1)
  b = Relu(a)
  c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 24>(b, w2)
  d = Clip(c, low, high)
  e = Conv<kernel_shape = [1, 1]>(d, w3)
  f = Conv<kernel_shape = [5, 5], strides = [2, 2], pads = [2, 2, 2, 2], group = 40>(e, w4)
  h = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(f, w5)
  y = Add(h, f)
}
"""

GROUPS = """
g (float[n, 32, height, width] x) => (
    float[n, o, p, q] y, float[n, r, s, t] z, float[n, u, v, ww] k, float[n, 64, height, width] m, float[n, 32, c, d] e) {
  a = Conv<kernel_shape = [3, 2], strides = [1, 3], pads = [2, 0, 1, 1], group = 2>(x, w1)
  m = Conv<kernel_shape = [1, 1], group = 32>(x, w4)
  e = Conv<kernel_shape = [3, 3], strides = [1, 2], pads = [1, 1, 1, 1], group = 8>(x, w5)
  y = Sigmoid(a)
  z = Conv<kernel_shape = [3, 3], dilations = [2, 3], pads = [2, 3, 2, 3]>(x, w2)
  k = Conv<kernel_shape = [2, 3], strides = [2, 3], auto_pad = "SAME_LOWER", group = 4>(x, w3, b3)
}
"""

POINTS = """
g (float[n, 20, height, width] x) => (float[n, o, p, q] y, float[n, 40, height, width] s) {
  a = Conv<kernel_shape = [1, 1]>(x, w1, b1)
  r = Relu(a)
  s = Conv<kernel_shape = [1, 1], group = 5>(r, w2)
  b = Conv<kernel_shape = [1, 1], strides = [2, 3]>(r, w3)
  m = GlobalAveragePool(b)
  g = Sigmoid(m)
  y = Mul(b, g)
}
"""

OTHER_RANKS = """
g (float[n, 4, length] x, float[n, 2, depth, height, width] v, float[8, 4, 3] w) => (
    float[n, 8, o] y, float[n, c, p] d, float[n, 16, q, r, s] z, float[n, 8, p] t) {
  y = Conv<kernel_shape = [3], strides = [2], pads = [2, 1]>(x, w)
  d = Conv<kernel_shape = [5], pads = [4, 0], group = 4>(x, w1)
  z = Conv<kernel_shape = [2, 3, 3], strides = [1, 2, 1], pads = [1, 1, 1, 0, 1, 1]>(v, w2)
  t = Conv<kernel_shape = [3], pads = [1, 1]>(x, w3)
}
"""

CHANNELS = """
g (float[n, c, height, width] x) => (float[n, o, height, width] y) {
  r = Relu(x)
  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w)
}
"""

TRANSPOSED = """
g (float[n, 8, height, width] x) => (float[n, 12, p, q] y, float[n, 6, r, s] z, float[n, 8, t, u] d, float[n, 6, v, ww] g) {
  y = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2]>(x, w1, b1)
  z = ConvTranspose<kernel_shape = [3, 4], strides = [2, 3], pads = [1, 0, 1, 2], output_padding = [1, 0]>(x, w2)
  d = ConvTranspose<kernel_shape = [4, 4], strides = [2, 2], pads = [1, 1, 1, 1], group = 8>(x, w3)
  g = ConvTranspose<kernel_shape = [3, 3], strides = [2, 1], group = 2>(x, w4)
}
"""

POOLS = """
g (float[n, c, height, width] x) => (float[n, c, a1, a2] a, float[n, c, b1, b2] b, float[n, c, c1, c2] c0, float[n, c, d1, d2] d,
    float[n, c, e1, e2] e, float[n, c, f1, f2] f, float[n, c, 1, 1] g0, float[n, c, 1, 1] h, float[n, c, i1, i2] i, int64[n, c, i1, i2] j,
    float[n, c, u1, u2] u) {
  a = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)
  b = MaxPool<kernel_shape = [3, 2], strides = [2, 3], ceil_mode = 1, pads = [1, 0, 0, 1]>(x)
  c0 = AveragePool<kernel_shape = [3, 3], strides = [1, 2], pads = [1, 1, 1, 1], count_include_pad = 1>(x)
  d = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 1, 0], ceil_mode = 1>(x)
  e = AveragePool<kernel_shape = [2, 3], strides = [1, 2], auto_pad = "SAME_UPPER">(x)
  f = MaxPool<kernel_shape = [2, 2], dilations = [2, 1], auto_pad = "VALID">(x)
  g0 = GlobalAveragePool(x)
  h = GlobalMaxPool(x)
  i, j = MaxPool<kernel_shape = [2, 3], strides = [2, 1], pads = [0, 1, 1, 1]>(x)
  k, l = MaxPool<kernel_shape = [2, 2]>(x)
  u = MaxUnpool<kernel_shape = [2, 2]>(k, l)
}
"""


@cache
def _stem() -> bytes:
    weights = {"w1": wave(24, 3, 3, 3), "b1": wave(24), "w2": wave(24, 1, 3, 3), "w3": wave(40, 24, 1, 1), "w4": wave(40, 1, 5, 5)}
    return model_of(STEM, 17, **weights, w5=wave(40, 40, 3, 3), low=np.array(0, np.float32), high=np.array(6, np.float32))


@cache
def _groups() -> bytes:
    return model_of(
        GROUPS, 17, w1=wave(16, 16, 3, 2), w2=wave(17, 32, 3, 3), w3=wave(12, 8, 2, 3), b3=wave(12), w4=wave(64, 1, 1, 1), w5=wave(32, 4, 3, 3)
    )


@cache
def _points() -> bytes:
    return model_of(POINTS, 17, w1=wave(40, 20, 1, 1), b1=wave(40), w2=wave(40, 8, 1, 1), w3=wave(11, 40, 1, 1))


@cache
def _other_ranks() -> bytes:
    return model_of(OTHER_RANKS, 17, w1=wave(4, 1, 5), w2=wave(16, 2, 2, 3, 3), w3=wave(8, 4, 3))


@cache
def _channels() -> bytes:
    return model_of(CHANNELS, 17, w=wave(16, 6, 3, 3))


@cache
def _transposed() -> bytes:
    return model_of(TRANSPOSED, 17, w1=wave(8, 12, 2, 2), b1=wave(12), w2=wave(8, 6, 3, 4), w3=wave(8, 1, 4, 4), w4=wave(8, 3, 3, 3))


@cache
def _pools() -> bytes:
    return model_of(POOLS, 17)


BATCH, SIZE = st.integers(0, 3), st.integers(1, 45)
THREADS = st.sampled_from([1, 3])
sizes = settings(max_examples=25, deadline=None)


@sizes
@given(BATCH, SIZE, SIZE, THREADS)
def test_a_stem_and_separable_convolutions(n: int, height: int, width: int, threads: int) -> None:
    check(_stem(), {"x": random(n, 3, height, width)}, threads)


@sizes
@given(BATCH, st.integers(5, 30), st.integers(7, 30), THREADS)
def test_groups_dilations_and_uneven_pads(n: int, height: int, width: int, threads: int) -> None:
    check(_groups(), {"x": random(n, 32, height, width)}, threads)


@sizes
@given(BATCH, SIZE, SIZE, THREADS)
def test_pointwise_convolutions(n: int, height: int, width: int, threads: int) -> None:
    check(_points(), {"x": random(n, 20, height, width)}, threads)


@sizes
@given(BATCH, st.integers(3, 40), st.integers(2, 5), st.integers(2, 9), st.integers(2, 20), THREADS)
def test_one_and_three_spatial_axes(n: int, length: int, depth: int, height: int, width: int, threads: int) -> None:
    check(_other_ranks(), {"x": random(n, 4, length), "v": random(n, 2, depth, height, width), "w": random(8, 4, 3)}, threads)


@sizes
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), THREADS)
def test_transposed_convolutions(n: int, height: int, width: int, threads: int) -> None:
    check(_transposed(), {"x": random(n, 8, height, width)}, threads)


@sizes
@given(st.integers(1, 3), st.sampled_from([1, 5, 16]), st.integers(3, 30), st.integers(3, 40), THREADS)
def test_pools(n: int, channels: int, height: int, width: int, threads: int) -> None:
    check(_pools(), {"x": random(n, channels, height, width)}, threads)


def test_a_window_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="window of 3 does not fit in 2"):
        compiled(_pools(), 1).run({"x": random(1, 1, 2, 9)})


RESIZES = """
g (float[n, c, height, width] x, float[m, d, rows, columns] like) => (float[n, c, a1, a2] a, float[n, c, b1, b2] b, float[n, c, c1, c2] c0,
    float[n, c, d1, d2] d, float[n, c, rows, columns] e, float[n, c, f1, f2] f) {
  a = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , two)
  b = Resize<mode = "linear">(x, , two)
  c0 = Resize<mode = "cubic", coordinate_transformation_mode = "align_corners">(x, , odd)
  d = Resize<mode = "nearest">(x, , tieless)
  size = Shape<start = 2>(like)
  lead = Shape<end = 2>(x)
  sizes = Concat<axis = 0>(lead, size)
  e = Resize<mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel">(x, , , sizes)
  f = Resize<mode = "nearest", coordinate_transformation_mode = "align_corners">(x, , two)
}
"""


@cache
def _resizes() -> bytes:
    return model_of(
        RESIZES,
        18,
        two=np.array([1, 1, 2, 2], np.float32),
        odd=np.array([1, 1, 1.625, 0.6875], np.float32),
        tieless=np.array([1, 1, 1.375, 0.765625], np.float32),
    )


@sizes
@given(st.integers(1, 2), st.integers(2, 20), st.integers(2, 20), st.integers(1, 30), st.integers(1, 30), THREADS)
def test_resizing(n: int, height: int, width: int, rows: int, columns: int, threads: int) -> None:
    check(_resizes(), {"x": random(n, 3, height, width), "like": random(1, 1, rows, columns)}, threads)


@sizes
@given(st.integers(1, 2), st.integers(1, 20), st.integers(1, 20), THREADS)
def test_channels_that_the_weights_tell(n: int, height: int, width: int, threads: int) -> None:
    check(_channels(), {"x": random(n, 6, height, width)}, threads)


def test_channels_that_are_not_those_of_the_weights() -> None:
    with pytest.raises(UserError, match="5"):
        compiled(_channels(), 1).run({"x": random(1, 5, 4, 4)})


def test_pads_in_symbols_print_and_parse_back() -> None:
    graph = import_model(_groups())
    assert equal_graphs(parse_graph(print_graph(graph), constants_of(graph)), graph)


def test_sizes_under_windows_stay_short() -> None:
    """A size that a value has is not negative, however it is written: what is reshaped to another value's shape needs no rule for dims of -1."""
    layers = "\n".join(
        f"  c{i} = Conv<kernel_shape = [3], strides = [2]>(x{i}, w)\n  s{i} = Shape(c{i})\n  r{i} = Reshape(c{i}, flat)\n"
        f"  t{i} = Tanh(r{i})\n  x{i + 1} = Reshape(t{i}, s{i})"
        for i in range(6)
    )
    text = f"g (float[n, 4, length] x0) => (float[n, 4, o] y) {{\n{layers}\n  y = Relu(x6)\n}}"
    model = model_of(text, 17, w=wave(4, 4, 3), flat=np.array([0, 2, -1]))
    graph = import_model(model)
    assert all(len(str(dim)) < 100 for node in graph.nodes for value in node.outputs for dim in value.type.shape)
    check(model, {"x0": random(2, 4, 400)}, 2)
