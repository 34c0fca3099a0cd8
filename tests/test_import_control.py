"""If, Loop, Scan and sequences: models against ONNX Runtime, as imported, simplified and grouped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from compiler.errors import UnsupportedError, UserError
from compiler.ir.interp import interpret
from compiler.ir.verify import Stage, verify_graph
from compiler.pipeline import canonical_passes
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.canonicalize import EqualizeRanks
from passes.graph.group import Group
from passes.graph.layout import AssignLayout
from passes.graph.outputs import CopyOutputs

HEADER = '<ir_version: 9, opset_import: ["" : 20, "mine" : 1]>'


def model(text: str, opset: int = 20) -> onnx.ModelProto:
    return parser.parse_model(HEADER.replace("20", str(opset)) + text)


def check(made: onnx.ModelProto, **feeds: Any) -> None:
    """Every stage gives what ONNX Runtime gives."""
    given = {name: np.asarray(value) for name, value in feeds.items()}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, given)
    graph = import_model(made)
    verify_graph(graph, Stage.CANONICAL)
    steps = (*canonical_passes(3), EqualizeRanks(), AssignLayout(8), CopyOutputs(), Group())
    for stage in (graph, PassManager(steps, verify=True).run(graph)[0]):
        for found, want in zip(interpret(stage, given).values(), wanted, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-6)
            assert found.shape == np.asarray(want).shape


X = np.arange(6, dtype=np.float32).reshape(2, 3)

BRANCHES = """
g (float[N, 3] x, bool c) => (float[M, 3] y, float[K] z) {
  w = Relu (x)
  y, z = If (c) <
    then_branch = t () => (float[A, 3] a, float[B] b) { a = Neg (x) zero = Constant <value_ints = [-1]> () b = Reshape (w, zero) },
    else_branch = e () => (float[A, 3] a, float[B] b) { a = Concat <axis = 0> (w, x) b = Constant <value_floats = [1.5, 2.5]> () }
  >
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_of_different_shapes(condition: bool) -> None:
    check(model(BRANCHES), x=X, c=condition)


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_that_hands_out_what_it_took(condition: bool) -> None:
    text = "g (float[2] x, bool c) => (float[2] y, float[2] z) { y, z = If (c) <then_branch = t () => (float[2] x, float[2] p) { p = Identity (x) },"
    graph = import_model(model(text + "else_branch = e () => (float[2] q, float[2] x) { q = Neg (x) }> }"))
    verify_graph(graph, Stage.CANONICAL)
    found = interpret(graph, {"x": np.float32([1, 2]), "c": np.array(condition)})
    np.testing.assert_array_equal(found["y"], np.float32([1, 2]) if condition else np.float32([-1, -2]))
    np.testing.assert_array_equal(found["z"], np.float32([1, 2]))


def test_a_known_condition_leaves_one_branch() -> None:
    text = BRANCHES.replace(", bool c)", ")").replace("w = Relu (x)", "w = Relu (x) one = Constant <value_int = 1> () c = Cast <to = 9> (one)")
    graph = import_model(model(text))
    assert "if" not in {node.op for node in graph.nodes}
    check(model(text), x=X)


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_branches_in_branches(first: bool, second: bool) -> None:
    text = """
    g (float[N] x, bool c, bool d) => (float[M] y) {
      k = Constant <value_float = 2.0> ()
      y = If (c) <
        then_branch = t () => (float[A] a) {
          s = Mul (x, k)
          a = If (d) <then_branch = u () => (float[B] b) { b = Add (s, x) }, else_branch = v () => (float[B] b) { b = Concat <axis = 0> (s, k1) }>
        },
        else_branch = e () => (float[A] a) { a = Neg (x) }
      >
    }
    """.replace("k = Const", "k1 = Constant <value_floats = [7.0]> () k = Const")
    check(model(text), x=np.float32([1, 2, 3]), c=first, d=second)


LOOP = """
g (float[N] x, int64 n, float limit) => (float[M] y, float total, float[K] sums) {
  yes = Constant <value_int = 1> () go = Cast <to = 9> (yes)
  zero = Constant <value_float = 0.0> ()
  y, total, sums = Loop (n, go, x, zero) <
    body = b (int64 i, bool go_in, float[P] v, float t) => (bool go_out, float[Q] w, float u, float s) {
      f = Cast <to = 1> (i) one = Constant <value_ints = [1]> () f1 = Reshape (f, one)
      w = Concat <axis = 0> (v, f1)
      part = ReduceSum <keepdims = 0> (w)
      u = Add (t, part) s = Neg (u)
      go_out = Less (u, limit)
    }
  >
}
"""


@pytest.mark.parametrize(("trips", "limit"), [(3, 1e9), (0, 1e9), (9, 12), (2, -1)])
def test_a_loop_that_carries_a_growing_value(trips: int, limit: float) -> None:
    check(model(LOOP), x=np.float32([1, 2]), n=np.int64(trips), limit=np.float32(limit))


def test_a_loop_of_known_trips_has_results_of_known_shape() -> None:
    text = (
        LOOP.replace(", int64 n, float limit", "")
        .replace("Less (u, limit)", "Identity (go_in)")
        .replace("yes =", "n = Constant <value_int = 4> () yes =", 1)
    )
    graph = import_model(model(text))
    assert [value.type.shape for value in graph.outputs] == [(graph.inputs[0].type.shape[0] + 4,), (), (4,)]
    check(model(text), x=np.float32([1, 2]))


def test_loops_in_loops_use_both_numbers() -> None:
    text = """
    g (float[N, 3] x, int64 n) => (float[A, B] y) {
      yes = Constant <value_int = 1> () go = Cast <to = 9> (yes)
      y = Loop (n, go) <body = b (int64 i, bool c) => (bool d, float[B] row) {
        d = Identity (c)
        m = Constant <value_int = 3> ()
        row = Loop (m, c) <body = r (int64 j, bool e) => (bool f, float s) {
          f = Identity (e) line = Gather <axis = 0> (x, i) s = Gather <axis = 0> (line, j)
        }>
      }>
    }
    """
    check(model(text), x=X, n=np.int64(2))


def test_a_loop_in_a_function() -> None:
    text = """
    g (float[N] x, int64 n) => (float[N] y) { y = mine.power (x, n) }
    <domain: "mine", opset_import: ["" : 20]>
    power (v, k) => (r) { r = Loop (k, , v) <body = b (int64 i, bool c, float[N] a) => (bool d, float[N] e) { d = Identity (c) e = Mul (a, v) }> }
    """
    check(model(text), x=np.float32([2, 3]), n=np.int64(3))


@pytest.mark.parametrize("position", range(3))
def test_slices_at_the_iteration(position: int) -> None:
    text = """
    g (float[N, 3] x, int64[1] n) => (float[A] y) {
      s = Squeeze (n)
      k = Constant <value_floats = [0.0, 0.0, 0.0]> ()
      y = Loop (s, , k) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
        d = Identity (c) one = Constant <value_ints = [1]> () zero = Constant <value_ints = [0]> ()
        p = Reshape (i, one) q = Add (p, one) row = Slice (x, p, q, zero) flat = Squeeze (row, zero) e = Add (a, flat)
      }>
    }
    """
    check(model(text), x=X, n=np.int64([position]))


SCAN = """
g (float[N, 3] x, float[3, N] z, float[3] s) => (float[3] last, float[A, 3] sums, float[3, B] twice) {
  last, sums, twice = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [0, 1],
    scan_output_axes = [0, 1], scan_output_directions = [1, 0],
    body = b (float[3] t, float[3] e, float[3] f) => (float[3] u, float[3] v, float[3] w) { u = Add (t, e) v = Sub (u, f) w = Add (e, e) }
  > (s, x, z)
}
"""


@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan_of_both_directions_and_axes(length: int) -> None:
    x = np.arange(length * 3, dtype=np.float32).reshape(length, 3)
    made, graph = model(SCAN), import_model(model(SCAN))
    if length:
        check(made, x=x, z=2 * x.T, s=np.float32([1, 0, 0]))
    else:
        found = interpret(graph, {"x": x, "z": x.T, "s": np.float32([1, 0, 0])})
        assert [value.shape for value in found.values()] == [(3,), (0, 3), (3, 0)]


def test_scan_of_a_batch() -> None:
    text = """
    g (float[2, 2] s, float[2, N, 2] x) => (float[2, 2] last, float[2, N, 2] sums) {
      last, sums = Scan <num_scan_inputs = 1,
        body = b (float[2] t, float[2] e) => (float[2] u, float[2] v) { u = Add (t, e) v = Add (t, e) }> (, s, x)
    }
    """
    x, s = np.arange(12, dtype=np.float32).reshape(2, 3, 2), np.ones((2, 2), np.float32)
    found = interpret(import_model(model(text, 8)), {"x": x, "s": s})
    np.testing.assert_allclose(found["last"], s + x.sum(1))
    np.testing.assert_allclose(found["sums"], s[:, None] + np.cumsum(x, 1))


@pytest.mark.parametrize("position", [-2, 1])
def test_sequences(position: int) -> None:
    text = """
    g (float[2, 3] x, int64 at) => (float[A, 3] y, int64 n, float[B, C] z, float[3] w) {
      parts = SplitToSequence <axis = 0, keepdims = 0> (x)
      a = Neg (x) one = Constant <value_int = 1> ()
      first = SequenceAt (parts, one)
      more = SequenceInsert (parts, first, one)
      copy = Identity (more)
      w = SequenceAt (copy, at)
      n = SequenceLength (more)
      y = ConcatFromSequence <axis = 0, new_axis = 1> (more)
      rest = SequenceErase (more)
      z = ConcatFromSequence <axis = -1, new_axis = 1> (rest)
    }
    """
    check(model(text), x=X, at=np.int64(position))


def test_sequence_map_and_a_loop_that_collects_a_sequence() -> None:
    text = """
    g (float[2, 3] x) => (float[A, 3] y) {
      parts = SplitToSequence <axis = 0> (x)
      none = SequenceEmpty ()
      n = Constant <value_int = 2> ()
      found = Loop (n, , none) <body = b (int64 i, bool c, seq(float) s) => (bool d, seq(float) t) {
        d = Identity (c) e = SequenceAt (parts, i) t = SequenceInsert (s, e)
      }>
      sums = SequenceMap (found, x) <body = m (float[1, 3] p, float[2, 3] q) => (float[2, 3] r) { r = Add (p, q) }>
      y = ConcatFromSequence <axis = 0> (sums)
    }
    """
    graph = import_model(model(text))
    np.testing.assert_array_equal(interpret(graph, {"x": X})["y"], np.concatenate([X[:1] + X, X[1:] + X]))


def test_optional_values() -> None:
    text = "g (float[3] x) => (float[3] y, bool z) { o = Optional (x) y = OptionalGetElement (o) z = OptionalHasElement (o) }"
    found = interpret(import_model(model(text)), {"x": X[0]})
    np.testing.assert_array_equal(found["y"], X[0])
    assert found["z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BRANCHES.replace("a = Neg (x)", "a = Cast <to = 7> (x)"), "must agree in element type and rank"),
        (BRANCHES.replace("a = Neg (x)", "a = Fancy (x)"), "Fancy"),
        (LOOP.replace("u = Add (t, part)", "u1 = Add (t, part) u = Reshape (u1, one)"), "must agree in element type and rank"),
        (LOOP.replace("s = Neg (u)", "s = Neg (w)"), "may differ in shape"),
        ("g (float[2] x) => (float[1] y) { y = SplitToSequence (x) }", "is a sequence"),
        ("g (seq(float[]) s, int64 i) => (int64[R] y) { e = SequenceAt (s, i) y = Shape (e) }", "does not declare which one"),
        ("g (float[2] x) => (float[1] y) { p = SplitToSequence (x) y = Relu (p) }", "an operand is a sequence"),
    ],
)
def test_what_cannot_be_imported(text: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        import_model(model(text))


def test_a_declared_result_of_a_body_is_checked() -> None:
    text = """
    g (float[N] x, int64 n) => (float[A, 1] y) {
      yes = Constant <value_int = 1> () go = Cast <to = 9> (yes)
      y = Loop (n, go) <body = b (int64 i, bool c) => (bool d, float[1] e) {
        d = Identity (c) one = Constant <value_ints = [1]> () p = Reshape (i, one) q = Add (p, one) e = Slice (x, p, q)
      }>
    }
    """
    check(model(text), x=np.float32([1, 2, 3]), n=np.int64(2))
    with pytest.raises(UserError, match="is 0, and the model declares it as 1"):
        interpret(import_model(model(text)), {"x": np.float32([1]), "n": np.int64(2)})
