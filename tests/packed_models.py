"""Models with packed weights (MatMulNBits) in float64: what they say, with nothing rounded but the 8-bit activations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from quantized_models import Arrays, constants, copied

_WIDER = {TensorProto.FLOAT: TensorProto.DOUBLE}


def activation_steps(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """x ``[…, K]`` in steps of its blocks ``[rows, K / block, block]``, not rounded, and the steps: 1/127 of the greatest magnitude of a block."""
    blocks = x.reshape(-1, x.shape[-1] // block, block)
    greatest = np.abs(blocks).max(-1, keepdims=True)
    factor = np.divide(x.dtype.type(127), greatest, out=np.zeros_like(greatest), where=greatest != 0)
    return blocks * factor, greatest / x.dtype.type(127)


def packed_operands(model: onnx.ModelProto) -> tuple[list[str], int]:
    """The values that products with packed weights round, in order, and the length of a block, which all of them share."""
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    (block,) = {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "block_size"}
    return list(dict.fromkeys(node.input[0] for node in nodes)), block


def packed_weights(model: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray:
    """The weights ``[N, K]`` of a product, of 4 bits without zero points."""
    arrays = constants(model)
    return _unpacked(arrays[node.input[1]], arrays[node.input[2]])


def _unpacked(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights ``[N, K]``, of the scales' type, from bytes ``[N, K / block, block / 2]``."""
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1).astype(scales.dtype) - 8
    return np.asarray((codes * scales.reshape(*packed.shape[:2], 1)).reshape(len(packed), -1))


class MatMulNBits(OpRun):
    """Products of activations rounded to 8 bits with weights of 4 bits, without zero points."""

    op_domain = "com.microsoft"

    def _run(self, x, packed, scales, **attrs):  # type: ignore[no-untyped-def]  # the evaluator's own signature
        assert (attrs["bits"], attrs["accuracy_level"]) == (4, 4)
        steps, size = activation_steps(x, attrs["block_size"])
        return ((np.rint(steps) * size).reshape(x.shape) @ _unpacked(packed, scales).T,)


def in_float64(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Every declared output, with float32 values, constants and arithmetic made float64."""
    wide = copied(model)
    for tensor in wide.graph.initializer:
        _widen(tensor)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to":
                attribute.i = _WIDER.get(attribute.i, attribute.i)
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
    for value in (*wide.graph.input, *wide.graph.output):
        kind = value.type.tensor_type
        kind.elem_type = _WIDER.get(kind.elem_type, kind.elem_type)
    names = [output.name for output in wide.graph.output]
    given = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in feeds.items()}
    return dict(zip(names, ReferenceEvaluator(wide, new_ops=[MatMulNBits]).run(names, given), strict=True))


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
