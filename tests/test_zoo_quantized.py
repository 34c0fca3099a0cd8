"""Quantised models against ONNX Runtime.

A quantised network is discontinuous: a value that stands almost between two steps falls on either side of it by the last bit of a float32 sum, and
the layers after it spread and enlarge that one step. So whole models are held to bit equality with ONNX Runtime where it computes on integers, as
they are or with each product on its integer kernels; every layer is held to what ONNX Runtime computed before it; and where ONNX Runtime sums float32
products, whole models are held to how far it moves when scales move by one unit in the last place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from packed_models import activation_steps, in_float64, packed_operands, packed_weights
from quantized_models import (
    Arrays,
    cut,
    on_integers,
    output_step,
    runtime_outputs,
    unsigned,
    with_biases_in_units,
    with_outputs,
    with_scales_moved,
)
from zoo_models import load, needs_zoo, relative_difference

import tensorsmith as ts

QDQ = ["resnet18_int8_qdq", "mobilenetv2_100_int8_qdq", "mobilenetv2_100_u8u8_qdq"]
INT8 = QDQ[:2]
PACKED = "llama_mobilellm_kv_q4"
DYNAMIC = ["bert_tiny_int8_dynamic", "lstm_kws_int8_dynamic"]


def our_outputs(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    return ts.compile(model, threads=2, cache=False, input_shapes={name: x.shape for name, x in feeds.items()}).run(feeds)


def layer_by_layer(model: onnx.ModelProto, feeds: Arrays, given: list[str], wanted: list[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each wanted value as we compute it from the given values of ONNX Runtime, and ONNX Runtime's."""
    values = runtime_outputs(with_outputs(model, [*given, *wanted]), feeds, "NONE")
    parts = cut(model, {name: values[name] for name in given}, {name: values[name] for name in wanted})
    got = our_outputs(parts, {**feeds, **{f"{name}/given": values[name] for name in given}})
    return [(name, got[name], values[name]) for name in wanted]


def hold_layers(model: onnx.ModelProto, feeds: Arrays, quantized: list[str]) -> None:
    """Every quantised value is within a step of ONNX Runtime's, and all but what float32 cannot tell from a tie are equal."""
    for name, got, want in layer_by_layer(model, feeds, quantized, quantized):
        steps = np.abs(got.astype(np.int32) - want.astype(np.int32))
        assert steps.max() <= 1, name
        assert np.count_nonzero(steps) <= 2 + 1e-4 * steps.size, name


@needs_zoo
@pytest.mark.parametrize("name", QDQ)
def test_every_quantized_layer_is_onnxruntimes(name: str) -> None:
    model, feeds = load(name)
    hold_layers(model, feeds, [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"])


@needs_zoo
def test_every_product_with_packed_weights_is_onnxruntimes() -> None:
    model, feeds = load(PACKED)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    given = list(dict.fromkeys(node.input[0] for node in nodes))
    for name, got, want in layer_by_layer(model, feeds, given, [node.output[0] for node in nodes]):
        assert relative_difference(got, want) <= 2e-6, name


@needs_zoo
@pytest.mark.parametrize("oracle", ["onnxruntime", "float64"])
def test_activations_of_products_with_packed_weights_are_rounded_alike(oracle: str) -> None:
    """Each operand, from what the oracle computed before it: the codes differ only where float32 cannot tell a value from a tie, and by one."""
    model, feeds = load(PACKED)
    operands, block = packed_operands(model)
    wide = with_outputs(model, operands)
    values = runtime_outputs(wide, feeds) if oracle == "onnxruntime" else in_float64(wide, feeds)
    values = {name: x.astype(np.float32) for name, x in values.items()}
    parts = cut(model, {name: values[name] for name in operands}, values)
    got = our_outputs(parts, {**feeds, **{f"{name}/given": values[name] for name in operands}})
    for name in operands:
        found, want = (activation_steps(x[name], block)[0] for x in (got, values))
        apart = np.abs(np.rint(found) - np.rint(want))
        assert apart.max() <= 1, name
        assert (np.abs(np.abs(found - np.trunc(found)) - 0.5)[apart != 0] <= 1e-3).all(), name
    for output in model.graph.output:
        assert relative_difference(got[output.name], values[output.name]) <= 2e-6


@needs_zoo
def test_model_with_packed_weights_stays_within_a_step() -> None:
    """The logits, of each activation of the last product; what else is an output, of 1/127 twice."""
    model, feeds = load(PACKED)
    operands, block = packed_operands(model)
    want = runtime_outputs(with_outputs(model, operands[-1:]), feeds)
    (_, steps), (logits, *others) = activation_steps(want[operands[-1]], block), (output.name for output in model.graph.output)
    weights = next(packed_weights(model, node) for node in model.graph.node if logits in node.output)
    got = our_outputs(model, feeds)
    one_step = steps[..., 0].repeat(block, -1) @ np.abs(weights).T
    assert (np.abs(got[logits] - want[logits]).reshape(one_step.shape) <= one_step).all()
    for name in others:
        assert relative_difference(got[name], want[name]) <= 2 / 127


@needs_zoo
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamically_quantized_model_is_onnxruntimes(name: str) -> None:
    model, feeds = load(name)
    want = runtime_outputs(model, feeds, "ALL")
    for output, got in our_outputs(model, feeds).items():
        assert relative_difference(got, want[output]) <= 5e-5


@needs_zoo
def test_uint8_model_is_bit_equal_to_onnxruntime() -> None:
    model, feeds = load("mobilenetv2_100_u8u8_qdq")
    want = runtime_outputs(model, feeds, "ALL")
    for name, got in our_outputs(model, feeds).items():
        np.testing.assert_array_equal(got, want[name])


@needs_zoo
@pytest.mark.parametrize("name", INT8)
def test_int8_model_is_bit_equal_to_onnxruntime_on_integers(name: str) -> None:
    model, feeds = load(name)
    integers = on_integers(model)
    kinds = [node.op_type for node in integers.graph.node]
    assert not {"Conv", "Gemm", "MatMul"} & set(kinds)
    want = runtime_outputs(integers, feeds, int8=True)
    for output, got in our_outputs(model, feeds).items():
        np.testing.assert_array_equal(got, want[output])


@needs_zoo
@pytest.mark.parametrize("name", INT8)
def test_int8_model_with_biases_in_units_of_the_products_is_bit_equal_to_onnxruntimes_operators(name: str) -> None:
    model, feeds = load(name)
    model = unsigned(with_biases_in_units(model, "Conv", "Gemm"))
    want = runtime_outputs(model, feeds)
    for output, got in our_outputs(model, feeds).items():
        np.testing.assert_array_equal(got, want[output])


@needs_zoo
@pytest.mark.parametrize("name", INT8)
def test_int8_model_is_as_near_to_onnxruntime_as_the_last_bits_of_its_scales_put_that_to_itself(name: str) -> None:
    """Where ONNX Runtime sums products of float32. It reads the bias of a Gemm in units of the products whatever its scale."""
    model, feeds = load(name)
    model = with_biases_in_units(model, "Gemm")
    (want,) = runtime_outputs(model, feeds, "ALL").values()
    (got,) = our_outputs(model, feeds).values()
    moved = [next(iter(runtime_outputs(with_scales_moved(model, seed), feeds, "ALL").values())) for seed in range(4)]
    assert np.abs(got - want).max() <= 1.01 * max(np.abs(other - want).max() for other in moved)


class Calibration(CalibrationDataReader):
    """Feeds, one after the other."""

    def __init__(self, *feeds: Arrays) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Arrays | None:
        return next(self.feeds, None)


@needs_zoo
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8], ids=["uint8", "int8"])
def test_quantizers_network_is_bit_equal_to_onnxruntime_on_integers(activations: QuantType, tmp_path: Path) -> None:
    """Which it is by itself where activations are uint8."""
    model, feeds = load("squeezenet1_1")
    onnx.save(model, tmp_path / "plain.onnx")
    quantize_static(tmp_path / "plain.onnx", tmp_path / "quantized.onnx", Calibration(feeds), activation_type=activations, weight_type=activations)
    model = onnx.load(tmp_path / "quantized.onnx")
    got, itself = our_outputs(model, feeds), runtime_outputs(model, feeds)
    want = itself if activations is QuantType.QUInt8 else runtime_outputs(on_integers(model), feeds, int8=True)
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
        assert np.abs(array - itself[name]).max() <= 2.01 * output_step(model, name)


