"""Attention as exporters write it: scales on both operands of a product, keys and values repeated for the heads that share them."""

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


_SPLIT = op("reshape", value("shared"))
_REPEATED = op("reshape", op("expand", _SPLIT, name="expanded"), name="repeated")
_TRANSPOSED = op("transpose", _REPEATED, name="transposed")
_GROUPED = op("matmul", value("query"), either(_TRANSPOSED, _REPEATED))


def _check_repeated(match: Match) -> str | None:
    shared, repeated, expanded = match["shared"].type.shape, match["repeated"].type.shape, match["expanded"].type.shape
    heads = len(shared) - 3
    if len(repeated) != len(shared) or len(expanded) != len(shared) + 1 or heads < 0:
        return f"%{match['repeated'].name} has not the rank of %{match['shared'].name}"
    times, count = expanded[heads + 1], shared[heads]
    if not isinstance(times, int) or not isinstance(count, int):
        return "the number of heads is not known"
    split = (*shared[: heads + 1], 1, *shared[heads + 1 :])
    wanted = (*shared[: heads + 1], times, *shared[heads + 1 :])
    if match.node("expanded").present_inputs[0].type.shape != split or expanded != wanted:
        return f"%{match['expanded'].name} does not repeat each head of %{match['shared'].name}"
    if repeated != (*shared[:heads], count * times, *shared[heads + 1 :]):
        return f"%{match['repeated'].name} does not join the heads and their repetitions"
    if match["query"].type.shape[:-2] != repeated[:-2]:
        return f"%{match['query'].name} has not the heads of %{match['repeated'].name}"
    rank = len(shared)
    if "transposed" in match and match.node("transposed").attrs["perm"] != (*range(rank - 2), rank - 1, rank - 2):
        return f"%{match['transposed'].name} moves heads"
    return None


def _grouped(match: Match, builder: GraphBuilder) -> Value:
    """Queries in groups that share a head; the shared one broadcasts along its group."""
    query, shared, expanded, name = match["query"], match["shared"], match["expanded"].type.shape, match.root.name
    heads, rank = shared.type.rank - 3, shared.type.rank
    groups = (*expanded[: heads + 2], *query.type.shape[-2:])
    if "transposed" in match:
        shared = builder.emit("transpose", shared, perm=(*range(rank - 2), rank - 1, rank - 2), name=match.node("transposed").name)
    one = (*shared.type.shape[: heads + 1], 1, *shared.type.shape[heads + 1 :])
    left, right = builder.emit("reshape", query, shape=groups), builder.emit("reshape", shared, shape=one)
    result = builder.emit("matmul", left, right, name=name)
    return builder.emit("reshape", result, shape=match.root.output.type.shape, name=name)


RULES = (
    Rule("scale-after-product", _PRODUCT, _scale_after, _check_scale),
    Rule("shared-heads", _GROUPED, _grouped, _check_repeated, shared=True),
)
"""``matmul(x * s, y)`` and ``matmul(y, x * s)`` become ``matmul(x, y) * s``: a factor of the scores is free where they are stored.
Keys and values that several query heads share are not repeated for them."""
