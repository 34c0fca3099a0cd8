"""Oracles for quantised models: ONNX Runtime as it is, ONNX Runtime computing on integers throughout, and the model in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Arrays = dict[str, np.ndarray]
_PRODUCTS = {"Conv": "ConvInteger", "Gemm": "MatMulInteger", "MatMul": "MatMulInteger"}
_WHOLE = 2.0**-22
"""How near a bias must be to a whole number of the products' units to be that number; relative."""


def runtime_outputs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], level: str = "ALL", *, int8: bool = False) -> Arrays:
    """Every declared output, from ONNX Runtime; ``level`` is ALL, EXTENDED, BASIC or NONE.

    ``int8`` lets it compute on integers between int8 values too, which it does not do by itself on x86-64.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, "ORT_DISABLE_ALL" if level == "NONE" else f"ORT_ENABLE_{level}")
    if int8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def constants(model: onnx.ModelProto) -> Arrays:
    """The initializers, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each value, by its name."""
    return {name: node for node in model.graph.node for name in node.output}


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with more values handed out."""
    more = copied(model)
    present = {o.name for o in model.graph.output}
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return more


def cut(model: onnx.ModelProto, given: Arrays, wanted: Arrays) -> onnx.ModelProto:
    """The model with each value of ``given`` read from an input ``NAME/given`` instead, and the values ``wanted`` as its outputs."""
    parts = copied(model)
    for node in parts.graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = f"{name}/given"
    parts.graph.input.extend(
        helper.make_tensor_value_info(f"{name}/given", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for name, x in given.items()
    )
    del parts.graph.output[:]
    parts.graph.output.extend(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for name, x in wanted.items())
    return parts


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own with the same content."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def with_scales_moved(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with the scale of each quantised value moved by one unit in the last place, up or down.

    Biases in units of ``x_scale * w_scale`` stay so.
    """
    arrays, made = constants(model), producers(model)
    rng = np.random.default_rng(seed)
    new: Arrays = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            new[node.input[1]] = np.nextafter(arrays[node.input[1]], np.float32(rng.choice([0, np.inf])))
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            x, w, bias = (made[name].input[1] for name in node.input)
            if np.array_equal(arrays[bias], arrays[x] * arrays[w]):
                new[bias] = np.asarray(new[x] * arrays[w])
    return with_constants(model, new)


def with_constants(model: onnx.ModelProto, arrays: Arrays) -> onnx.ModelProto:
    """The model with other arrays in some initializers."""
    result = copied(model)
    for tensor in result.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return result


def output_step(model: onnx.ModelProto, name: str) -> float:
    """The scale of the DequantizeLinear that makes an output."""
    return float(constants(model)[producers(model)[name].input[1]].item())


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with int8 values and weights, and their zero points, moved to uint8: the same real numbers."""
    result, arrays = copied(model), constants(model)
    new: Arrays = {}

    def shifted(name: str) -> str:
        new[f"{name}/unsigned"] = (arrays[name].astype(np.int16) + 128).astype(np.uint8)
        return f"{name}/unsigned"

    for node in result.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or arrays[node.input[2]].dtype != np.int8:
            continue
        node.input[2] = shifted(node.input[2])
        if node.input[0] in arrays:
            node.input[0] = shifted(node.input[0])
    result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in new.items())
    return result


def with_biases_in_units(model: onnx.ModelProto, *ops: str) -> onnx.ModelProto:
    """The model with the biases of these operators rounded to whole numbers of ``x_scale * w_scale``, which is what quantisers write."""
    arrays, made = constants(model), producers(model)
    new: Arrays = {}
    for node in model.graph.node:
        if node.op_type in ops:
            x, w, bias = (made[name] for name in node.input)
            scale = np.asarray(arrays[x.input[1]] * arrays[w.input[1]])
            real = arrays[bias.input[0]] * arrays[bias.input[1]].astype(np.float64)
            new |= {bias.input[0]: np.rint(real / scale).astype(np.int32), bias.input[1]: scale}
    return with_constants(model, new)


