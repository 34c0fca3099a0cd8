"""Pooling over sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.dims import iota, number
from compiler.ops.roi_align import ROI_SAMPLES, roi_align
from compiler.ops.support import Arrays, Attrs, Types, array, attr_dims, attr_ints, first_type, reshape, scalar_like
from compiler.ops.window import output_dim, pad_spatial, spatial, taps, window_pads, windows_part

_X = (np.sin(np.arange(2 * 3 * 7 * 6) * 1.3) * 4).astype(np.float32).reshape(2, 3, 7, 6)
_WINDOW = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}


@register
class Pool(Op):
    """``kind`` (max or average) of the windows of ``x [N, C, *S]``; attributes as ONNX's MaxPool and AveragePool."""

    name = "pool"
    families = ("pool",)
    computes = True
    samples = (
        Sample("MaxPool", (_X,), _WINDOW),
        Sample("MaxPool", (_X,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        Sample("MaxPool", (_X,), {"kernel_shape": [2, 2], "dilations": [2, 1], "auto_pad": "SAME_UPPER"}),
        Sample("MaxPool", (_X[0],), {"kernel_shape": [3], "strides": [2]}),
        Sample("MaxPool", (_X.astype(np.int8),), {"kernel_shape": [2, 2]}),
        Sample("MaxPool", (_X,), _WINDOW, outputs=2),
        Sample("MaxPool", (_X,), {"kernel_shape": [2, 3], "storage_order": 1, "dilations": [2, 1]}, outputs=2),
        Sample("MaxPool", (_X[:, :, 0],), {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, outputs=2),
        *ROI_SAMPLES,
        Sample("AveragePool", (_X,), _WINDOW),
        Sample("AveragePool", (_X,), {**_WINDOW, "count_include_pad": 1}),
        Sample("AveragePool", (_X,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
        Sample("AveragePool", (_X[:, :, None],), {"kernel_shape": [1, 2, 3], "auto_pad": "SAME_LOWER"}),
        Sample("LpPool", (_X,), {"kernel_shape": [2, 2], "p": 2}),
        Sample("GlobalLpPool", (_X,), {"p": 1}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x = first_type(inputs)
        kernel, strides, dilations = (attr_ints(attrs, n) for n in ("kernel_shape", "strides", "dilations"))
        axes, pads = len(kernel), attr_dims(attrs, "pads")
        dims: list[Dim] = [
            output_dim(x.shape[2 + a], kernel[a], strides[a], pads[a], pads[axes + a], dilations[a], ceil=bool(attrs["ceil_mode"]))
            for a in range(axes)
        ]
        return (TensorType(x.dtype, (x.shape[0], x.shape[1], *dims)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x = array(inputs[0])
        kernel, strides, pads, dilations = (attr_ints(attrs, n) for n in ("kernel_shape", "strides", "pads", "dilations"))
        out = self.infer([TensorType(DType.of(x.dtype), x.shape)], attrs)[0].static_shape[2:]
        axes = len(kernel)
        ends = [(out[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 for a in range(axes)]
        extra = [max(0, ends[a] - x.shape[2 + a] - pads[a] - pads[axes + a]) for a in range(axes)]
        if attrs["kind"] == "max":
            lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
            padded = pad_spatial(x, pads, lowest, extra)
            return (np.maximum.reduce([view for _, view in taps(padded, kernel, strides, dilations, out)]),)
        ones = np.ones((1, 1, *x.shape[2:]))
        counted = pad_spatial(pad_spatial(ones, pads, int(bool(attrs["count_include_pad"]))), (0,) * 2 * axes, 0, extra)
        padded = pad_spatial(x.astype(np.float64), pads, 0, extra)
        total = np.add.reduce([view for _, view in taps(padded, kernel, strides, dilations, out)])
        count = np.add.reduce([view for _, view in taps(counted, kernel, strides, dilations, out)])
        with np.errstate(all="ignore"):
            return (np.asarray(total / count).astype(x.dtype),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        shape, kernel, given_pads = inputs[0].static_shape, attr_ints(attrs, "kernel_shape"), attr_ints(attrs, "pads")
        found = windows_part(box[2:], shape[2:], kernel, attrs)
        if found is None:
            return None
        spans, pads = found
        # Where padding counts, what a last window has beyond it does not.
        beyond = any(pad > most for pad, most in zip(pads, given_pads, strict=True))
        if beyond and attrs["kind"] == "average" and attrs["count_include_pad"]:
            return None
        return Part(((box[0], box[1], *spans),), {**attrs, "pads": pads, "ceil_mode": False})

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        return Layouts.SAME


def pool(kind: str) -> Callable[[FormContext], Value]:
    """A form of the pooling operator of that kind: its window is read from the node's attributes."""

    def build(context: FormContext) -> Value:
        x = context.input(0)
        axes = x.type.rank - 2
        kernel = spatial(context, "kernel_shape", axes, 1)
        strides, dilations = spatial(context, "strides", axes, 1), spatial(context, "dilations", axes, 1)
        return context.emit(
            "pool",
            x,
            kind=kind,
            kernel_shape=kernel,
            strides=strides,
            pads=window_pads(context, x.type.shape[2:], kernel, strides, dilations),
            dilations=dilations,
            ceil_mode=bool(context.attrs.get("ceil_mode", 0)),
            count_include_pad=bool(context.attrs.get("count_include_pad", 0)),
        )

    return build


def _max_pool(context: FormContext) -> Value | Sequence[Value]:
    return _max_pool_with_positions(context) if context.outputs > 1 else pool("max")(context)


def _max_pool_with_positions(context: FormContext) -> Sequence[Value]:
    """The maxima and their flat positions in x: the elements of a window compared one after another, the first of equal ones kept."""
    x = context.input(0)
    batch, channels, *dims = x.type.shape
    axes = len(dims)
    kernel, strides, dilations = (spatial(context, name, axes, 1) for name in ("kernel_shape", "strides", "dilations"))
    pads = window_pads(context, dims, kernel, strides, dilations)
    ceil = bool(context.attrs.get("ceil_mode", 0))
    windows = [output_dim(dims[a], kernel[a], strides[a], pads[a], pads[axes + a], dilations[a], ceil=ceil) for a in range(axes)]
    reach = [(windows[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 for a in range(axes)]
    ends = tuple(reach[a] - dims[a] - pads[a] for a in range(axes))
    dtype = x.type.dtype.numpy
    lowest = int(np.iinfo(dtype.name).min) if dtype.kind in "iu" else -np.inf
    padded = context.emit("pad", x, begins=(0, 0, *pads[:axes]), ends=(0, 0, *ends), mode="constant", value=lowest)
    # Column-major order counts the first spatial axis fastest.
    order = range(axes) if context.attrs.get("storage_order", 0) else reversed(range(axes))
    steps: list[Dim] = [0] * axes
    size: Dim = 1
    for axis in order:
        steps[axis], size = size, size * dims[axis]
    best: Value | None = None
    for tap in np.ndindex(*kernel):
        starts = (0, 0, *(t * d for t, d in zip(tap, dilations, strict=True)))
        value = context.emit("slice", padded, starts=starts, sizes=(batch, channels, *windows), steps=(1, 1, *strides))
        distance: Dim = 0
        for t, d, s in zip(tap, dilations, steps, strict=True):
            distance = distance + s * (t * d)
        place = number(context, distance)
        if best is None:
            best, offset = value, place
            continue
        better = context.emit("greater", value, best)
        offset = context.emit("where", better, place, offset)
        best = context.emit("where", better, value, best)
    if best is None:
        raise UnsupportedForm("the windows are empty")
    images = reshape(context, iota(context, batch * channels), (batch, channels, *(1,) * axes))
    positions = context.emit("add", offset, context.emit("mul", images, number(context, size)))
    for a in range(axes):
        first = context.emit("mul", iota(context, windows[a]), number(context, strides[a]))
        along = context.emit("mul", context.emit("sub", first, number(context, pads[a])), number(context, steps[a]))
        positions = context.emit("add", positions, reshape(context, along, (windows[a], *(1,) * (axes - 1 - a))))
    return [best, positions]


def _power(context: FormContext, x: Value, exponent: float) -> Value:
    return x if exponent == 1 else context.emit("pow", x, scalar_like(context, x, exponent))


def _lp_pool(context: FormContext) -> Value:
    """``(sum |x|^p)^(1/p)``: an average that counts padding, times the window's size, between powers."""
    if context.attrs.get("ceil_mode", 0):
        raise UnsupportedForm("ceil_mode is not supported")
    x, p = context.input(0), int(context.attrs.get("p", 2))
    axes = x.type.rank - 2
    kernel = spatial(context, "kernel_shape", axes, 1)
    strides, dilations = spatial(context, "strides", axes, 1), spatial(context, "dilations", axes, 1)
    average = context.emit(
        "pool",
        _power(context, context.emit("abs", x), p),
        kind="average",
        kernel_shape=kernel,
        strides=strides,
        pads=window_pads(context, x.type.shape[2:], kernel, strides, dilations),
        dilations=dilations,
        ceil_mode=False,
        count_include_pad=True,
    )
    return _power(context, context.emit("mul", average, scalar_like(context, x, float(np.prod(kernel)))), 1 / p)


def _global_lp_pool(context: FormContext) -> Value:
    x, p = context.input(0), int(context.attrs.get("p", 2))
    powers = _power(context, context.emit("abs", x), p)
    total = context.emit("reduce", powers, kind="sum", axes=tuple(range(2, x.type.rank)), keepdims=True)
    return _power(context, total, 1 / p)


Pool.forms = (
    OnnxForm("MaxPool", _max_pool),
    OnnxForm("RoiAlign", roi_align),
    OnnxForm("AveragePool", pool("average")),
    OnnxForm("LpPool", _lp_pool),
    OnnxForm("GlobalLpPool", _global_lp_pool),
)
