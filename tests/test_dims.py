"""Shapes that are computed while a model runs, against onnx's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compiler.errors import UserError
from compiler.ir.interp import interpret
from compiler.ir.verify import Stage, verify_graph
from compiler.pipeline import canonical_passes
from frontend.onnx.importer import import_model
from passes.base import PassManager

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64, np.dtype(np.bool_): TensorProto.BOOL}


def model(op: str, inputs: list[Any], shapes: dict[int, list[Any]], attrs: dict[str, Any], outputs: int = 1, declared: Any = None) -> Any:
    """A model of one node; ``shapes`` gives some of its inputs' shapes dims of their own."""
    infos = [helper.make_tensor_value_info(f"x{i}", _TYPES[x.dtype], shapes.get(i, list(x.shape))) for i, x in enumerate(inputs) if x is not None]
    node = helper.make_node(op, ["" if x is None else f"x{i}" for i, x in enumerate(inputs)], [f"y{i}" for i in range(outputs)], name="it", **attrs)
    results = [helper.make_tensor_value_info(f"y{i}", TensorProto.UNDEFINED, declared) for i in range(outputs)]
    return helper.make_model(helper.make_graph([node], "g", infos, results), opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

CASES: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "reshape": ("Reshape", [X, ints(4, 6)], {}, 1),
    "reshape -1": ("Reshape", [X, ints(-1, 6)], {}, 1),
    "reshape 0 and -1": ("Reshape", [X, ints(0, -1)], {}, 1),
    "reshape to a scalar's vector": ("Reshape", [X, ints(-1)], {}, 1),
    "reshape allowzero": ("Reshape", [X[:0], ints(0, 9)], {"allowzero": 1}, 1),
    "expand": ("Expand", [X[:, :1], ints(2, 5, 1)], {}, 1),
    "expand to higher rank": ("Expand", [X, ints(2, 1, 1, 4)], {}, 1),
    "tile": ("Tile", [X, ints(2, 1, 3)], {}, 1),
    "tile 0": ("Tile", [X, ints(2, 0, 3)], {}, 1),
    "constant of shape": ("ConstantOfShape", [ints(2, 3)], {}, 1),
    "range": ("Range", [np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)], {}, 1),
    "range backwards": ("Range", [np.array(2, np.int64), np.array(-9, np.int64), np.array(-4, np.int64)], {}, 1),
    "range of nothing": ("Range", [np.array(2, np.int64), np.array(2, np.int64), np.array(1, np.int64)], {}, 1),
    "range of floats": ("Range", [np.array(0.5, np.float32), np.array(3, np.float32), np.array(0.75, np.float32)], {}, 1),
    "slice": ("Slice", [X, ints(0, 1), ints(2, -1), ints(1, 2)], {}, 1),
    "slice of nothing": ("Slice", [X, ints(2), ints(1), ints(1)], {}, 1),
    "slice from the end": ("Slice", [X, ints(-2, -9), ints(9, 2**63 - 1), ints(2, 1)], {}, 1),
    "slice backwards": ("Slice", [X, ints(9, -1), ints(-9, 0), ints(-1, 0), ints(-2, -1)], {}, 1),
    "slice of nothing backwards": ("Slice", [X, ints(0), ints(2), ints(1), ints(-1)], {}, 1),
    "pad of some axes": ("Pad", [X, ints(1, 2, 0, 1), None, ints(-1, 0)], {}, 1),
    "split": ("Split", [X, ints(1, 3)], {"axis": 2}, 2),
    "pad": ("Pad", [X, ints(0, 1, 2, 0, 0, 1)], {}, 1),
    "pad and fill": ("Pad", [X, ints(0, 1, 2, 1, 0, 1), np.array(7, np.float32)], {}, 1),
    "pad edge": ("Pad", [X, ints(0, 1, 2, 0, 0, 1)], {"mode": "edge"}, 1),
    "pad reflect": ("Pad", [X, ints(0, 1, 2, 0, 0, 1)], {"mode": "reflect"}, 1),
    "pad wrap": ("Pad", [X, ints(0, 1, 2, 0, 0, 1)], {"mode": "wrap"}, 1),
    "top k": ("TopK", [X, ints(2)], {"axis": 1}, 2),
    "one hot": ("OneHot", [ints(0, 2, -1), np.array(4, np.int64), np.array([0, 5], np.float32)], {}, 1),
    "trilu": ("Trilu", [X, np.array(1, np.int64)], {}, 1),
    "gather elements": ("GatherElements", [X[:1, :1], np.array([[[0, -1]]], np.int64)], {"axis": 2}, 1),
    "gather nd": ("GatherND", [X, np.array([[1], [2]], np.int64)], {"batch_dims": 1}, 1),
    "scatter nd": ("ScatterND", [X, np.array([[1]], np.int64), X[:1] * 2], {}, 1),
    "scatter elements": ("ScatterElements", [X, np.array([[[2, -1]]], np.int64), X[:1, :1, :2] * 2], {"axis": 1}, 1),
    "reverse sequence": ("ReverseSequence", [X, ints(1, 3)], {"batch_axis": 0, "time_axis": 1}, 1),
    "cumsum": ("CumSum", [X, np.array(-1, np.int64)], {"exclusive": 1}, 1),
    "cumsum of a known axis": ("CumSum", [X, np.array(1, np.int64)], {"reverse": 1}, 1),
    "nonzero": ("NonZero", [X % 3], {}, 1),
    "compress": ("Compress", [X, np.array([True, False, True])], {"axis": 1}, 1),
    "unique": ("Unique", [X % 5], {}, 4),
    "unique in order": ("Unique", [X.reshape(-1) % 5], {"sorted": 0}, 4),
    "unique of nothing": ("Unique", [X[:0]], {}, 4),
    "reduce": ("ReduceSum", [X, ints(-1, 0)], {}, 1),
    "reduce without dims": ("ReduceMax", [X, ints(1)], {"keepdims": 0}, 1),
    "mean": ("ReduceMean", [X, ints(0, 1)], {"keepdims": 0}, 1),
    "sum of squares": ("ReduceSumSquare", [X, ints(2, 0)], {"keepdims": 0}, 1),
    "squeeze": ("Squeeze", [X[:, :1, None], ints(-3, 2)], {}, 1),
    "unsqueeze": ("Unsqueeze", [X, ints(-1, 1)], {}, 1),
    "concat": ("Concat", [X, X[:, :1], X], {"axis": 1}, 1),
    "matmul": ("MatMul", [X, X[0].T.copy()], {}, 1),
    "add": ("Add", [X, X[:1]], {}, 1),
}
FIXED = {"cumsum of a known axis": (1,)}
"""Inputs that must be constants."""


