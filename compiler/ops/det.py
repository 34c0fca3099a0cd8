"""Det: determinants, by elimination with row pivoting, one column after another."""

from __future__ import annotations

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ops.index import slice_axis
from compiler.ops.reduce import ArgReduce
from compiler.ops.support import known_shape, reshape, scalar_like

_MOST_ROWS = 128
"""Beyond it the elimination's steps, about ten kernels each, would be more than a program should hold."""

_X = np.array([[0.0, 2.0, -1.0], [3.0, 0.5, 4.0], [-2.0, 1.0, 1.5]], np.float32)


def _det(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Det.html: the product of the pivots, with the sign of the rows' exchanges."""
    x = context.input(0)
    *outer, rows, columns = known_shape(x, "the matrices")
    if rows != columns or rows > _MOST_ROWS:
        raise UnsupportedForm(f"matrices of {rows} x {columns}; square ones of up to {_MOST_ROWS} rows are possible")
    total: Value = context.const(np.ones((), x.type.dtype.numpy))
    for size in range(rows, 0, -1):
        pivot, x = _eliminated(context, x, size)
        total = context.emit("mul", total, reshape(context, pivot, outer))
    return context.emit("expand", total, shape=tuple(outer))


def _eliminated(context: FormContext, x: Value, size: int) -> tuple[Value, Value]:
    """The pivot of the first column of ``[..., size, size]`` with its sign, and the matrix without that column and the pivot's row."""
    row, column = x.type.rank - 2, x.type.rank - 1
    first = slice_axis(context, x, column, 0, 1)
    if size == 1:
        return first, x
    best = context.emit("arg_reduce", context.emit("abs", first), kind="max", axis=row, keepdims=True, last=False)
    is_best = context.emit("equal", best, context.const(np.arange(size, dtype=np.int64).reshape(-1, 1)))
    chosen = context.emit("where", is_best, x, scalar_like(context, x, 0))
    pivot_row = context.emit("reduce", chosen, kind="sum", axes=(row,), keepdims=True)
    # The first row takes the pivot row's place, which is an exchange unless they are one.
    others = slice_axis(context, context.emit("where", is_best, slice_axis(context, x, row, 0, 1), x), row, 1, size - 1)
    lower, rest = slice_axis(context, others, column, 0, 1), slice_axis(context, others, column, 1, size - 1)
    pivot = slice_axis(context, pivot_row, column, 0, 1)
    zero = context.emit("equal", pivot, scalar_like(context, x, 0))
    divisor = context.emit("where", zero, scalar_like(context, x, 1), pivot)
    removed = context.emit("mul", context.emit("div", lower, divisor), slice_axis(context, pivot_row, column, 1, size - 1))
    stays = context.emit("equal", best, context.const(np.array(0, np.int64)))
    return context.emit("where", stays, pivot, context.emit("neg", pivot)), context.emit("sub", rest, removed)


extend(
    ArgReduce,
    forms=(OnnxForm("Det", _det, since=11),),
    samples=(
        Sample("Det", (_X,)),
        Sample("Det", (_X[:1, 1:2],)),
        Sample("Det", (np.stack([_X, _X[::-1], np.ones((3, 3), np.float32), np.eye(3, dtype=np.float32)]).reshape(2, 2, 3, 3),)),
        Sample("Det", (np.sin(np.arange(36) ** 2 * 0.7).reshape(6, 6),)),
        Sample("Det", (np.zeros((0, 2, 2), np.float32),)),
    ),
)
