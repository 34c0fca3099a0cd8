"""One way to write an elementwise node: constant operands second, constant arithmetic gathered, operands of one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Graph, Node, Value
from compiler.ir.verify import Stage, is_elementwise
from passes.base import PassResult, register_pass
from passes.pattern import COMMUTATIVE
from passes.rewrite import rewrite, single_use

_ASSOCIATIVE: dict[str, Callable[[Array, Array], Array]] = {"add": np.add, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum}


@register_pass
@dataclass(frozen=True)
class GatherConstants:
    """Constants become the second operand of commutative nodes, and ``(x + a) + b`` becomes ``x + (a + b)``, likewise for ``mul``,
    ``maximum`` and ``minimum``. Float constants are combined in float64 and rounded once.
    """

    name: ClassVar[str] = "gather-constants"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        single = single_use(graph)

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            found = _reassociate(node, builder, single) or _constant_second(node, builder)
            if found is not None and node.output in single:
                single.add(found)
            return found

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} nodes",) if count else ())


def _constant_second(node: Node, builder: GraphBuilder) -> Value | None:
    if node.op not in COMMUTATIVE:
        return None
    left, right = node.present_inputs
    if builder.array(left) is None or builder.array(right) is not None:
        return None
    return builder.emit(node.op, right, left, name=node.name, **node.attrs)


def _reassociate(node: Node, builder: GraphBuilder, single: set[Value]) -> Value | None:
    combine = _ASSOCIATIVE.get(node.op)
    if combine is None:
        return None
    x, b = _split(node, builder)
    inner = None if x is None else builder.producer(x)
    if x is None or b is None or inner is None or inner.op != node.op or x not in single:
        return None
    base, a = _split(inner, builder)
    if base is None or a is None:
        return None
    first, second = builder.constants[a].array, builder.constants[b].array
    shape = np.broadcast_shapes(first.shape, second.shape)
    if prod(shape) > max(first.size, second.size):
        return None
    if first.dtype.kind in "iub":
        total = combine(first, second)
    else:
        total = combine(first.astype(np.float64), second.astype(np.float64)).astype(first.dtype)
    return builder.emit(node.op, base, builder.constant(total), name=node.name, **node.attrs)


def _split(node: Node, builder: GraphBuilder) -> tuple[Value | None, Value | None]:
    """A binary node as (what is computed, the constant), in whichever order they stand; Nones where it is not one of each."""
    left, right = node.present_inputs
    if builder.array(right) is not None and builder.array(left) is None:
        return left, right
    if builder.array(left) is not None and builder.array(right) is None:
        return right, left
    return None, None


@register_pass
@dataclass(frozen=True)
class EqualizeRanks:
    """Elementwise operands of lower rank than the result are reshaped to it with leading ones, so that channels are in the same place.

    ``add(f32[1, 8, 4, 4], f32[8, 1, 1])`` reads ``f32[1, 8, 1, 1]`` instead; constants are reshaped at once. What has one element for all
    channels stays as it is: no layout changes it.
    """

    name: ClassVar[str] = "equalize-ranks"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        done: dict[tuple[Value, int], Value] = {}

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            rank = node.output.type.rank
            wrong = [v for v in node.present_inputs if v.type.rank != rank and (v in builder.constants or _has_channels(v, rank))]
            if not is_elementwise(node) or not wrong:
                return None
            inputs = [_with_rank(v, rank, builder, done) if v in wrong else v for v in node.inputs]
            return builder.emit(node.op, *inputs, name=node.name, **node.attrs)

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} nodes",) if count else ())


def _has_channels(value: Value, rank: int) -> bool:
    """Whether a value that broadcasts to a result of that rank differs along the result's axis 1."""
    axis = 1 - (rank - value.type.rank)
    return 0 <= axis < value.type.rank and value.type.shape[axis] != 1


def _with_rank(value: Value, rank: int, builder: GraphBuilder, done: dict[tuple[Value, int], Value]) -> Value:
    found = done.get((value, rank))
    if found is None:
        shape = (*(1,) * (rank - value.type.rank), *value.type.shape)
        array = builder.array(value)
        if array is not None:
            found = builder.constant(array.reshape((1,) * (rank - array.ndim) + array.shape), name=value.name)
        else:
            found = builder.emit("reshape", value, shape=shape)
        done[value, rank] = found
    return found
