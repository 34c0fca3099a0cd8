"""Sparse tensors, which become dense ones when a model is read: initializers, of subgraphs too, and constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.errors import UserError
from compiler.ir.interp import interpret
from frontend.onnx.importer import import_model

_DENSE = np.zeros((3, 4), np.float32)
_DENSE[0, 1], _DENSE[2, 3], _DENSE[1, 0] = 5, -2, 0.5


def sparse(indices: list[int] | list[list[int]], values: list[float], dims: tuple[int, ...] = (3, 4)) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"), numpy_helper.from_array(np.array(indices, np.int64)), dims
    )


def model(node: onnx.NodeProto, *tensors: onnx.SparseTensorProto, dims: tuple[int, ...] = (3, 4)) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)]
    graph = helper.make_graph([node], "sparse", inputs, [onnx.ValueInfoProto(name="y")], sparse_initializer=list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("indices", [[1, 11, 4], [[0, 1], [2, 3], [1, 0]]])
def test_sparse_initializers(indices: list[int]) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    proto = model(helper.make_node("Add", ["x", "w"], ["y"]), sparse(indices, [5, -2, 0.5]))
    np.testing.assert_array_equal(np.asarray(interpret(import_model(proto), {"x": x})["y"]), x + _DENSE)


def test_sparse_constants_in_a_subgraph() -> None:
    branches = {}
    for name, scale in (("then_branch", 1.0), ("else_branch", 3.0)):
        nodes = [
            helper.make_node("Constant", [], ["c"], sparse_value=sparse([1], [scale])),
            helper.make_node("Add", ["c", "w"], ["t"]),
            helper.make_node("Add", ["t", "x"], ["r"]),
        ]
        result = [helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, (3, 4))]
        branches[name] = helper.make_graph(nodes, name, [], result, sparse_initializer=[sparse([11, 4], [-2, 0.5])])
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Cast", ["m"], ["b"], to=onnx.TensorProto.BOOL)]
    proto = model(helper.make_node("If", ["b"], ["y"], **branches))
    proto.graph.node.insert(0, nodes[1])
    proto.graph.node.insert(0, nodes[0])
    for x, first in ((np.zeros((3, 4), np.float32), 3), (np.ones((3, 4), np.float32), 1)):
        want = x + _DENSE
        want[0, 1] = x[0, 1] + first
        np.testing.assert_array_equal(np.asarray(interpret(import_model(proto), {"x": x})["y"]), want)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (sparse([12], [1.0]), "an index beyond it"),
        (sparse([-1], [1.0]), "an index beyond it"),
        (sparse([[0, 4]], [1.0]), "an index beyond it"),
        (sparse([0, 1], [1.0]), "indices of shape"),
        (sparse([0], [1.0], (1 << 40, 1 << 40)), "no memory holds"),
    ],
)
def test_sparse_tensors_that_contradict_themselves_are_refused(tensor: onnx.SparseTensorProto, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_model(model(helper.make_node("Add", ["x", "w"], ["y"]), tensor))
