"""Which nodes' kernels may end a run."""

from __future__ import annotations

from compiler.ir.graph import Node
from compiler.ir.op import lookup
from compiler.ir.pieces import moves
from compiler.ir.scalar import divisors
from compiler.ir.verify import is_elementwise
from passes.analysis.estimate import expression

_ANCHORS = frozenset({"conv", "matmul", "normalize", "pool", "reduce", "softmax", "to_layout"})
"""Anchors, beside index maps, whose kernels report nothing."""


def reports_nothing(node: Node) -> bool:
    """Whether no run ends with an error at a node of a group."""
    if is_elementwise(node):
        expr = expression(node)
        return expr is not None and not divisors(expr)
    return node.op in _ANCHORS or moves(node) or lookup(node.op).regions([v.type for v in node.present_inputs], node.attrs) is not None
