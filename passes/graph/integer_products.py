"""Convolutions between dequantised and quantised tensors, computed on the integers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.types import DType
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use

Operands = Sequence[Value]


@register_pass
@dataclass(frozen=True)
class IntegerProducts:
    """``quantize(conv(dequantize(x), dequantize(w)) + dequantize(bias))`` without the scales inside: ``requantize(conv(x, w) + bias)``.

    The integers, less their zero points, are float32 values; sums below 2²⁴ are exact, so that the result is that of integer arithmetic.
    The scales meet in one multiplier for each channel; a bias of another scale than the products' is brought to theirs.
    """

    name: ClassVar[str] = "integer-products"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        alone = single_use(graph)
        result, count = rewrite(graph, lambda node, builder: _requantized(node, builder, alone))
        return PassResult(result, count > 0, (f"{count} convolutions",) if count else ())


def _producer(builder: GraphBuilder, value: Value, op: str) -> Node | None:
    node = builder.producer(value)
    return node if node is not None and node.op == op else None


def _requantized(node: Node, builder: GraphBuilder, alone: set[Value]) -> Value | None:
    if node.op != "quantize":
        return None
    x, y_scale, *y_zero = node.present_inputs
    found = _sum(builder, x, alone)
    if found is None or y_scale.type.rank != 0:
        return None
    conv, bias = found
    parts = [_producer(builder, value, "dequantize") for value in conv.present_inputs]
    if any(part is None or part.output.type.dtype is not DType.FLOAT32 for part in parts):
        return None
    image, weights = (part.present_inputs for part in parts if part is not None)
    if builder.array(weights[0]) is None or image[1].type.rank != 0:
        return None
    total = builder.emit("conv", _centered(builder, image), _centered(builder, weights), name=conv.name, **conv.attrs)
    scale = builder.emit("mul", image[1], _channels(builder, weights[1], total.type.rank))
    if bias is not None:
        ratio = builder.emit("div", _channels(builder, bias[1], total.type.rank), scale)
        integers = _channels(builder, _centered(builder, bias), total.type.rank)
        total = builder.emit("add", total, builder.emit("mul", integers, ratio))
    return builder.emit("requantize", total, builder.emit("div", scale, y_scale), *y_zero, name=node.name, to=node.attrs["to"])


def _channels(builder: GraphBuilder, x: Value, rank: int) -> Value:
    """A parameter of each channel as ``[1, C, 1, …]``; one of the whole tensor as it is."""
    return x if x.type.rank == 0 else builder.emit("reshape", x, shape=(1, x.type.elements, *(1,) * (rank - 2)))


def _sum(builder: GraphBuilder, x: Value, alone: set[Value]) -> tuple[Node, Operands | None] | None:
    """The convolution that makes x, and the operands of the dequantised bias added to it, if there is one; nothing else reads either."""
    conv = _producer(builder, x, "conv")
    if conv is not None:
        return (conv, None) if x in alone else None
    add = _producer(builder, x, "add")
    conv = None if add is None else _producer(builder, add.present_inputs[0], "conv")
    if add is None or conv is None or x not in alone or conv.output not in alone:
        return None
    real = add.present_inputs[1]
    view = _producer(builder, real, "reshape")
    bias = _producer(builder, real if view is None else view.present_inputs[0], "dequantize")
    return None if bias is None or bias.output.type.rank != 1 else (conv, bias.present_inputs)


def _centered(builder: GraphBuilder, operands: Operands) -> Value:
    """The integers of a dequantisation less their zero point, in float32."""
    x, _, *zero_point = operands
    wide = builder.emit("cast", x, to=DType.FLOAT32)
    return builder.emit("sub", wide, builder.emit("cast", zero_point[0], to=DType.FLOAT32)) if zero_point else wide
