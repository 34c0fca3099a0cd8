"""LSTM, GRU and RNN, compiled, against ONNX Runtime; their kernel, compiled and interpreted, against the operator's own meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere
from onnx import helper
from symbolic_models import model_of
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

import tensorsmith as ts
from compiler.errors import UserError
from compiler.ir.op import lookup
from compiler.ir.parser import parse_graph
from compiler.ir.printer import constants_of, equal_graphs, print_graph
from compiler.ir.scalar import Arg
from compiler.ir.types import DType
from compiler.kernels.base import Operand, Workload, family
from compiler.target import resolve
from frontend.onnx.importer import import_model

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TARGET = resolve("x86-64-v3")


def node_model(
    kind: str, arrays: dict[str, np.ndarray | None], attrs: dict[str, Any], constant: bool = True
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node with its weights as constants or inputs, and its feeds."""
    fixed = ("w", "r", "b", "p") if constant else ()
    given_arrays = {name: array for name, array in arrays.items() if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given_arrays.items()
        if name not in fixed
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in given_arrays.items() if name in fixed]
    outputs = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, [name if array is not None else "" for name, array in arrays.items()], outputs, **attrs)
    graph = helper.make_graph([node], "recurrent", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=10)
    return model, {name: array for name, array in given_arrays.items() if name not in fixed}


def operands(kind: str, time: int, batch: int, width: int, size: int, directions: int, seed: int = 0) -> dict[str, np.ndarray | None]:
    """The operator's inputs in order, optional ones absent."""
    rng = np.random.default_rng(seed)
    gates = GATES[kind]

    def random(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    found: dict[str, np.ndarray | None] = {"x": random(time, batch, width) * 3, "w": random(directions, gates * size, width)}
    found |= {"r": random(directions, gates * size, size), "b": random(directions, 2 * gates * size), "lengths": None, "h": None}
    return found | ({"c": None, "p": None} if kind == "LSTM" else {})


def check(kind: str, arrays: dict[str, np.ndarray | None], attrs: dict[str, Any], constant: bool = True, threads: int = 1) -> None:
    model, feeds = node_model(kind, arrays, attrs, constant)
    got = ts.compile(model, target="x86-64-v3", threads=threads, cache=False).run(feeds)
    for output, want in zip(got.values(), onnxruntime_outputs(model, feeds), strict=True):
        assert output.shape == want.shape
        np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(sorted(GATES)), st.sampled_from(["forward", "reverse", "bidirectional"]))
def test_any_node_agrees_with_onnxruntime(data: st.DataObject, kind: str, direction: str) -> None:
    time, batch, width, size = (data.draw(st.integers(1, most), name) for most, name in ((6, "time"), (5, "batch"), (9, "width"), (37, "size")))
    directions = 2 if direction == "bidirectional" else 1
    arrays = operands(kind, time, batch, width, size, directions, data.draw(st.integers(0, 9)))
    optional = data.draw(st.sets(st.sampled_from(["lengths", "h", "c", "p"])), "optional")
    rng = np.random.default_rng(1)
    if "lengths" in optional:
        arrays["lengths"] = rng.integers(1, time + 1, batch).astype(np.int32)
    if "h" in optional:
        arrays["h"] = rng.normal(size=(directions, batch, size)).astype(np.float32)
    if kind == "LSTM" and "c" in optional:
        arrays["c"] = rng.normal(size=(directions, batch, size)).astype(np.float32)
    if kind == "LSTM" and "p" in optional:
        arrays["p"] = rng.normal(size=(directions, 3 * size)).astype(np.float32)
    attrs: dict[str, Any] = {"hidden_size": size, "direction": direction}
    if data.draw(st.booleans(), "clip"):
        attrs["clip"] = 0.75
    if kind == "GRU":
        attrs["linear_before_reset"] = data.draw(st.integers(0, 1))
    if kind == "LSTM":
        attrs["input_forget"] = data.draw(st.integers(0, 1))
    check(kind, arrays, attrs, data.draw(st.booleans(), "constant weights"), data.draw(st.sampled_from([1, 3])))


@pytest.mark.parametrize("kind", sorted(GATES))
def test_batch_first_is_a_transposition(kind: str) -> None:
    arrays = operands(kind, 4, 3, 5, 6, 2)
    arrays["h"] = np.random.default_rng(2).normal(size=(2, 3, 6)).astype(np.float32)
    attrs: dict[str, Any] = {"hidden_size": 6, "direction": "bidirectional"}
    model, feeds = node_model(kind, arrays, attrs)
    want = onnxruntime_outputs(model, feeds)
    moved = {**arrays, "x": feeds["x"].transpose(1, 0, 2), "h": feeds["h"].transpose(1, 0, 2)}
    model, feeds = node_model(kind, moved, {**attrs, "layout": 1})
    got = list(ts.compile(model, target="x86-64-v3", cache=False).run(feeds).values())
    np.testing.assert_allclose(got[0], want[0].transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-5)
    for state, wanted in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(state, wanted.transpose(1, 0, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[9, 2, 4], [-3, 0, 4]])
def test_lengths_outside_the_tensor_stay_inside_it(lengths: list[int]) -> None:
    arrays = operands("GRU", 4, 3, 5, 6, 1)
    results = []
    for used in (lengths, np.clip(lengths, 0, 4)):
        model, feeds = node_model("GRU", {**arrays, "lengths": np.array(used, np.int32)}, {"hidden_size": 6})
        results.append(list(ts.compile(model, target="x86-64-v3", cache=False).run(feeds).values()))
    for got, want in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)


