"""RoiAlign: pooling of regions that are data, as gathers of the four neighbours of every sampling point and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, Sample
from compiler.ir.types import DType
from compiler.ops.dims import number
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, reshape, scalar_like
from compiler.ops.tables import check_sampled, combined, kept_inside, laid, multiples, real
from compiler.ops.wrap_index import checked

_X = (np.arange(2 * 2 * 6 * 5, dtype=np.float32).reshape(2, 2, 6, 5) * 7 % 11 - 5) / 4
_ROIS = np.array([[0.5, 1.2, 3.7, 4.1], [-2.0, 0.0, 9.0, 5.5], [1.0, 1.0, 1.2, 1.3]], np.float32)
_IMAGES = np.array([1, 0, 1], np.int64)
_BINS = {"output_height": 2, "output_width": 3, "sampling_ratio": 2}

ROI_SAMPLES = (
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), {**_BINS, "spatial_scale": 0.8}),
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), {**_BINS, "coordinate_transformation_mode": "output_half_pixel"}),
    Sample("RoiAlign", (_X, _ROIS, _IMAGES), _BINS, opset=10),
)


@dataclass(frozen=True)
class _Tap:
    """Whole positions along an axis and their weights, one for each sampling point of each region."""

    position: Value
    weight: Value


def roi_align(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RoiAlign.html with a fixed number of sampling points in each bin."""
    x, rois, images = context.input(0), context.input(1), cast_to(context, context.input(2), DType.INT64)
    mode, ratio = str(context.attrs.get("mode", "avg")), int(context.attrs.get("sampling_ratio", 0))
    if mode not in ("avg", "max") or ratio < 1:
        raise UnsupportedForm(f"mode {mode!r} with sampling_ratio {ratio}; a ratio of at least 1 is needed, so that the points are known")
    batch, channels, *dims = x.type.shape
    regions = rois.type.shape[0]
    check_sampled(context, dims)
    bins = [int(context.attrs.get(name, 1)) for name in ("output_height", "output_width")]
    rows, columns = (_taps(context, rois, axis, dims[axis], bins[axis], ratio) for axis in (0, 1))
    first = context.emit("mul", checked(context, images, batch, 0), number(context, channels * product(dims)))
    planes = laid(context, multiples(context, channels, product(dims)), 1, 4)
    origin = context.emit("add", reshape(context, first, (regions, 1, 1, 1)), planes)
    flat = reshape(context, x, (product(x.type.shape),))
    total: Value | None = None
    for row in rows:
        above = context.emit("add", origin, context.emit("mul", row.position, number(context, dims[1])))
        for column in columns:
            value = context.emit("gather", flat, context.emit("add", above, column.position), axis=0)
            value = context.emit("mul", value, context.emit("mul", row.weight, column.weight))
            # The largest of the weighted neighbours, not of the interpolated points: what the operator's implementations agree on.
            total = value if total is None else context.emit("add" if mode == "avg" else "maximum", total, value)
    if total is None:
        raise UnsupportedForm("there are no neighbours")
    points = reshape(context, total, (regions, channels, bins[0], ratio, bins[1], ratio))
    pooled = context.emit("reduce", points, kind="sum" if mode == "avg" else "max", axes=(3, 5), keepdims=False)
    return context.emit("mul", pooled, scalar_like(context, pooled, 1 / ratio**2)) if mode == "avg" else pooled


def _taps(context: FormContext, rois: Value, axis: int, length: Dim, bins: int, ratio: int) -> tuple[_Tap, _Tap]:
    """The neighbours of the sampling points along an axis (0: height): ``[R, 1, points, 1]`` or ``[R, 1, 1, points]``."""
    half = context.opset >= 16 and context.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    regions = rois.type.shape[0]

    scale = float(context.attrs.get("spatial_scale", 1.0))
    ends = (reshape(context, slice_axis(context, rois, 1, at, 1), (regions, 1, 1, 1)) for at in (1 - axis, 3 - axis))
    begin, end = (combined(context, "sub", combined(context, "mul", value, scale), 0.5 if half else 0.0) for value in ends)
    extent = context.emit("sub", end, begin)
    if not half:
        extent = combined(context, "maximum", extent, 1.0)
    fractions = ((np.arange(bins * ratio) + 0.5) / (bins * ratio)).astype(rois.type.dtype.numpy)
    steps = context.const(fractions.reshape((1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)))
    point = context.emit("add", begin, context.emit("mul", extent, steps))
    near = context.emit("maximum", context.emit("minimum", point, real(context, length, point.type.dtype)), scalar_like(context, point, -1))
    valid = context.emit("equal", point, near)
    inside = kept_inside(context, point, length)
    low = context.emit("floor", inside)
    high = kept_inside(context, combined(context, "add", low, 1), length)
    part = context.emit("sub", inside, low)
    rest = context.emit("sub", scalar_like(context, part, 1), part)
    zero = scalar_like(context, part, 0)
    found = [_Tap(cast_to(context, at, DType.INT64), context.emit("where", valid, weight, zero)) for at, weight in ((low, rest), (high, part))]
    return found[0], found[1]