def on_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with ConvInteger and MatMulInteger, on unsigned operands, for the products with weights between DequantizeLinear and QuantizeLinear.

    Scales follow in float32 as in ONNX Runtime's QLinearConv: one multiplier ``x_scale * w_scale / y_scale``, a bias in whole numbers of
    ``x_scale * w_scale`` before it. A bias that is no such number, which QLinearConv cannot take, is added behind, in units of ``y_scale``.
    Products of int8 with uint8 weights are exact on every x86-64 machine; those with int8 weights saturate on some.
    """
    result = copied(model)
    arrays = constants(model)
    parts = _Parts(result, arrays)
    made, consumer = producers(model), {name: node for node in model.graph.node for name in node.input}
    replaced = {}
    for node in model.graph.node:
        sources = [made.get(name) for name in node.input]
        quantize = consumer.get(node.output[0])
        between = all(source is not None and source.op_type == "DequantizeLinear" for source in sources)
        if node.op_type not in _PRODUCTS or not between or quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        if made[node.input[1]].input[0] in arrays:
            replaced[node.output[0]] = parts.product(node, sources, quantize)
            replaced[quantize.output[0]] = []
    nodes = [new for node in model.graph.node for new in replaced.get(node.output[0], [node])]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


class _Parts:
    """Makes nodes and constants for one model."""

    def __init__(self, model: onnx.ModelProto, arrays: Arrays) -> None:
        self._model = model
        self._arrays = arrays
        self._nodes: list[onnx.NodeProto] = []
        self._name = ""

    def product(self, node: onnx.NodeProto, sources: list[Any], quantize: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes from the operands' integers to the quantised result."""
        self._nodes, self._name = [], node.output[0]
        x, w = sources[:2]
        weights, w_zero = self._unsigned(self._arrays[w.input[0]], self._zero(w))
        if node.op_type == "Gemm":
            weights = weights.T
        operands = [self._unsigned_input(x), self._constant(np.ascontiguousarray(weights)), self._zero_input(x), self._constant(w_zero)]
        total = self._node(_PRODUCTS[node.op_type], *operands, like=node)
        total = self._node("Cast", total, to=onnx.TensorProto.FLOAT)
        channels = (1, -1) + (1,) * (weights.ndim - 2)
        y_scale, y_zero = self._arrays[quantize.input[1]], self._zero(quantize)
        scale = np.asarray(self._arrays[x.input[1]] * self._arrays[w.input[1]], np.float32).reshape(channels)
        rest = np.zeros(1)
        if len(sources) > 2:
            real = (self._arrays[sources[2].input[0]] * self._arrays[sources[2].input[1]].astype(np.float64)).reshape(channels)
            units = real / scale
            whole = np.abs(units - np.rint(units)) <= _WHOLE * np.abs(units)
            total = self._node("Add", total, self._constant(np.where(whole, np.rint(units), 0).astype(np.float32)))
            rest = np.where(whole, 0, real)
        total = self._node("Mul", total, self._constant(np.asarray(scale / y_scale, np.float32)))
        total = self._node("Add", total, self._constant(np.asarray(rest / y_scale, np.float32)))
        total = self._node("Add", self._node("Round", total), self._constant(np.float32(y_zero)))
        bounds = np.iinfo(y_zero.dtype)
        total = self._node("Clip", total, self._constant(np.float32(bounds.min)), self._constant(np.float32(bounds.max)))
        self._node("Cast", total, to=helper.np_dtype_to_tensor_dtype(y_zero.dtype), output=quantize.output[0])
        return self._nodes

    def _zero(self, node: onnx.NodeProto) -> np.ndarray:
        """The zero point, of the type of the integers; that of weights must be one for all channels."""
        (zero,) = np.unique(self._arrays[node.input[2]])
        return np.asarray(zero)

    @staticmethod
    def _unsigned(array: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Integers and zero point moved to uint8."""
        shift = 128 if array.dtype == np.int8 else 0
        return (array.astype(np.int16) + shift).astype(np.uint8), np.asarray(zero.astype(np.int16) + shift).astype(np.uint8)

    def _unsigned_input(self, x: onnx.NodeProto) -> str:
        if self._zero(x).dtype == np.uint8:
            return x.input[0]
        wide = self._node("Cast", x.input[0], to=onnx.TensorProto.INT32)
        return self._node("Cast", self._node("Add", wide, self._constant(np.int32(128))), to=onnx.TensorProto.UINT8)

    def _zero_input(self, x: onnx.NodeProto) -> str:
        zero = self._zero(x)
        return self._constant(self._unsigned(zero, zero)[1])

    def _constant(self, array: np.ndarray | np.generic) -> str:
        name = f"oracle/{len(self._model.graph.initializer)}"
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, op: str, *inputs: str, output: str = "", like: onnx.NodeProto | None = None, **attrs: int) -> str:
        """A node's output; it takes the attributes of ``like`` where that is a Conv."""
        output = output or f"{self._name}/{len(self._nodes)}"
        node = helper.make_node(op, list(inputs), [output], **attrs)
        if like is not None and like.op_type == "Conv":
            node.attribute.extend(like.attribute)
        self._nodes.append(node)
        return output
