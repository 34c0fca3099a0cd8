"""Padding, in every mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product as cartesian
from math import prod

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, window_part
from compiler.ir.graph import Array, Attr, Region, Value
from compiler.ir.intexpr import Dim, IntExpr, maximum, minimum
from compiler.ir.op import FormContext, OnnxForm, Sample, register
from compiler.ir.run_time import natural
from compiler.ir.types import DType, TensorType
from compiler.ops.index import IndexMap
from compiler.ops.simplify_moves import no_padding, padded_twice
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
    by_axis,
    first_type,
    reshape,
)

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Segment:
    """A run of one output axis: where it starts, how long it is, and what it reads (None: the fill value)."""

    offset: Dim
    extent: Dim
    index: Dim | None


@register
class Pad(IndexMap):
    """Elements added (or, where negative, removed) before (``begins``) and after (``ends``) each axis.

    ``mode`` is ``constant`` (``value``; of strings the empty one, as which 0 stands), ``edge``, ``reflect`` (without repeating the edge) or ``wrap``.
    """

    name = "pad"
    simplifications = (no_padding, padded_twice)
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
        x, begins, ends = first_type(inputs), attr_dims(attrs, "begins"), attr_dims(attrs, "ends")
        return (TensorType(x.dtype, tuple(b + dim + e for b, dim, e in zip(begins, x.shape, ends, strict=True))),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, mode = array(inputs[0]), attr_str(attrs, "mode")
        pads = list(zip(attr_ints(attrs, "begins"), attr_ints(attrs, "ends"), strict=True))
        kept = x[tuple(slice(max(0, -b), dim - max(0, -e)) for (b, e), dim in zip(pads, x.shape, strict=True))]
        widths = [(max(0, b), max(0, e)) for b, e in pads]
        if x.dtype.kind == "O" and mode == "constant":
            return (np.pad(kept, widths, constant_values=""),)
        if mode == "constant":
            return (np.pad(kept, widths, constant_values=attr_float(attrs, "value") if x.dtype.kind not in "iu" else attr_int(attrs, "value")),)
        return (np.pad(kept, widths, mode=mode),)  # type: ignore[call-overload]

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        shape, begins, ends = inputs[0].static_shape, attr_ints(attrs, "begins"), attr_ints(attrs, "ends")
        spans, pads = [], []
        for dim, begin, end, span in zip(shape, begins, ends, box, strict=True):
            read = ((0, dim), (begin, end)) if span == (0, begin + dim + end) else window_part(span, dim, 1, 1, begin)
            if read is None or (attrs["mode"] != "constant" and read[1] not in ((0, 0), (begin, end))):
                return None
            spans.append(read[0])
            pads.append(read[1])
        return Part((tuple(spans),), {**attrs, "begins": tuple(b for b, _ in pads), "ends": tuple(e for _, e in pads)})

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        shape, mode = inputs[0].shape, attr_str(attrs, "mode")
        pads = zip(attr_dims(attrs, "begins"), attr_dims(attrs, "ends"), strict=True)
        axes = [list(_segments(axis, dim, b, e, mode)) for axis, (dim, (b, e)) in enumerate(zip(shape, pads, strict=True))]
        whole = self.infer(inputs, attrs)[0].shape
        return tuple(_filled_boxes(axes, whole, attrs["value"]) if mode == "constant" else map(_box, cartesian(*axes)))


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


def _segments(axis: int, dim: Dim, begin: Dim, end: Dim, mode: str) -> Iterator[Segment]:
    """The runs of one padded axis, in order."""
    i = axis_symbol(axis)
    crop_begin, crop_end = natural(-begin), natural(-end)
    begin, end = natural(begin), natural(end)
    length = dim - crop_begin - crop_end
    if mode == "constant":
        runs: list[Segment] = [Segment(0, begin, None), Segment(begin, length, i), Segment(begin + length, end, None)]
    elif mode == "edge":
        runs = [Segment(0, begin, 0), Segment(begin, length, i), Segment(begin + length, end, length - 1)]
    else:
        runs = _periodic(i, length, begin, end, mode)
    for run in runs:
        if run.extent != 0:
            yield replace(run, index=None if run.index is None else run.index + crop_begin)


def _one_period(i: IntExpr, length: Dim, begin: Dim, end: Dim, mode: str) -> list[Segment]:
    """Runs of a reflected or wrapped axis whose padding is shorter than the axis."""
    before, after = (begin - i, length - 2 - i) if mode == "reflect" else (length - begin + i, i)
    return [Segment(0, begin, before), Segment(begin, length, i), Segment(begin + length, end, after)]


def _periodic(i: IntExpr, length: Dim, begin: Dim, end: Dim, mode: str) -> list[Segment]:
    """Runs of a reflected or wrapped axis: cut wherever the direction of reading or the period changes."""
    if not (isinstance(length, int) and isinstance(begin, int) and isinstance(end, int)):
        return _one_period(i, length, begin, end, mode)
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


_PERIODS = 64
"""Times that reflected or wrapped elements may be repeated: code is made for each."""

_BOXES = 81
"""Boxes of one kernel, three runs along each of four axes; where there are more, each axis is padded for itself."""

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
    begins, ends = (
        list(map(context.builder.define, by_axis(context, axes, numbers, x.type.rank))) for numbers in (pads[: len(axes)], pads[len(axes) :])
    )
    for dim, begin, end in zip(x.type.shape, begins, ends, strict=True):
        _check_pads(context, dim, begin, end, mode)
    if set(begins + ends) <= {0}:
        return x
    value, filler = context.attrs.get("value", 0.0), context.optional(2)
    if filler is not None and mode == "constant":
        data = context.constant(2)
        if data is None or (x.type.dtype is DType.STRING and data.item()):
            return _filled(context, x, tuple(begins), tuple(ends), reshape(context, filler, ()))
        value = data.item() or 0
    fill = value if x.type.dtype.is_float else int(value)
    runs = [len(list(_segments(axis, dim, begins[axis], ends[axis], mode))) for axis, dim in enumerate(x.type.shape)]
    if mode == "constant" or prod(runs) <= _BOXES:
        return context.emit("pad", x, begins=tuple(begins), ends=tuple(ends), mode=mode, value=fill)
    for axis in (a for a, pads in enumerate(zip(begins, ends, strict=True)) if pads != (0, 0)):
        alone = [tuple(pad if a == axis else 0 for a, pad in enumerate(given)) for given in (begins, ends)]
        x = context.emit("pad", x, begins=alone[0], ends=alone[1], mode=mode, value=fill)
    return x


def _check_pads(context: FormContext, dim: Dim, begin: Dim, end: Dim, mode: str) -> None:
    """What must hold of padding: something may be cut off, not more than there is; what repeats elements needs some, and not too many times."""
    kept = dim - natural(-begin) - natural(-end)
    context.check(0, kept, None, "{value} elements are left where padding cuts off")
    if mode == "constant":
        return
    padding = maximum(natural(begin), natural(end))
    context.check(minimum(padding, 1), kept, None, f"mode {mode} repeats elements, and there are none")
    if mode == "edge":
        return
    if not (isinstance(kept, int) and isinstance(padding, int)):
        most = kept - 1 if mode == "reflect" else kept
        context.check(None, padding, most, f"padding of {{value}} elements in mode {mode}, where at most {{high}} are possible")
    elif padding:
        context.check(None, padding // max(kept - 1, 1), _PERIODS, "its padding repeats the elements {value} times; at most {high} are supported")


def _filled(context: FormContext, x: Value, begins: tuple[Dim, ...], ends: tuple[Dim, ...], filler: Value) -> Value:
    """x padded with a number that only a run knows."""
    everywhere = context.emit("expand", context.const(np.array(True)), shape=x.type.shape)
    inside, padded = (context.emit("pad", v, begins=begins, ends=ends, mode="constant", value=0) for v in (everywhere, x))
    return context.emit("where", inside, padded, filler)


Pad.forms = (OnnxForm("Pad", _pad),)
