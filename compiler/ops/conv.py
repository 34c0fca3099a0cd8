"""Convolution and its transpose, over any number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, floordiv, maximum
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.ops.binary import same_dtype
from compiler.ops.index import slice_axis
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_dims,
    attr_int,
    attr_ints,
    first_type,
    given,
    known,
    known_shape,
    per_channel,
    reshape,
    transpose,
)
from compiler.ops.window import output_dim, pad_spatial, spatial, taps, window_pads, windows_part


def _wave(*shape: int) -> Array:
    return np.asarray(np.sin(np.arange(prod(shape)) * 1.7) * 2, np.float32).reshape(shape)


_X, _W = _wave(2, 4, 7, 6), _wave(6, 4, 3, 2)
_DEPTHWISE, _GROUPED = _wave(8, 1, 3, 3), _wave(6, 2, 3, 3)
_Y, _T = _wave(2, 4, 5, 3), _wave(4, 3, 3, 4)


@register
class Conv(Op):
    """``x [N, C, *S]`` with ``w [O, C/group, *K]``; attributes strides, pads (begins then ends), dilations, group."""

    name = "conv"
    families = ("depthwise_conv", "pointwise_conv", "direct_conv", "generic_conv")
    computes = True
    samples = (
        Sample("Conv", (_X, _W), constant=(1,)),
        Sample("Conv", (_X, _W, _wave(6)), {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}, constant=(1, 2)),
        Sample("Conv", (_X, _DEPTHWISE), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, constant=(1,)),
        Sample("Conv", (_X, _GROUPED), {"group": 2, "auto_pad": "SAME_LOWER"}, constant=(1,)),
        Sample("Conv", (_wave(1, 2, 9), _wave(3, 2, 3)), {"pads": [1, 1]}, constant=(1,)),
        Sample("Conv", (_wave(1, 2, 3, 4, 5), _wave(3, 2, 2, 2, 2)), {"auto_pad": "VALID"}, constant=(1,)),
        Sample("Conv", (_X, _W, _wave(6))),
        Sample("ConvTranspose", (_Y, _T), constant=(1,)),
        Sample("ConvTranspose", (_Y, _T, _wave(3)), {"strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 0]}, constant=(1, 2)),
        Sample("ConvTranspose", (_Y, _T), {"strides": [2, 2], "dilations": [2, 1], "group": 2}, constant=(1,)),
        Sample("ConvTranspose", (_Y, _T), {"strides": [3, 2], "output_shape": [14, 7]}, constant=(1,)),
        Sample("ConvTranspose", (_Y, _wave(4, 3, 2, 2)), {"strides": [2, 2]}, constant=(1,)),
        Sample("ConvTranspose", (_wave(1, 2, 5), _wave(2, 3, 4)), {"strides": [2], "auto_pad": "SAME_UPPER"}, constant=(1,)),
        Sample("ConvTranspose", (_Y, _T), {"strides": [2, 3], "group": 2, "pads": [1, 1, 0, 0]}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs)
        x, w, group = first_type(inputs), given(inputs[1]), attr_int(attrs, "group")
        channels, outputs = x.shape[1], known(w.shape[0], "the number of filters")
        fits = channels == w.shape[1] * group or not isinstance(channels, int)
        if x.rank != w.rank or not fits or outputs % group:
            raise UnsupportedForm(f"weights {w} with group {group} do not fit input {x}")
        return (TensorType(x.dtype, (x.shape[0], outputs, *self._windows(x, w, attrs))),)

    @staticmethod
    def _windows(x: TensorType, w: TensorType, attrs: Attrs) -> list[Dim]:
        pads, axes = attr_dims(attrs, "pads"), x.rank - 2
        strides, dilations = (attr_ints(attrs, name) for name in ("strides", "dilations"))
        return [
            output_dim(x.shape[2 + a], known(w.shape[2 + a], "a kernel dim"), strides[a], pads[a], pads[axes + a], dilations[a]) for a in range(axes)
        ]

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, w, group = array(inputs[0]), array(inputs[1]), attr_int(attrs, "group")
        (result,) = self.infer([TensorType(DType.of(x.dtype), x.shape), TensorType(DType.of(w.dtype), w.shape)], attrs)
        out = result.static_shape
        padded = pad_spatial(x.astype(np.float64), attr_ints(attrs, "pads"), 0)
        grouped = padded.reshape(x.shape[0], group, x.shape[1] // group, *padded.shape[2:])
        weights = w.astype(np.float64).reshape(group, w.shape[0] // group, *w.shape[1:])
        total = np.zeros((x.shape[0], group, w.shape[0] // group, prod(out[2:])))
        for tap, view in taps(grouped, w.shape[2:], attr_ints(attrs, "strides"), attr_ints(attrs, "dilations"), out[2:]):
            at = weights[(slice(None),) * 3 + tap]
            pixels = view.reshape(*view.shape[:3], prod(out[2:]))
            total += at * pixels if w.shape[1] == 1 else np.matmul(at, pixels)
        return (total.reshape(out).astype(x.dtype),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        x, w = (t.static_shape for t in inputs)
        filters, group = w[0] // attr_int(attrs, "group"), attr_int(attrs, "group")
        first, last = box[1]
        if group == 1:
            channels, groups = (0, x[1]), 1
        elif first % filters == 0 == last % filters:
            channels, groups = (first // filters * w[1], last // filters * w[1]), (last - first) // filters
        else:
            return None
        found = windows_part(box[2:], x[2:], w[2:], attrs)
        if found is None:
            return None
        spans, pads = found
        weights = ((first, last), *((0, dim) for dim in w[1:]))
        return Part(((box[0], channels, *spans), weights), {**attrs, "pads": pads, "group": groups})

    def assumes(self, inputs: Types, attrs: Attrs) -> Sequence[tuple[Dim, Dim]]:
        wanted = given(inputs[1]).shape[1] * attr_int(attrs, "group")
        return [(first_type(inputs).shape[1], wanted)]

    def takes_prologue(self, inputs: Types, attrs: Attrs, constant: Sequence[bool]) -> bool:
        x, w, group = first_type(inputs), given(inputs[1]), attr_int(attrs, "group")
        whole = group == 1 or all(isinstance(dim, int) and dim % x.block == 0 for dim in (w.shape[1], floordiv(w.shape[0], group)))
        pointwise = all(size == 1 for size in w.shape[2:]) and not any(pad != 0 for pad in attr_dims(attrs, "pads"))
        return x.block > 1 and constant[1] and pointwise and whole

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        x, w = first_type(inputs), given(inputs[1])
        blocked = compute_dtype(x.dtype) is DType.FLOAT32 and x.rank in (3, 4, 5) and w.is_static
        return Layouts.BLOCKED_OUT if blocked else Layouts.PLAIN


def _with_bias(context: FormContext, result: Value) -> Value:
    bias = context.optional(2)
    return result if bias is None else context.emit("add", result, per_channel(context, bias, result.type.rank))


def conv(context: FormContext) -> Value:
    """Conv of inputs 0 and 1, plus a bias in input 2."""
    x, w = context.input(0), context.input(1)
    axes = x.type.rank - 2
    if axes < 1 or w.type.rank != x.type.rank:
        raise UnsupportedForm(f"weights {w.type} do not fit input {x.type}")
    kernel = known_shape(w, "the weights")[2:]
    strides, dilations = spatial(context, "strides", axes, 1), spatial(context, "dilations", axes, 1)
    pads = window_pads(context, x.type.shape[2:], kernel, strides, dilations)
    if any(isinstance(pad, int) and pad < 0 for pad in pads):
        x = context.emit("pad", x, begins=(0, 0, *pads[:axes]), ends=(0, 0, *pads[axes:]), mode="constant", value=0.0)
        pads = (0,) * 2 * axes
    return _with_bias(context, context.emit("conv", x, w, strides=strides, pads=pads, dilations=dilations, group=int(context.attrs.get("group", 1))))


def _transposed_pads(
    context: FormContext, shape: Sequence[Dim], extents: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """Where the result begins in the full one, and its spatial shape."""
    axes = len(shape)
    more = spatial(context, "output_padding", axes, 0)
    full = [(dim - 1) * stride + extent + extra for dim, stride, extent, extra in zip(shape, strides, extents, more, strict=True)]
    auto = context.attrs.get("auto_pad", "NOTSET")
    wanted: tuple[Dim, ...] | None = tuple(int(v) for v in context.attrs["output_shape"])[-axes:] if "output_shape" in context.attrs else None
    if wanted is None and auto.startswith("SAME"):
        wanted = tuple(dim * stride for dim, stride in zip(shape, strides, strict=True))
    if wanted is None:
        pads = tuple(int(v) for v in context.attrs.get("pads", (0,) * 2 * axes)) if auto in ("NOTSET", "") else (0,) * 2 * axes
        return pads[:axes], tuple(size - pads[a] - pads[axes + a] for a, size in enumerate(full))
    totals = [maximum(size - want, 0) for size, want in zip(full, wanted, strict=True)]
    return tuple(floordiv(total, 2) if auto == "SAME_UPPER" else total - floordiv(total, 2) for total in totals), wanted


def _conv_transpose(context: FormContext) -> Value:
    x, w = context.input(0), context.input(1)
    axes = x.type.rank - 2
    group = int(context.attrs.get("group", 1))
    strides, dilations = spatial(context, "strides", axes, 1), spatial(context, "dilations", axes, 1)
    kernel = known_shape(w, "the weights")[2:]
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begins, out = _transposed_pads(context, x.type.shape[2:], extents, strides)
    weights = context.constant(1)
    if weights is not None:
        full = _by_phases(context, x, weights, group, strides, dilations, extents)
    else:
        full = _by_zero_stuffing(context, x, w, group, strides, dilations)
    ends = tuple(want + begin - size for want, begin, size in zip(out, begins, full.type.shape[2:], strict=True))
    if any(end != 0 for end in (*begins, *ends)):
        full = _crop_and_pad(context, full, tuple(-begin for begin in begins), ends)
    return _with_bias(context, full)


def _crop_and_pad(context: FormContext, x: Value, begins: Sequence[Dim], ends: Sequence[Dim]) -> Value:
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True), 2):
        start = maximum(0, -begin)
        x = slice_axis(context, x, axis, start, x.type.shape[axis] - start - maximum(0, -end))
    more_begins, more_ends = tuple(maximum(0, b) for b in begins), tuple(maximum(0, e) for e in ends)
    if all(more == 0 for more in (*more_begins, *more_ends)):
        return x
    return context.emit("pad", x, begins=(0, 0, *more_begins), ends=(0, 0, *more_ends), mode="constant", value=0.0)


def _by_phases(
    context: FormContext, x: Value, weights: Array, group: int, strides: Sequence[int], dilations: Sequence[int], extents: Sequence[int]
) -> Value:
    """The full result as one convolution with ``prod(strides)`` times the channels, whose phases are then interleaved.

    Output position ``q * s + r`` meets input ``q - t`` with kernel tap ``r + t * s``: phase r is a convolution with the taps
    ``r, r + s, …`` in reverse order (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
    """
    axes = len(strides)
    counts = [-(-extent // stride) for extent, stride in zip(extents, strides, strict=True)]
    inputs, outputs = weights.shape[0] // group, weights.shape[1]
    dense = np.zeros((*weights.shape[:2], *(count * stride for count, stride in zip(counts, strides, strict=True))), weights.dtype)
    positions = tuple(slice(0, extent, dilation) for extent, dilation in zip(extents, dilations, strict=True))
    dense[(slice(None), slice(None), *positions)] = weights
    split = dense.reshape(group, inputs, outputs, *(n for pair in zip(counts, strides, strict=True) for n in pair))
    order = (0, *(4 + 2 * a for a in range(axes)), 2, 1, *(3 + 2 * a for a in range(axes)))
    phases = np.flip(split.transpose(order), tuple(range(3 + axes, 3 + 2 * axes)))
    filters = np.ascontiguousarray(phases).reshape(group * outputs * prod(strides), inputs, *counts)
    borders = tuple(count - 1 for count in counts) * 2
    result = context.emit("conv", x, context.const(filters), strides=(1,) * axes, pads=borders, dilations=(1,) * axes, group=group)
    return result if prod(strides) == 1 else context.emit("interleave", result, group=group, strides=tuple(strides))


def _by_zero_stuffing(context: FormContext, x: Value, w: Value, group: int, strides: Sequence[int], dilations: Sequence[int]) -> Value:
    """The full result as a convolution of the input with zeros between its elements; for weights that are not known."""
    axes = len(strides)
    batch, channels, *dims = x.type.shape
    if prod(strides) > 1:
        spread = reshape(context, x, (batch, channels, *(n for dim in dims for n in (dim, 1))))
        ends = (0, 0, *(n for stride in strides for n in (0, stride - 1)))
        spread = context.emit("pad", spread, begins=(0,) * len(ends), ends=ends, mode="constant", value=0.0)
        x = reshape(context, spread, (batch, channels, *(dim * stride for dim, stride in zip(dims, strides, strict=True))))
        for axis, stride in enumerate(strides, 2):
            x = slice_axis(context, x, axis, 0, x.type.shape[axis] - (stride - 1))
    inputs, outputs, *kernel = known_shape(w, "the weights")
    split = reshape(context, w, (group, inputs // group, outputs, *kernel))
    swapped = reshape(context, transpose(context, split, (0, 2, 1, *range(3, 3 + axes))), (group * outputs, inputs // group, *kernel))
    starts = (0, 0, *(size - 1 for size in kernel))
    flipped = context.emit("slice", swapped, starts=starts, sizes=swapped.type.shape, steps=(1, 1, *(-1,) * axes))
    borders = tuple((size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)) * 2
    return context.emit("conv", x, flipped, strides=(1,) * axes, pads=borders, dilations=tuple(dilations), group=group)


Conv.forms = (OnnxForm("Conv", conv), OnnxForm("ConvTranspose", _conv_transpose))
