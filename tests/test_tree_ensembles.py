"""Tree ensembles: random forests against ONNX's reference, classes with weights of their own, and trees that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import tensorsmith
from compiler.errors import UnsupportedError
from compiler.ir.interp import interpret
from frontend.onnx.importer import import_model

_MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]


def forest(rng: np.random.Generator, trees: int, depth: int, modes: list[str], features: int) -> dict[str, Any]:
    """Attributes of random trees; and the trees and numbers of their leaves, as ``leaves``."""
    found: dict[str, Any] = {key: [] for key in ("treeids", "nodeids", "featureids", "values", "truenodeids", "falsenodeids", "modes")}
    found["missing_value_tracks_true"], leaves = [], []
    for tree in range(trees):
        waiting, count = [(0, 0)], 1
        while waiting:
            node, level = waiting.pop(0)
            ends = level == depth or rng.random() < 0.2
            mode = "LEAF" if ends else str(rng.choice(modes))
            children = (0, 0) if ends else (count, count + 1)
            row = (tree, node, int(rng.integers(features)), float(rng.integers(-4, 5)) / 2, *children, mode)
            for key, value in zip(list(found)[:7], row, strict=True):
                found[key].append(value)
            found["missing_value_tracks_true"].append(int(rng.integers(2)))
            if ends:
                leaves.append((tree, node))
            else:
                waiting += [(child, level + 1) for child in children]
                count += 2
    return {**{f"nodes_{key}": value for key, value in found.items()}, "leaves": leaves}


def model(op_type: str, rows: int, features: int, outputs: int, **attrs: Any) -> onnx.ModelProto:
    names = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op_type, ["x"], names, domain="ai.onnx.ml", **attrs)
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (rows, features))]
    graph = helper.make_graph([node], "trees", inputs, [onnx.ValueInfoProto(name=name) for name in names])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=10)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 999), st.integers(1, 4), st.integers(0, 5), st.sampled_from([_MODES[:1], _MODES[:2], _MODES]), st.sampled_from(["SUM", "AVERAGE"])
)
def test_random_forests(seed: int, trees: int, depth: int, modes: list[str], aggregate: str) -> None:
    rng = np.random.default_rng(seed)
    attrs = forest(rng, trees, depth, modes, 3)
    leaves = attrs.pop("leaves")
    x = (rng.integers(-5, 6, (7, 3)) / 2).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    attrs |= {"target_treeids": [t for t, _ in leaves], "target_nodeids": [n for _, n in leaves], "n_targets": 2, "aggregate_function": aggregate}
    attrs |= {"target_ids": rng.integers(0, 2, len(leaves)).tolist(), "target_weights": rng.normal(size=len(leaves)).tolist()}
    proto = model("TreeEnsembleRegressor", 7, 3, 1, **attrs)
    (got,) = interpret(import_model(proto), {"x": x}).values()
    (want,) = map(np.asarray, ReferenceEvaluator(proto).run(None, {"x": x}))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_two_classes_with_weights_of_their_own_compiled() -> None:
    rng = np.random.default_rng(5)
    attrs = forest(rng, 20, 6, _MODES[:1], 4)
    leaves = [leaf for leaf in attrs.pop("leaves") for _ in range(2)]
    attrs |= {"class_treeids": [t for t, _ in leaves], "class_nodeids": [n for _, n in leaves], "class_ids": [0, 1] * (len(leaves) // 2)}
    attrs |= {"class_weights": rng.uniform(size=len(leaves)).tolist(), "classlabels_int64s": [4, 9]}
    proto, x = model("TreeEnsembleClassifier", 50, 4, 2, **attrs), rng.normal(size=(50, 4)).astype(np.float32)
    got = tensorsmith.compile(proto, cache=False, threads=1).run({"x": x})
    labels, scores = map(np.asarray, ReferenceEvaluator(proto).run(None, {"x": x}))
    np.testing.assert_allclose(got["y1"], scores, rtol=1e-5)
    np.testing.assert_array_equal(got["y0"], labels)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"nodes_truenodeids": [0, 0, 0]}, "goes round in a circle"),
        ({"nodes_truenodeids": [7, 0, 0]}, "node 7 of tree 0 does not exist"),
        ({"nodes_featureids": [9, 0, 0]}, "features up to 9 of 4"),
        ({"nodes_modes": ["BRANCH_MAYBE", "LEAF", "LEAF"]}, "BRANCH_MAYBE"),
        ({"aggregate_function": "MEDIAN"}, "MEDIAN"),
    ],
)
def test_trees_that_cannot_be_are_refused(attrs: dict[str, Any], message: str) -> None:
    given_attrs = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [1, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
        "n_targets": 1,
    }
    with pytest.raises(UnsupportedError, match=message):
        import_model(model("TreeEnsembleRegressor", 2, 4, 1, **{**given_attrs, **attrs}))
