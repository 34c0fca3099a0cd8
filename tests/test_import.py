"""Importing whole models: names, constants, functions, symbolic shapes, and models of the zoo."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

from compiler.ir.graph import Graph
from compiler.ir.interp import interpret
from compiler.ir.intexpr import sym
from compiler.ir.verify import Stage, verify_graph
from frontend.onnx.importer import import_model

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def info(name: str, shape: list[int | str | None], dtype: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs, outputs, initializers=(), *, opset=20, functions=(), domains=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def run(graph: Graph, **feeds: np.ndarray) -> list[np.ndarray]:
    verify_graph(graph, Stage.CANONICAL)
    return list(interpret(graph, feeds).values())


def test_names_are_kept() -> None:
    nodes = [helper.make_node("Relu", ["in put:0"], ["out/put é"], name="the node")]
    graph = import_model(model_of(nodes, [info("in put:0", [2])], ["out/put é"]))
    assert graph.attrs["input_names"] == ("in put:0",)
    assert graph.attrs["output_names"] == ("out/put é",)
    assert [v.name for v in graph.inputs] == ["in_put:0"]
    assert graph.nodes[0].name == "the node"


def test_output_order_and_plain_names() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="b"), helper.make_node("Neg", ["x"], ["b"], name="a")]
    graph = import_model(model_of(nodes, [info("x", [2])], ["b", "a"]))
    assert [v.name for v in graph.outputs] == ["b", "a"]
    assert [graph.producers[v].op for v in graph.outputs] == ["neg", "relu"]


def test_outputs_that_no_node_makes_are_copies() -> None:
    constant = numpy_helper.from_array(np.arange(3, dtype=np.float32), "c")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", ["r"], ["s"])]
    graph = import_model(model_of(nodes, [info("x", [3])], ["y", "x", "c", "r", "s"], [constant]))
    x = np.array([-1, 0, 2], np.float32)
    assert len(set(graph.outputs)) == 5
    for got, want in zip(run(graph, x=x), [x, x, np.arange(3), np.maximum(x, 0), np.maximum(x, 0)], strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_initializer_that_is_an_input_is_a_constant() -> None:
    weight = numpy_helper.from_array(np.full(2, 3, np.float32), "w")
    graph = import_model(model_of([helper.make_node("Mul", ["x", "w"], ["y"])], [info("x", [2]), info("w", [2])], ["y"], [weight]))
    assert [v.name for v in graph.inputs] == ["x"]


def test_nodes_in_any_order_and_dead_ones_left_out() -> None:
    nodes = [
        helper.make_node("Neg", ["a"], ["y"]),
        helper.make_node("NoSuchOperator", ["x"], ["unused"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    graph = import_model(model_of(nodes, [info("x", [2])], ["y"]))
    assert [node.op for node in graph.nodes] == ["relu", "neg"]


def test_initializers_are_views_of_the_model() -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = import_model(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, 64])], ["y"], [weight]).SerializeToString())
    (constant,) = graph.constants.values()
    assert not constant.array.flags.owndata
    assert not constant.array.flags.writeable


@pytest.mark.parametrize("field", ["raw_data", "typed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
def test_initializers_of_every_encoding(field: str, dtype: type) -> None:
    data = np.array([[0, 1, 3], [1, 0, 100]], dtype)
    if field == "raw_data":
        tensor = numpy_helper.from_array(data, "c")
    else:
        values = data.view(np.uint16) if dtype is np.float16 else data
        tensor = helper.make_tensor("c", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), data.shape, data.reshape(-1).tolist())
        assert not tensor.HasField("raw_data")
        assert values.size == 6
    graph = import_model(model_of([helper.make_node("Identity", ["c"], ["y"])], [], ["y"], [tensor]))
    (got,) = run(graph)
    np.testing.assert_array_equal(got, data)
    assert got.dtype == data.dtype


def test_external_data_is_mapped(tmp_path: Path) -> None:
    weight = np.arange(600, dtype=np.float32).reshape(20, 30)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, 20])], ["y"], [numpy_helper.from_array(weight, "w")])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = import_model(tmp_path / "m.onnx")
    (constant,) = graph.constants.values()
    assert not constant.array.flags.owndata
    x = np.ones((1, 20), np.float32)
    np.testing.assert_allclose(run(graph, x=x)[0], x @ weight)


def test_a_model_is_left_as_it_is_given() -> None:
    model = model_of([helper.make_node("Gelu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])], [info("x", [2])], ["z"])
    before = model.SerializeToString()
    import_model(model)
    assert model.SerializeToString() == before


def dynamic_flatten() -> onnx.ModelProto:
    """x.reshape(x.shape[0], -1), written as exporters do."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "minus"], ["new"], axis=0),
        helper.make_node("Reshape", ["x", "new"], ["y"]),
    ]
    constants = [("zero", np.array(0)), ("axes", np.array([0])), ("minus", np.array([-1]))]
    return model_of(nodes, [info("x", ["batch", 3, 4, 5])], ["y"], [numpy_helper.from_array(a.astype(np.int64), n) for n, a in constants])