def test_float64() -> None:
    arrays = operands("LSTM", 5, 2, 4, 7, 1)
    narrow, feeds = node_model("LSTM", arrays, {"hidden_size": 7})
    wide, wide_feeds = node_model("LSTM", {k: None if a is None else a.astype(np.float64) for k, a in arrays.items()}, {"hidden_size": 7})
    got = ts.compile(wide, target="x86-64-v3", cache=False).run(wide_feeds)
    for output, want in zip(got.values(), onnxruntime_outputs(narrow, feeds), strict=True):
        assert output.dtype == np.float64
        np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("signed", "columns"), [(True, False), (False, True)])
def test_dynamic_quantisation(signed: bool, columns: bool) -> None:
    time, width, size, directions = 5, 4, 21, 2
    rng = np.random.default_rng(4)
    dtype = np.int8 if signed else np.uint8
    arrays: dict[str, np.ndarray] = {"x": rng.normal(size=(time, 1, width)).astype(np.float32)}
    arrays["w"], arrays["r"] = (
        rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (directions, rows, 4 * size), dtype, endpoint=True) for rows in (width, size)
    )
    arrays["b"] = rng.normal(size=(directions, 8 * size)).astype(np.float32)
    shape = (directions, 4 * size) if columns else (directions,)
    for name in ("w", "r"):
        arrays[f"{name}_scale"] = rng.uniform(0.002, 0.01, shape).astype(np.float32)
        arrays[f"{name}_zero"] = np.full(shape, -3 if signed else 125, dtype)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if name != "x"]
    outputs = ["y", "y_h", "y_c"]
    names = ["x", "w", "r", "b", "", "", "", "", "w_scale", "w_zero", "r_scale", "r_zero"]
    attrs: dict[str, Any] = {"hidden_size": size, "direction": "bidirectional"}
    node = helper.make_node("DynamicQuantizeLSTM", names, outputs, domain="com.microsoft", **attrs)
    values = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [time, 1, width])]
    graph = helper.make_graph([node], "quantised", values, [onnx.ValueInfoProto(name=name) for name in outputs], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feeds = {"x": arrays["x"]}
    got = ts.compile(model, target="x86-64-v3", cache=False).run(feeds)
    for output, want in zip(got.values(), onnxruntime_outputs(model, feeds), strict=True):
        np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "attrs", "part"),
    [
        ({"r": np.zeros((1, 30, 6), np.float32)}, {}, "input 2 is f32"),
        ({"b": np.zeros((1, 24), np.float32)}, {}, "input 3 is f32"),
        ({"w": np.zeros((24, 5), np.float32)}, {}, "must be of rank 3"),
        ({"lengths": np.zeros(2, np.int32)}, {}, "input 4 is i32[2], where the shape [1] is needed"),
        ({}, {"activations": ["Tanh"]}, "1 activations are given, 3 are needed"),
        ({}, {"activations": ["Tanh", "Tanh", "Sine"]}, "activation Sine is not one of"),
        ({}, {"direction": "sideways"}, "direction 'sideways'"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(change: dict[str, np.ndarray], attrs: dict[str, Any], part: str) -> None:
    model, _ = node_model("LSTM", {**operands("LSTM", 2, 1, 5, 6, 1), **change}, attrs)
    with pytest.raises(UserError) as error:
        ts.compile(model, cache=False)
    assert part in str(error.value)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("kind", "attrs"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})])
def test_every_schedule(kind: str, attrs: dict[str, Any], constant: bool) -> None:
    batch, size = 5, 21
    model, _ = node_model(kind, operands(kind, 3, batch, 4, size, 2), {"hidden_size": size, "direction": "bidirectional", **attrs}, constant)
    graph = import_model(model)
    assert equal_graphs(parse_graph(print_graph(graph), constants_of(graph)), graph)
    node = next(n for n in graph.nodes if n.op == "recurrence")
    rng = np.random.default_rng(3)
    values = [(rng.normal(size=v.type.static_shape) / 2).astype(np.float32) for v in node.present_inputs]
    (want,) = lookup("recurrence").evaluate(values, node.attrs)
    output = node.output.type
    names = node.attrs["operands"]
    assert isinstance(names, tuple)
    inputs = tuple(Operand(v.type, constant and name == "weights") for v, name in zip(node.present_inputs, names, strict=True))
    workload = Workload("recurrence", tuple(sorted(node.attrs.items())), inputs, output, output, Arg(0, DType.FLOAT32), threads=3)
    space = family("recurrence").space(workload, TARGET)
    assert space[0] == family("recurrence").heuristic(workload, TARGET)
    assert len(set(space)) == len(space) > 4
    for schedule in space[:: max(1, len(space) // 4)]:
        np.testing.assert_allclose(run_everywhere(family("recurrence"), workload, schedule, values, TARGET), want, rtol=1e-5, atol=1e-5)


@needs_zoo
@pytest.mark.parametrize("name", ["gru_kws", "lstm_kws", "lstm_kws_dynamo", "lstm_kws_int8_dynamic", "lstm_streaming"])
def test_model_agrees_with_onnxruntime(name: str) -> None:
    model, feeds = load(name)
    got = ts.compile(model, threads=2, cache=False, input_shapes={k: a.shape for k, a in feeds.items()}).run(feeds)
    for output, want in zip(got.values(), onnxruntime_outputs(model, feeds), strict=True):
        assert relative_difference(output, want) <= 5e-5


@pytest.mark.parametrize("op", GATES)
def test_weights_of_another_size_than_the_node_says(op: str) -> None:
    gates = GATES[op]
    text = f"g (float[t, n, 3] x) => (float[t, 1, n, 5] y) {{ y = {op}<hidden_size = 6>(x, w, r) }}"
    model = model_of(text, 17, w=np.ones((1, 5 * gates, 3), np.float32), r=np.ones((1, 5 * gates, 5), np.float32))
    with pytest.raises(UserError, match="hidden_size is 6, and its weights are of 5 units"):
        import_model(model)