def small_network() -> onnx.ModelProto:
    """A network of many kinds of quantised layers; its means are of 9 elements, so that they do not fall exactly between two steps."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (24, 16, 1, 1), "b3": (24,), "w4": (24, 24, 3, 3)}
    shapes |= {"w5": (40, 48), "b5": (40,), "w6": (40, 10)}
    arrays = {name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=16),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p2", "w3", "b3"], ["c3"]),
        helper.make_node("Conv", ["c3", "w4"], ["c4"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c3", "c4"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r4"]),
        helper.make_node("Sigmoid", ["c3"], ["gate"]),
        helper.make_node("Mul", ["r4", "gate"], ["gated"]),
        helper.make_node("AveragePool", ["gated"], ["p4"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("LeakyRelu", ["p4"], ["leaky"], alpha=0.1),
        helper.make_node("Concat", ["p4", "leaky"], ["both"], axis=1),
        helper.make_node("GlobalAveragePool", ["both"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w5", "b5"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["r5"]),
        helper.make_node("MatMul", ["r5", "w6"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3, 16, 16]), ("y", [1, 10]))]
    weights = [numpy_helper.from_array(data, name) for name, data in arrays.items()]
    graph = helper.make_graph(nodes, "small", values[:1], [*values[1:], helper.make_tensor_value_info("logits", 1, [1, 10])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("activations", "weights"),
    [(QuantType.QUInt8, QuantType.QInt8), (QuantType.QUInt8, QuantType.QUInt8), (QuantType.QInt8, QuantType.QInt8)],
    ids=["u8s8", "u8u8", "s8s8"],
)
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
def test_small_network_in_every_form_is_within_a_step(
    form: QuantFormat, activations: QuantType, weights: QuantType, per_channel: bool, tmp_path: Path
) -> None:
    plain, quantized = tmp_path / "plain.onnx", tmp_path / "quantized.onnx"
    onnx.save(small_network(), plain)
    rng = np.random.default_rng(1)
    images = Calibration(*({"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(4)))
    quantize_static(plain, quantized, images, quant_format=form, activation_type=activations, weight_type=weights, per_channel=per_channel)
    model = onnx.load(quantized)
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    want = runtime_outputs(model, feeds)
    for output, got in our_outputs(model, feeds).items():
        assert np.abs(got - want[output]).max() <= 1.01 * output_step(model, output), output
    names = [node.output[0] for node in model.graph.node]
    values = runtime_outputs(with_outputs(model, names), feeds, "NONE")
    hold_layers(model, feeds, [name for name in names if values[name].dtype.itemsize == 1])
