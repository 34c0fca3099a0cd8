"""Models whose dims are symbolic: compiled once, they give at every size what ONNX Runtime gives."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from symbolic_models import check, compiled, model_of

from compiler.errors import UserError
from compiler.ir.loop_verify import verify_function
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

ATTENTION = """
agraph (float[batch, seq, 48] x, float[batch, past, 48] cache) => (float[batch, seq, 48] y, float[batch, total, 48] all) {
  all = Concat<axis = 1>(cache, x)
  keys = Reshape(all, heads)
  rows = Reshape(x, heads)
  q = Transpose<perm = [0, 2, 1, 3]>(rows)
  k = Transpose<perm = [0, 2, 3, 1]>(keys)
  v = Transpose<perm = [0, 2, 1, 3]>(keys)
  scores = MatMul(q, k)
  weights = Softmax<axis = -1>(scores)
  mixed = MatMul(weights, v)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  flat = Reshape(back, model)
  y = Add(flat, x)
}
"""

NORMS = """
agraph (float[batch, channels, length] x) => (float[batch, channels, length] y, float[batch, 1, length] s, float[batch, channels] m) {
  y = Softmax<axis = 1>(x)
  s = ReduceSum<keepdims = 1>(x, one)
  m = ReduceMax<axes = [2], keepdims = 0>(x)
}
"""

SHAPES = """
agraph (float[n, m] x, int64[k] rows) => (float[m, n] t, float[k, m] g, float[total] f, float[n, 3, m] w, int64[2] s) {
  t = Transpose<perm = [1, 0]>(x)
  g = Gather<axis = 0>(x, rows)
  f = Reshape(x, all)
  up = Unsqueeze(x, one)
  w = Expand(up, three)
  s = Shape(x)
}
"""


@cache
def _attention() -> bytes:
    return model_of(ATTENTION, 17, heads=np.array([0, 0, 3, 16]), model=np.array([0, 0, 48]))


@cache
def _norms() -> bytes:
    return model_of(NORMS, 17, one=np.array([1]))


@cache
def _shapes() -> bytes:
    return model_of(SHAPES, 17, one=np.array([1]), all=np.array([-1]), three=np.array([1, 3, 1]))


THREADS = st.sampled_from([1, 3])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 70), THREADS, st.integers(0, 99))
def test_attention(batch: int, seq: int, past: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, cache_ = (rng.standard_normal((batch, length, 48)).astype(np.float32) for length in (seq, past))
    check(_attention(), {"x": x, "cache": cache_}, threads)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 70), THREADS, st.integers(0, 99))
def test_softmax_and_reductions(batch: int, channels: int, length: int, threads: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((batch, channels, length)).astype(np.float32) * 5
    check(_norms(), {"x": x}, threads)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 70), THREADS, st.integers(0, 99))
def test_index_mappings(n: int, m: int, k: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.standard_normal((n, m)).astype(np.float32), "rows": rng.integers(-n, n, k)}
    check(_shapes(), feeds, threads)


def test_a_larger_size_after_a_smaller_one_and_back() -> None:
    for length in (3, 200, 3, 1000, 1):
        check(_norms(), {"x": np.full((2, 5, length), length, np.float32)}, 2)


FULL = """
agraph (float[n, 0] x, float[m, 0] y) => (float[n] s) {
  t = Transpose<perm = [1, 0]>(y)
  p = MatMul(x, t)
  s = ReduceMax<axes = [1], keepdims = 0>(p)
}
"""


def test_sizes_whose_products_no_number_holds() -> None:
    feeds = {name: np.zeros((1 << 40, 0), np.float32) for name in "xy"}
    with pytest.raises(UserError, match="more memory than there is"):
        compiled(model_of(FULL, 17), 1).run(feeds)


MEETING = """
agraph (float[a, m, 5] x, float[b, n, 5] y, float[c] z, int64[k] shape) => (float[p, q, 5] s, float[c2] t, float[p, q2, r] m, float[d0, d1] w) {
  s = Add(x, y)
  t = Mul(z, seven)
  back = Transpose<perm = [0, 2, 1]>(x)
  m = MatMul(y, back)
  w = Expand(z, shape)
}
"""


def test_dims_that_meet_may_be_one() -> None:
    model = model_of(MEETING.replace("k]", "2]"), 17, seven=np.arange(7, dtype=np.float32))
    reference = ReferenceEvaluator(onnx.load_from_string(model))
    rng = np.random.default_rng(0)

    def feeds(x: tuple[int, int], y: tuple[int, int], z: int, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        arrays = {name: rng.standard_normal((*dims, 5)).astype(np.float32) for name, dims in (("x", x), ("y", y))}
        return {**arrays, "z": rng.standard_normal(z).astype(np.float32), "shape": np.array(shape)}

    fit = [
        ((2, 3), (2, 3), 7, (2, 7)),
        ((1, 3), (4, 1), 1, (1, 5)),
        ((2, 1), (1, 9), 7, (3, 1)),
        ((1, 1), (1, 1), 1, (1, 1)),
        ((0, 3), (1, 3), 1, (2, 0)),
    ]
    for threads in (1, 3):
        for sizes in fit:
            arrays = feeds(*sizes)
            # ONNX Runtime (1.31) does not broadcast the left batch of a product.
            for array, expected in zip(compiled(model, threads)(*arrays.values()), reference.run(None, arrays), strict=True):
                np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)
                assert array.shape == expected.shape
        empty = compiled(model, threads).run(feeds((0, 3), (1, 3), 1, (2, 0)))
        assert [array.shape for array in empty.values()] == [(0, 3, 5), (7,), (0, 3, 3), (2, 0)]
        for sizes in (((2, 3), (4, 3), 7, (2, 7)), ((2, 3), (2, 2), 7, (2, 7)), ((2, 3), (2, 3), 5, (2, 5)), ((2, 3), (2, 3), 7, (2, 6))):
            with pytest.raises(UserError, match="or one of them 1"):
                compiled(model, threads).run(feeds(*sizes))


def test_inputs_too_small_for_a_window_are_refused() -> None:
    model = model_of("agraph (float[1, 8, n, 9] x) => (float[1, 8, m, 4] y) { y = MaxPool<kernel_shape = [5, 6]>(x) }", 17)
    for rows in (6, 5):
        check(model, {"x": np.ones((1, 8, rows, 9), np.float32)}, 1)
    for rows in (4, 1, 0):
        with pytest.raises(UserError):
            compiled(model, 1).run({"x": np.ones((1, 8, rows, 9), np.float32)})


def test_ranks_do_not_depend_on_sizes() -> None:
    model = model_of("agraph (float[n, 1, 3] x) => (float[n, 3] y) { y = Squeeze(x) }", 17)
    for rows in (2, 0, 5):
        check(model, {"x": np.ones((rows, 1, 3), np.float32)}, 1)
    with pytest.raises(UserError, match="axis 0 turns out to be 1"):
        compiled(model, 1).run({"x": np.ones((1, 1, 3), np.float32)})


SQUEEZED = """
agraph (float[n, m] x) => (float[n] y) {
  shape = Shape(x)
  width = Gather<axis = 0>(shape, one)
  single = Equal(width, one)
  z = If (single) <
    then_branch = squeezes () => (float[n] a) { a = Squeeze(x, one1) },
    else_branch = keeps () => (float[n, m] b) { b = Identity(x) }
  >
  y = Neg(z)
}
"""


def test_a_branch_that_squeezes_is_taken_at_its_word() -> None:
    model = model_of(SQUEEZED, 17, one=np.array(1), one1=np.array([1]))
    for rows in (1, 5):
        check(model, {"x": np.ones((rows, 1), np.float32)}, 1)
    with pytest.raises(UserError, match="its branches give results of different ranks"):
        compiled(model, 1).run({"x": np.ones((5, 2), np.float32)})


ONE_ELEMENT = """
agraph (float[n, m] x, bool[1] c) => (float[n, m] y) {
  shape = Shape(x)
  width = Gather<axis = 0>(shape, one)
  step, twice = If (c) <
    then_branch = scalar () => (float a, float[1] a2) { a = Identity(half) a2 = Add(halves, halves) },
    else_branch = vector () => (float[1] b, float b2) { w = Reshape(width, one1) f = Cast<to = 1>(w) b = Div(halves, f) b2 = Identity(half) }
  >
  z = Mul(x, step)
  y = Add(z, twice)
}
"""


@pytest.mark.parametrize("taken", [False, True])
def test_branches_that_give_one_element_in_different_ranks(taken: bool) -> None:
    half = np.float32(0.5)
    model = model_of(ONE_ELEMENT, 17, one=np.array(1), one1=np.array([1]), half=half, halves=half.reshape(1))
    for columns in (1, 4):
        x = np.arange(3.0 * columns, dtype=np.float32).reshape(3, columns)
        y = compiled(model, 1).run({"x": x, "c": np.array([taken])})["y"]
        np.testing.assert_array_equal(y, x * half + 1 if taken else x * (half / np.float32(columns)) + half)


def test_dims_that_contradict_each_other_are_named() -> None:
    feeds = {"x": np.zeros((2, 3, 48), np.float32), "cache": np.zeros((1, 3, 48), np.float32)}
    with pytest.raises(UserError, match="where batch = 2"):
        compiled(_attention(), 1).run(feeds)


def test_symbols_stay_in_the_types() -> None:
    graph = import_model(_attention())
    assert [str(value.type) for value in graph.outputs] == ["f32[batch, seq, 48]", "f32[batch, past + seq, 48]"]


@pytest.mark.parametrize("number", range(1, 5))
def test_dims_may_be_called_what_loops_are_called(number: int) -> None:
    """By the model, or by the importer: it calls what is counted ``n``, and so does the kernel that counts."""
    text = """
