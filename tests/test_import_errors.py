"""Models that cannot be imported: each a UserError that says where, what, and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_import import info, model_of

from compiler.errors import UnsupportedError, UserError
from frontend.onnx.importer import import_model

RELU = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", ["n", 3])], ["y"])


def failure(model: object, *parts: str, shapes: object = None) -> UserError:
    """The error importing model gives; it must say what, where and what to do, and hold every one of parts."""
    with pytest.raises(UserError) as caught:
        import_model(model, shapes)  # type: ignore[arg-type]
    error = caught.value
    assert error.where
    assert error.hint
    for part in parts:
        assert part in str(error)
    return error


def test_missing_file(tmp_path: Path) -> None:
    failure(tmp_path / "none.onnx", "none.onnx", "does not exist")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    failure(tmp_path, "folder")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    failure(str(tmp_path / "empty.onnx"), "empty.onnx", "the file is empty")


def test_not_a_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not a model\n" * 10)
    failure(path, "text.onnx", "not an ONNX model")


def test_truncated_file(tmp_path: Path) -> None:
    data = RELU.SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        failure(path, "cut.onnx")


def test_another_kind_of_object() -> None:
    failure(3, "int")


def test_cycle() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["c"], name="third"),
        helper.make_node("Abs", ["c"], ["y"], name="after"),
    ]
    error = failure(model_of(nodes, [info("x", [2])], ["y"]), "circle", "'first'", "'second'", "'third'")
    assert "'after'" not in str(error)


def test_missing_input_of_a_node() -> None:
    failure(model_of([helper.make_node("Relu", ["nowhere"], ["y"], name="n")], [info("x", [2])], ["y"]), "'nowhere'", "'n'", "nothing defines")


def test_missing_output() -> None:
    failure(model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], ["z"]), "'z'")


@pytest.mark.parametrize("name", ["a", "x", "c"])
def test_duplicate_value_name(name: str) -> None:
    constant = numpy_helper.from_array(np.ones(2, np.float32), "c")
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], [name], name="again"), helper.make_node("Abs", ["a"], ["y"])]
    failure(model_of(nodes, [info("x", [2])], ["y"], [constant]), repr(name), "defined twice", "'again'")


def test_duplicate_input_and_initializer() -> None:
    failure(model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2]), info("x", [2])], ["y"]), "'x'", "defined twice")
    constants = [numpy_helper.from_array(np.ones(2, np.float32), "c")] * 2
    failure(model_of([helper.make_node("Add", ["x", "c"], ["y"])], [info("x", [2])], ["y"], constants), "'c'", "defined twice")


def test_every_unsupported_node_is_listed() -> None:
    nodes = [
        helper.make_node("SequenceLength", ["x"], ["u"], name="first"),
        helper.make_node("Relu", ["u"], ["r"], name="fine"),
        helper.make_node("Fancy", ["r"], ["f"], name="second", domain="my.domain"),
        helper.make_node("ImageDecoder", ["x"], ["nz"], name="third"),
        helper.make_node("Transpose", ["x4"], ["t"], name="fourth", perm=[0, 0, 1, 1]),
        helper.make_node("Reshape", ["x", "shape"], ["s"]),
    ]
    inputs = [info("x", [4]), info("x4", [1, 1, 4, 4]), info("shape", ["rank"], TensorProto.INT64)]
    error = failure(model_of(nodes, inputs, ["f", "nz", "t", "s"], opset=18, domains=["my.domain"]))
    assert isinstance(error, UnsupportedError)
    length, fancy, decoder, transpose, reshape = error.items
    assert length.startswith("SequenceLength (opset 18), node 'first': ")
    assert fancy.startswith("my.domain.Fancy (opset 1), node 'second': ")
    assert "'third'" in decoder
    assert "'fourth'" in transpose
    assert "perm [0, 0, 1, 1]" in transpose
    assert reshape.startswith("Reshape (opset 18), node that makes 's': how many numbers the new shape")
    assert all(item in str(error) for item in error.items)


def test_unsupported_node_in_a_function_is_listed_with_its_caller() -> None:
    body = [helper.make_node("SequenceLength", ["v"], ["r"], name="inner")]
    function = helper.make_function("mine", "Outer", ["v"], ["r"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("Outer", ["x"], ["y"], domain="mine", name="call")]
    error = failure(model_of(nodes, [info("x", [2])], ["y"], functions=[function], domains=["mine"]), "SequenceLength", "call/", "'inner'")
    assert isinstance(error, UnsupportedError)


def test_recursive_function() -> None:
    body = [helper.make_node("Again", ["v"], ["r"], domain="mine")]
    function = helper.make_function("mine", "Again", ["v"], ["r"], body, [helper.make_opsetid("mine", 1)])
    nodes = [helper.make_node("Again", ["x"], ["y"], domain="mine")]
    failure(model_of(nodes, [info("x", [2])], ["y"], functions=[function], domains=["mine"]), "'Again'", "calls itself")


def test_wrong_shapes_in_the_graph_name_the_node() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    failure(model_of(nodes, [info("x", [2, 3]), info("w", [4, 5])], ["y"]), "'product'", "f32[2, 3]", "f32[4, 5]")


def test_unsupported_input_type() -> None:
    failure(model_of([helper.make_node("Identity", ["x"], ["y"])], [info("x", [2], TensorProto.COMPLEX64)], ["y"]), "'x'", "element type")


def test_input_without_a_shape() -> None:
    bare = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [bare], ["y"])
    failure(model, "'x'", "no shape", "input_shapes")
    assert import_model(model, {"x": [2, 3]}).outputs[0].type.shape == (2, 3)


def test_newer_opset_than_known() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], ["y"], opset=999)
    failure(model, "opset 999")


def test_tensor_with_too_few_bytes() -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "c")
    tensor.raw_data = tensor.raw_data[:-1]
    failure(model_of([helper.make_node("Add", ["x", "c"], ["y"])], [info("x", [4])], ["y"], [tensor]), "'c'", "16 bytes", "15")


def external(location: str, **entries: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", [4])], ["y"], [tensor])


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "", "link/secret.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    onnx.save(external(location), folder / "m.onnx")
    failure(folder / "m.onnx", "'w'", "outside the model's folder")


@pytest.mark.parametrize(
    "entries",
    [{"offset": "4"}, {"length": "20"}, {"length": "8"}, {"offset": "-4"}, {"offset": "99999999999999999999"}, {"offset": "four"}],
)
def test_external_data_out_of_bounds(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(16))
    onnx.save(external("data.bin", **entries), tmp_path / "m.onnx")
    failure(tmp_path / "m.onnx", "'w'")


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    onnx.save(external("data.bin"), tmp_path / "m.onnx")
    failure(tmp_path / "m.onnx", "'data.bin'", "does not exist")
    failure(external("data.bin"), "'data.bin'", "not given as a file")


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        ({"z": [1, 3]}, "'z'"),
        ({"x": [1, 3, 1]}, "[1, 3, 1]"),
        ({"x": [1, 4]}, "fixes"),
        ({"x": [-1, 3]}, "[-1, 3]"),
        ({"x": ["a", 3]}, "['a', 3]"),
    ],
)
def test_input_shapes_that_do_not_fit(shapes: object, part: str) -> None:
    failure(RELU, part, "input_shapes", shapes=shapes)


def test_input_shapes_that_contradict_each_other() -> None:
    model = model_of([helper.make_node("Add", ["a", "b"], ["y"])], [info("a", ["n"]), info("b", ["n"])], ["y"])
    failure(model, "'n'", "2", "3", shapes={"a": [2], "b": [3]})


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op", "constants", "attrs", "part"),
    [
        ("Pow", [_ints(2), _ints(-1)], {}, "negative integer powers"),
        ("Gather", [np.float32([1, 2]), _ints(7)], {}, "out of range"),
        ("Range", [np.int64(0), np.int64(9), np.int64(0)], {}, "division by zero"),
        ("Range", [np.int64(0), np.int64(1 << 60), np.int64(1)], {}, "cannot be used"),
        ("ConstantOfShape", [_ints(-1)], {}, "f32[-1]"),
        ("Expand", [np.float32([1]), _ints(1 << 40, 1 << 40)], {}, "4.84e+24 bytes"),
        ("Tile", [np.float32([1]), _ints(-1)], {}, "-1"),
        ("Pad", [np.float32([1, 2]), _ints(-3, 0)], {}, "-1 elements are left"),
        ("MaxPool", [np.ones((1, 1, 4), np.float32)], {"kernel_shape": [0]}, "kernel_shape is [0]"),
        ("MaxPool", [np.ones((1, 1, 4), np.float32)], {"kernel_shape": [1], "strides": [0]}, "strides is [0]"),
        ("Conv", [np.ones((1, 1, 4), np.float32), np.ones((1, 1, 2), np.float32)], {"dilations": [-1]}, "dilations is [-1]"),
        ("DepthToSpace", [np.ones((1, 4, 2, 2), np.float32)], {"blocksize": 0}, "cannot be used"),
        ("Softmax", [np.float32([1])], {"axis": "last"}, "attribute axis is STRING; the operator takes INT"),
        ("MaxPool", [np.ones((1, 1, 4), np.float32)], {"kernel_shape": [2], "pads": [10**9, 0]}, "from 0 to 16384"),
        ("AveragePool", [np.ones((1, 1, 4), np.float32)], {"kernel_shape": [2], "pads": [-1, 0]}, "from 0 to 16384"),
        ("Pad", [np.zeros((0,), np.float32), _ints(1, 0)], {"mode": "edge"}, "there are none"),
        ("Pad", [np.zeros((2,), np.float32), _ints(10**6, 0)], {"mode": "reflect"}, "repeats the elements 1000000 times"),
        ("LRN", [np.ones((1, 2, 3), np.float32)], {"size": 0}, "size is 0"),
        ("LRN", [np.ones((1, 2, 3), np.float32)], {"size": 10**6}, "thousands of nodes"),
        ("Not", [np.float32([1])], {}, "input X is a tensor(float)"),
        ("Add", [np.float32([1]), _ints(1)], {}, "the same type for both"),
        ("Add", [np.float32([1])], {}, "it has 1 inputs; the operator takes 2"),
        ("Cast", [np.float32([1])], {}, "attribute to is missing"),
    ],
)
def test_operands_that_an_operator_cannot_use(op: str, constants: list[np.ndarray], attrs: dict[str, object], part: str) -> None:
    names = [f"c{index}" for index in range(len(constants))]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)]
    node = helper.make_node(op, names, ["y"], name="the node", **attrs)
    failure(model_of([node], [], ["y"], initializers), op, "'the node'", part)


def test_functions_that_double_at_each_level() -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f40", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)]
    for level in range(40):
        calls = [helper.make_node(f"f{level + 1}", [x], [y], domain="own") for x, y in (("a", "m"), ("m", "b"))]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], calls, opsets))
    node = helper.make_node("f0", ["x"], ["y"], domain="own")
    failure(model_of([node], [info("x", [2])], ["y"], functions=functions, domains=["own"]), "its functions unfold to more than")


def test_functions_that_call_each_other_in_a_long_chain() -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    bodies = [helper.make_node(f"f{level + 1}", ["a"], ["b"], domain="own") for level in range(2000)]
    bodies.append(helper.make_node("Relu", ["a"], ["b"]))
    functions = [helper.make_function("own", f"f{level}", ["a"], ["b"], [body], opsets) for level, body in enumerate(bodies)]
    node = helper.make_node("f0", ["x"], ["y"], domain="own")
    failure(model_of([node], [info("x", [2])], ["y"], functions=functions, domains=["own"]), "calls within each other")


def test_functions_of_one_name_in_two_domains() -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1), helper.make_opsetid("other", 1)]
    inner = helper.make_function("other", "Relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    outer = helper.make_function("own", "Relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"], domain="other")], opsets)
    node = helper.make_node("Relu", ["x"], ["y"], domain="own")
    graph = import_model(model_of([node], [info("x", [2])], ["y"], functions=[inner, outer], domains=["own", "other"]))
    assert [n.op for n in graph.nodes] == ["relu"]


def test_an_output_listed_twice() -> None:
    failure(model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], ["y", "y"]), "'y'", "listed twice")


def test_external_data_under_a_name_no_file_can_have(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="a" * 5000)
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of([helper.make_node("Relu", ["w"], ["y"])], [], ["y"], [tensor]).SerializeToString())
    failure(path, "'w'", "no path")


def test_a_result_that_an_operator_does_not_make() -> None:
    failure(model_of([helper.make_node("Relu", ["x"], ["y", "z"])], [info("x", [2])], ["z"]), "Relu", "'z'")


def test_an_operator_of_a_later_opset() -> None:
    failure(model_of([helper.make_node("Gelu", ["x"], ["y"])], [info("x", [2])], ["y"], opset=19), "Gelu", "does not exist before opset 20")


def test_an_attribute_given_twice() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    node.attribute.append(helper.make_attribute("axis", 1))
    failure(model_of([node], [info("x", [2])], ["y"]), "attribute axis is given twice")


def test_a_name_that_is_not_utf8() -> None:
    data = model_of([helper.make_node("Relu", ["x"], ["name"])], [info("x", [2])], ["name"]).SerializeToString()
    failure(data.replace(b"name", b"na\xffe"), "not UTF-8")
