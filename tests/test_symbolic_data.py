"""Recurrences, sorting and scattering over sizes that only a run knows, against ONNX Runtime."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbolic_models import check, compiled, model_of, random, wave

from compiler.errors import UserError

LSTM = """
g (float[steps, batch, 5] x, float[2, batch, 6] h, float[2, rows, 6] c) => (float[a, b, d, e] y, float[f, i, j] last, float[k, l, m] cell) {
  y, last, cell = LSTM<hidden_size = 6, direction = "bidirectional">(x, w, r, bias, , h, c)
}
"""

GRU = """
g (float[steps, batch, 5] x, int32[batch] lengths) => (float[a, b, d, e] y, float[f, i, j] last, float[o, p, q, s] z) {
  y, last = GRU<hidden_size = 6, direction = "reverse", linear_before_reset = 1>(x, w, r, bias, lengths)
  z = GRU<hidden_size = 6>(x, w, r, bias)
}
"""

TOP = """
g (float[rows, columns] x) => (float[rows, three] a, int64[rows, three] i, float[k, columns] b, int64[k, columns] j) {
  a, i = TopK<axis = 1>(x, few)
  shape = Shape(x)
  all = Slice(shape, zero, one)
  b, j = TopK<axis = 0, largest = 0>(x, all)
}
"""

SCATTER = """
g (float[n, m] x, int64[k, m] where, float[k, m] new, int64[k, 1] rows) => (float[n, m] a, float[n, m] b, float[n, m] c, float[k, m] d) {
  a = ScatterElements<axis = 0>(x, where, new)
  b = ScatterElements<axis = 0, reduction = "add">(x, where, new)
  c = ScatterND<reduction = "max">(x, rows, new)
  d = GatherElements<axis = 0>(x, where)
}
"""


@cache
def _lstm() -> bytes:
    return model_of(LSTM, 17, w=wave(2, 24, 5), r=wave(2, 24, 6), bias=wave(2, 48))


@cache
def _gru() -> bytes:
    return model_of(GRU, 17, w=wave(1, 18, 5), r=wave(1, 18, 6), bias=wave(1, 36))


@cache
def _top() -> bytes:
    return model_of(TOP, 17, few=np.array([3]), zero=np.array([0]), one=np.array([1]))


@cache
def _scatter() -> bytes:
    return model_of(SCATTER, 18)


THREADS = st.sampled_from([1, 3])
sizes = settings(max_examples=30, deadline=None)


@sizes
@given(st.integers(1, 12), st.integers(1, 9), THREADS)
def test_lstm(steps: int, batch: int, threads: int) -> None:
    check(_lstm(), {"x": random(steps, batch, 5), "h": random(2, batch, 6), "c": random(2, batch, 6) / 2}, threads)


@sizes
@given(st.integers(1, 12), st.integers(1, 9), THREADS)
def test_gru_with_lengths(steps: int, batch: int, threads: int) -> None:
    lengths = np.random.default_rng(batch).integers(1, steps + 1, batch).astype(np.int32)
    check(_gru(), {"x": random(steps, batch, 5), "lengths": lengths}, threads)


@sizes
@given(st.integers(1, 100), st.integers(3, 70), THREADS)
def test_top_of_some_and_of_all(rows: int, columns: int, threads: int) -> None:
    check(_top(), {"x": np.round(random(rows, columns) * 4)}, threads)


@sizes
@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 9), THREADS)
def test_scattering(n: int, m: int, k: int, threads: int) -> None:
    rng = np.random.default_rng(n + m)
    count = min(k, n)
    where = np.stack([rng.permutation(n)[:count] for _ in range(m)], 1) if count else np.zeros((0, m), np.int64)
    where = np.where(where % 2, where, where - n)
    feeds = {"x": random(n, m), "where": where, "new": random(count, m), "rows": rng.integers(-n, n, (count, 1))}
    check(_scatter(), feeds, threads)


def test_states_of_another_batch() -> None:
    feeds = {"x": random(2, 3, 5), "h": random(2, 3, 6), "c": random(2, 4, 6)}
    with pytest.raises(UserError, match="axis 1 of its input 6 has 4 elements, where 3 are needed"):
        compiled(_lstm(), 1).run(feeds)


def test_more_elements_than_there_are() -> None:
    with pytest.raises(UserError, match="the first 3 of 2 elements"):
        compiled(_top(), 1).run({"x": random(4, 2)})
