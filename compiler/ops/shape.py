"""Reshaping and shape computation: views, and integers that follow from shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, broadcast_part, reshaped, sizes
from compiler.ir.broadcast import meetings
from compiler.ir.graph import Array, Region, Value
from compiler.ir.intexpr import Dim, floordiv, maximum, minimum, product
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.run_time import is_equal, is_negative, is_positive, natural
from compiler.ir.types import DType, TensorType
from compiler.ops.dims import iota
from compiler.ops.run_time_axes import named, spread, without
from compiler.ops.simplify_moves import twice, unchanged
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_dims,
    attr_ints,
    axes_of,
    axis_symbol,
    cast_to,
    divide,
    first_type,
    normalize_axes,
    normalize_axis,
    onnx_dtype,
    reshape,
    scalar_like,
)

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
_ONES = _X.reshape(1, 2, 1, 12)
_EMPTY = np.zeros((0, 3, 4), np.float32)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


@register
class Reshape(Op):
    """The same elements under another shape (attribute ``shape``, dims); a view of its operand."""

    name = "reshape"
    simplifications = (unchanged, twice)
    families = ("injective",)
    dims_foldable = True
    takes_strings = True
    is_view = True
    samples = (
        Sample("Reshape", (_X, _ints(4, 6)), constant=(1,)),
        Sample("Reshape", (_X, _ints(0, -1)), constant=(1,)),
        Sample("Reshape", (_EMPTY, _ints(0, 12)), {"allowzero": 1}, constant=(1,)),
        Sample("Flatten", (_X,)),
        Sample("Flatten", (_X,), {"axis": 0}),
        Sample("Flatten", (_X,), {"axis": -1}),
        Sample("Squeeze", (_ONES, _ints(0, -2)), constant=(1,)),
        Sample("Squeeze", (_ONES,)),
        Sample("Squeeze", (_ONES,), {"axes": [2]}, opset=11),
        Sample("Unsqueeze", (_X, _ints(0, -1)), constant=(1,)),
        Sample("Unsqueeze", (_X,), {"axes": [1]}, opset=11),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, shape = first_type(inputs), attr_dims(attrs, "shape")
        before, after = product(x.shape), product(shape)
        if isinstance(before, int) and isinstance(after, int) and before != after:
            raise UnsupportedForm(f"{before} elements of shape {_show(x.shape)} do not fit shape {_show(shape)} of {after}")
        return (TensorType(x.dtype, shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (array(inputs[0]).reshape(attr_ints(attrs, "shape")),)

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        x, shape = first_type(inputs), attr_dims(attrs, "shape")
        return Layouts.SAME if x.rank >= 2 and len(shape) >= 2 and x.shape[:2] == shape[:2] else Layouts.PLAIN

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        found = reshaped(box, attr_ints(attrs, "shape"), inputs[0].static_shape)
        return None if found is None else Part((found,), {"shape": sizes(box)})


def _show(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _reshape(context: FormContext) -> Value:
    x = context.input(0)
    wanted = tuple(context.attrs["shape"]) if "shape" in context.attrs else context.require_dims(1, "the new shape")
    keep_zero = bool(context.attrs.get("allowzero", 0))
    if any(not isinstance(dim, int) and not context.builder.is_size(dim) for dim in wanted):
        return reshape(context, x, context.settled(_shape_of_run(context, x, wanted, keep_zero=keep_zero)))
    dims = list(wanted)
    for axis, dim in enumerate(wanted):
        if dim == 0 and not keep_zero:
            if axis >= x.type.rank:
                raise UnsupportedForm(f"shape {_show(wanted)} copies axis {axis} of an input of rank {x.type.rank}")
            dims[axis] = x.type.shape[axis]
    if dims.count(-1) > 1:
        raise UnsupportedForm(f"shape {_show(wanted)} has more than one -1")
    if -1 in dims:
        at = dims.index(-1)
        dims[at] = divide(x.type.shape, dims[:at] + dims[at + 1 :])
    if any(isinstance(dim, int) and dim < 0 for dim in dims):
        raise UnsupportedForm(f"shape {_show(wanted)} has a negative dim")
    return _reshaped(context, x, dims)


def _reshaped(context: FormContext, x: Value, dims: Sequence[Dim]) -> Value:
    """x under another shape of, as is checked, as many elements."""
    total = product(x.type.shape)
    context.check(total, product(dims), total, f"its result of shape {_show(dims)} would have {{value}} elements, and its input has {{low}}")
    return reshape(context, x, dims)


def _shape_of_run(context: FormContext, x: Value, wanted: Sequence[Dim], *, keep_zero: bool) -> list[Dim]:
    """What a shape asks for when its numbers are computed at run time: each may be a size, 0 (x's dim) or -1 (what is left)."""
    total = product(x.type.shape)
    copied: list[Dim] = []
    for axis, dim in enumerate(wanted):
        context.check(-1, dim, None, "its new shape has a dim of {value}")
        zero = 0 if keep_zero or axis >= x.type.rank else 1 - is_positive(dim) - is_negative(dim)
        copied.append(natural(dim) + zero * x.type.shape[axis] if zero != 0 else natural(dim))
    left = [is_negative(dim) for dim in wanted]
    context.check(None, sum(left, start=0), 1, "its new shape has {value} dims of -1")
    rest = product([context.builder.define(size + minus) for size, minus in zip(copied, left, strict=True)])
    inferred = context.builder.define(floordiv(total, maximum(rest, 1)))
    dims = [size if minus == 0 else size + minus * inferred for size, minus in zip(copied, left, strict=True)]
    found = [context.builder.define(dim) for dim in dims]
    context.check(total, product(found), total, "its new shape has {value} elements, and its input {low}")
    return found


def _flatten(context: FormContext) -> Value:
    x = context.input(0)
    axis = int(context.attrs.get("axis", 1))
    axis = axis if axis == x.type.rank else normalize_axis(axis, x.type.rank)
    return reshape(context, x, (product(x.type.shape[:axis]), product(x.type.shape[axis:])))


def _axes_unknown(context: FormContext) -> bool:
    """Whether the axes in input 1 are computed at run time."""
    return context.optional(1) is not None and context.dims(1) is None


def _squeeze(context: FormContext) -> Value:
    x = context.input(0)
    if _axes_unknown(context):
        unknown = context.require_dims(1, "the axes")
        hits = named(context, unknown, x.type.rank)
        for dim, hit in zip(x.type.shape, hits, strict=True):
            context.check(0, hit * (1 - dim), 0, "an axis that is not of one element cannot be squeezed")
        return reshape(context, x, context.settled(without(context, x.type.shape, hits, x.type.rank - len(unknown))))
    given = axes_of(context, 1)
    if given is None:
        axes: tuple[int, ...] = tuple(axis for axis, dim in enumerate(x.type.shape) if dim == 1)
        for axis, dim in enumerate(x.type.shape):
            if not isinstance(dim, int):
                context.check(1, (dim - 1) * (dim - 1), None, f"axis {axis} turns out to be 1, and would be squeezed: name the axes")
    else:
        axes = normalize_axes(given, x.type.rank)
        for axis in axes:
            if isinstance(x.type.shape[axis], int) and x.type.shape[axis] != 1:
                raise UnsupportedForm(f"axis {axis} of {x.type} is not 1 and cannot be squeezed")
            context.check(1, x.type.shape[axis], 1, f"axis {axis} of its input has {{value}} elements and cannot be squeezed")
    return reshape(context, x, [dim for axis, dim in enumerate(x.type.shape) if axis not in axes])


def _unsqueeze(context: FormContext) -> Value:
    x = context.input(0)
    if _axes_unknown(context):
        unknown = context.require_dims(1, "the axes")
        return reshape(context, x, context.settled(spread(context, x.type.shape, named(context, unknown, x.type.rank + len(unknown)))))
    given = axes_of(context, 1)
    if given is None:
        raise UnsupportedForm("axes are missing")
    axes = normalize_axes(given, x.type.rank + len(given))
    rest = iter(x.type.shape)
    return reshape(context, x, [1 if axis in axes else next(rest) for axis in range(x.type.rank + len(axes))])


Reshape.forms = (
    OnnxForm("Reshape", _reshape),
    OnnxForm("Flatten", _flatten),
    OnnxForm("Squeeze", _squeeze),
    OnnxForm("Unsqueeze", _unsqueeze),
)


def _advance(dim: Dim, out: Dim) -> Dim:
    """How far a step along an axis of length ``out`` moves in an operand's of length ``dim``: 0 where that is 1, or turns out to be."""
    if dim == out:
        return 1
    return 0 if isinstance(dim, int) else minimum(1, dim - 1)


@register
class Expand(Op):
    """The operand broadcast to ``shape`` (dims), which it must broadcast to without changing it."""

    name = "expand"
    simplifications = (unchanged, twice)
    families = ("injective",)
    dims_foldable = True
    takes_strings = True
    samples = (
        Sample("Expand", (_X, _ints(2, 1, 1, 4)), constant=(1,)),
        Sample("Expand", (_ONES, _ints(3, 1, 4, 1)), constant=(1,)),
        Sample("Expand", (_X.reshape(2, 1, 12), _ints(2, 3, 12)), constant=(1,)),
        Sample("Expand", (np.array(3, np.int64), _ints(2, 2)), constant=(1,)),
        Sample("Tile", (_X, _ints(1, 2, 3)), constant=(1,)),
        Sample("Tile", (_X, _ints(1, 0, 3)), constant=(1,)),
        Sample("ConstantOfShape", (_ints(2, 3),), constant=(0,)),
        Sample("ConstantOfShape", (_ints(2, 0),), {"value": np.array([5], np.int64)}, constant=(0,)),
        Sample("EyeLike", (_X[0],), {"k": 1}),
        Sample("EyeLike", (_X[0],), {"dtype": 7}),
        Sample("Range", (np.array(1, np.int64), np.array(10, np.int64), np.array(3, np.int64)), constant=(0, 1, 2)),
        Sample("Range", (np.array(3, np.float32), np.array(-1, np.float32), np.array(-0.75, np.float32)), constant=(0, 1, 2)),
        Sample("Constant", (), {"value": _X}),
        Sample("Constant", (), {"value_float": 1.5}),
        Sample("Constant", (), {"value_ints": [1, 2, 3]}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, shape = first_type(inputs), attr_dims(attrs, "shape")
        for dim, out in zip(reversed(x.shape), reversed(shape), strict=False):
            if isinstance(dim, int) and dim not in (1, out):
                raise UnsupportedForm(f"shape {_show(x.shape)} does not broadcast to {_show(shape)}")
        if x.rank > len(shape):
            raise UnsupportedForm(f"shape {_show(x.shape)} does not broadcast to {_show(shape)}")
        return (TensorType(x.dtype, shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.broadcast_to(array(inputs[0]), attr_ints(attrs, "shape")),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        return Part((broadcast_part(inputs[0].static_shape, box),), {"shape": sizes(box)})

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        x, shape = inputs[0], attr_dims(attrs, "shape")
        added = len(shape) - x.rank
        index = tuple(axis_symbol(added + axis) * _advance(dim, shape[added + axis]) for axis, dim in enumerate(x.shape))
        return (Region((0,) * len(shape), shape, 0, index),)


def _broadcast_dim(context: FormContext, dim: Dim, asked: Dim) -> Dim:
    """What a dim becomes when ``asked`` for."""
    if dim == asked or asked == 1:
        return dim
    if dim == 1:
        if not isinstance(asked, int):
            context.check(0, asked, None, "its new shape has a dim of {value}")
        return asked
    for meeting in meetings([(dim,), (asked,)]):
        return context.builder.meet(meeting, context.place)
    if isinstance(asked, int):
        context.check(asked, dim, asked, "a dim of {value} is to become {low}")
        return asked
    context.check(0, (asked - 1) * (asked - dim), 0, f"a dim of {dim} is to become {asked}, which at run time is neither that nor 1")
    return dim


def expand(context: FormContext, x: Value, wanted: Sequence[Dim]) -> Value:
    """x broadcast with a shape."""
    rank = max(x.type.rank, len(wanted))
    have = (1,) * (rank - x.type.rank) + x.type.shape
    asked = (1,) * (rank - len(wanted)) + tuple(wanted)
    shape = context.settled([_broadcast_dim(context, a, b) for a, b in zip(have, asked, strict=True)])
    return context.emit("expand", x, shape=shape)


def _expand(context: FormContext) -> Value:
    return expand(context, context.input(0), context.require_dims(1, "the new shape"))


def _tile(context: FormContext) -> Value:
    x, repeats = context.input(0), context.require_dims(1, "the repeats")
    for repeat in repeats:
        context.check(0, repeat, None, "it repeats its input {value} times")
    if len(repeats) != x.type.rank:
        raise UnsupportedForm(f"{len(repeats)} repeats for an input of rank {x.type.rank}")
    split = [part for dim in x.type.shape for part in (1, dim)]
    spread = [part for dim, repeat in zip(x.type.shape, repeats, strict=True) for part in (repeat, dim)]
    tiled = context.emit("expand", reshape(context, x, split), shape=tuple(spread))
    return reshape(context, tiled, context.settled([dim * repeat for dim, repeat in zip(x.type.shape, repeats, strict=True)]))


def _constant_of_shape(context: FormContext) -> Value:
    value = context.attrs.get("value", np.zeros(1, np.float32))
    return expand(context, context.const(np.asarray(value).reshape(())), context.require_dims(0, "the shape"))


def _eye_like(context: FormContext) -> Value:
    x = context.input(0)
    if x.type.rank != 2:
        raise UnsupportedForm(f"its input is {x.type}, not a matrix")
    rows, columns = x.type.shape
    dtype = onnx_dtype(context.attrs["dtype"]) if "dtype" in context.attrs else x.type.dtype
    down, across = (reshape(context, iota(context, dim), shape) for dim, shape in ((rows, (rows, 1)), (columns, (1, columns))))
    diagonal = context.emit("add", down, scalar_like(context, down, int(context.attrs.get("k", 0))))
    return cast_to(context, context.emit("equal", diagonal, across), dtype)


def _range(context: FormContext) -> Value:
    bounds = [context.constant(index) for index in range(3)]
    start, limit, delta = bounds
    if start is None or limit is None or delta is None:
        return _range_at_run_time(context)
    count = max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))
    return context.const((start.reshape(()) + np.arange(count).astype(start.dtype) * delta.reshape(())).astype(start.dtype))


def _range_at_run_time(context: FormContext) -> Value:
    """``start + i * delta``; how many there are is computed from the bounds, for floats in their own type."""
    start, limit, delta = (reshape(context, context.input(index), ()) for index in range(3))
    if start.type.dtype.is_float:
        steps = context.emit("ceil", context.emit("div", context.emit("sub", limit, start), delta))
        (count,) = context.builder.bind(cast_to(context, steps, DType.INT64))
    else:
        (first,), (end,), (step,) = (context.builder.bind(bound) for bound in (start, limit, delta))
        context.check(0, is_equal(step, 0), 0, "the distance of two elements is 0")
        count = -floordiv(first - end, step)
    (length,) = context.settled([natural(count)])
    places = cast_to(context, iota(context, length), start.type.dtype)
    return context.emit("add", start, context.emit("mul", places, delta))


_LITERALS: dict[str, type] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def _constant(context: FormContext) -> Value:
    for key, data in context.attrs.items():
        if key in ("value", "sparse_value") and isinstance(data, np.ndarray):
            return context.const(data)
        if key in _LITERALS:
            return context.const(np.array(data, _LITERALS[key]))
    raise UnsupportedForm(f"a constant given by {', '.join(context.attrs) or 'nothing'} is not supported")


Expand.forms = (
    OnnxForm("Expand", _expand),
    OnnxForm("Tile", _tile, since=6),
    OnnxForm("ConstantOfShape", _constant_of_shape),
    OnnxForm("EyeLike", _eye_like),
    OnnxForm("Range", _range),
    OnnxForm("Constant", _constant),
)
