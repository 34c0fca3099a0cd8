"""Evaluation, at compile time, of nodes whose operands are constants."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from compiler.errors import UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.control import own_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite


@register_pass
@dataclass(frozen=True)
class ConstantFold:
    """Nodes over constants become constants.

    ``growth_bytes`` bounds the result's elements beyond as many as its operands have: a broadcast scalar stays a node, and weights
    that are converted to a wider type are folded.
    """

    growth_bytes: int = 1 << 16
    name: ClassVar[str] = "constant-fold"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        result, folded = rewrite(graph, self._fold)
        return PassResult(result, folded > 0, (f"{folded} nodes",) if folded else ())

    def _fold(self, node: Node, builder: GraphBuilder) -> Value | None:
        arrays = [None if v is None else builder.array(v) for v in node.inputs]
        if (
            node.op == "identity"
            or node.regions
            or own_symbols(node)
            or any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True))
        ):
            return None
        type_ = node.output.type
        if (prod(type_.static_shape) - sum(a.size for a in arrays if a is not None)) * type_.dtype.itemsize > self.growth_bytes:
            return None
        try:
            (array,) = lookup(node.op).evaluate(arrays, node.attrs)
        except ZeroDivisionError:  # a run that comes here reports it
            return None
        except (ArithmeticError, LookupError, ValueError) as error:
            where = f"node {node.name or node.output.name}"
            raise UserError(f"{node.op} of these constants: {error}", where=where, hint="mend the constants in the model") from error
        return builder.constant(array, name=node.output.name)
