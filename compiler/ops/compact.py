"""Results whose size depends on the data: NonZero, Compress and Unique."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, maximum, minimum, product
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.dims import iota, number
from compiler.ops.gather import running
from compiler.ops.index import slice_axis
from compiler.ops.support import Arrays, Attrs, Types, array, cast_to, first_type, known, normalize_axis, reshape, transpose

_X = np.array([[1, 0, 2, 2], [0, 0, -1, np.nan], [3, 1, 0, 0]], np.float32)
_WORDS = np.array([[1, 0, 0], [1, 0, 0], [2, 3, 4], [0, 9, 9]], np.float32)

_SORTED_COLUMNS = 256
"""Numbers in a row up to which rows are sorted, one column after another."""


@register
class NonzeroPositions(Op):
    """i64 ``[N + 1]`` for an operand of N elements: how many are not zero, then their row-major positions, ascending; the rest is unspecified."""

    name = "nonzero_positions"
    families = ("compact",)
    takes_epilogue = False
    samples = (
        Sample("NonZero", (_X,)),
        Sample("NonZero", (_X > 0,)),
        Sample("NonZero", (_X[:, 0].astype(np.int64),)),
        Sample("NonZero", (np.zeros((2, 0, 3), np.float32),)),
        Sample("NonZero", (np.zeros((2, 2), np.int32),)),
        Sample("Compress", (_X, np.array([True, False, True])), {"axis": 0}),
        Sample("Compress", (_X, np.array([False, True])), {"axis": -1}),
        Sample("Compress", (_X, np.array([False, True, True, False, False, True]))),
        Sample("Unique", (_X,), outputs=4),
        Sample("Unique", (np.array([2, 1, 1, 3, 4, 3], np.int64),), {"sorted": 0}, outputs=4),
        Sample("Unique", (_WORDS,), {"axis": 0}, outputs=4),
        Sample("Unique", (_WORDS,), {"axis": -1}, outputs=4),
        Sample("Unique", (np.array(["b", "", "a", "b", "ab", "é"], object),), outputs=4),
        Sample("Unique", (np.array(["b", "a", "b"], object),), {"sorted": 0}, outputs=4),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(DType.INT64, (product(first_type(inputs).shape) + 1,)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x = array(inputs[0])
        found = np.flatnonzero(x)
        return (np.concatenate([[found.size], found, np.full(x.size - found.size, -1)]).astype(np.int64),)


def selected(context: FormContext, mask: Value, limit: Dim | None = None) -> Value:
    """The row-major positions of the elements that are not zero, i64 ``[n]``; ``limit`` is their number where it is declared."""
    found = context.emit("nonzero_positions", mask)
    (count,) = context.builder.bind(slice_axis(context, found, 0, 0, 1), natural=True)
    if limit is not None:
        context.check(limit, count, limit, "{value} elements are selected, and the model declares {low}")
    return slice_axis(context, found, 0, 1, count if limit is None else limit)


def _declared(context: FormContext, axis: int) -> Dim | None:
    """The number of selected elements, where the model declares it as a dim of its first result."""
    shape = context.declared[0] if context.declared else None
    return None if shape is None or axis >= len(shape) else shape[axis]


def _nonzero(context: FormContext) -> Value:
    x = context.input(0)
    dims = x.type.shape or (1,)
    flat = selected(context, x, _declared(context, 1))
    rows = []
    for axis, dim in enumerate(dims):
        stride = product(dims[axis + 1 :])
        place = flat if stride == 1 else context.emit("div", flat, number(context, stride))
        place = place if axis == 0 else context.emit("mod", place, number(context, dim), fmod=False)
        rows.append(reshape(context, place, (1, *flat.type.shape)))
    return rows[0] if len(rows) == 1 else context.emit("concat", *rows, axis=0)


def _compress(context: FormContext) -> Value:
    x, mask = context.input(0), context.input(1)
    if mask.type.rank != 1:
        raise UnsupportedForm(f"the condition is {mask.type}, not a vector")
    if "axis" in context.attrs:
        axis = normalize_axis(int(context.attrs["axis"]), x.type.rank)
    else:
        x, axis = reshape(context, x, (product(x.type.shape),)), 0
    (length,) = mask.type.shape
    context.check(None, length, x.type.shape[axis], "its condition has {value} elements, more than the {high} of what they select from")
    return context.emit("gather", x, selected(context, mask, _declared(context, axis)), axis=axis)


def _unique(context: FormContext) -> Sequence[Value]:
    """Equal elements meet when sorted, the first one first; the results are computed from where they begin."""
    x = context.input(0)
    axis = normalize_axis(int(context.attrs["axis"]), x.type.rank) if "axis" in context.attrs else None
    front = (axis, *(a for a in range(x.type.rank) if a != axis)) if axis is not None else ()
    moved = transpose(context, x, front) if axis is not None else reshape(context, x, (product(x.type.shape),))
    total = moved.type.shape[0]
    rows = reshape(context, moved, (total, product(moved.type.shape[1:])))
    order = _row_order(context, rows)
    begins = _begins(context, context.emit("gather", rows, order, axis=0))
    starts = selected(context, begins, _declared(context, axis or 0))
    (count,) = starts.type.shape
    first = context.emit("gather", order, starts, axis=0)
    numbers = running(context, cast_to(context, begins, DType.INT64), 0, "add", 0)
    group = context.emit("sub", numbers, context.const(np.array(1, np.int64)))
    following = slice_axis(context, starts, 0, minimum(count, 1), maximum(count - 1, 0))
    end = context.emit("expand", number(context, total), shape=(minimum(count, 1),))
    sizes = context.emit("sub", context.emit("concat", following, end, axis=0), starts)
    if not context.attrs.get("sorted", 1):
        by_place = _order(context, first)
        group = context.emit("gather", _inverse(context, by_place, iota(context, count)), group, axis=0)
        first, sizes = (context.emit("gather", v, by_place, axis=0) for v in (first, sizes))
    unique = context.emit("gather", moved, first, axis=0)
    if axis is not None:
        unique = transpose(context, unique, tuple(int(a) for a in np.argsort(front)))
    return [unique, first, _inverse(context, order, group), sizes]


def _order(context: FormContext, keys: Value) -> Value:
    """The positions of a vector's elements in ascending order."""
    op = "text_positions" if keys.type.dtype is DType.STRING else "top_positions"
    return context.emit(op, keys, axis=0, k=keys.type.shape[0], largest=False)


