"""Indices out of range: a run ends with an error that says which, and the module can be used again."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from symbolic_models import check, compiled, model_of

from backends.reference import run_program
from compiler.errors import UserError
from compiler.ir.interp import interpret
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

GATHER = "g (float[n, m] x, int64[k] i) => (float[n, k] y) { y = Gather<axis = 1>(x, i) }"
ROWS = "g (float[n, m] x, int32[k] i) => (float[k, m] y) { y = Gather(x, i) }"
ELEMENTS = "g (float[n, m] x, int32[k, m] i) => (float[k, m] y) { y = GatherElements(x, i) }"
TUPLES = "g (float[n, m] x, int64[k, 2] i) => (float[k] y) { y = GatherND(x, i) }"
SCATTER = "g (float[n, m] x, int64[n, k] i) => (float[n, m] y) { u = Cast<to = 1>(i) y = ScatterElements<axis = 1>(x, i, u) }"
SCATTER_ROWS = "g (float[n, m] x, int64[k, 1] i, float[k, m] u) => (float[n, m] y) { y = ScatterND(x, i, u) }"

X = np.arange(35, dtype=np.float32).reshape(5, 7)
LONG = np.arange(7000) % 7
CASES = {
    "columns": (GATHER, {"i": np.array([0, 6, -7, 3])}, {"i": np.array([0, 6, 7, 3])}, "index 7 is out of range for axis 1 of size 7"),
    "columns before": (GATHER, {"i": LONG}, {"i": np.where(np.arange(7000) == 6543, -8, LONG)}, "index -8 is out of range for axis 1 of size 7"),
    "rows": (ROWS, {"i": np.array([4, -5], np.int32)}, {"i": np.array([4, 5], np.int32)}, "index 5 is out of range for axis 0 of size 5"),
    "elements": (
        ELEMENTS,
        {"i": (np.arange(14).reshape(2, 7) % 10 - 5).astype(np.int32)},
        {"i": (np.arange(14).reshape(2, 7) % 11 - 5).astype(np.int32)},
        "index 5 is out of range for axis 0 of size 5",
    ),
    "tuples": (TUPLES, {"i": np.array([[4, -7], [-5, 6]])}, {"i": np.array([[4, 7], [0, 6]])}, "index 7 is out of range for axis 1 of size 7"),
    "scatter": (SCATTER, {"i": np.full((5, 1), -7)}, {"i": np.full((5, 1), 70)}, "index 70 is out of range for axis 1 of size 7"),
    "scattered rows": (
        SCATTER_ROWS,
        {"i": np.array([[-5], [2]]), "u": X[:2]},
        {"i": np.array([[-6], [2]]), "u": X[:2]},
        "index -6 is out of range for axis 0 of size 5",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_run_reports_an_index_and_the_next_one_is_right(name: str, threads: int) -> None:
    text, good, bad, message = CASES[name]
    model = model_of(text, 18)
    for _ in range(2):
        check(model, {"x": X, **good}, threads)
        with pytest.raises(UserError, match=message):
            compiled(model, threads).run({"x": X, **bad})


@pytest.mark.parametrize("name", CASES)
def test_the_interpreters_report_the_same(name: str) -> None:
    text, _, bad, message = CASES[name]
    graph = import_model(model_of(text, 18))
    feeds = {"x": X, **bad}
    with pytest.raises(UserError, match=message):
        interpret(graph, feeds)
    target = resolve("x86-64-v3")
    program = lower(optimize(graph, target)[0], target, 3)
    with pytest.raises(UserError, match=message):
        run_program(program, feeds, 3)


def test_indices_of_an_empty_axis() -> None:
    with pytest.raises(UserError, match="index 0 is out of range for axis 1 of size 0"):
        compiled(model_of(GATHER, 18), 1).run({"x": X[:, :0], "i": np.array([0])})


@pytest.mark.parametrize(("op", "indices"), [("Gather", np.array([0, 7])), ("GatherElements", np.tile([0, 7], (5, 1)))])
def test_constant_indices_are_checked_when_the_model_is_read(op: str, indices: np.ndarray) -> None:
    with pytest.raises(UserError, match="index 7 is out of range for axis 1 of size 7"):
        import_model(model_of(f"g (float[5, 7] x) => (float[5, 2] y) {{ y = {op}<axis = 1>(x, i) }}", 18, i=indices))


def test_constant_indices_into_an_axis_that_only_a_run_knows() -> None:
    model = model_of("g (float[n, m] x) => (float[n, 2] y) { y = Gather<axis = 1>(x, i) }", 18, i=np.array([3, -4]))
    check(model, {"x": X}, 1)
    with pytest.raises(UserError, match="index 3 is out of range for axis 1 of size 3"):
        compiled(model, 1).run({"x": X[:, :3]})


def test_one_hot_has_rows_of_nothing_for_indices_out_of_range() -> None:
    node = helper.make_node("OneHot", ["i", "depth", "values"], ["y"])
    given = helper.make_tensor_value_info("i", TensorProto.INT64, ["k"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k", 3])
    constants = [helper.make_tensor("depth", TensorProto.INT64, [], [3]), helper.make_tensor("values", TensorProto.FLOAT, [2], [0, 1])]
    graph = helper.make_graph([node], "g", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    check(model, {"i": np.array([0, 2, 3, -1, -4])}, 1)


def test_every_worker_of_a_failing_run_ends_it() -> None:
    chain = model_of("g (float[n, 1] x, int64[k] i, int64[k] j) => (float[k, 1] y) { a = Gather(x, i) y = Gather(a, j) }", 18)
    feeds = {"x": np.ones((4, 1), np.float32), "i": np.arange(16) % 4, "j": np.full(16, 99)}
    for _ in range(5000):  # a worker that went on before another had looked would wait for it now and then
        with pytest.raises(UserError, match="index 99"):
            compiled(chain, 4).run(feeds)
