"""Index maps: every output element is one input element or a fill value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, sizes
from compiler.ir.graph import Array, Region, Value
from compiler.ir.intexpr import Dim, floordiv, maximum, minimum, mod
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.regions import phases
from compiler.ir.run_time import is_natural, is_negative, natural, wrapped
from compiler.ir.types import TensorType
from compiler.ops.binary import same_dtype
from compiler.ops.simplify_moves import (
    empty_operands,
    exchanged,
    expanded_before,
    neighbours,
    order_kept,
    slice_inside_padding,
    slice_of_operand,
    slice_of_slice,
    transposed_around,
    transposed_twice,
    whole_taken,
)
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_dims,
    attr_int,
    attr_ints,
    axis_symbol,
    by_axis,
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
    """An op whose meaning is its regions. Its layouts are free where channels are walked one by one from a place that is known; where they are
    its operand's in another order, operand and result are both in blocks, or both row-major."""

    families = ("injective",)
    takes_strings = True

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        types = [t for t in inputs if t is not None]
        regions = self.regions(types, attrs) if all(t.rank >= 2 for t in types) else None
        if regions is None or not all(_has_known_channels(region) for region in regions):
            return Layouts.PLAIN
        if all(_walks_channels(region, block) for region in regions):
            return Layouts.ANY
        return Layouts.SAME if len(types) == 1 and all(phases(region) is not None for region in regions) else Layouts.PLAIN


def _has_known_channels(region: Region) -> bool:
    """Whether it is known where a region's channels begin and end."""
    return len(region.extent) > 1 and isinstance(region.extent[1], int) and isinstance(region.offset[1], int)


def _walks_channels(region: Region, block: int) -> bool:
    """Whether the axis along which a region reads its source's channels begins at a known place in a block, and ends at a known one."""
    known_axes = [k for k, extent in enumerate(region.extent) if isinstance(extent, int)]
    channel = 0 if region.source is None else region.index[1]
    return isinstance(channel, int) or any(isinstance(mod(channel - axis_symbol(k), block), int) for k in known_axes)


