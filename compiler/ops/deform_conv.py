"""DeformConv: convolution whose windows' taps are moved by offsets that are data, as gathers of their neighbours and a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as cartesian
from math import prod

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.dims import number
from compiler.ops.gather import Gather
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, known, known_shape, per_channel, reshape, scalar_like
from compiler.ops.tables import check_sampled, combined, computed, converted, kept_inside, laid, multiples
from compiler.ops.window import output_dim, spatial


def _wave(*shape: int, step: float) -> Array:
    return np.asarray(np.sin(np.arange(prod(shape)) * step) * 1.5, np.float32).reshape(shape)


_X, _W = _wave(2, 4, 5, 4, step=1.7), _wave(2, 4, 2, 3, step=0.9)
_OFFSET, _MASK = _wave(2, 12, 4, 2, step=1.1), _wave(2, 6, 4, 2, step=2.3)


@dataclass(frozen=True)
class _Windows:
    """The sizes of a node: offset groups G, taps K of a window, output positions P."""

    batch: Dim
    channels: int
    dims: tuple[Dim, ...]
    kernel: tuple[int, ...]
    out: tuple[Dim, ...]
    groups: int

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def positions(self) -> Dim:
        return product(self.out)


def _deform_conv(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DeformConv.html: inputs x, w, offsets, bias, mask; outside the input there are zeros."""
    x, w, offset = (context.input(i) for i in range(3))
    batch, depth, *dims = x.type.shape
    channels = known(depth, "the channels of the input")
    filters, inner, *kernel = known_shape(w, "the weights")
    axes, group, groups = len(dims), int(context.attrs.get("group", 1)), int(context.attrs.get("offset_group", 1))
    strides, dilations = (spatial(context, name, axes, 1) for name in ("strides", "dilations"))
    pads = spatial(context, "pads", 2 * axes, 0)
    if inner * group != channels or filters % group or channels % groups:
        raise UnsupportedForm(f"{channels} channels with weights {w.type}, group {group} and offset_group {groups}")
    out = [output_dim(n, k, s, pads[a], pads[axes + a], d) for a, (n, k, s, d) in enumerate(zip(dims, kernel, strides, dilations, strict=True))]
    check_sampled(context, dims)
    if offset.type.rank != axes + 2:
        raise UnsupportedForm(f"the offsets are {offset.type}, for {axes} spatial axes")
    sizes = _Windows(batch, channels, tuple(dims), tuple(kernel), tuple(out), groups)
    for axis, (met, wanted) in enumerate(zip(offset.type.shape, (batch, groups * sizes.taps * axes, *out), strict=True)):
        context.check(wanted, met, wanted, f"its offsets have {{value}} elements along axis {axis}, where the windows ask for {{low}}")
    moved = reshape(context, cast_to(context, offset, DType.FLOAT32), (batch, groups, 1, sizes.taps, axes, sizes.positions))
    places = []
    for axis, (count, stride) in enumerate(zip(sizes.out, strides, strict=True)):
        start = combined(context, "sub", laid(context, multiples(context, count, stride), axis, axes), pads[axis])
        grid = computed(context, "reshape", computed(context, "expand", start, shape=sizes.out), shape=(1, sizes.positions))
        tap = context.const(np.indices(kernel)[axis].reshape(-1, 1).astype(np.int64) * dilations[axis])
        fixed = converted(context, combined(context, "add", tap, grid), DType.FLOAT32)
        along = reshape(context, slice_axis(context, moved, 4, axis, 1), (batch, groups, 1, sizes.taps, sizes.positions))
        places.append(context.emit("add", along, fixed))
    columns = _sampled(context, x, places, sizes)
    mask = context.optional(4)
    if mask is not None:
        columns = context.emit("mul", columns, reshape(context, mask, (batch, groups, 1, sizes.taps, sizes.positions)))
    columns = reshape(context, columns, (batch, group, inner * sizes.taps, sizes.positions))
    result = context.emit("matmul", reshape(context, w, (group, filters // group, inner * sizes.taps)), columns)
    result = reshape(context, result, (batch, filters, *out))
    bias = context.optional(3)
    return result if bias is None else context.emit("add", result, per_channel(context, bias, axes + 2))


def _sampled(context: FormContext, x: Value, places: list[Value], sizes: _Windows) -> Value:
    """x interpolated linearly at ``places``, a coordinate ``[N, G, 1, K, P]`` for each axis: ``[N, G, C / G, K, P]``."""
    neighbours = [_neighbours(context, place, length) for place, length in zip(places, sizes.dims, strict=True)]
    planes = multiples(context, sizes.batch * sizes.channels, product(sizes.dims))
    first = computed(context, "reshape", planes, shape=(sizes.batch, sizes.groups, sizes.channels // sizes.groups, 1, 1))
    flat = reshape(context, x, (product(x.type.shape),))
    total: Value | None = None
    for corner in cartesian(*neighbours):
        at, weight = _combined(context, corner, sizes.dims)
        value = context.emit("mul", context.emit("gather", flat, context.emit("add", first, at), axis=0), cast_to(context, weight, x.type.dtype))
        total = value if total is None else context.emit("add", total, value)
    if total is None:
        raise UnsupportedForm("the input has no spatial axes")
    return total


def _combined(context: FormContext, corner: tuple[tuple[Value, Value], ...], dims: tuple[Dim, ...]) -> tuple[Value, Value]:
    """The flat position of a neighbour in its plane and its weight, from those along each axis."""
    (at, weight), *others = corner
    for (along, share), length in zip(others, dims[1:], strict=True):
        at = context.emit("add", context.emit("mul", at, number(context, length)), along)
        weight = context.emit("mul", weight, share)
    return at, weight


def _neighbours(context: FormContext, place: Value, length: Dim) -> list[tuple[Value, Value]]:
    """The positions before and after ``place`` along an axis, moved inside, and their weights, zero for those that were outside."""
    low = context.emit("floor", place)
    part = context.emit("sub", place, low)
    one, zero = scalar_like(context, part, 1), scalar_like(context, part, 0)
    found = []
    for at, weight in ((low, context.emit("sub", one, part)), (context.emit("add", low, one), part)):
        inside = kept_inside(context, at, length)
        share = context.emit("where", context.emit("equal", inside, at), weight, zero)
        found.append((cast_to(context, inside, DType.INT64), share))
    return found


extend(
    Gather,
    forms=(OnnxForm("DeformConv", _deform_conv, since=19),),
    samples=(
        Sample("DeformConv", (_X, _W, _OFFSET), opset=19),
        Sample("DeformConv", (_X, _W, _OFFSET, _wave(2, step=3.0), _MASK), opset=22, constant=(1, 3)),
        Sample(
            "DeformConv",
            (_X, _wave(4, 2, 2, 2, step=0.9), _wave(2, 16, 3, 4, step=1.3)),
            {"group": 2, "offset_group": 2, "strides": [2, 1], "pads": [1, 0, 0, 1], "kernel_shape": [2, 2]},
            opset=22,
        ),
        Sample("DeformConv", (_X, _wave(3, 4, 2, 2, step=0.9), _wave(2, 8, 3, 2, step=0.3)), {"dilations": [2, 2]}, opset=22),
    ),
)
