"""RoiAlign: pooling of regions that are data, as gathers of the four neighbours of every sampling point and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, Sample
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, reshape, scalar_like
from compiler.ops.tables import check_sampled, combined, computed, converted, kept_inside, laid, multiples, real
from compiler.ops.wrap_index import checked

_X = (np.arange(2 * 2 * 6 * 5, dtype=np.float32).reshape(2, 2, 6, 5) * 7 % 11 - 5) / 4
_ROIS = np.array([[0.5, 1.2, 3.7, 4.1], [-2.0, 0.0, 9.0, 5.5], [1.0, 1.0, 1.2, 1.3]], np.float32)
_IMAGES = np.array([1, 0, 1], np.int64)
_BINS = {"output_height": 2, "output_width": 3, "sampling_ratio": 2}

ROI_SAMPLES = (
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), {**_BINS, "spatial_scale": 0.8}),
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), {**_BINS, "coordinate_transformation_mode": "output_half_pixel"}),
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), _BINS, opset=10),
    *(Sample("RoiAlign", (_X, _ROIS, _IMAGES), {"output_height": 2, "output_width": 1, "mode": mode}, opset=16) for mode in ("avg", "max")),
    Sample("RoiAlign", (_X, _ROIS[:0], _IMAGES[:0]), {"output_height": 2}, opset=16),
)


@dataclass(frozen=True)
class _Axis:
    """The sampling points along an axis, ``[R, 1, bins * points, 1]`` or with the columns last: two neighbours of each and their weights.

    A bin has ``points`` of them, of which the first ``counts`` are used, a number of each region or of all; ``used`` says which these are, and is
    None where all are.
    """

    neighbours: tuple[tuple[Value, Value], tuple[Value, Value]]
    points: Dim
    counts: Value
    used: Value | None


def roi_align(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RoiAlign.html: without a ratio, a run has as many points in a bin as its largest region needs."""
    x, rois, images = context.input(0), context.input(1), cast_to(context, context.input(2), DType.INT64)
    mode, ratio = str(context.attrs.get("mode", "avg")), int(context.attrs.get("sampling_ratio", 0))
    if mode not in ("avg", "max"):
        raise UnsupportedForm(f"mode {mode!r} is not known")
    batch, channels, *dims = x.type.shape
    regions = rois.type.shape[0]
    check_sampled(context, dims)
    bins = [int(context.attrs.get(name, 1)) for name in ("output_height", "output_width")]
    rows, columns = (_axis(context, rois, axis, dims[axis], bins[axis], ratio) for axis in (0, 1))
    first = context.emit("mul", checked(context, images, batch, 0), number(context, channels * product(dims)))
    planes = laid(context, multiples(context, channels, product(dims)), 1, 4)
    origin = context.emit("add", reshape(context, first, (regions, 1, 1, 1)), planes)
    flat = reshape(context, x, (product(x.type.shape),))
    values = []
    for place, weight in rows.neighbours:
        above = context.emit("add", origin, context.emit("mul", place, number(context, dims[1])))
        for beside, other in columns.neighbours:
            value = context.emit("gather", flat, context.emit("add", above, beside), axis=0)
            values.append(context.emit("mul", value, context.emit("mul", weight, other)))
    # The largest of the weighted neighbours, not of the interpolated points: what the operator's implementations agree on.
    total = reduce(lambda a, b: context.emit("add" if mode == "avg" else "maximum", a, b), values)
    for used in (rows.used, columns.used):
        total = total if used is None else context.emit("where", used, total, scalar_like(context, total, 0 if mode == "avg" else -np.inf))
    grid = reshape(context, total, (regions, channels, bins[0], rows.points, bins[1], columns.points))
    pooled = context.emit("reduce", grid, kind="sum" if mode == "avg" else "max", axes=(3, 5), keepdims=False)
    count = cast_to(context, combined(context, "mul", rows.counts, columns.counts), pooled.type.dtype)
    if mode == "avg":
        return context.emit("div", pooled, combined(context, "maximum", count, 1))
    zero = scalar_like(context, pooled, 0)
    return context.emit("where", combined(context, "greater", count, 0), pooled, zero) if ratio < 1 else pooled


def _axis(context: FormContext, rois: Value, axis: int, length: Dim, bins: int, ratio: int) -> _Axis:
    """The sampling points along an axis (0: height)."""
    half = context.opset >= 16 and context.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    regions = rois.type.shape[0]
    scale = float(context.attrs.get("spatial_scale", 1.0))
    ends = (reshape(context, slice_axis(context, rois, 1, at, 1), (regions, 1, 1, 1)) for at in (1 - axis, 3 - axis))
    begin, end = (combined(context, "sub", combined(context, "mul", value, scale), 0.5 if half else 0.0) for value in ends)
    extent = context.emit("sub", end, begin)
    if not half:
        extent = combined(context, "maximum", extent, 1.0)
    points: Dim = ratio
    counts = context.const(np.array(ratio, np.float64))
    if ratio < 1:
        counts = combined(context, "maximum", context.emit("ceil", combined(context, "div", converted(context, extent, DType.FLOAT64), bins)), 0)
        most = converted(context, context.emit("reduce", counts, kind="max", axes=(0, 1, 2, 3), keepdims=False), DType.INT64)
        (points,) = context.settled(context.builder.bind(combined(context, "maximum", most, 1), natural=True))
    places = iota(context, bins * points)
    within = converted(context, laid(context, combined(context, "mod", places, number(context, points), fmod=False), 2 + axis, 4), DType.FLOAT64)
    bin_ = converted(context, laid(context, computed(context, "div", places, number(context, points)), 2 + axis, 4), DType.FLOAT64)
    part = combined(context, "div", combined(context, "add", within, 0.5), combined(context, "maximum", counts, 1))
    fraction = combined(context, "div", combined(context, "add", bin_, part), bins)
    point = context.emit("add", begin, context.emit("mul", extent, converted(context, fraction, rois.type.dtype)))
    used = None if ratio >= 1 else combined(context, "less", within, counts)
    return _Axis(_neighbours(context, point, length), points, counts, used)


def _neighbours(context: FormContext, point: Value, length: Dim) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """The whole positions around points, and their weights; zero for points that lie more than one element outside."""
    near = context.emit("maximum", context.emit("minimum", point, real(context, length, point.type.dtype)), scalar_like(context, point, -1))
    valid = context.emit("equal", point, near)
    inside = kept_inside(context, point, length)
    low = context.emit("floor", inside)
    high = kept_inside(context, combined(context, "add", low, 1), length)
    part = context.emit("sub", inside, low)
    rest = context.emit("sub", scalar_like(context, part, 1), part)
    zero = scalar_like(context, part, 0)
    lower, upper = ((cast_to(context, at, DType.INT64), context.emit("where", valid, weight, zero)) for at, weight in ((low, rest), (high, part)))
    return lower, upper