def _row_order(context: FormContext, rows: Value) -> Value:
    """The positions of rows in lexicographic order: stable sorts by one column after another, the first one last."""
    total, columns = rows.type.shape
    width = known(columns, "the size of what is compared")
    if width > _SORTED_COLUMNS:
        raise UnsupportedForm(f"slices of {width} elements are compared; at most {_SORTED_COLUMNS} are supported")
    keys = rows if rows.type.dtype is not DType.BOOL else cast_to(context, rows, DType.UINT8)
    order: Value | None = None
    for column in reversed(range(width)):
        key = reshape(context, slice_axis(context, keys, 1, column, 1), (total,))
        again = _order(context, key if order is None else context.emit("gather", key, order, axis=0))
        order = again if order is None else context.emit("gather", order, again, axis=0)
    return iota(context, total) if order is None else order


def _begins(context: FormContext, rows: Value) -> Value:
    """Whether each of the sorted rows differs from the one before it; NaN is equal to NaN."""
    total = rows.type.shape[0]
    before, after = (slice_axis(context, rows, 0, minimum(total, start), maximum(total - 1, 0)) for start in (0, 1))
    same = context.emit("equal_text" if rows.type.dtype is DType.STRING else "equal", before, after)
    if rows.type.dtype.is_float:
        both = context.emit("and", context.emit("is_nan", before), context.emit("is_nan", after))
        same = context.emit("or", same, both)
    different = cast_to(context, context.emit("not", same), DType.INT32)
    found = context.emit("reduce", different, kind="max", axes=(1,), keepdims=False)
    first = context.emit("expand", context.const(np.array(1, np.int32)), shape=(minimum(total, 1),))
    return cast_to(context, context.emit("concat", first, found, axis=0), DType.BOOL)


def _inverse(context: FormContext, places: Value, values: Value) -> Value:
    """The vector that has ``values[i]`` at ``places[i]``, every place being there once."""
    count = places.type.shape[0]
    empty = context.emit("expand", context.const(np.zeros((), np.int64)), shape=(count, 1))
    return reshape(context, context.emit("scatter", empty, places, reshape(context, values, (count, 1)), kind="none"), (count,))


NonzeroPositions.forms = (OnnxForm("NonZero", _nonzero), OnnxForm("Compress", _compress), OnnxForm("Unique", _unique))