@register
class Transpose(IndexMap):
    """The axes in the order of attribute ``perm``."""

    name = "transpose"
    simplifications = (order_kept, transposed_twice, transposed_around, expanded_before)
    samples = (
        Sample("Transpose", (_X,), {"perm": [2, 0, 1]}),
        Sample("Transpose", (_X,)),
        Sample("Transpose", (_EMPTY,)),
        Sample("Transpose", (np.array(2.0, np.float32),)),
        Sample("DepthToSpace", (_IMAGE,), {"blocksize": 2}),
        Sample("DepthToSpace", (_IMAGE,), {"blocksize": 2, "mode": "CRD"}),
        Sample("DepthToSpace", (_IMAGE[:, :0],), {"blocksize": 2}),
        Sample("SpaceToDepth", (_IMAGE.reshape(2, 2, 6, 4),), {"blocksize": 2}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, perm = first_type(inputs), attr_ints(attrs, "perm")
        if sorted(perm) != list(range(x.rank)):
            raise UnsupportedForm(f"perm {list(perm)} is not an order of the axes of {x}")
        return (TensorType(x.dtype, tuple(x.shape[axis] for axis in perm)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.transpose(array(inputs[0]), attr_ints(attrs, "perm")),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        perm = attr_ints(attrs, "perm")
        return Part((tuple(box[perm.index(axis)] for axis in range(len(perm))),), attrs)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        perm = attr_ints(attrs, "perm")
        shape = tuple(inputs[0].shape[axis] for axis in perm)
        index = tuple(axis_symbol(perm.index(axis)) for axis in range(len(perm)))
        return (Region((0,) * len(perm), shape, 0, index),)


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
        return context.emit("interleave", x, group=1, strides=(size, size))
    spread = transpose(context, reshape(context, x, (batch, inner, size, size, height, width)), (0, 1, 4, 2, 5, 3))
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
    simplifications = (whole_taken, slice_of_slice, slice_of_operand, slice_inside_padding)
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

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        starts, steps = attr_ints(attrs, "starts"), attr_ints(attrs, "steps")
        ends = [(start + step * begin, start + step * (end - 1)) for start, step, (begin, end) in zip(starts, steps, box, strict=True)]
        spans = tuple((min(pair), max(pair) + 1) for pair in ends)
        first = tuple(one - low for (one, _), (low, _) in zip(ends, spans, strict=True))
        return Part((spans,), {"starts": first, "sizes": sizes(box), "steps": steps})

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        starts, sizes, steps = attr_dims(attrs, "starts"), attr_dims(attrs, "sizes"), attr_dims(attrs, "steps")
        index = tuple(axis_symbol(axis) * step + start for axis, (start, step) in enumerate(zip(starts, steps, strict=True)))
        return (Region((0,) * len(starts), sizes, 0, index),)

    def view_offset(self, inputs: Types, attrs: Attrs, result: TensorType) -> Dim | None:
        """Where what is taken lies together: single positions of the first axes, a run of one axis, all of the others."""
        x, starts, steps = first_type(inputs), attr_dims(attrs, "starts"), attr_dims(attrs, "steps")
        if x.block != result.block or (x.block != 1 and mod(starts[1], x.block) != 0):
            return None
        starts = _in_blocks(starts, x.block)
        offset: Dim = 0
        stride: Dim = 1
        whole = True
        axes = zip(starts, result.physical_shape, x.physical_shape, (*steps, 1)[: len(starts)], strict=True)
        for start, size, dim, step in reversed(list(axes)):
            if not whole and size != 1:
                return None
            if size != 1 and step != 1:
                return None
            whole = whole and start == 0 and size == dim
            offset, stride = offset + start * stride, stride * dim
        return offset if result.elements != 0 else None


def _in_blocks(starts: tuple[Dim, ...], block: int) -> tuple[Dim, ...]:
    """The first element of a slice in physical coordinates; the channels begin with a block."""
    return starts if block == 1 else (starts[0], floordiv(starts[1], block), *starts[2:], 0)


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


def _bound(position: Dim, dim: Dim, low: Dim, high: Dim) -> Dim:
    """A start or end as ONNX reads it: negative from the end, then clamped to [low, high]."""
    if isinstance(position, int):
        if position >= _FAR:
            return high
        if position <= -_FAR:
            return low
    place = wrapped(position, dim)
    limited = place if is_natural(high - place, 0) else minimum(place, high)
    return limited if is_natural(limited - low, 0) else maximum(limited, low)


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
    rank = x.type.rank
    first, last, steps = (by_axis(context, axes, numbers, rank, default) for numbers, default in ((begins, 0), (ends, _FAR), (strides, 1)))
    bounds = [_run(context, *numbers) for numbers in zip(x.type.shape, first, last, steps, strict=True)]
    starts, sizes = [start for start, _ in bounds], [size for _, size in bounds]
    if tuple(sizes) == x.type.shape and set(steps) <= {1}:
        return x
    begin, step = (tuple(map(context.builder.define, numbers)) for numbers in (starts, steps))
    return context.emit("slice", x, starts=begin, sizes=context.settled(sizes), steps=step)


def _run(context: FormContext, dim: Dim, begin: Dim, end: Dim, step: Dim) -> tuple[Dim, Dim]:
    """Where a slice of one axis starts and how many elements it has."""
    if step == 0:
        raise UnsupportedForm("a step is 0")
    if isinstance(step, int):
        if step > 0:
            start = _bound(begin, dim, 0, dim)
            return start, natural(floordiv(_bound(end, dim, 0, dim) - start + (step - 1), step))
        start = _bound(begin, dim, 0, dim - 1)
        return start, minimum(maximum(floordiv(start - _bound(end, dim, -1, dim - 1) + (-step - 1), -step), 0), dim)
    context.check(1, step * step, None, "a step is 0")
    backwards = is_negative(step)
    start = _bound(begin, dim, 0, dim - backwards)
    return start, natural(-floordiv(start - _bound(end, dim, -backwards, dim - backwards), step))


def _split(context: FormContext) -> Sequence[Value]:
    x = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", 0)), x.type.rank)
    dim = x.type.shape[axis]
    given_sizes = tuple(context.attrs["split"]) if "split" in context.attrs else None
    sizes: Sequence[Dim]
    if given_sizes is not None:
        sizes = given_sizes
    elif context.optional(1) is not None:
        sizes = context.require_dims(1, "the sizes of the parts")
        if len(sizes) < context.outputs:
            raise UnsupportedForm(f"{len(sizes)} sizes for {context.outputs} parts")
        sizes = [_part(context, number, size, x, axis) for number, size in enumerate(sizes)]
    else:
        count = int(context.attrs.get("num_outputs", context.outputs))
        part = floordiv(dim + (count - 1), count)
        sizes = (*(part,) * (count - 1), dim - part * (count - 1))
    parts: list[Value] = []
    start: Dim = 0
    for size in sizes:
        parts.append(slice_axis(context, x, axis, start, size))
        start = start + size
    context.check(dim, start, dim, f"parts of {{value}} elements do not cover axis {axis} of {{low}}")
    return parts


def _part(context: FormContext, number: int, size: Dim, x: Value, axis: int) -> Dim:
    """The size of one part of a split."""
    context.check(0, size, None, "a part of {value} elements is asked for")
    return context.settled((*x.type.shape[:axis], size, *x.type.shape[axis + 1 :]), number)[axis]


Slice.forms = (OnnxForm("Slice", _slice), OnnxForm("Split", _split))


@register
class Concat(IndexMap):
    """The operands one after the other along ``axis``."""

    name = "concat"
    simplifications = (empty_operands, neighbours, exchanged)
    samples = (
        Sample("Concat", (_X, _X[:, :1], _X), {"axis": 1}),
        Sample("Concat", (_X, _X), {"axis": -1}),
        Sample("Concat", (_EMPTY, _X), {"axis": 0}),
        Sample("Concat", (_X,), {"axis": 0}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs)
        axis, types = attr_int(attrs, "axis"), [given(t) for t in inputs]
        around = [(*t.shape[:axis], 1, *t.shape[axis + 1 :]) for t in types]
        numbers = [{dim for dim in dims if isinstance(dim, int)} for dims in zip(*around, strict=False)]
        if len({len(shape) for shape in around}) > 1 or any(len(found) > 1 for found in numbers):
            raise UnsupportedForm(f"operands {', '.join(map(str, types))} differ beside axis {axis}")
        shape = [next(iter(found), dim) for found, dim in zip(numbers, around[0], strict=True)]
        shape[axis] = sum((t.shape[axis] for t in types), start=0)
        return (TensorType(types[0].dtype, tuple(shape)),)

    def assumes(self, inputs: Types, attrs: Attrs) -> Sequence[tuple[Dim, Dim]]:
        axis, result = attr_int(attrs, "axis"), self.infer(inputs, attrs)[0].shape
        shapes = [t.shape for t in inputs if t is not None]
        return [(s[a], result[a]) for s in shapes for a in range(len(s)) if a != axis and s[a] != result[a]]

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.concatenate([array(x) for x in inputs], attr_int(attrs, "axis")),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        axis, shapes = attr_int(attrs, "axis"), [t.static_shape for t in inputs]
        if box[axis] != (0, sum(shape[axis] for shape in shapes)):
            return None
        return Part(tuple((*box[:axis], (0, shape[axis]), *box[axis + 1 :]) for shape in shapes), attrs)

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


def _concat(context: FormContext) -> Value:
    axis = normalize_axis(int(context.attrs["axis"]), context.input(0).type.rank)
    values = [context.input(i) for i in range(len(context.inputs))]
    while len(values) > MOST_PARTS:
        values = [_joined(context, values[i : i + MOST_PARTS], axis) for i in range(0, len(values), MOST_PARTS)]
    return _joined(context, values, axis)


MOST_PARTS = 128
"""Operands of one concatenation: each is a box of code in the kernel; more are joined in two steps."""


def _joined(context: FormContext, values: Sequence[Value], axis: int) -> Value:
    return context.emit("concat", *values, axis=axis) if len(values) > 1 else values[0]


Concat.forms = (OnnxForm("Concat", _concat),)
