"""Attention as exporters write it: scales on both operands of a product, keys and values repeated for the heads that share them."""

from __future__ import annotations

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import product
from passes.pattern import Match, either, number, op, value
from passes.rules import Rule

_SCALED = op("mul", value("x"), number(name="scale"), name="scaled")
_PRODUCT = either(op("matmul", _SCALED, value("other")), op("matmul", value("other"), _SCALED))
_LINEAR = ("matmul", "conv")


def _check_scale(match: Match) -> str | None:
    if not match["x"].type.dtype.is_float:
        return f"%{match['x'].name} holds integers"
    if match["x"] in match.builder.constants:
        return f"%{match['x'].name} is a constant"
    producer = match.producer(match["x"])
    sources = map(match.producer, producer.present_inputs) if producer is not None and producer.op == "add" else (producer,)
    linear = next((node for node in sources if node is not None and node.op in _LINEAR), None)
    return None if linear is None else f"%{linear.output.name} can take the scale"


def _scale_after(match: Match, builder: GraphBuilder) -> Value:
    product = match.root
    inputs = list(product.inputs)
    inputs[inputs.index(match["scaled"])] = match["x"]
    result = builder.emit("matmul", *inputs, name=product.name)
    scale = builder.constant(match.array("scale").reshape(-1)[:1].reshape(()))
    return builder.emit("mul", result, scale, name=product.name)


_SPLIT = op("reshape", value("shared"), name="split")
_REPEATED = op("reshape", op("expand", _SPLIT, name="expanded"), name="repeated")
_TRANSPOSED = op("transpose", _REPEATED, name="transposed")
_GROUPED = op("matmul", value("query"), either(_TRANSPOSED, _REPEATED))


def _times(match: Match) -> int | None:
    """How often each head stands there; None where it is not heads, one by one, that are repeated."""
    shared, split, expanded = match["shared"].type.shape, match["split"].type.shape, match["expanded"].type.shape
    widened = [axis for axis, (one, many) in enumerate(zip(split, expanded, strict=False)) if one != many]
    if len(split) != len(expanded) or len(widened) != 1 or split[widened[0]] != 1:
        return None
    times = expanded[widened[0]]
    return times if isinstance(times, int) and product(split[: widened[0]]) == product(shared[:-2]) else None


def _check_repeated(match: Match) -> str | None:
    shared, repeated, times = match["shared"].type.shape, match["repeated"].type.shape, _times(match)
    if len(shared) < 3 or times is None:
        return f"%{match['expanded'].name} does not repeat each head of %{match['shared'].name}"
    if repeated != (*shared[:-3], shared[-3] * times, *shared[-2:]):
        return f"%{match['repeated'].name} does not join the heads and their repetitions"
    if match["query"].type.shape[:-2] != repeated[:-2]:
        return f"%{match['query'].name} has not the heads of %{match['repeated'].name}"
    if "transposed" in match and match.node("transposed").attrs["perm"] != _last_two_swapped(len(shared)):
        return f"%{match['transposed'].name} moves heads"
    return None


def _last_two_swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _grouped(match: Match, builder: GraphBuilder) -> Value:
    """Queries in groups that share a head; the shared one broadcasts along its group."""
    query, shared, times, name = match["query"], match["shared"], _times(match) or 1, match.root.name
    if "transposed" in match:
        shared = builder.emit("transpose", shared, perm=_last_two_swapped(shared.type.rank), name=match.node("transposed").name)
    heads = shared.type.shape[:-2]
    left = builder.emit("reshape", query, shape=(*heads, times, *query.type.shape[-2:]))
    right = builder.emit("reshape", shared, shape=(*heads, 1, *shared.type.shape[-2:]))
    result = builder.emit("matmul", left, right, name=name)
    return builder.emit("reshape", result, shape=match.root.output.type.shape, name=name)


RULES = (
    Rule("scale-after-product", _PRODUCT, _scale_after, _check_scale),
    Rule("shared-heads", _GROUPED, _grouped, _check_repeated, shared=True),
)
"""``matmul(x * s, y)`` and ``matmul(y, x * s)`` become ``matmul(x, y) * s``: a factor of the scores is free where they are stored.
Keys and values that several query heads share are not repeated for them."""