def check(made: Any, feeds: list[Any]) -> None:
    """The imported and the simplified graph give what the reference evaluator gives."""
    given = {f"x{i}": x for i, x in enumerate(feeds) if x is not None}
    wanted = ReferenceEvaluator(made).run(None, given)
    graph = import_model(made)
    taken = {value.name: given[value.name] for value in graph.inputs}
    for stage in (graph, PassManager(canonical_passes(3), verify=True).run(graph)[0]):
        verify_graph(stage, Stage.CANONICAL)
        for found, want in zip(interpret(stage, taken).values(), wanted, strict=True):
            np.testing.assert_array_equal(found, want)
            assert found.dtype == want.dtype


def with_constants(made: Any, inputs: list[Any], which: tuple[int, ...]) -> Any:
    for index in which:
        array = inputs[index]
        made.graph.initializer.append(helper.make_tensor(f"x{index}", _TYPES[array.dtype], array.shape, array.reshape(-1)))
        made.graph.input.remove(next(v for v in made.graph.input if v.name == f"x{index}"))
    return made


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_that_only_a_run_knows(name: str, symbolic: bool) -> None:
    op, inputs, attrs, outputs = CASES[name]
    data = inputs[0]
    shapes: dict[int, list[Any]] = {0: [f"d{n}" for n in data.shape]} if symbolic and data.dtype == np.float32 else {}
    if op == "Expand":
        shapes = {}
    made = with_constants(model(op, inputs, shapes, attrs, outputs), inputs, FIXED.get(name, ()))
    check(made, inputs)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        ("Reshape", [X, ints(5, 5)], "25 elements"),
        ("Reshape", [X, ints(-1, -1)], "2 dims of -1"),
        ("Reshape", [X, ints(-2, -1)], "a dim of -2"),
        ("Expand", [X, ints(1, 2, 1)], "must be equal, or one of them 1"),
        ("Split", [X, ints(1, 2)], "parts of 3 elements"),
        ("TopK", [X, ints(5)], "the first 5 of 4"),
        ("ConstantOfShape", [ints(-2, 3)], "a dim of -2"),
        ("Tile", [X, ints(1, -1, 1)], "-1 times"),
    ],
)
def test_what_a_run_cannot_do_is_refused_there(op: str, inputs: list[Any], message: str) -> None:
    attrs = {"axis": 2} if op in ("Split", "TopK") else {}
    graph = import_model(model(op, inputs, {}, attrs, 2 if attrs else 1))
    with pytest.raises(UserError, match=message) as caught:
        interpret(graph, {f"x{i}": x for i, x in enumerate(inputs)})
    assert "'it'" in str(caught.value)


def test_a_declared_shape_is_kept_and_checked() -> None:
    graph = import_model(model("Reshape", [X, ints(4, 6)], {}, {}, declared=[4, 6]))
    assert graph.outputs[0].type.shape == (4, 6)
    with pytest.raises(UserError, match="a dim of its result is 6, and the model declares it as 4"):
        interpret(graph, {"x0": X, "x1": ints(6, 4)})
