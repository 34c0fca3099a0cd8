"""Reshaping and shape computation: views, and integers that follow from shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Node, Region, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, UnsupportedForm, register
from compiler.ir.types import TensorType
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_dims,
    attr_ints,
    axes_of,
    axis_symbol,
    divide,
    first_type,
    known,
    normalize_axes,
    normalize_axis,
    onnx_dtype,
    reshape,
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
    families = ("injective",)
    dims_foldable = True
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

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        x = node.present_inputs[0]
        if x.type == node.output.type:
            return x
        inner = builder.producer(x)
        if inner is not None and inner.op == self.name:
            source = inner.present_inputs[0]
            return source if source.type == node.output.type else builder.emit(self.name, source, name=node.name, **node.attrs)
        return None


def _show(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _reshape(context: FormContext) -> Value:
    x = context.input(0)
    wanted = tuple(context.attrs["shape"]) if "shape" in context.attrs else context.dims(1)
    if wanted is None:
        return reshape(context, x, context.declared_shape(0, "the new shape"))
    keep_zero = bool(context.attrs.get("allowzero", 0))
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
    return reshape(context, x, dims)


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
        return reshape(context, x, context.declared_shape(0, "the axes"))
    given = axes_of(context, 1)
    if given is None:
        axes: tuple[int, ...] = tuple(axis for axis, dim in enumerate(x.type.shape) if dim == 1)
    else:
        axes = normalize_axes(given, x.type.rank)
        for axis in axes:
            if isinstance(x.type.shape[axis], int) and x.type.shape[axis] != 1:
                raise UnsupportedForm(f"axis {axis} of {x.type} is not 1 and cannot be squeezed")
    return reshape(context, x, [dim for axis, dim in enumerate(x.type.shape) if axis not in axes])


def _unsqueeze(context: FormContext) -> Value:
    x = context.input(0)
    if _axes_unknown(context):
        return reshape(context, x, context.declared_shape(0, "the axes"))
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


@register
class Expand(Op):
    """The operand broadcast to ``shape`` (dims), which it must broadcast to without changing it."""

    name = "expand"
    families = ("injective",)
    dims_foldable = True
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
            if dim not in (1, out):
                raise UnsupportedForm(f"shape {_show(x.shape)} does not broadcast to {_show(shape)}")
        if x.rank > len(shape):
            raise UnsupportedForm(f"shape {_show(x.shape)} does not broadcast to {_show(shape)}")
        return (TensorType(x.dtype, shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.broadcast_to(array(inputs[0]), attr_ints(attrs, "shape")),)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        x, shape = inputs[0], attr_dims(attrs, "shape")
        added = len(shape) - x.rank
        index = tuple(axis_symbol(added + axis) if dim == shape[added + axis] else 0 for axis, dim in enumerate(x.shape))
        return (Region((0,) * len(shape), shape, 0, index),)

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        x = node.present_inputs[0]
        return x if x.type == node.output.type else None


def broadcast_dim(left: Dim, right: Dim) -> Dim:
    """The broadcast of two dims; a symbolic one against a number other than 1 is taken to be that number or 1."""
    if left == right or right == 1:
        return left
    if left == 1 or isinstance(right, int):
        return right
    if isinstance(left, int):
        return left
    raise UnsupportedForm(f"dims {left} and {right} cannot be shown to broadcast")


def _expand(context: FormContext) -> Value:
    x, wanted = context.input(0), context.dims(1)
    if wanted is None:
        wanted = context.declared_shape(0, "the new shape")
    rank = max(x.type.rank, len(wanted))
    have = (1,) * (rank - x.type.rank) + x.type.shape
    asked = (1,) * (rank - len(wanted)) + wanted
    return context.emit("expand", x, shape=tuple(broadcast_dim(a, b) for a, b in zip(have, asked, strict=True)))


def _tile(context: FormContext) -> Value:
    x, repeats = context.input(0), context.dims(1)
    if repeats is None:
        declared = context.declared_shape(0, "the repeats", x.type.rank)
        repeats = tuple(divide((m,), (n,)) for n, m in zip(x.type.shape, declared, strict=True))
    if len(repeats) != x.type.rank:
        raise UnsupportedForm(f"{len(repeats)} repeats for an input of rank {x.type.rank}")
    split = [part for dim in x.type.shape for part in (1, dim)]
    spread = [part for dim, repeat in zip(x.type.shape, repeats, strict=True) for part in (repeat, dim)]
    tiled = context.emit("expand", reshape(context, x, split), shape=tuple(spread))
    return reshape(context, tiled, [dim * repeat for dim, repeat in zip(x.type.shape, repeats, strict=True)])


def _constant_of_shape(context: FormContext) -> Value:
    value = context.attrs.get("value", np.zeros(1, np.float32))
    shape = context.dims(0)
    if shape is None:
        shape = context.declared_shape(0, "the shape")
    return context.emit("expand", context.const(np.asarray(value).reshape(())), shape=shape)


def _eye_like(context: FormContext) -> Value:
    x = context.input(0)
    rows, columns = (known(dim, "a dim") for dim in x.type.shape)
    dtype = onnx_dtype(context.attrs["dtype"]) if "dtype" in context.attrs else x.type.dtype
    return context.const(np.eye(rows, columns, int(context.attrs.get("k", 0)), dtype.numpy))


def _range(context: FormContext) -> Value:
    bounds = [context.constant(index) for index in range(3)]
    start, limit, delta = bounds
    if start is None or limit is None or delta is None:
        return _range_at_run_time(context)
    count = max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))
    return context.const((start.reshape(()) + np.arange(count).astype(start.dtype) * delta.reshape(())).astype(start.dtype))


def _range_at_run_time(context: FormContext) -> Value:
    start, delta = context.input(0), context.input(2)
    (count,) = context.declared_shape(0, "the number of elements", 1)
    steps = context.emit("mul", context.const(np.arange(count).astype(start.type.dtype.numpy)), reshape(context, delta, ()))
    return context.emit("add", reshape(context, start, ()), steps)


_LITERALS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def _constant(context: FormContext) -> Value:
    for key, data in context.attrs.items():
        if key == "value" and isinstance(data, np.ndarray):
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
