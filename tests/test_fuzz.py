"""A few hundred damaged models; ``make fuzz`` runs thousands."""

from __future__ import annotations

import numpy as np
import onnx
from fuzz import fuzz
from onnx import TensorProto, helper, numpy_helper

import tensorsmith


def test_damaged_models_are_refused_or_run() -> None:
    outcomes, findings = fuzz(seed=11, count=300)
    assert not findings, "\n".join(f"{finding.number}: {finding.what}" for finding in findings)
    assert sum(outcomes.values()) == 300
    assert outcomes["run"] > 60
    assert outcomes["refused"] > 60


def test_a_worker_that_dies_is_told_by_the_model_it_died_of() -> None:
    _, findings = fuzz(seed=11, count=3, workers=1, seconds=0.001)
    assert [finding.number for finding in findings] == [0, 1, 2]
    assert all("Timeout" in finding.what for finding in findings)


def test_long_chains_and_many_operands_and_periods_compile() -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("s", "c", "p")]
    pads = numpy_helper.from_array(np.full(6, 9, np.int64), "pads")
    cube = numpy_helper.from_array(np.array([1, 1, 3], np.int64), "cube")
    nodes = [helper.make_node("Sum", ["x"] * 1500, ["s"]), helper.make_node("Concat", ["x"] * 700, ["c"], axis=0)]
    nodes += [helper.make_node("Reshape", ["x", "cube"], ["r"]), helper.make_node("Pad", ["r", "pads"], ["p"], mode="reflect")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [pads, cube]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    x = np.float32([1, 2, 3])
    got = tensorsmith.compile(model, threads=1, cache=False).run({"x": x})
    np.testing.assert_allclose(got["s"], 1500 * x)
    np.testing.assert_array_equal(got["c"], np.tile(x, 700))
    np.testing.assert_array_equal(got["p"], np.pad(x.reshape(1, 1, 3), 9, mode="reflect"))
