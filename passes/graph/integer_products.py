"""Products and means between dequantised and quantised tensors, computed on the integers themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Graph, Node, Value
from compiler.ir.intexpr import product
from compiler.ir.op import lookup
from compiler.ir.types import DType
from compiler.ir.verify import Stage
from compiler.ops.integer import EXACT, Parameters, requantized_sum
from compiler.ops.support import attr_ints
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite, single_use

_MOVES = ("transpose", "reshape")
_CLAMPS = ("relu", "clip")
_OPERANDS = (DType.INT8, DType.UINT8)
_RESULTS = (*_OPERANDS, DType.INT16, DType.UINT16)
_SAME = 2.0**-22
"""How far from 1 a ratio of scales may be that is 1 but for the rounding of the scales; relative."""


@register_pass
@dataclass(frozen=True)
class IntegerProducts:
    """``quantize(f(dequantize(x), dequantize(w)) + bias)`` without the scales inside: ``requantize(f(x, w) + bias)``.

    f is a convolution, a matrix product or a mean. A sum of two dequantised tensors becomes ``requantize_sum``.

    The integers, less their zero points, are float32 values; sums below 2²⁴ are exact, so that the result is that of integer arithmetic,
    whatever the order of the sum. Scales and zero points must be constants, and the integers of 8 bits. The scales meet in one multiplier
    ``(x_scale * w_scale) / y_scale``, rounded to float32 at each step. A bias joins the sum where it is a whole number of the products' units, as
    quantisers make it; one that is not joins behind the multiplication, so that it leaves the sum exact. A relu or clip before the quantisation
    bounds the integers instead.
    """

    name: ClassVar[str] = "integer-products"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        alone = single_use(graph)
        result, count = rewrite(graph, lambda node, builder: _requantized(node, builder, alone))
        return PassResult(result, count > 0, (f"{count} products and means",) if count else ())


@dataclass(frozen=True)
class _Operand:
    """A dequantised value behind nodes that move its elements, first to last; ``scale`` broadcasts against what they make."""

    dequantize: Node
    moves: tuple[Node, ...]
    scale: Array

    def integers(self, builder: GraphBuilder, *, centered: bool = True) -> Value:
        """The integers; ``centered``: less their zero point, in float32."""
        value, _, *zero_point = self.dequantize.present_inputs
        if centered:
            value = builder.emit("cast", value, to=DType.FLOAT32)
        if centered and zero_point:
            value = builder.emit("sub", value, builder.emit("cast", zero_point[0], to=DType.FLOAT32))
        for move in self.moves:
            (value,) = builder.emit_multi(move.op, (value,), dict(move.attrs))
        return value

    @property
    def parameters(self) -> Parameters | None:
        """Scale and zero point of the whole tensor; None where there are several."""
        _, *parameters = self.dequantize.present_inputs
        if any(value.type.rank for value in parameters):
            return None
        return parameters[0], parameters[1] if len(parameters) > 1 else None


@dataclass(frozen=True)
class _Sum:
    """A sum of products: ``core`` of ``operands``, in units of ``scale / count``, and a bias, which is a real number."""

    core: Node
    operands: tuple[_Operand, ...]
    scale: Array
    count: int
    bias: Array | None


def _requantized(node: Node, builder: GraphBuilder, alone: set[Value]) -> Value | None:
    if node.op != "quantize" or node.output.type.dtype not in _RESULTS:
        return None
    x, *parameters = node.present_inputs
    y_scale, *y_zero = (builder.array(v) for v in parameters)
    if y_scale is None or y_scale.dtype != np.float32 or any(zero is None for zero in y_zero):
        return None
    clamps: list[Node] = []
    while (clamp := _producer(builder, x, *_CLAMPS)) is not None and x in alone:
        clamps.append(clamp)
        x = clamp.present_inputs[0]
    result = _of_products(node, builder, x, y_scale, alone) or _of_two(node, builder, x, alone)
    if result is None:
        return None
    for op, bound in _bounds(reversed(clamps)):
        (integers,) = lookup("quantize").evaluate([np.array(bound, np.float32), y_scale, *y_zero], node.attrs)
        result = builder.emit(op, result, builder.constant(np.array(integers)))
    return result


def _of_products(node: Node, builder: GraphBuilder, x: Value, y_scale: Array, alone: set[Value]) -> Value | None:
    """The quantised sum of products x."""
    found = _sum(builder, x, alone)
    if found is None:
        return None
    total = builder.emit(found.core.op, *(part.integers(builder) for part in found.operands), name=found.core.name, **found.core.attrs)
    to, parameters, offset = node.output.type.dtype, node.present_inputs[2:], np.zeros(())
    with np.errstate(all="ignore"):
        multiplier = np.asarray(found.scale / (y_scale * np.float32(found.count)), np.float32)
        if found.bias is not None:
            whole, rest = _units(found.bias, found.scale.astype(np.float64) / found.count)
            total = builder.emit("add", total, builder.constant(whole)) if np.any(whole) else total
            offset = rest / y_scale
    if np.any(offset):
        zero_point = parameters or (builder.constant(np.zeros((), to.numpy)),)
        parameters = (*zero_point, builder.constant(offset.astype(np.float32)))
    return builder.emit("requantize", total, builder.constant(multiplier), *parameters, name=node.name, to=to)


def _of_two(node: Node, builder: GraphBuilder, x: Value, alone: set[Value]) -> Value | None:
    """The quantised sum x of two dequantised tensors."""
    add = _producer(builder, x, "add")
    if add is None or x not in alone or node.present_inputs[1].type.rank:
        return None
    a, b = (_operand(builder, value) for value in add.present_inputs)
    if a is None or b is None or a.parameters is None or b.parameters is None:
        return None
    parts = [part.integers(builder, centered=False) for part in (a, b)]
    y = node.present_inputs[1], node.present_inputs[2] if len(node.present_inputs) > 2 else None
    return requantized_sum(builder.emit, parts[0], a.parameters, parts[1], b.parameters, y, node.output.type.dtype)


def _bounds(clamps: Iterable[Node]) -> Iterator[tuple[str, float]]:
    for clamp in clamps:
        low, high = (0.0, None) if clamp.op == "relu" else (clamp.attrs["low"], clamp.attrs["high"])
        for op, bound in (("maximum", low), ("minimum", high)):
            if isinstance(bound, (int, float)):
                yield op, float(bound)


def _producer(builder: GraphBuilder, value: Value, *ops: str) -> Node | None:
    node = builder.producer(value)
    return node if node is not None and node.op in ops else None


def _sum(builder: GraphBuilder, x: Value, alone: set[Value]) -> _Sum | None:
    """The sum of products that makes x; nothing else may read it or a value on the way."""
    bias: Array | None = None
    add = _producer(builder, x, "add")
    if add is not None and x in alone:
        x, bias = add.present_inputs[0], _constant(builder, add.present_inputs[1])
        if bias is None:
            return None
    factor = np.array(1, np.float32)
    times = _producer(builder, x, "mul")
    if times is not None and x in alone:
        x, data = times.present_inputs[0], builder.array(times.present_inputs[1])
        if data is None or data.size != 1:
            return None
        factor = data.reshape(())
    core = _producer(builder, x, "conv", "matmul", "reduce")
    if core is None or x not in alone:
        return None
    operands = [_operand(builder, value) for value in core.present_inputs]
    known = tuple(operand for operand in operands if operand is not None)
    scale = _scale(core, known) if len(known) == len(operands) else None
    if scale is None:
        return None
    count = _count(core)
    if not abs(float(factor) * count - 1) <= _SAME:
        scale, count = factor * scale, 1
    return _Sum(core, known, scale, count, bias)


def _count(core: Node) -> int:
    """How many elements of its operand each result is the sum of; 1 for products."""
    if core.op != "reduce":
        return 1
    count = product(tuple(core.present_inputs[0].type.shape[axis] for axis in attr_ints(core.attrs, "axes")))
    return count if isinstance(count, int) else 1


def _constant(builder: GraphBuilder, value: Value) -> Array | None:
    """The real numbers of a constant, of a dequantised one too, in float64; None for what is computed."""
    data = builder.array(value)
    if data is not None:
        return data.astype(np.float64)
    node = _producer(builder, value, "dequantize", "reshape")
    if node is None:
        return None
    if node.op == "reshape":
        inner = _constant(builder, node.present_inputs[0])
        return None if inner is None else inner.reshape(node.output.type.static_shape)
    integers, scale, *zero_point = (builder.array(v) for v in node.present_inputs)
    if integers is None or scale is None or any(zero is None for zero in zero_point):
        return None
    centered = integers.astype(np.float64) - sum(zero.astype(np.float64) for zero in zero_point if zero is not None)
    return np.asarray(centered * scale.astype(np.float64))


def _units(bias: Array, scale: Array) -> tuple[Array, Array]:
    """A bias as whole numbers of a scale, in float32, where it is some but for the rounding of its own scale, and the rest of it as it is."""
    exact = bias / scale
    nearest = np.rint(exact)
    whole = (np.abs(exact - nearest) <= _SAME * np.abs(nearest)) & (np.abs(nearest) < EXACT)
    return np.where(whole, nearest, 0).astype(np.float32), np.where(whole, 0, bias)


def _operand(builder: GraphBuilder, value: Value) -> _Operand | None:
    """The dequantised integers of 8 bits behind a value, with a constant scale; None where it is something else."""
    node = _producer(builder, value, "dequantize", *_MOVES)
    if node is None:
        return None
    if node.op == "dequantize":
        scale = builder.array(node.present_inputs[1])
        if scale is None or node.present_inputs[0].type.dtype not in _OPERANDS or node.output.type.dtype is not DType.FLOAT32:
            return None
        return _Operand(node, (), _ranked(scale.astype(np.float32), value.type.rank))
    inner = _operand(builder, node.present_inputs[0])
    if inner is None:
        return None
    if inner.scale.size == 1:
        scale = inner.scale.reshape((1,) * value.type.rank)
    elif node.op == "transpose":
        (scale,) = lookup("transpose").evaluate([inner.scale], node.attrs)
    else:
        return None
    return _Operand(inner.dequantize, (*inner.moves, node), scale)


def _ranked(scale: Array, rank: int) -> Array:
    return scale.reshape((1,) * (rank - scale.ndim) + scale.shape)


def _scale(core: Node, operands: tuple[_Operand, ...]) -> Array | None:
    """The product of the operands' scales against the core's result; None where they do not leave the sums, which run along other axes."""
    scales = [operand.scale for operand in operands]
    if core.op == "reduce":
        return scales[0].reshape(()) if core.attrs["kind"] == "sum" and scales[0].size == 1 else None
    x, w = scales
    if core.op == "matmul":
        return x * w if x.shape[-1] == w.shape[-2] == 1 else None
    if x.size != 1 or w.size != w.shape[0]:
        return None
    return x.reshape(()) * w.reshape(1, -1, *(1,) * (w.ndim - 2))
