"""Index maps: every output element is one input element or a fill value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product as cartesian

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Attr, Node, Region, Value
from compiler.ir.intexpr import Dim, IntExpr, floordiv, maximum, minimum
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, UnsupportedForm, register
from compiler.ir.types import TensorType
from compiler.ops.binary import same_dtype
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_dims,
    attr_float,
    attr_int,
    attr_ints,
    attr_str,
    axis_symbol,
    first_type,
    given,
    known,
    normalize_axis,
    reshape,
    transpose,
)

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
_IMAGE = np.arange(2 * 8 * 2 * 3, dtype=np.float32).reshape(2, 8, 2, 3)
_EMPTY = np.zeros((0, 3, 4), np.float32)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


class IndexMap(Op):
    """An op whose meaning is its regions; layouts are kept where the channel axis stays as it is."""

    families = ("injective",)

    def keeps_channels(self, inputs: Sequence[TensorType], attrs: Attrs, block: int) -> bool:
        """Whether every output channel comes from the same lane of a block."""
        return False

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        types = [t for t in inputs if t is not None]
        if all(t.rank >= 2 for t in types) and self.keeps_channels(types, attrs, block):
            return Layouts.SAME
        return Layouts.PLAIN


@register
class Transpose(IndexMap):
    """The axes in the order of attribute ``perm``."""

    name = "transpose"
    samples = (
        Sample("Transpose", (_X,), {"perm": [2, 0, 1]}),
        Sample("Transpose", (_X,)),
        Sample("Transpose", (_EMPTY,)),
        Sample("Transpose", (np.array(2.0, np.float32),)),
        Sample("DepthToSpace", (_IMAGE,), {"blocksize": 2}),
        Sample("DepthToSpace", (_IMAGE,), {"blocksize": 2, "mode": "CRD"}),
        Sample("SpaceToDepth", (_IMAGE.reshape(2, 2, 6, 4),), {"blocksize": 2}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, perm = first_type(inputs), attr_ints(attrs, "perm")
        if sorted(perm) != list(range(x.rank)):
            raise UnsupportedForm(f"perm {list(perm)} is not an order of the axes of {x}")
        return (TensorType(x.dtype, tuple(x.shape[axis] for axis in perm)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.transpose(array(inputs[0]), attr_ints(attrs, "perm")),)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        perm = attr_ints(attrs, "perm")
        shape = tuple(inputs[0].shape[axis] for axis in perm)
        index = tuple(axis_symbol(perm.index(axis)) for axis in range(len(perm)))
        return (Region((0,) * len(perm), shape, 0, index),)

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        x, perm = node.present_inputs[0], attr_ints(node.attrs, "perm")
        if perm == tuple(range(len(perm))):
            return x
        moved = [axis for axis in perm if x.type.shape[axis] != 1]
        if moved == sorted(moved):
            return builder.emit("reshape", x, name=node.name, shape=node.output.type.shape)
        inner = builder.producer(x)
        if inner is not None and inner.op == self.name:
            first = attr_ints(inner.attrs, "perm")
            return builder.emit(self.name, inner.present_inputs[0], name=node.name, perm=tuple(first[axis] for axis in perm))
        return None


def _transpose(context: FormContext) -> Value:
    x = context.input(0)
    perm = context.attrs.get("perm", tuple(reversed(range(x.type.rank))))
    return transpose(context, x, [normalize_axis(axis, x.type.rank) for axis in perm])


def _depth_to_space(context: FormContext) -> Value:
    x, size = context.input(0), int(context.attrs["blocksize"])
    batch, channels, height, width = _image_shape(x)
    inner = known(channels, "the channels")
    if inner % (size * size):
        raise UnsupportedForm(f"{inner} channels are not a multiple of blocksize² = {size * size}")
    inner //= size * size
    if context.attrs.get("mode", "DCR") == "DCR":
        split, perm = (batch, size, size, inner, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (batch, inner, size, size, height, width), (0, 1, 4, 2, 5, 3)
    spread = transpose(context, reshape(context, x, split), perm)
    return reshape(context, spread, (batch, inner, height * size, width * size))


def _space_to_depth(context: FormContext) -> Value:
    x, size = context.input(0), int(context.attrs["blocksize"])
    batch, channels, height, width = _image_shape(x)
    rows, columns = floordiv(height, size), floordiv(width, size)
    perm = (0, 3, 5, 1, 2, 4) if context.attrs.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    spread = transpose(context, reshape(context, x, (batch, channels, rows, size, columns, size)), perm)
    return reshape(context, spread, (batch, channels * (size * size), rows, columns))


def _image_shape(x: Value) -> tuple[Dim, Dim, Dim, Dim]:
    if x.type.rank != 4:
        raise UnsupportedForm(f"needs an input of rank 4, not {x.type}")
    batch, channels, height, width = x.type.shape
    return batch, channels, height, width


Transpose.forms = (
    OnnxForm("Transpose", _transpose),
    OnnxForm("DepthToSpace", _depth_to_space),
    OnnxForm("SpaceToDepth", _space_to_depth),
)


@register
class Slice(IndexMap):
    """``sizes`` elements from ``starts`` with ``steps`` (which may be negative), each given for every axis."""

    name = "slice"
    dims_foldable = True
    samples = (
        Sample("Slice", (_X, _ints(0, -3), _ints(1, -1), _ints(0, 2)), constant=(1, 2, 3)),
        Sample("Slice", (_X, _ints(3, 9), _ints(-9, 0), _ints(2, 1), _ints(-2, -1)), constant=(1, 2, 3, 4)),
        Sample("Slice", (_X, _ints(1), _ints(2**63 - 1)), constant=(1, 2)),
        Sample("Slice", (_X, _ints(2), _ints(1), _ints(1)), constant=(1, 2, 3)),
        Sample("Slice", (_X,), {"starts": [1], "ends": [3], "axes": [-1]}, opset=9),
        Sample("Split", (_X, _ints(1, 3)), {"axis": -1}, constant=(1,), outputs=2),
        Sample("Split", (_X,), {"axis": 1, "num_outputs": 2}, outputs=2),
        Sample("Split", (_X,), {"axis": 2, "split": [3, 1]}, opset=11, outputs=2),
        Sample("Split", (_X,), {"axis": 1}, opset=13, outputs=3),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(first_type(inputs).dtype, attr_dims(attrs, "sizes")),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x = array(inputs[0])
        starts, sizes, steps = (attr_ints(attrs, name) for name in ("starts", "sizes", "steps"))
        for axis, (start, size, step) in enumerate(zip(starts, sizes, steps, strict=True)):
            stop = start + step * size
            x = x[(slice(None),) * axis + (slice(start, None if stop < 0 else stop, step),)] if size else x.take([], axis)
        return (x,)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        starts, sizes, steps = attr_dims(attrs, "starts"), attr_dims(attrs, "sizes"), attr_ints(attrs, "steps")
        index = tuple(axis_symbol(axis) * step + start for axis, (start, step) in enumerate(zip(starts, steps, strict=True)))
        return (Region((0,) * len(starts), sizes, 0, index),)

    def keeps_channels(self, inputs: Sequence[TensorType], attrs: Attrs, block: int) -> bool:
        start, step = attr_dims(attrs, "starts")[1], attr_ints(attrs, "steps")[1]
        return step == 1 and isinstance(start, int) and start % block == 0

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        x, steps = node.present_inputs[0], attr_ints(node.attrs, "steps")
        if x.type == node.output.type and set(steps) <= {1}:
            return x
        inner = builder.producer(x)
        if inner is None or inner.op != self.name:
            return None
        first, again = attr_dims(inner.attrs, "starts"), attr_dims(node.attrs, "starts")
        first_steps = attr_ints(inner.attrs, "steps")
        starts = tuple(a + b * step for a, b, step in zip(first, again, first_steps, strict=True))
        merged = tuple(a * b for a, b in zip(first_steps, steps, strict=True))
        sizes = node.attrs["sizes"]
        return builder.emit(self.name, inner.present_inputs[0], name=node.name, starts=starts, sizes=sizes, steps=merged)


def slice_axis(context: FormContext, x: Value, axis: int, start: Dim, size: Dim) -> Value:
    """``size`` elements of one axis from ``start``."""
    if start == 0 and size == x.type.shape[axis]:
        return x
    starts: list[Dim] = [0] * x.type.rank
    sizes = list(x.type.shape)
    starts[axis], sizes[axis] = start, size
    return context.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * x.type.rank)


_FAR = 2**31 - 1
"""Bounds this far out mean "to the end"; exporters write INT32_MAX or INT64_MAX."""


def _bound(position: Dim, dim: Dim, low: int, high: Dim) -> Dim:
    """A start or end as ONNX reads it: negative from the end, then clamped to [low, high]."""
    if isinstance(position, int):
        if position >= _FAR:
            return high
        if position <= -_FAR:
            return low
        if position < 0:
            position = dim + position
    return maximum(minimum(position, high), low)


def _slice(context: FormContext) -> Value:
    x = context.input(0)
    if "starts" in context.attrs:
        begins, ends = tuple(context.attrs["starts"]), tuple(context.attrs["ends"])
        axes: Sequence[Dim] = context.attrs.get("axes", range(len(begins)))
        strides: Sequence[Dim] = (1,) * len(begins)
    else:
        begins, ends = context.require_dims(1, "starts"), context.require_dims(2, "ends")
        axes = context.require_dims(3, "axes") if context.optional(3) is not None else range(len(begins))
        strides = context.require_dims(4, "steps") if context.optional(4) is not None else (1,) * len(begins)
    starts: list[Dim] = [0] * x.type.rank
    sizes: list[Dim] = list(x.type.shape)
    steps = [1] * x.type.rank
    for raw_axis, begin, end, raw_step in zip(axes, begins, ends, strides, strict=True):
        axis, step = normalize_axis(known(raw_axis, "an axis"), x.type.rank), known(raw_step, "a step")
        if step == 0:
            raise UnsupportedForm("a step is 0")
        dim = x.type.shape[axis]
        steps[axis] = step
        if step > 0:
            starts[axis] = _bound(begin, dim, 0, dim)
            sizes[axis] = maximum(floordiv(_bound(end, dim, 0, dim) - starts[axis] + (step - 1), step), 0)
        else:
            starts[axis] = _bound(begin, dim, 0, dim - 1)
            sizes[axis] = minimum(maximum(floordiv(starts[axis] - _bound(end, dim, -1, dim - 1) + (-step - 1), -step), 0), dim)
    if tuple(sizes) == x.type.shape and set(steps) <= {1}:
        return x
    return context.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


def _split(context: FormContext) -> Sequence[Value]:
    x = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", 0)), x.type.rank)
    dim = x.type.shape[axis]
    given_sizes = tuple(context.attrs["split"]) if "split" in context.attrs else None
    sizes: Sequence[Dim]
    if given_sizes is not None:
        sizes = given_sizes
    elif context.optional(1) is not None:
        role, outputs = "the sizes of the parts", range(context.outputs)
        sizes = context.dims(1) or [context.declared_shape(number, role, x.type.rank)[axis] for number in outputs]
    else:
        count = int(context.attrs.get("num_outputs", context.outputs))
        part = floordiv(dim + (count - 1), count)
        sizes = (*(part,) * (count - 1), dim - part * (count - 1))
    parts: list[Value] = []
    start: Dim = 0
    for size in sizes:
        parts.append(slice_axis(context, x, axis, start, size))
        start = start + size
    if start != dim:
        raise UnsupportedForm(f"parts of {start} elements do not cover axis {axis} of {dim}")
    return parts


Slice.forms = (OnnxForm("Slice", _slice), OnnxForm("Split", _split))


@register
class Concat(IndexMap):
    """The operands one after the other along ``axis``."""

    name = "concat"
    samples = (
        Sample("Concat", (_X, _X[:, :1], _X), {"axis": 1}),
        Sample("Concat", (_X, _X), {"axis": -1}),
        Sample("Concat", (_EMPTY, _X), {"axis": 0}),
        Sample("Concat", (_X,), {"axis": 0}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs)
        axis, types = attr_int(attrs, "axis"), [given(t) for t in inputs]
        around = {t.shape[:axis] + t.shape[axis + 1 :] for t in types}
        if len(around) > 1:
            raise UnsupportedForm(f"operands {', '.join(map(str, types))} differ beside axis {axis}")
        total: Dim = 0
        for t in types:
            total = total + t.shape[axis]
        first = types[0]
        return (TensorType(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :])),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.concatenate([array(x) for x in inputs], attr_int(attrs, "axis")),)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        present = [c for c in contents if c is not None]
        if len(present) != len(contents) or any(c.dtype.kind not in "iubO" for c in present):
            return None
        return np.concatenate([c.astype(object) for c in present], attr_int(attrs, "axis"))

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        axis, start, found = attr_int(attrs, "axis"), 0, []
        offset: list[Dim] = [start] * inputs[0].rank
        for source, t in enumerate(inputs):
            found.append(Region(tuple(offset), t.shape, source, tuple(axis_symbol(a) for a in range(t.rank))))
            offset[axis] = offset[axis] + t.shape[axis]
        return tuple(found)

    def keeps_channels(self, inputs: Sequence[TensorType], attrs: Attrs, block: int) -> bool:
        if attr_int(attrs, "axis") != 1:
            return True
        channels = [t.shape[1] for t in inputs]
        return all(isinstance(c, int) and c % block == 0 for c in channels)

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        axis = attr_int(node.attrs, "axis")
        kept = [v for v in node.present_inputs if v.type.shape[axis] != 0]
        if len(kept) == 1:
            return kept[0]
        return builder.emit(self.name, *kept, name=node.name, axis=axis) if 1 < len(kept) < len(node.inputs) else None


def _concat(context: FormContext) -> Value:
    axis = normalize_axis(int(context.attrs["axis"]), context.input(0).type.rank)
    values = [context.input(i) for i in range(len(context.inputs))]
    return context.emit("concat", *values, axis=axis) if len(values) > 1 else values[0]


Concat.forms = (OnnxForm("Concat", _concat),)


@dataclass(frozen=True)
class Segment:
    """A run of one output axis: where it starts, how long it is, and what it reads (None: the fill value)."""

    offset: Dim
    extent: Dim
    index: Dim | None


@register
class Pad(IndexMap):
    """Elements added (or, where negative, removed) before (``begins``) and after (``ends``) each axis.

    ``mode`` is ``constant`` (``value``), ``edge``, ``reflect`` (without repeating the edge) or ``wrap``.
    """

    name = "pad"
    samples = (
        Sample("Pad", (_X, _ints(0, 1, 2, 1, 0, 1)), constant=(1,)),
        Sample("Pad", (_X, _ints(0, 1, -1, 1, -1, 1), np.array(7, np.float32)), constant=(1, 2)),
        Sample("Pad", (_X, _ints(1, 2), None, _ints(-1)), {"mode": "edge"}, constant=(1, 3)),
        Sample("Pad", (_X, _ints(0, 2, 3, 0, 1, 2)), {"mode": "reflect"}, constant=(1,)),
        Sample("Pad", (_X, _ints(0, 2, 3, 0, 1, 2)), {"mode": "wrap"}, constant=(1,)),
        Sample("Pad", (_X,), {"pads": [0, 0, 1, 0, 0, 2], "value": 3.0}, opset=9),
        Sample("Pad", (np.zeros((0, 2), np.float32), _ints(1, 0, 0, 1)), constant=(1,)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, begins, ends = first_type(inputs), attr_ints(attrs, "begins"), attr_ints(attrs, "ends")
        return (TensorType(x.dtype, tuple(b + dim + e for b, dim, e in zip(begins, x.shape, ends, strict=True))),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, mode = array(inputs[0]), attr_str(attrs, "mode")
        pads = list(zip(attr_ints(attrs, "begins"), attr_ints(attrs, "ends"), strict=True))
        kept = x[tuple(slice(max(0, -b), dim - max(0, -e)) for (b, e), dim in zip(pads, x.shape, strict=True))]
        widths = [(max(0, b), max(0, e)) for b, e in pads]
        if mode == "constant":
            return (np.pad(kept, widths, constant_values=attr_float(attrs, "value") if x.dtype.kind not in "iu" else attr_int(attrs, "value")),)
        return (np.pad(kept, widths, mode=mode),)  # type: ignore[call-overload]

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        shape, mode = inputs[0].shape, attr_str(attrs, "mode")
        pads = zip(attr_ints(attrs, "begins"), attr_ints(attrs, "ends"), strict=True)
        axes = [list(_segments(axis, dim, b, e, mode)) for axis, (dim, (b, e)) in enumerate(zip(shape, pads, strict=True))]
        whole = self.infer(inputs, attrs)[0].shape
        return tuple(_filled_boxes(axes, whole, attrs["value"]) if mode == "constant" else map(_box, cartesian(*axes)))

    def keeps_channels(self, inputs: Sequence[TensorType], attrs: Attrs, block: int) -> bool:
        return attr_ints(attrs, "begins")[1] == 0 == attr_ints(attrs, "ends")[1]

    def simplify(self, node: Node, builder: GraphBuilder) -> Value | None:
        x, begins, ends = node.present_inputs[0], attr_ints(node.attrs, "begins"), attr_ints(node.attrs, "ends")
        if not any(begins) and not any(ends):
            return x
        if max(begins + ends) <= 0:
            starts = tuple(-b for b in begins)
            return builder.emit("slice", x, name=node.name, starts=starts, sizes=node.output.type.shape, steps=(1,) * len(starts))
        return None


def _box(segments: Sequence[Segment]) -> Region:
    index = tuple(s.index for s in segments if s.index is not None)
    return Region(tuple(s.offset for s in segments), tuple(s.extent for s in segments), 0, index)


def _filled_boxes(axes: Sequence[list[Segment]], shape: Sequence[Dim], value: Attr) -> Iterator[Region]:
    """The box that reads, and slabs of fill around it: those of axis k span the read part of the axes before it."""
    fill = value if isinstance(value, (int, float)) else 0
    inner = [next((s for s in segments if s.index is not None), None) for segments in axes]
    for axis, segments in enumerate(axes):
        before = [s for s in inner[:axis] if s is not None]
        if len(before) < axis:
            return
        for segment in (s for s in segments if s.index is None):
            offset = (*(s.offset for s in before), segment.offset, *(0,) * (len(axes) - axis - 1))
            yield Region(offset, (*(s.extent for s in before), segment.extent, *shape[axis + 1 :]), None, fill=fill)
    read = [s for s in inner if s is not None]
    if len(read) == len(axes):
        yield _box(read)


def _segments(axis: int, dim: Dim, begin: int, end: int, mode: str) -> Iterator[Segment]:
    """The runs of one padded axis, in order."""
    i = axis_symbol(axis)
    crop_begin, crop_end = max(0, -begin), max(0, -end)
    begin, end, length = max(0, begin), max(0, end), dim - crop_begin - crop_end
    if mode == "constant":
        runs: list[Segment] = [Segment(0, begin, None), Segment(begin, length, i), Segment(begin + length, end, None)]
    elif mode == "edge":
        runs = [Segment(0, begin, 0), Segment(begin, length, i), Segment(begin + length, end, length - 1)]
    else:
        runs = _periodic(i, known(length, "a padded dim"), begin, end, mode)
    for run in runs:
        if run.extent != 0:
            yield replace(run, index=None if run.index is None else run.index + crop_begin)


def _periodic(i: IntExpr, length: int, begin: int, end: int, mode: str) -> list[Segment]:
    """Runs of a reflected or wrapped axis: cut wherever the direction of reading or the period changes."""
    stride = length if mode == "wrap" or length == 1 else length - 1
    runs: list[Segment] = []
    position = -begin
    while position < length + end:
        period, at = divmod(position, stride)
        extent = min(stride - at, length + end - position)
        backwards = mode == "reflect" and period % 2 == 1 and length > 1
        runs.append(Segment(position + begin, extent, -i + (length - 1 - at) if backwards else i + at))
        position += extent
    return runs


_PAD_MODES = ("constant", "edge", "reflect", "wrap")


def _pad(context: FormContext) -> Value:
    x, mode = context.input(0), context.attrs.get("mode", "constant")
    if mode not in _PAD_MODES:
        raise UnsupportedForm(f"mode {mode!r} is not one of {', '.join(_PAD_MODES)}")
    pads = tuple(context.attrs["pads"]) if "pads" in context.attrs else context.require_dims(1, "the pads")
    axes: Sequence[Dim] = range(x.type.rank)
    if context.optional(3) is not None:
        axes = context.require_dims(3, "axes")
    if len(pads) != 2 * len(axes):
        raise UnsupportedForm(f"{len(pads)} pads for {len(axes)} axes")
    begins, ends = [0] * x.type.rank, [0] * x.type.rank
    for position, raw_axis in enumerate(axes):
        axis = normalize_axis(known(raw_axis, "an axis"), x.type.rank)
        begins[axis], ends[axis] = known(pads[position], "a pad"), known(pads[position + len(axes)], "a pad")
    value = context.attrs.get("value", 0.0)
    if context.optional(2) is not None:
        data = context.constant(2)
        if data is None:
            raise UnsupportedForm("the fill value is computed at run time")
        value = data.item()
    fill = value if x.type.dtype.is_float else int(value)
    if not any(begins) and not any(ends):
        return x
    return context.emit("pad", x, begins=tuple(begins), ends=tuple(ends), mode=mode, value=fill)


Pad.forms = (OnnxForm("Pad", _pad),)
