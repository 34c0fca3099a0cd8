"""Well-known networks built node by node with seeded weights: full-size work for the demo and the benchmarks, with nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]

OPSET = 17

_MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, first stride) of each stage: Sandler et al., "MobileNetV2", CVPR 2018, table 2."""


class NetworkBuilder:
    """Appends ONNX nodes; tensors are named by their position. Weights are drawn from one seeded generator, in order."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def weight(self, array: Array) -> str:
        """A float32 initializer; its name."""
        name = f"w{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output; the output's name."""
        name = f"{op_type.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [output or name], name=name, **attributes))
        return output or name

    def convolution(self, x: str, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> str:
        """Conv without bias, He-scaled (variance 2 / fan-in), padded to keep ``size / stride``."""
        fan_in = channels_in // groups * kernel * kernel
        shape = (channels_out, channels_in // groups, kernel, kernel)
        weight = self.weight(self._rng.standard_normal(shape) * np.sqrt(2 / fan_in))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.node("Conv", x, weight, kernel_shape=[kernel] * 2, strides=strides, pads=pads, group=groups)

    def batch_norm(self, x: str, channels: int, *, gain: float = 1.0) -> str:
        """BatchNormalization with the statistics of a He-scaled convolution of unit-variance data, slightly perturbed; scale around ``gain``."""
        draw = self._rng.standard_normal
        scale, bias, mean = gain * (1 + 0.1 * draw(channels)), 0.1 * draw(channels), 0.1 * draw(channels)
        variance = 2 * np.exp(0.1 * draw(channels))
        return self.node("BatchNormalization", x, *map(self.weight, (scale, bias, mean, variance)), epsilon=1e-5)

    def relu6(self, x: str) -> str:
        """Clip to 0..6."""
        return self.node("Clip", x, self.weight(np.array(0.0)), self.weight(np.array(6.0)))

    def linear(self, x: str, features_in: int, features_out: int, output: str) -> str:
        """Gemm with bias on ``[N, features_in]``."""
        weight = self.weight(self._rng.standard_normal((features_out, features_in)) * np.sqrt(1 / features_in))
        return self.node("Gemm", x, weight, self.weight(0.1 * self._rng.standard_normal(features_out)), output=output, transB=1)

    def model(self, name: str, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]) -> onnx.ModelProto:
        """The checked model; all inputs and outputs are float32."""
        ins, outs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (inputs, outputs))
        graph = helper.make_graph(self._nodes, name, ins, outs, self._initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def mobilenet_v2(*, batch: int = 1, classes: int = 1000, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 1.0: ``input`` float32 ``[batch, 3, size, size]`` to ``logits`` ``[batch, classes]``, BatchNormalization un-merged."""
    net = NetworkBuilder(seed)
    x = net.relu6(net.batch_norm(net.convolution("input", 3, 32, 3, stride=2), 32))
    channels = 32
    for expansion, width, blocks, first_stride in _MOBILENET_V2:
        for block in range(blocks):
            x = _inverted_residual(net, x, channels, width, expansion, first_stride if block == 0 else 1)
            channels = width
    x = net.relu6(net.batch_norm(net.convolution(x, channels, 1280, 1), 1280))
    pooled = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    net.linear(pooled, 1280, classes, "logits")
    return net.model("mobilenet_v2", {"input": [batch, 3, size, size]}, {"logits": [batch, classes]})


def _inverted_residual(net: NetworkBuilder, x: str, channels: int, width: int, expansion: int, stride: int) -> str:
    hidden, y = channels * expansion, x
    if expansion != 1:
        y = net.relu6(net.batch_norm(net.convolution(y, channels, hidden, 1), hidden))
    y = net.relu6(net.batch_norm(net.convolution(y, hidden, hidden, 3, stride=stride, groups=hidden), hidden))
    residual = stride == 1 and channels == width
    y = net.batch_norm(net.convolution(y, hidden, width, 1), width, gain=0.5 if residual else 1.0)
    return net.node("Add", x, y) if residual else y
