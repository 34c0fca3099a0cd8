"""Attention: the scores of queries and keys, their softmax, and the values summed with these weights, as one operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, broadcast_part
from compiler.ir.broadcast import broadcast_shapes
from compiler.ir.op import Op, register
from compiler.ir.scalar import Arg, Array, Call, Const, Scalar, evaluate
from compiler.ir.strided import Strided
from compiler.ir.types import TensorType, compute_dtype
from compiler.ops.support import Arrays, Attrs, Types, array, attr_ints, first_type, given


@register
class Attention(Op):
    """``weight(softmax(score(query @ key^T))) @ value`` for each batch and head, its axes in the order ``perm``.

    Inputs are query ``[B, H, M, D]``, key ``[B, G, N, D]`` and value ``[B, G, N, E]``, of whose heads each serves H / G of the queries', one
    after another, and what else ``score`` reads, of shapes that broadcast to ``[B, H, M, N]``. ``score`` is the score of a query and a key from
    ``Arg(0)``, their product in the type that is computed in, and ``Arg(i)``, the element of input 2 + i; ``weight``, which need not be there, is
    what a value is summed with from ``Arg(0)``, the softmax, and the same others. The result is ``[B, H, M, E]``, transposed by ``perm``.

    It comes of the nodes that exporters write (``passes/graph/attention.py``) and of attention operators, which are imported as such nodes.
    """

    name = "attention"
    families = ("attention",)
    computes = True

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        query, key, value = first_type(inputs), given(inputs[1]), given(inputs[2])
        if {t.rank for t in inputs if t is not None} != {4}:
            raise UnsupportedForm(f"operands {', '.join(map(str, inputs))} must have four axes")
        batch, heads, rows, size = query.shape
        groups, keys = key.shape[1:3]
        if key.shape != (batch, groups, keys, size) or value.shape[:3] != key.shape[:3] or len({query.dtype, key.dtype, value.dtype}) > 1:
            raise UnsupportedForm(f"queries {query}, keys {key} and values {value} do not fit one another")
        if heads != groups and not (isinstance(heads, int) and isinstance(groups, int) and groups and heads % groups == 0):
            raise UnsupportedForm(f"{heads} heads of queries are not a multiple of {groups} heads of keys")
        scores = (batch, heads, rows, keys)
        wide = {compute_dtype(query.dtype), *(expression_of(attrs, name).dtype for name in ("score", "weight") if name != "weight" or name in attrs)}
        if broadcast_shapes([scores, *(given(t).shape for t in inputs[3:])]) != scores or len(wide) > 1:
            raise UnsupportedForm(f"a score {expression_of(attrs, 'score')} of {', '.join(map(str, inputs[3:]))} is none for {query} and {key}")
        result = (batch, heads, rows, value.shape[3])
        return (TensorType(query.dtype, tuple(result[axis] for axis in attr_ints(attrs, "perm"))),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        query, key, value, *others = map(array, inputs)
        repeats = query.shape[1] // max(key.shape[1], 1)
        wide_key, wide_value = (np.repeat(x.astype(np.float64), repeats, axis=1) for x in (key, value))
        with np.errstate(all="ignore"):
            products = query.astype(np.float64) @ wide_key.swapaxes(2, 3)
            score = expression_of(attrs, "score")
            scores = np.broadcast_to(evaluate(score, [products.astype(score.dtype.numpy), *others]), products.shape).astype(np.float64)
            weights = np.exp(scores - scores.max(3, keepdims=True, initial=-np.inf)) if scores.size else scores
            weights = weights / weights.sum(3, keepdims=True)
            if "weight" in attrs:
                weight = expression_of(attrs, "weight")
                weights = np.broadcast_to(evaluate(weight, [weights.astype(weight.dtype.numpy), *others]), products.shape).astype(np.float64)
            result = weights @ wide_value
        return (np.transpose(result, attr_ints(attrs, "perm")).astype(query.dtype),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        query, key, value = (t.static_shape for t in inputs[:3])
        batch, heads, rows, columns = (box[attr_ints(attrs, "perm").index(axis)] for axis in range(4))
        if query[1] != key[1] and heads != (0, query[1]):
            return None
        kept = heads if query[1] == key[1] else (0, key[1])
        scores = (batch, heads, rows, (0, key[2]))
        others = (broadcast_part(t.static_shape, scores) for t in inputs[3:])
        return Part(
            ((batch, heads, rows, (0, query[3])), (batch, kept, (0, key[2]), (0, key[3])), (batch, kept, (0, value[2]), columns), *others), attrs
        )

    def reads_strided(self, operand: int, view: Strided, inputs: Types) -> bool:
        return True


def expression_of(attrs: Attrs, name: str) -> Scalar:
    """The attribute ``score`` or ``weight``. Raises UnsupportedForm where it is not an expression."""
    found = attrs[name]
    if not isinstance(found, Arg | Call | Const):
        raise UnsupportedForm(f"a {name} {found!r} is not a scalar expression")
    return found
