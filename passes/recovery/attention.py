"""Attention as exporters write it: scales on both operands of a product."""

from __future__ import annotations

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from passes.pattern import Match, either, number, op, value
from passes.rules import Rule

_SCALED = op("mul", value("x"), number(name="scale"))
_PRODUCT = either(op("matmul", _SCALED, value("other")), op("matmul", value("other"), _SCALED))
_LINEAR = ("matmul", "conv")


def _check_scale(match: Match) -> str | None:
    if not match["x"].type.dtype.is_float:
        return f"%{match['x'].name} holds integers"
    if match["x"] in match.builder.constants:
        return f"%{match['x'].name} is a constant"
    producer = match.producer(match["x"])
    if producer is not None and producer.op == "add":
        producer = next(filter(None, map(match.producer, producer.present_inputs)), None)
    if producer is not None and producer.op in _LINEAR and producer.present_inputs[1] in match.builder.constants:
        return f"the weights of %{producer.output.name} can take the scale"
    return None


def _scale_after(match: Match, builder: GraphBuilder) -> Value:
    product = match.root
    inputs = [match["x"] if v is not match["other"] else v for v in product.present_inputs]
    result = builder.emit("matmul", *inputs, name=product.name)
    scale = builder.constant(match.array("scale").reshape(-1)[:1].reshape(()))
    return builder.emit("mul", result, scale, name=product.name)


RULES = (Rule("scale-after-product", _PRODUCT, _scale_after, _check_scale),)
"""``matmul(x * s, y)`` and ``matmul(y, x * s)`` become ``matmul(x, y) * s``: a factor of the scores is free where they are stored."""
