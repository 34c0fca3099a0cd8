"""Sequences and optional values whose lengths and shapes only a run knows, against ONNX Runtime."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

import tensorsmith as ts
from compiler.ir.printer import print_graph
from compiler.ir.verify import Stage, verify_graph
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

REFUSED = (InvalidArgument, RuntimeException, Fail)
HEADER = '<ir_version: 9, opset_import: ["" : 20]>'
LENGTHS = st.integers(0, 4)


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEADER + text)


@cache
def compiled(text: str) -> ts.Module:
    graph = import_model(model(text))
    verify_graph(graph, Stage.CANONICAL)
    optimize(graph, resolve("native"), verify=True)
    return ts.compile(model(text), threads=2, cache=False)


@cache
def oracle(text: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model(text).SerializeToString(), options, providers=["CPUExecutionProvider"])


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert isinstance(found, list)
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)
    elif wanted is None:
        assert found is None
    else:
        assert (found.dtype, found.shape) == (np.asarray(wanted).dtype, np.asarray(wanted).shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def check(text: str, **feeds: Any) -> None:
    """A compiled model gives what ONNX Runtime gives, or both refuse."""
    try:
        wanted = oracle(text).run(None, feeds)
    except REFUSED:
        with pytest.raises(ts.UserError):
            compiled(text).run(feeds)
        return
    for found, want in zip(compiled(text).run(feeds).values(), wanted, strict=True):
        same(found, want)


def arrays(*dims: st.SearchStrategy[int] | int, dtype: Any = np.float32) -> st.SearchStrategy[Any]:
    """Arrays of those dims, of numbers that tell elements apart."""
    shape = st.tuples(*(dim if isinstance(dim, st.SearchStrategy) else st.just(dim) for dim in dims))
    return st.builds(lambda shape, seed: np.random.default_rng(seed).integers(-99, 99, shape).astype(dtype), shape, st.integers(0, 999))


def lists(*dims: st.SearchStrategy[int] | int, least: int = 0, dtype: Any = np.float32) -> st.SearchStrategy[list[Any]]:
    return st.lists(arrays(*dims, dtype=dtype), min_size=least, max_size=5)


POSITIONS = st.builds(np.array, st.integers(-3, 3))
"""Positions, some of which do not exist."""

EDIT = """
g (seq(float[N, 3]) s, float[M, 3] t, int64 p, int64 q, int64[1] r) =>
  (seq(float[A, 3]) put, seq(float[B, 3]) gone, float[C, 3] one, int64 n, float[D, 3] all) {
  put = SequenceInsert (s, t, p)
  gone = SequenceErase (put, q)
  one = SequenceAt (put, r)
  n = SequenceLength (gone)
  all = ConcatFromSequence <axis = 0> (put)
}
"""


@settings(max_examples=100, deadline=None)
@given(s=lists(LENGTHS, 3), t=arrays(LENGTHS, 3), p=POSITIONS, q=POSITIONS, r=POSITIONS)
def test_insert_erase_and_read(s: list[Any], t: Any, p: Any, q: Any, r: Any) -> None:
    check(EDIT, s=s, t=t, p=p, q=q, r=r.reshape(1))


DEFAULTS = """
g (seq(int64[N]) s, int64[M] t) => (seq(int64[A]) more, seq(int64[A]) less, int64[B] all) {
  more = SequenceInsert (s, t)
  less = SequenceErase (s)
  all = ConcatFromSequence <axis = -1> (more)
}
"""


@settings(max_examples=60, deadline=None)
@given(s=lists(LENGTHS, dtype=np.int64), t=arrays(LENGTHS, dtype=np.int64))
def test_the_last_element_is_meant_where_none_is_named(s: list[Any], t: Any) -> None:
    check(DEFAULTS, s=s, t=t)


RANKS = """
g (seq(float[]) s, float[A] t, float u, int64 p) => (seq(float[]) more, float[B] one, seq(float[]) rest, int64 n) {
  some = SequenceInsert (s, u)
  more = SequenceInsert (some, t, p)
  one = SequenceAt (more, p)
  rest = SequenceErase (more, p)
  n = SequenceLength (rest)
}
"""


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.lists(st.integers(0, 3), max_size=4), t=arrays(LENGTHS), u=arrays())
def test_elements_of_different_ranks(data: st.DataObject, ranks: list[int], t: Any, u: Any) -> None:
    s = [data.draw(arrays(*(LENGTHS,) * rank)) for rank in ranks]
    check(RANKS, s=s, t=t, u=u, p=np.array(data.draw(st.integers(0, len(s)))))


def test_an_element_of_another_rank_than_declared() -> None:
    text = "g (seq(float[]) s, int64 p) => (float[B] y) { y = SequenceAt (s, p) }"
    s = [np.zeros((2, 2), np.float32), np.ones(3, np.float32)]
    same(compiled(text).run({"s": s, "p": np.int64(1)})["y"], s[1])
    with pytest.raises(ts.UserError, match="has rank 2, and the model declares it as 1"):
        compiled(text).run({"s": s, "p": np.int64(0)})


JOIN = """
g (seq(float[A, N, B]) s) => (float[A, M, B] y, int64 n) {
  y = ConcatFromSequence <axis = AXIS> (s)
  n = SequenceLength (s)
}
"""


@pytest.mark.parametrize("axis", [0, 1, -1])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(0, 5), dims=st.tuples(LENGTHS, LENGTHS, LENGTHS))
def test_concatenation(axis: int, data: st.DataObject, count: int, dims: tuple[int, int, int]) -> None:
    axes: list[st.SearchStrategy[int] | int] = list(dims)
    axes[axis] = LENGTHS
    check(JOIN.replace("AXIS", str(axis)), s=[data.draw(arrays(*axes)) for _ in range(count)])


def test_concatenation_of_what_does_not_fit() -> None:
    with pytest.raises(ts.UserError, match="along axis 2 differ: 4 and 5"):
        compiled(JOIN.replace("AXIS", "1")).run({"s": [np.zeros((2, 3, 4), np.float32), np.zeros((2, 1, 5), np.float32)]})
    with pytest.raises(ts.UserError, match="an empty sequence has nothing to concatenate"):
        compiled(JOIN.replace("AXIS", "0")).run({"s": []})


STACK = """
g (seq(float[]) s, seq(float[A, B]) t) => (float[N, P, Q] x, float[A, B, M] y) {
  x = ConcatFromSequence <axis = 0, new_axis = 1> (s)
  y = ConcatFromSequence <axis = -1, new_axis = 1> (t)
}
"""


@settings(max_examples=60, deadline=None)
@given(data=st.data(), counts=st.tuples(st.integers(1, 4), st.integers(1, 4)), dims=st.tuples(LENGTHS, LENGTHS))
def test_stacking(data: st.DataObject, counts: tuple[int, int], dims: tuple[int, int]) -> None:
    s, t = ([data.draw(arrays(*dims)) for _ in range(count)] for count in counts)
    check(STACK, s=s, t=t)


SPLIT = """
g (float[A, B, C] x, INT64 n) => (seq(float[]) parts, int64 count) {
  parts = SplitToSequence <axis = AXIS> (x, n)
  count = SequenceLength (parts)
}
"""


@pytest.mark.parametrize("axis", [0, 1, -1])
@settings(max_examples=30, deadline=None)
@given(x=arrays(LENGTHS, LENGTHS, LENGTHS), n=st.integers(1, 5))
def test_parts_of_a_size(axis: int, x: Any, n: int) -> None:
    check(SPLIT.replace("AXIS", str(axis)).replace("INT64", "int64"), x=x, n=np.array(n))


@pytest.mark.parametrize("axis", [0, 1, -1])
@settings(max_examples=30, deadline=None)
@given(x=arrays(LENGTHS, LENGTHS, LENGTHS), data=st.data())
def test_parts_of_given_sizes(axis: int, x: Any, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[axis]), max_size=4)))
    sizes = np.diff([0, *cuts, x.shape[axis]])
    check(SPLIT.replace("AXIS", str(axis)).replace("INT64", "int64[K]"), x=x, n=sizes.astype(np.int64))


@pytest.mark.parametrize(("sizes", "message"), [([1, 1], "parts of 2 elements do not make 3"), ([4, -1], "a part has -1 elements")])
def test_sizes_that_do_not_fit(sizes: list[int], message: str) -> None:
    for kind in ("int64[K]", "int64[2]"):
        with pytest.raises(ts.UserError, match=message):
            compiled(SPLIT.replace("AXIS", "0").replace("INT64", kind)).run({"x": np.zeros((3, 1, 1), np.float32), "n": np.array(sizes)})
    with pytest.raises(ts.UserError, match="split into parts of 0 elements"):
        compiled(SPLIT.replace("AXIS", "0").replace("INT64", "int64")).run({"x": np.zeros((3, 1, 1), np.float32), "n": np.array(0)})


SLICES = """
g (float[A, B] x) => (seq(float[N]) rows, seq(float[N]) columns, seq(float[N, 1]) kept) {
  rows = SplitToSequence <axis = 0, keepdims = 0> (x)
  columns = SplitToSequence <axis = 1, keepdims = 0> (x)
  kept = SplitToSequence <axis = 1> (x)
}
"""


@settings(max_examples=60, deadline=None)
@given(x=arrays(LENGTHS, LENGTHS))
def test_slices_of_a_tensor(x: Any) -> None:
    check(SLICES, x=x)


MAP = """
g (seq(float[N, 2]) s, seq(float[M]) t, float[2] k) => (seq(float[A, 2]) sums, seq(int64[2]) shapes, seq(float[]) flat, seq(float[2]) same) {
  sums, shapes, flat, same = SequenceMap (s, t, k) <
    body = b (float[P, 2] x, float[Q] y, float[2] z) => (float[A, 2] u, int64[2] v, float[B] w, float[2] z1) {
      u = Add (x, z) v = Shape (x) minus = Constant <value_ints = [-1]> () r = Reshape (x, minus) w = Concat <axis = 0> (r, y) z1 = Identity (z)
    }
  >
}
"""


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 5), k=arrays(2))
def test_map(data: st.DataObject, count: int, k: Any) -> None:
    s, t = ([data.draw(arrays(*dims)) for _ in range(count)] for dims in ((LENGTHS, 2), (LENGTHS,)))
    check(MAP, s=s, t=t, k=k)


def test_map_of_different_lengths() -> None:
    with pytest.raises(ts.UserError, match="its sequences have different lengths, 2 and 1"):
        compiled(MAP).run({"s": [np.zeros((1, 2), np.float32)] * 2, "t": [np.zeros(3, np.float32)], "k": np.zeros(2, np.float32)})


MAP_KNOWN = """
g (seq(float[N]) s, float[2, 3] x) => (seq(float[N]) y, seq(float[]) z) {
  rows = SplitToSequence <axis = 0, keepdims = 0> (x)
  y = SequenceMap (rows, s) <body = b (float[3] p, float[Q] q) => (float[A] r) { r = Concat <axis = 0> (p, q) }>
  z = SequenceMap (s, rows) <body = c (float[Q] q, float[3] p) => (float[A] r) { r = Concat <axis = 0> (q, p) }>
}
"""


@settings(max_examples=30, deadline=None)
@given(s=st.lists(arrays(LENGTHS), min_size=2, max_size=2), x=arrays(2, 3))
def test_map_with_a_sequence_of_known_length(s: list[Any], x: Any) -> None:
    check(MAP_KNOWN, s=s, x=x)


LOOP = """
g (seq(float[N]) s, int64 n, bool go, float limit) => (seq(float[]) kept, seq(float[]) made, int64[K] lengths) {
  none = SequenceEmpty ()
  kept, made, lengths = Loop (n, go, none, s) <
    body = b (int64 i, bool c, seq(float[]) k, seq(float[]) m) => (bool d, seq(float[]) k1, seq(float[]) m1, int64 l) {
      e = SequenceAt (s, i)
      sum = ReduceSum <keepdims = 0> (e)
      big = Less (limit, sum)
      k1 = If (big) <
        then_branch = y () => (seq(float[]) k2) { k2 = SequenceInsert (k, e) },
        else_branch = z () => (seq(float[]) k3) { k3 = Identity (k) }
      >
      twice = Concat <axis = 0> (e, e)
      zero = Constant <value_int = 0> ()
      m0 = SequenceErase (m, zero)
      m1 = SequenceInsert (m0, twice)
      l = SequenceLength (k1)
      d = Identity (c)
    }
  >
}
"""


@settings(max_examples=60, deadline=None)
@given(s=lists(LENGTHS), go=st.booleans(), limit=arrays(), less=st.integers(0, 2))
def test_loops_and_branches_that_change_sequences(s: list[Any], go: bool, limit: Any, less: int) -> None:
    check(LOOP, s=s, n=np.array(max(0, len(s) - less)), go=np.array(go), limit=limit)


NESTED = """
g (seq(float[N]) s, int64 n) => (seq(float[]) y, int64 total) {
  none = SequenceEmpty ()
  y = Loop (n, , none) <body = b (int64 i, bool c, seq(float[]) a) => (bool d, seq(float[]) e) {
    d = Identity (c)
    length = SequenceLength (s)
    e = Loop (length, , a) <body = f (int64 j, bool g1, seq(float[]) h) => (bool k, seq(float[]) l) {
      k = Identity (g1)
      x = SequenceAt (s, j)
      at = SequenceLength (h)
      zero = Constant <value_int = 0> ()
      even = Equal (i, zero)
      l = If (even) <
        then_branch = t () => (seq(float[]) p) { p = SequenceInsert (h, x, zero) },
        else_branch = u () => (seq(float[]) q) { r = Neg (x) q = SequenceInsert (h, r) }
      >
    }>
  }>
  total = SequenceLength (y)
}
"""


@settings(max_examples=30, deadline=None)
@given(s=lists(LENGTHS), n=st.integers(0, 3))
def test_loops_in_loops(s: list[Any], n: int) -> None:
    wanted: list[Any] = []
    for i in range(n):
        for x in s:
            wanted = [*wanted, -x] if i else [x, *wanted]
    found = compiled(NESTED).run({"s": s, "n": np.int64(n)})
    same(found["y"], wanted)
    same(found["total"], np.array(len(wanted)))


READ_BACK = """
g (seq(float[N]) s, int64 n) => (seq(float[]) y, float[A] all) {
  y = Loop (n, , s) <body = b (int64 i, bool c, seq(float[]) a) => (bool d, seq(float[]) e) {
    d = Identity (c)
    first = SequenceAt (a, i)
    end = Constant <value_int = -1> ()
    last = SequenceAt (a, end)
    both = Concat <axis = 0> (last, first)
    e = SequenceInsert (a, both)
  }>
  all = ConcatFromSequence <axis = 0> (y)
}
"""


@settings(max_examples=40, deadline=None)
@given(s=lists(LENGTHS, least=1), n=st.integers(0, 6))
def test_a_loop_that_reads_what_it_has_appended(s: list[Any], n: int) -> None:
    check(READ_BACK, s=s, n=np.array(n))
    assert "appended" in print_graph(optimize(import_model(model(READ_BACK)), resolve("native"))[0])


BEGINS_EMPTY = """
g (int64 n, float[N] x) => (seq(float[]) y) {
  none = SequenceEmpty ()
  zero = Constant <value_int = 0> ()
  y = Loop (n, , none) <body = b (int64 i, bool c, seq(float[P]) a) => (bool d, seq(float[]) e) {
    d = Identity (c)
    start = Equal (i, zero)
    next = If (start) <
      then_branch = t () => (float[Q] p) { p = Identity (x) },
      else_branch = u () => (float[Q] q) { end = Constant <value_int = -1> () last = SequenceAt (a, end) q = Concat <axis = 0> (last, x) }
    >
    e = SequenceInsert (a, next)
  }>
}
"""


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("kind", ["float[P]", "float[]"])
def test_a_loop_that_reads_of_a_sequence_that_begins_empty(n: int, kind: str) -> None:
    text = BEGINS_EMPTY.replace("seq(float[P])", f"seq({kind})")
    if kind == "float[]":
        with pytest.raises(ts.UserError, match="declare its shape"):
            compiled(text)
        text = text.replace("float[Q] q) {", "float[Q] q) <float[R] last> {")
    check(text, n=np.array(n), x=np.float32([1, 2]))


MANY = """
g (seq(float[N]) s, float[300, 2] x) => (seq(float[2]) y, seq(float[]) z) {
  rows = SplitToSequence <axis = 0, keepdims = 0> (x)
  y = SequenceMap (rows) <body = b (float[2] p) => (float[2] q) { q = Neg (p) }>
  z = SequenceMap (rows, s) <body = c (float[2] p, float[N] q) => (float[K] r) { r = Concat <axis = 0> (p, q) }>
}
"""


def test_a_long_sequence_of_known_length_is_not_written_out() -> None:
    x, s = np.arange(600, dtype=np.float32).reshape(300, 2), [np.full(size % 3, size, np.float32) for size in range(300)]
    check(MANY, s=s, x=x)
    assert len(import_model(model(MANY)).nodes) < 60


WHILE = """
g (int64 limit, float[N] x) => (seq(float[]) y, float[A] all) {
  none = SequenceEmpty ()
  n = Constant <value_int = 9> ()
  y = Loop (n, , none) <body = b (int64 i, bool c, seq(float[]) a) => (bool d, seq(float[]) e) {
    d = Less (i, limit) e = SequenceInsert (a, x)
  }>
  all = ConcatFromSequence <axis = 0> (y)
}
"""


@pytest.mark.parametrize("limit", [-1, 0, 3, 99])
def test_a_loop_of_few_iterations_that_a_condition_ends(limit: int) -> None:
    check(WHILE, limit=np.array(limit), x=np.float32([1, 2]))


BRANCHES = """
g (seq(float[N]) s, float[M] x, bool c) => (seq(float[]) y, seq(float[]) z) {
  y, z = If (c) <
    then_branch = a () => (seq(float[]) p, seq(float[]) q) { p = SequenceConstruct (x, x) q = SequenceEmpty () },
    else_branch = b () => (seq(float[]) r, seq(float[]) t) { r = SequenceConstruct (x) t = Identity (s) }
  >
}
"""


@pytest.mark.parametrize("condition", [True, False])
@settings(max_examples=20, deadline=None)
@given(s=lists(LENGTHS), x=arrays(LENGTHS))
def test_branches_of_different_lengths(condition: bool, s: list[Any], x: Any) -> None:
    check(BRANCHES, s=s, x=x, c=np.array(condition))


OPTIONAL = """
g (optional(float[N, 2]) o, float[M, 2] x, optional(seq(float[A])) q, bool c)
  => (float[K, 2] y, bool h, optional(float[B, 2]) same, optional(float[C, 2]) other, seq(float[]) list, int64 n) {
  h = OptionalHasElement (o)
  y = If (h) <
    then_branch = t () => (float[P, 2] p) { e = OptionalGetElement (o) p = Concat <axis = 0> (e, x) },
    else_branch = u () => (float[Q, 2] r) { r = Neg (x) }
  >
  same = Identity (o)
  other = If (c) <
    then_branch = v () => (optional(float[P, 2]) w) { w = Optional (x) },
    else_branch = k () => (optional(float[P, 2]) z) { z = Optional <type = float[P, 2]> () }
  >
  there = OptionalHasElement (q)
  list = If (there) <
    then_branch = l () => (seq(float[]) m) { m = OptionalGetElement (q) },
    else_branch = i () => (seq(float[]) j) { j = SequenceEmpty () }
  >
  n = SequenceLength (list)
}
"""


@settings(max_examples=60, deadline=None)
@given(o=st.none() | arrays(LENGTHS, 2), x=arrays(LENGTHS, 2), q=st.none() | lists(LENGTHS), c=st.booleans())
def test_optional_values(o: Any, x: Any, q: Any, c: bool) -> None:
    found = compiled(OPTIONAL.replace("<type = float[P, 2]> ", "")).run({"o": o, "x": x, "q": q, "c": np.array(c)})
    y = -x if o is None else np.concatenate([o, x])
    for got, want in zip(found.values(), [y, np.array(o is not None), o, x if c else None, q or [], np.array(len(q or []))], strict=True):
        same(got, want)
