"""Writing at computed positions: scatter and the operators that become it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, floordiv, product
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.run_time import natural
from compiler.ir.types import DType, TensorType
from compiler.ops.dims import iota, number
from compiler.ops.gather import element_positions, tuple_positions
from compiler.ops.support import Arrays, Attrs, Types, array, attr_str, cast_to, divide, first_type, normalize_axis, reshape
from compiler.ops.tables import combined, computed, kept_inside, laid, multiples
from compiler.ops.window import spatial
from compiler.ops.wrap_index import checked

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
_E = np.array([[[1, -1, 0, 2]], [[0, 1, 1, 1]]], np.int64)
_U = np.array([[[5, -7, 9, 11]], [[-1, 2, 3, 4]]], np.float32)
_COL2IM = {"strides": [2, 2], "pads": [0, 0, 1, 1], "dilations": [1, 2]}

_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@register
class Scatter(Op):
    """``data [N, S]`` with row ``positions[k]`` replaced by, or combined with, ``updates[k]``, for k in order.

    ``kind`` is none, add, mul, max or min. A position outside ``0..N-1`` writes nothing.
    """

    name = "scatter"
    families = ("scatter",)
    takes_epilogue = False
    takes_strings = True
    samples = (
        Sample("ScatterElements", (_X, _E, _U), {"axis": 1}),
        Sample("ScatterElements", (_X[0], np.array([[2], [0], [1]], np.int32), np.ones((3, 1), np.float32)), {"axis": -1}, opset=11),
        *(Sample("ScatterElements", (_X, _E, _U), {"axis": 1, "reduction": kind}, opset=18) for kind in ("add", "mul", "max", "min")),
        Sample("ScatterElements", (_X.astype(np.int64), _E, _U.astype(np.int64)), {"axis": 1, "reduction": "add"}, opset=18, constant=(1,)),
        Sample("Scatter", (_X, _E, _U), {"axis": 1}, opset=10),
        Sample("ScatterND", (_X, np.array([[1], [0]], np.int64), -_X)),
        Sample("ScatterND", (_X, np.array([[1, -1], [0, 2], [1, 2]], np.int64), _X[0]), {"reduction": "add"}, opset=18),
        Sample("ScatterND", (_X, np.array([[[1, 0, -1]]], np.int64), np.array([[7]], np.float32)), constant=(1,)),
        Sample("ScatterND", (_X, np.zeros((0, 1), np.int64), np.zeros((0, 3, 4), np.float32))),
        Sample("MaxUnpool", (_X[None, 0:1, :2, :2], np.array([[[[0, 6], [9, 14]]]], np.int64)), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        Sample("Col2Im", (_X.reshape(1, 4, 6), np.array([3, 4], np.int64), np.array([2, 2], np.int64)), constant=(1, 2)),
        Sample("Col2Im", (_X.reshape(1, 4, 6), np.array([3, 5], np.int64), np.array([2, 1], np.int64)), _COL2IM, constant=(1, 2)),
        Sample("TensorScatter", (_X[None], _X[None, :, :1], np.array([2], np.int64)), opset=24),
        Sample("TensorScatter", (_X[None], _X[None, :, 1:], np.array([2], np.int64)), {"mode": "circular"}, opset=24),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        data, updates = first_type(inputs), inputs[2]
        if updates is None or updates.dtype is not data.dtype:
            raise UnsupportedForm(f"the updates are not of the data's type {data.dtype.value}")
        if data.dtype is DType.STRING and attr_str(attrs, "kind") != "none":
            raise UnsupportedForm("strings cannot be combined")
        return (data,)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        data, positions, updates = (array(x) for x in inputs)
        inside = (positions >= 0) & (positions < data.shape[0])
        result, kind = data.copy(), attr_str(attrs, "kind")
        for position, update in zip(positions[inside], updates[inside], strict=True):
            result[position] = update if kind == "none" else _COMBINE[kind](result[position], update)
        return (result,)


def scatter(context: FormContext, data: Value, positions: Value, updates: Value, row: tuple[Dim, ...], kind: str = "none") -> Value:
    """data with its rows of shape ``row`` updated at row-major positions."""
    shape, size, count = data.type.shape, product(row), positions.type.elements
    rows = reshape(context, data, (product(shape[: len(shape) - len(row)]), size))
    flat, values = reshape(context, positions, (count,)), reshape(context, updates, (count, size))
    return reshape(context, context.emit("scatter", rows, flat, values, kind=kind), shape)


def _reduction(context: FormContext) -> str:
    kind = str(context.attrs.get("reduction", "none"))
    if kind != "none" and kind not in _COMBINE:
        raise UnsupportedForm(f"reduction {kind!r} is not known")
    return kind


def _check_updates(context: FormContext, updates: Value, shape: Sequence[Dim]) -> None:
    """There is an update for every position."""
    if updates.type.rank != len(shape):
        raise UnsupportedForm(f"updates of type {updates.type}, where the indices and data ask for rank {len(shape)}")
    for axis, (met, wanted) in enumerate(zip(updates.type.shape, shape, strict=True)):
        context.check(wanted, met, wanted, f"its updates have {{value}} elements along axis {axis}, where the indices and data ask for {{low}}")


def _scatter_elements(context: FormContext) -> Value:
    data, indices, updates = context.input(0), context.input(1), context.input(2)
    axis = normalize_axis(int(context.attrs.get("axis", 0)), data.type.rank)
    _check_updates(context, updates, indices.type.shape)
    shape = data.type.shape
    positions = element_positions(context, shape, checked(context, indices, shape[axis], axis), axis)
    return scatter(context, data, positions, updates, (), _reduction(context))


def _scatter_nd(context: FormContext) -> Value:
    data, indices, updates = context.input(0), context.input(1), context.input(2)
    positions, _, row = tuple_positions(context, data.type.shape, indices, 0)
    _check_updates(context, updates, (*positions.type.shape, *row))
    return scatter(context, data, positions, updates, row, _reduction(context))


def _tensor_scatter(context: FormContext) -> Value:
    """A cache with an update written from ``write_indices[batch]`` on along axis; ``circular`` wraps at the end."""
    cache, update, begin = context.input(0), context.input(1), context.optional(2)
    axis = normalize_axis(int(context.attrs.get("axis", -2)), cache.type.rank)
    shape, moved = cache.type.shape, update.type.shape
    if axis == 0:
        raise UnsupportedForm("axis 0 is the batch")
    lead = moved[: axis + 1]
    positions = reshape(context, iota(context, moved[axis]), (*(1,) * axis, moved[axis]))
    if begin is not None:
        first = reshape(context, cast_to(context, begin, DType.INT64), (moved[0], *(1,) * axis))
        positions = context.emit("add", positions, first)
    if context.attrs.get("mode", "linear") == "circular":
        positions = context.emit("mod", positions, number(context, shape[axis]), fmod=False)
    rows = element_positions(context, shape[: axis + 1], context.emit("expand", positions, shape=lead), axis)
    return scatter(context, cache, rows, update, shape[axis + 1 :])


def _max_unpool(context: FormContext) -> Value:
    """Zeros with each element of x at its flat position; with ``output_shape``, positions are still those of the default shape."""
    x, positions = context.input(0), context.input(1)
    shape = x.type.shape
    axes = len(shape) - 2
    kernel = spatial(context, "kernel_shape", axes, 1)
    strides, pads = spatial(context, "strides", axes, 1), spatial(context, "pads", 2 * axes, 0)
    spread = [(n - 1) * strides[a] - pads[a] - pads[axes + a] + kernel[a] for a, n in enumerate(shape[2:])]
    for dim in spread:
        context.check(0, dim, None, "a dim of its result is {value}")
    default = (*shape[:2], *map(context.builder.define, map(natural, spread)))
    for axis, (met, wanted) in enumerate(zip(positions.type.shape, shape, strict=True)):
        context.check(wanted, met, wanted, f"it has {{value}} positions along axis {axis} for {{low}} elements")
    zeros = context.emit("expand", context.const(np.zeros((1,) * len(default), x.type.dtype.numpy)), shape=default)
    unpooled = scatter(context, zeros, checked(context, positions, product(default), 0), x, ())
    if context.optional(2) is None:
        return unpooled
    asked = context.require_dims(2, "the output shape")
    if len(asked) != len(default):
        raise UnsupportedForm(f"an output shape of {len(asked)} numbers for a result of rank {len(default)}")
    for dim in asked:
        context.check(0, dim, None, "a dim of the output shape is {value}")
    result = context.settled(tuple(map(natural, asked)))
    if result == default:
        return unpooled
    begins, ends = (0,) * len(default), tuple(w - d for w, d in zip(result, default, strict=True))
    return context.emit("pad", unpooled, begins=begins, ends=ends, mode="constant", value=0)


def _col2im(context: FormContext) -> Value:
    """Columns of windows ``[N, C * product(block), L]`` summed into an image; a window's elements outside the image are dropped."""
    x = context.input(0)
    asked, block = (context.require_dims(i, role) for i, role in ((1, "the image shape"), (2, "the block shape")))
    axes = len(asked)
    if len(block) != axes:
        raise UnsupportedForm(f"an image shape of {axes} numbers with a block shape of {len(block)}")
    for dim in (*asked, *block):
        context.check(1, dim, None, "a dim of its image or block shape is {value}")
    batch, rows, columns = x.type.shape
    channels = context.builder.define(divide((rows,), block))
    context.check(rows, channels * product(block), rows, "blocks of {value} elements do not make {low} rows")
    batch, channels, *image = context.settled((batch, *map(natural, (channels, *asked))))
    blocks, windows = [context.builder.define(natural(dim)) for dim in block], []
    strides, dilations = (spatial(context, name, axes, 1) for name in ("strides", "dilations"))
    pads = spatial(context, "pads", 2 * axes, 0)
    inside: Value | None = None
    places: Value = context.const(np.zeros((1,) * 2 * axes, np.int64))
    for a, (length, size) in enumerate(zip(image, blocks, strict=True)):
        count = floordiv(length + pads[a] + pads[axes + a] - dilations[a] * (size - 1) - 1, strides[a]) + 1
        context.check(1, count, None, f"no window fits into axis {a} of its image")
        windows.append(context.builder.define(natural(count)))
        taps, starts = multiples(context, size, dilations[a]), multiples(context, windows[a], strides[a])
        at = combined(context, "add", laid(context, taps, a, 2 * axes), laid(context, starts, axes + a, 2 * axes))
        at = combined(context, "sub", at, pads[a])
        valid = computed(context, "equal", at, kept_inside(context, at, length))
        inside = valid if inside is None else computed(context, "and", inside, valid)
        places = computed(context, "add", computed(context, "mul", places, number(context, length)), at)
    context.check(columns, product(windows), columns, "{low} columns, where the image has {value} windows")
    images = computed(context, "reshape", multiples(context, batch * channels, product(image)), shape=(batch * channels, 1))
    flat = (1, product(blocks) * product(windows))
    positions = computed(context, "add", images, computed(context, "reshape", places, shape=flat))
    if inside is not None:
        positions = computed(context, "where", computed(context, "reshape", inside, shape=flat), positions, context.const(np.array(-1, np.int64)))
    zeros = context.emit("expand", context.const(np.zeros((1,) * (axes + 2), x.type.dtype.numpy)), shape=(batch, channels, *image))
    return scatter(context, zeros, positions, x, (), "add")


Scatter.forms = (
    OnnxForm("Col2Im", _col2im),
    OnnxForm("Scatter", _scatter_elements),
    OnnxForm("ScatterElements", _scatter_elements),
    OnnxForm("ScatterND", _scatter_nd),
    OnnxForm("TensorScatter", _tensor_scatter),
    OnnxForm("MaxUnpool", _max_unpool),
)
