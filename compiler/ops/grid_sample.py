"""GridSample: interpolation at positions that are data, as gathers of the neighbours and their weights; AffineGrid, which makes such positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cartesian

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, maximum, product
from compiler.ir.op import FormContext, Sample
from compiler.ir.run_time import natural
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, known, reshape, scalar_like
from compiler.ops.tables import check_sampled, combined, computed, converted, kept_inside, laid, multiples, real

_MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}
_CUBIC = -0.75
"""The coefficient of cubic convolution (Keys, 1981) that the operator prescribes."""

_X = (np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) * 7 % 11 - 5) / 4
_GRID = np.array([[[[-1.4, -0.9], [-0.3, 0.2]], [[0.6, 1.0], [0.1, 1.7]]]], np.float32)

_THETA = np.array([[[1.1, -0.2, 0.3], [0.4, 0.9, -0.5]], [[0, 1, 0], [-1, 0, 0.2]]], np.float32)

AFFINE_SAMPLES = tuple(Sample("AffineGrid", (_THETA, np.array([2, 3, 4, 5], np.int64)), {"align_corners": align}, constant=(1,)) for align in (0, 1))
GRID_SAMPLES = tuple(
    Sample("GridSample", (_X, _GRID), {"mode": mode, "padding_mode": padding, "align_corners": align})
    for mode, padding, align in (
        ("linear", "zeros", 0),
        ("linear", "border", 1),
        ("linear", "reflection", 0),
        ("nearest", "zeros", 1),
        ("nearest", "reflection", 1),
        ("cubic", "zeros", 0),
        ("cubic", "reflection", 1),
    )
)


def grid_sample(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GridSample.html: each tap of the interpolation is one gather for all channels."""
    x, grid = context.input(0), cast_to(context, context.input(1), DType.FLOAT32)
    mode = _MODES.get(str(context.attrs.get("mode", "linear")))
    if mode is None:
        raise UnsupportedForm(f"mode {context.attrs['mode']!r} is not known")
    batch, channels, *dims = x.type.shape
    grids, *points, last = grid.type.shape
    context.check(len(dims), last, len(dims), "its grid has {value} coordinates for {low} spatial axes")
    context.check(batch, grids, batch, "there are {value} grids for {low} images")
    check_sampled(context, dims)
    axes = [_Axis(context, grid, axis, dims) for axis in range(len(dims))]
    taps = [axis.taps(mode) for axis in axes]
    images = multiples(context, batch * channels, product(dims))
    images = computed(context, "reshape", images, shape=(batch, channels, *(1,) * len(points)))
    flat = reshape(context, x, (product(x.type.shape),))
    total: Value | None = None
    for neighbours in cartesian(*taps):
        place = images
        for axis, (position, _) in enumerate(neighbours):
            along = cast_to(context, position, DType.INT64)
            place = context.emit("add", place, context.emit("mul", along, number(context, product(dims[axis + 1 :]))))
        value = context.emit("gather", flat, place, axis=0)
        for _, weight in neighbours:
            if weight is not None:
                value = context.emit("mul", value, cast_to(context, weight, x.type.dtype))
        total = value if total is None else context.emit("add", total, value)
    if total is None:
        raise UnsupportedForm("the input has no spatial axes")
    return total


def affine_grid(context: FormContext) -> Value:
    """Points ``theta [N, d, d + 1]`` maps the output's points to: a product with their homogeneous coordinates, x first."""
    theta = context.input(0)
    batch, rows, _ = theta.type.shape
    rank, size = known(rows, "the rows of theta"), context.require_dims(1, "the size")
    if len(size) != rank + 2:
        raise UnsupportedForm(f"theta has {rank} rows for {len(size) - 2} spatial axes")
    for dim in size:
        context.check(0, dim, None, "a dim of the size is {value}")
    *dims, _ = context.settled((batch, *map(natural, size[2:]), rank))[1:]
    align = bool(context.attrs.get("align_corners", 0))
    along = [computed(context, "expand", laid(context, _steps(context, n, align=align), a, rank), shape=tuple(dims)) for a, n in enumerate(dims)]
    ones = computed(context, "expand", context.const(np.ones((1,) * rank)), shape=tuple(dims))
    parts = [computed(context, "reshape", part, shape=(1, product(dims))) for part in (*reversed(along), ones)]
    matrix = converted(context, computed(context, "concat", *parts, axis=0), theta.type.dtype)
    return reshape(context, context.emit("transpose", context.emit("matmul", theta, matrix), perm=(0, 2, 1)), (batch, *dims, rank))