g (float[p, v, k] x) => (float[p, v, k] y, int64[r, j] found) {
  y = Softmax<axis = 1>(x)
  once = NonZero(x)
  twice = NonZero(once)
  found = NonZero(twice)
}
"""
    model = model_of(re.sub(r"\b[pvk]\b", lambda dim: f"{dim[0]}{number}", text), 17)
    planned, _ = optimize(import_model(model), resolve("native"))
    program = lower(planned, resolve("native"), 1)
    assert {name for function in program.functions for name in function.params} >= {f"{dim}{number}" for dim in "pvk"}
    for function in program.functions:
        verify_function(function)
    check(model, {"x": np.random.default_rng(number).integers(-1, 2, (3, 7, 9)).astype(np.float32)}, 1)


FLATTENED = """
g (float[n, 12, height, 16] x) => (float[n, pixels, 12] y) {
  f = Reshape(x, lines)
  r = Relu(f)
  y = Transpose<perm = [0, 2, 1]>(r)
}
"""


@cache
def _flattened() -> bytes:
    return model_of(FLATTENED, 17, lines=np.array([0, 12, -1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), THREADS)
def test_transposing_an_axis_that_whole_vectors_fill(n: int, height: int, threads: int) -> None:
    x = np.random.default_rng(height).standard_normal((n, 12, height, 16)).astype(np.float32)
    check(_flattened(), {"x": x}, threads)


def test_identity_matrices_are_made_by_the_run() -> None:
    model = model_of("g (float[n, m] x) => (float[n, m] y) { y = EyeLike<k = -1>(x) }", 17)
    for shape in ((4, 4), (3, 7), (7, 3), (0, 2)):
        check(model, {"x": np.zeros(shape, np.float32)}, 1)
    large = model_of("g (float[20000, 20000] x) => (float[20000, 20000] y) { y = EyeLike(x) }", 17)
    assert compiled(large, 1).memory().weights < 1 << 20
