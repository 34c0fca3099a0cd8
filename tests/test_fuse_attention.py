"""Attention found in the ways it is written, run as one kernel, and left alone where it is something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import tensorsmith as ts
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import sym
from compiler.ir.parser import parse_graph
from compiler.ir.types import DType, TensorType
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.attention import FuseAttention
from passes.graph.dead_code import EliminateDeadCode
from tests.graph_cases import check_same, f32
from tests.recovery import ops
from tests.test_fusion import check, groups


class Writer(GraphBuilder):
    """Writes attention as frameworks do."""

    def __init__(self, draw: Any) -> None:
        super().__init__("written", folding=False)
        self.draw = draw

    def scaled(self, x: Value, here: bool) -> Value:
        return self.emit("mul", x, self.constant(np.array(0.4, np.float32))) if here else x

    def heads(self, name: str, batch: int, heads: int, rows: int, size: int) -> Value:
        """``[batch, heads, rows, size]`` from what a linear layer gives."""
        x = self.input(name, f32(batch, rows, heads * size))
        return self.emit("transpose", self.emit("reshape", x, shape=(batch, rows, heads, size)), perm=(0, 2, 1, 3))

    def repeated(self, x: Value, times: int) -> Value:
        """Each head as often as there are queries that share it."""
        batch, heads, rows, size = x.type.static_shape
        wide = self.emit("reshape", x, shape=(batch, heads, 1, rows, size))
        wide = self.emit("expand", wide, shape=(batch, heads, times, rows, size))
        return self.emit("reshape", wide, shape=(batch, heads * times, rows, size))

    def masked(self, scores: Value, kind: str) -> Value:
        shape = tuple(dim if self.draw(st.booleans()) else 1 for dim in scores.type.static_shape)
        if kind == "add":
            return self.emit("add", scores, self.input(self.unique("bias"), f32(*shape)))
        if kind == "where":
            kept = self.input(self.unique("kept"), TensorType(DType.BOOL, shape))
            return self.emit("where", kept, scores, self.constant(np.array(-1e4, np.float32)))
        return self.emit("mul", self.emit("tanh", scores), self.constant(np.array(5, np.float32)))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.tuples(*(st.integers(least, most) for least, most in ((1, 2), (1, 2), (1, 3), (1, 9), (2, 12), (2, 9), (2, 9)))))
def test_attention_is_one_kernel_however_it_is_written(data: Any, sizes: tuple[int, ...]) -> None:
    batch, groups_, times, rows, keys, size, columns = sizes
    b, heads = Writer(data.draw), groups_ * times
    place = data.draw(st.sampled_from(("query", "key", "scores")))
    query = b.scaled(b.heads("q", batch, heads, rows, size), place == "query")
    key, value = b.heads("k", batch, groups_, keys, size), b.heads("v", batch, groups_, keys, columns)
    if times > 1:
        key, value = b.repeated(key, times), b.repeated(value, times)
    key = b.scaled(b.emit("transpose", key, perm=(0, 1, 3, 2)), place == "key")
    flat = times == 1 and data.draw(st.booleans())
    if flat:
        query, key, value = (b.emit("reshape", v, shape=(batch * heads, *v.type.shape[2:])) for v in (query, key, value))
    scores = b.scaled(b.emit("matmul", query, key), place == "scores")
    if flat:
        scores = b.emit("reshape", scores, shape=(batch, heads, rows, keys))
    for kind in data.draw(st.lists(st.sampled_from(("add", "where", "cap")), max_size=2)):
        scores = b.masked(scores, kind)
    weights = b.emit("softmax", scores, axis=3, log=False)
    if flat:
        weights = b.emit("reshape", weights, shape=(batch * heads, rows, keys))
    if times == 1 and data.draw(st.booleans()):
        swapped = (0, 2, 1) if flat else (0, 1, 3, 2)
        turned = b.emit("matmul", b.emit("transpose", value, perm=swapped), b.emit("transpose", weights, perm=swapped))
        result = b.emit("transpose", turned, perm=swapped)
    else:
        result = b.emit("matmul", weights, value)
    if flat:
        result = b.emit("reshape", result, shape=(batch, heads, rows, columns))
    joined = b.emit("reshape", b.emit("transpose", result, perm=(0, 2, 1, 3)), shape=(batch, rows, heads * columns))
    graph = b.graph([joined])
    found = groups(check(graph))
    assert len(found) == 1
    assert found[0].split()[-1] == "attention"


PACKED = """
graph @g {
  input %qkv: f32[2, 9, 36]
  const %scale: f32[] = [0.5]
  %heads: f32[2, 9, 3, 3, 4] = reshape(%qkv) {shape = [2, 9, 3, 3, 4]}
  %t: f32[3, 2, 3, 9, 4] = transpose(%heads) {perm = [2, 0, 3, 1, 4]}
  %q1: f32[1, 2, 3, 9, 4] = slice(%t) {starts = [0, 0, 0, 0, 0], sizes = [1, 2, 3, 9, 4], steps = [1, 1, 1, 1, 1]}
  %k1: f32[1, 2, 3, 9, 4] = slice(%t) {starts = [1, 0, 0, 0, 0], sizes = [1, 2, 3, 9, 4], steps = [1, 1, 1, 1, 1]}
  %v1: f32[1, 2, 3, 9, 4] = slice(%t) {starts = [2, 0, 0, 0, 0], sizes = [1, 2, 3, 9, 4], steps = [1, 1, 1, 1, 1]}
  %q: f32[2, 3, 9, 4] = reshape(%q1) {shape = [2, 3, 9, 4]}
  %k: f32[2, 3, 9, 4] = reshape(%k1) {shape = [2, 3, 9, 4]}
  %v: f32[2, 3, 9, 4] = reshape(%v1) {shape = [2, 3, 9, 4]}
  %kt: f32[2, 3, 4, 9] = transpose(%k) {perm = [0, 1, 3, 2]}
  %s: f32[2, 3, 9, 9] = matmul(%q, %kt)
  %h: f32[2, 3, 9, 9] = mul(%s, %scale)
  %w: f32[2, 3, 9, 9] = softmax(%h) {axis = 3, log = false}
  %y: f32[2, 3, 9, 4] = matmul(%w, %v)
  %z: f32[2, 9, 3, 4] = transpose(%y) {perm = [0, 2, 1, 3]}
  return %z
}
"""


def test_packed_queries_keys_and_values_are_read_where_they_lie() -> None:
    (found,) = groups(check(parse_graph(PACKED)))
    assert sorted(found.split()) == sorted(["transpose", *["slice", "reshape"] * 3, "attention"])


def test_what_the_epilogue_reads_too_is_brought_into_order() -> None:
    b = GraphBuilder("g", folding=False)
    heads = b.emit("transpose", b.input("x", f32(2, 5, 3, 5)), perm=(0, 2, 1, 3))
    scores = b.emit("matmul", heads, b.emit("transpose", heads, perm=(0, 1, 3, 2)))
    result = b.emit("matmul", b.emit("softmax", scores, axis=3, log=False), heads)
    check(b.graph([b.emit("add", result, heads)]))


def written(
    *,
    axis: int = 3,
    between: str = "",
    also: bool = False,
    wide: bool = False,
    mask: tuple[int, ...] = (),
    keys: int = 3,
    cut: int = 1,
    after: str | tuple[int, ...] = "",
    twice: bool = False,
) -> Graph:
    """Attention of 3 heads in 2 batches, with something unusual about it."""
    b = GraphBuilder("g", folding=False)
    query, key, value = (
        b.input("q", f32(2, 3, 4, 5)),
        b.input("k", f32(2, keys, 5, 6)),
        b.input("v", TensorType(DType.FLOAT64 if wide else DType.FLOAT32, (2, keys, 6 // cut, 5))),
    )
    scores = b.emit("matmul", query, key, name="scores")
    if wide:
        scores = b.emit("cast", scores, to=DType.FLOAT64)
    if between:
        scores = b.emit(between, scores, **({"perm": (0, 1, 2, 3)} if between == "transpose" else {}))
    if mask:
        split = b.emit("reshape", scores, shape=(1, 2, 3, 4, 6))
        scores = b.emit("reshape", b.emit("add", split, b.input("m", f32(*mask))), shape=(2, 3, 4, 6))
    weights = b.emit("softmax", scores, axis=axis, log=False)
    if after == "where":
        weights = b.emit("where", b.emit("is_nan", weights), b.constant(np.zeros((), np.float32)), weights)
    elif after:
        weights = b.emit("mul", weights, b.input("share", f32(*after)))
    if twice:
        weights = b.emit("mul", weights, b.emit("softmax", b.emit("relu", scores), axis=3, log=False))
    if cut > 1:
        weights = b.emit("reshape", weights, shape=(2, 3, 4 * cut, 6 // cut))
    result = b.emit("matmul", weights, value, name="attended")
    return b.graph([result, scores] if also else [result])


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (written(), None),
        (written(keys=1), None),
        (written(mask=(1, 2, 1, 4, 6)), None),
        (written(between="relu"), None),
        (written(after="where"), None),
        (written(after=(3, 1, 6)), None),
        (written(after="where", mask=(1, 2, 1, 4, 6)), None),
        (written(after="where", axis=2), "not a softmax along the last axis"),
        (written(wide=True), "holds f64, and the keys f32"),
        (written(axis=2), "not a softmax along the last axis"),
        (written(also=True), "is not computed from a product element by element"),
        (written(between="transpose"), "is not computed from a product element by element"),
        (written(cut=2), "has other rows or columns than the softmax"),
    ],
)
def test_near_misses_say_why(graph: Graph, reason: str | None) -> None:
    after, (report,) = PassManager((FuseAttention(),), verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert report.changed == (reason is None) == ("attention" in ops(after))
    (event,) = report.events
    assert event.node == "attended"
    assert event.reason is None if reason is None else reason in str(event.reason)


def test_two_softmaxes_are_not_one() -> None:
    after, (report,) = PassManager((FuseAttention(),), verify=True).run(written(twice=True))
    assert not report.changed
    assert ops(after).count("softmax") == 2


@pytest.mark.parametrize("guarded", [True, False])
def test_rows_that_see_nothing_are_zero_where_the_model_says_so(guarded: bool) -> None:
    guard = "n = IsNaN(w) u = Where(n, zero, w)" if guarded else "u = Where(m, w, zero)"
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 2, 5, 4] q, float[2, 2, 4, 19] k, float[2, 2, 19, 3] v, bool[2, 1, 5, 19] m) => (float[2, 2, 5, 3] y)
        <float zero = {{0.0}}, float low = {{-inf}}> {{
          s = MatMul(q, k)
          a = Where(m, s, low)
          w = Softmax <axis = -1> (a)
          {guard}
          y = MatMul(u, v)
        }}""")
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 2, 5, 4), "k": (2, 2, 4, 19), "v": (2, 2, 19, 3)}
    given_: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    given_["m"] = rng.random((2, 1, 5, 19)) < 0.5
    given_["m"][:, :, 1] = False
    module = ts.compile(model, cache=False)
    assert [found.split()[-1] for found in groups(check(import_model(model)))] == ["attention"]
    (got,) = module.run(given_).values()
    (want,) = ReferenceEvaluator(model).run(None, given_)
    assert not got[:, :, 1].any()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_transpose_that_is_read_twice_is_made_once() -> None:
    b = GraphBuilder("g", folding=False)
    query, key, value = b.input("q", f32(2, 3, 4, 5)), b.input("k", f32(2, 3, 5, 6)), b.input("v", f32(2, 3, 6, 5))
    attended = b.emit("matmul", b.emit("softmax", b.emit("matmul", query, key), axis=3, log=False), value)
    turned = b.emit("transpose", attended, perm=(0, 2, 1, 3))
    graph = b.graph([turned, b.emit("relu", b.emit("transpose", turned, perm=(0, 3, 1, 2)))])
    after, _ = PassManager((FuseAttention(), EliminateDeadCode()), verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert ops(after).count("attention") == 1


def test_sizes_that_only_a_run_knows() -> None:
    b, (batch, rows, keys) = GraphBuilder("g"), map(sym, ("batch", "rows", "keys"))
    query = b.emit("transpose", b.emit("reshape", b.input("q", f32(batch, rows, 24)), shape=(batch, rows, 3, 8)), perm=(0, 2, 1, 3))
    key, value = b.input("k", f32(batch, 3, 8, keys)), b.input("v", f32(batch, 3, keys, 9))
    scores = b.emit("add", b.emit("matmul", query, key), b.input("m", f32(batch, 1, 1, keys)))
    result = b.emit("matmul", b.emit("softmax", scores, axis=3, log=False), value)
    assert [found.split()[-1] for found in groups(check(b.graph([result])))] == ["attention"]


def test_rows_that_see_nothing_are_nan_and_others_are_not() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2, 5, 4] q, float[1, 2, 4, 19] k, float[1, 2, 19, 3] v, float[5, 19] m) => (float[1, 2, 5, 3] y) {
          s = MatMul(q, k)
          a = Add(s, m)
          w = Softmax <axis = -1> (a)
          y = MatMul(w, v)
        }""")
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"q": (1, 2, 5, 4), "k": (1, 2, 4, 19), "v": (1, 2, 19, 3)}.items()}
    mask = np.where(rng.random((5, 19)) < 0.5, 0, -np.inf).astype(np.float32)
    mask[1] = -np.inf
    mask[2, 3] = np.inf
    mask[3] = 1e30
    feeds["k"][0, 1, 0, 7] = np.nan
    module = ts.compile(model, cache=False, threads=1)
    got = module.run({**feeds, "m": mask})["y"]
    with np.errstate(all="ignore"):
        scores = feeds["q"].astype(np.float64) @ feeds["k"] + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        want = weights / weights.sum(-1, keepdims=True) @ feeds["v"]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(got[0, 0]).all(-1).tolist() == [False, True, True, False, False]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, equal_nan=True)