def test_symbolic_shape_arithmetic_folds() -> None:
    graph = import_model(dynamic_flatten())
    assert graph.outputs[0].type.shape == (sym("batch"), 60)
    for batch in (1, 3):
        x = np.random.default_rng(0).random((batch, 3, 4, 5), np.float32)
        np.testing.assert_array_equal(run(graph, x=x)[0], x.reshape(batch, 60))


def test_input_shapes_bind_dims() -> None:
    graph = import_model(dynamic_flatten(), {"x": [2, 3, 4, 5]})
    assert [node.op for node in graph.nodes] == ["reshape"]
    assert graph.outputs[0].type.shape == (2, 60)


def test_a_bound_dim_is_bound_in_every_input() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    graph = import_model(model_of(nodes, [info("a", ["n", 2]), info("b", ["n", 2])], ["y"]), {"b": (4, 2)})
    assert [v.type.shape for v in graph.inputs] == [(4, 2), (4, 2)]


def test_dims_get_identifiers_of_their_own() -> None:
    inputs = [info("a", ["2*n", None]), info("b", ["2+n", "i0"])]
    nodes = [helper.make_node("Relu", ["a"], ["p"]), helper.make_node("Relu", ["b"], ["q"])]
    graph = import_model(model_of(nodes, inputs, ["p", "q"]))
    names = [str(dim) for value in graph.inputs for dim in value.type.shape]
    assert len(set(names)) == 4
    assert all(name.isidentifier() and name != "i0" for name in names)
    assert run(graph, a=np.ones((2, 3), np.float32), b=np.ones((1, 4), np.float32))[0].shape == (2, 3)


def test_functions_of_the_model_are_inlined() -> None:
    body = [
        helper.make_node("Constant", [], ["k"], value_float=2.0),
        helper.make_node("Mul", ["v", "k"], ["double"]),
        helper.make_node("LeakyRelu", ["double"], ["r"]),
    ]
    body[2].attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    function = helper.make_function("mine", "Doubled", ["v"], ["r"], body, [helper.make_opsetid("", 20)], ["slope"])
    calls = [(["x"], ["h"], 0.5), (["h"], ["y"], 0.25)]
    nodes = [helper.make_node("Doubled", inputs, outputs, domain="mine", slope=slope) for inputs, outputs, slope in calls]
    model = model_of(nodes, [info("x", [3])], ["y"], functions=[function], domains=["mine"])
    x = np.array([-1, 0, 2], np.float32)
    np.testing.assert_allclose(run(import_model(model), x=x)[0], [-4 * 0.5 * 0.25, 0, 8])


def test_standard_functions_without_a_form_are_expanded() -> None:
    nodes = [helper.make_node("HannWindow", ["n"], ["w"]), helper.make_node("Mul", ["x", "w"], ["y"])]
    model = model_of(nodes, [info("x", [8])], ["y"], [numpy_helper.from_array(np.array(8, np.int64), "n")])
    x = np.ones(8, np.float32)
    np.testing.assert_allclose(run(import_model(model), x=x)[0], ReferenceEvaluator(model).run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_a_refused_form_falls_back_to_the_standard_body() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], axis=-1)]
    model = model_of(nodes, [info("x", [2, 4]), info("s", [4])], ["y", "mean"])
    x, scale = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones(4, np.float32)
    for got, want in zip(run(import_model(model), x=x, s=scale), ReferenceEvaluator(model).run(None, {"x": x, "s": scale}), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_batch_normalization_folds_to_constants_of_channels() -> None:
    parameters = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in zip("sbmv", ([1, 2], [3, 4], [5, 6], [7, 8]), strict=True)]
    graph = import_model(model_of([helper.make_node("BatchNormalization", list("xsbmv"), ["y"])], [info("x", [1, 2, 3, 3])], ["y"], parameters))
    assert [node.op for node in graph.nodes] == ["mul", "add"]
    assert [node.inputs[1].type.shape for node in graph.nodes if node.inputs[1] is not None] == [(1, 2, 1, 1)] * 2


@needs_zoo
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_legacy", "unet_small", "real/face_slim_320"])
def test_interpreted_model_agrees_with_onnxruntime(name: str) -> None:
    model, feeds = load(name)
    graph = import_model(model)
    got = run(graph, **{value.name: feeds[str(key)] for value, key in zip(graph.inputs, graph.attrs["input_names"], strict=True)})
    for output, expected in zip(got, onnxruntime_outputs(model, feeds), strict=True):
        assert output.dtype == expected.dtype
        assert output.shape == expected.shape
        assert relative_difference(output, expected) <= 5e-6


@needs_zoo
def test_import_is_quick() -> None:
    """MobileNetV2 (14 MB, 222 nodes) takes about 0.03 s; the limit leaves room for a loaded machine, not for a copy of every weight."""
    model, _ = load("mobilenetv2_100")
    data = model.SerializeToString()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        import_model(data)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.4


def test_long_names_of_dims_stay_apart() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["z"], ["w"])]
    graph = import_model(model_of(nodes, [info("x", ["a" * 3000]), info("z", ["a" * 3000 + "b"])], ["y", "w"]))
    first, second = (str(value.type.shape[0]) for value in graph.inputs)
    assert first != second
    assert max(len(first), len(second)) < 100
