"""Per-channel scaling and shifting after a convolution or matrix product, folded into its weights: BatchNorm folding, in general."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Graph, Node, Value
from compiler.ir.types import compute_dtype
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use

_AXES = {"conv": (0, 1), "matmul": (-1, -1)}
"""Ops linear in constant weights (operand 1): the weights' axis of output channels, and the result's."""


@register_pass
@dataclass(frozen=True)
class FoldAffine:
    """A chain of ``mul``, ``add``, ``sub`` and ``div`` by per-channel or uniform constants after ``conv`` or ``matmul`` becomes scaled
    weights and at most one ``add``, computed in float64 and rounded once. Weights in half precision, which another rounding could take out
    of range, stay as they are.

    ``%c = conv(%x, %w); %m = mul(%c, %s); %a = add(%m, %t)`` becomes ``%c = conv(%x, %w·s); %a = add(%c, %t)``.
    """

    name: ClassVar[str] = "fold-affine"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        chains = _chains(graph)
        linears: dict[Value, Node] = {}

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            if node.op in _AXES:
                linears[node.output] = node
            chain = chains.get(node.output)
            return None if chain is None else chain.emit(linears[chain.linear], builder)

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, tuple(f"{len(chain.nodes)} nodes into {chain.linear.name}" for chain in chains.values()))


@dataclass(frozen=True, eq=False)
class _Chain:
    """``nodes`` take the result ``linear`` to ``linear * scale + shift``, float64 vectors over channels."""

    linear: Value
    weights: Array
    nodes: tuple[Node, ...]
    scale: Array
    shift: Array

    @property
    def worthwhile(self) -> bool:
        """Whether fewer nodes are left, with finite numbers in them."""
        finite = bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))
        return finite and len(self.nodes) > bool(np.any(self.shift))

    def emit(self, linear: Node, builder: GraphBuilder) -> Value:
        """The folded nodes; ``linear`` is the product with its operands as they are by now."""
        weights_axis, channel_axis = _AXES[linear.op]
        dtype = self.weights.dtype
        weights = (self.weights.astype(np.float64) * _along(self.scale, weights_axis, self.weights.ndim)).astype(dtype)
        x = linear.present_inputs[0]
        value = builder.emit(linear.op, x, builder.constant(weights), name=linear.name, **linear.attrs)
        if not np.any(self.shift):
            return value
        shift = _along(self.shift, channel_axis, value.type.rank).astype(dtype)
        return builder.emit("add", value, builder.constant(shift), name=self.nodes[-1].name)


def _chains(graph: Graph) -> Mapping[Value, _Chain]:
    """The chains worth folding, by the value they end in."""
    single = single_use(graph)
    found: dict[Value, _Chain] = {}
    for linear in graph.nodes:
        if linear.op not in _AXES:
            continue
        weights = graph.constant_array(linear.inputs[1])
        dtype = linear.output.type.dtype
        if weights is None or weights.ndim < 2 or not dtype.is_float or compute_dtype(dtype) is not dtype:
            continue
        weights_axis, channel_axis = _AXES[linear.op]
        channels = weights.shape[weights_axis]
        scale, shift = np.ones(channels), np.zeros(channels)
        value, nodes = linear.output, []
        while value in single:
            (node,) = graph.users[value]
            step = _affine(graph, node, value, channel_axis, channels)
            if step is None:
                break
            scale, shift = scale * step[0], shift * step[0] + step[1]
            nodes.append(node)
            value = node.output
        chain = _Chain(linear.output, weights, tuple(nodes), scale, shift)
        if chain.worthwhile:
            found[value] = chain
    return found


def _affine(graph: Graph, node: Node, value: Value, axis: int, channels: int) -> tuple[Array, Array] | None:
    """node as ``(scale, shift)`` of value, vectors or numbers in float64; None where it is not one."""
    if node.op not in ("mul", "add", "sub", "div") or node.output.type != value.type:
        return None
    left, right = node.present_inputs
    other = graph.constant_array(right if left is value else left)
    if other is None:
        return None
    shape = [1] * value.type.rank
    shape[axis] = channels
    aligned = (1,) * (len(shape) - other.ndim) + other.shape
    if other.ndim > len(shape) or any(n not in (1, limit) for n, limit in zip(aligned, shape, strict=True)):
        return None
    one, zero, number = np.ones(1), np.zeros(1), other.reshape(-1).astype(np.float64)
    match node.op:
        case "add":
            return one, number
        case "mul":
            return number, zero
        case "sub":
            return (one, -number) if left is value else (-one, number)
        case _:
            with np.errstate(divide="ignore"):
                return (1 / number, zero) if left is value else None


def _along(vector: Array, axis: int, rank: int) -> Array:
    """A vector laid along one axis of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
