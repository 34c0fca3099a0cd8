"""What passes weigh against each other when they choose: sizes of tensors and the work of nodes, in rough numbers."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from compiler.ir.graph import Node
from compiler.ir.intexpr import Dim, evaluate, symbols
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, Scalar, calls

_UNKNOWN_DIM = 16
"""What a symbolic dim counts as."""

_FUNCTIONS = ("exp", "log", "tanh", "sigmoid", "erf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")
_COSTS = {"div": 4, "sqrt": 4, "mod": 16, "fmod": 16, "pow": 32, **dict.fromkeys(_FUNCTIONS, 16)}
"""What a scalar function costs that is more than one simple instruction."""


_NORMALIZED = {"softmax": 24, "normalize": 5}
"""What an element of a result costs that is one of many that are computed together."""


def estimate(dim: Dim) -> int:
    """A size, supposing what is not known."""
    return evaluate(dim, dict.fromkeys(symbols(dim), _UNKNOWN_DIM))


def expression(node: Node) -> Scalar | None:
    """The element of an elementwise node's result from those of its operands; None for any other node."""
    return lookup(node.op).scalar([Arg(i, v.type.dtype) for i, v in enumerate(node.present_inputs)], node.attrs)


def work(node: Node) -> int:
    """What an elementwise node costs for one element, in simple instructions."""
    expr = expression(node)
    return 0 if expr is None else sum(_COSTS.get(call.fn, 1) for call in calls(expr))


def element_work(node: Node) -> int:
    """What an element of a node's result costs, in multiplications and other simple instructions; its sizes are known."""
    sizes = [v.type.static_shape for v in node.present_inputs]
    match node.op:
        case "conv":
            return prod(sizes[1][1:])
        case "matmul":
            return sizes[0][-1]
        case "softmax" | "normalize":
            return _NORMALIZED[node.op]
    elements = max(1, prod(node.outputs[0].type.static_shape))
    return max(1, work(node), *(prod(shape) // elements for shape in sizes))


def group_work(nodes: Iterable[Node]) -> int:
    """What the nodes of a group's region cost, those of inner groups included; 0 for those of a size that only a run knows."""
    total = 0
    for node in nodes:
        if node.op == "group":
            total += group_work(node.regions[0].nodes)
        elif all(value.type.is_static for value in (*node.present_inputs, *node.outputs)):
            total += element_work(node) * prod(node.outputs[0].type.static_shape)
    return total