def _steps(context: FormContext, count: Dim, *, align: bool) -> Value:
    """Points from -1 to 1 as float64, the first and last at the ends, or the middles of equal parts; one alone is at -1, or in the middle."""
    places = converted(context, iota(context, count), DType.FLOAT64)
    parts = real(context, maximum(count - 1, 1) if align else maximum(count, 1))
    numerator = combined(context, "mul", places, 2) if align else combined(context, "add", combined(context, "mul", places, 2), 1)
    return combined(context, "sub", combined(context, "div", numerator, parts), 1)


Tap = tuple[Value, Value | None]
"""Positions along an axis (whole numbers as float32, inside the input) and their weights; None: one."""


class _Axis:
    """One spatial axis: the coordinates of all points along it, ``[N, 1, *points]``, in elements."""

    def __init__(self, context: FormContext, grid: Value, axis: int, dims: Sequence[Dim]) -> None:
        self._context = context
        self._length = dims[axis]
        self._padding = str(context.attrs.get("padding_mode", "zeros"))
        if self._padding not in ("zeros", "border", "reflection"):
            raise UnsupportedForm(f"padding_mode {self._padding!r} is not known")
        align = bool(context.attrs.get("align_corners", 0))
        batch, *points, _ = grid.type.shape
        # The grid's last axis counts from the innermost spatial axis outwards.
        part = reshape(context, slice_axis(context, grid, grid.type.rank - 1, len(dims) - 1 - axis, 1), (batch, 1, *points))
        extent, last = (real(context, dim, grid.type.dtype) for dim in (self._length - int(align), self._length - 1))
        scale, shift = (combined(context, "mul", x, 0.5) for x in (extent, last))
        self._coordinate = combined(self._context, "add", combined(self._context, "mul", part, scale), shift)
        self._low, self._extent = 0.0 if align else -0.5, self._length - int(align)

    def taps(self, mode: str) -> list[Tap]:
        """The neighbours that the interpolation reads along this axis."""
        if mode == "nearest":
            return [self._tap(self._inside(self._context.emit("round", self._coordinate)), None)]
        at = self._inside(self._coordinate)
        floor = self._context.emit("floor", at)
        part = self._context.emit("sub", at, floor)
        if mode == "linear":
            rest = self._context.emit("sub", scalar_like(self._context, part, 1), part)
            return [self._tap(floor, rest), self._tap(combined(self._context, "add", floor, 1), part)]
        return [self._tap(combined(self._context, "add", floor, offset), self._cubic(part, offset)) for offset in (-1, 0, 1, 2)]

    def _cubic(self, part: Value, offset: int) -> Value:
        """The weight of the neighbour ``offset`` away from the floor: a cubic of its distance."""
        context = self._context
        distance = context.emit("abs", combined(context, "sub", part, offset))
        near = (_CUBIC + 2, -(_CUBIC + 3), 0.0, 1.0)
        far = (_CUBIC, -5 * _CUBIC, 8 * _CUBIC, -4 * _CUBIC)
        first, *others = near if offset in (0, 1) else far
        weight = combined(context, "mul", distance, first)
        for coefficient in others[:-1]:
            weight = context.emit("mul", combined(context, "add", weight, coefficient), distance)
        return combined(context, "add", weight, others[-1])

    def _inside(self, at: Value) -> Value:
        """Coordinates moved into the input as ``padding_mode`` says; with zeros they stay."""
        if self._padding == "border":
            return kept_inside(self._context, at, self._length)
        if self._padding == "reflection":
            return self._reflected(at)
        return at

    def _reflected(self, at: Value) -> Value:
        """at mirrored at the ends until it is inside: a triangle wave."""
        context = self._context
        if self._extent == 0:
            return combined(context, "mul", at, 0)
        period = real(context, maximum(2 * self._extent, 1), at.type.dtype)  # of one element all positions are the same
        phase = context.emit("abs", context.emit("mod", combined(context, "sub", at, self._low), period, fmod=True))
        beyond = context.emit("sub", period, phase)
        return combined(context, "add", context.emit("minimum", phase, beyond), self._low)

    def _tap(self, position: Value, weight: Value | None) -> Tap:
        """A neighbour whose position may be outside: moved inside, or, with zeros, weighing nothing there."""
        context = self._context
        moved = kept_inside(context, self._inside(position), self._length)
        if self._padding != "zeros":
            return moved, weight
        valid = context.emit("equal", moved, position)
        one, zero = scalar_like(context, position, 1) if weight is None else weight, scalar_like(context, position, 0)
        return moved, context.emit("where", valid, one, zero)
