"""Resize and Upsample: each axis is interpolated for itself.

Lengths and positions are computed in float32, in the order of ONNX Runtime's operations, so that they are rounded to the same side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf, prod

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Region, Value
from compiler.ir.intexpr import Dim, evaluate, floordiv, maximum, symbols
from compiler.ir.op import FormContext, OnnxForm, Sample, register
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.ops.dims import iota
from compiler.ops.gather import gather
from compiler.ops.index import IndexMap
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_ints,
    axis_symbol,
    cast_to,
    first_type,
    is_uniform,
    known,
    normalize_axis,
    scalar_like,
    transpose,
)
from compiler.ops.tables import combined, computed, converted, kept_inside, real

_X = (np.sin(np.arange(2 * 2 * 4 * 5) * 1.9) * 3).astype(np.float32).reshape(2, 2, 4, 5)

_REGION = np.array([0, 0, 0.2, -0.1, 1, 1, 1.3, 0.7], np.float32)
_LONG = np.cos(np.arange(100) * 0.7).astype(np.float32).reshape(1, 1, 50, 2)


def _scales(*values: float) -> Array:
    return np.array(values, np.float32)


def _sizes(*values: int) -> Array:
    return np.array(values, np.int64)


def _resize_samples() -> tuple[Sample, ...]:
    up, odd, down = _scales(1, 1, 2, 3), _scales(1, 1, 1.6, 2.3), _scales(1, 1, 0.6, 0.5)
    legacy = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": -7.0}
    found = [Sample("Resize", (_X, None, up), legacy, constant=(2,))]
    for mode in ("nearest", "linear", "cubic"):
        found += [Sample("Resize", (_X, None, scales), {"mode": mode}, constant=(2,)) for scales in (up, odd, down)]
        found += [
            Sample("Resize", (_X, None, odd), {"mode": mode, "coordinate_transformation_mode": transform}, constant=(2,))
            for transform in ("align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
        ]
        found.append(Sample("Resize", (_X, None, None, _sizes(2, 2, 7, 8)), {"mode": mode}, constant=(3,)))
    return (
        *found,
        *(Sample("Resize", (_X, None, odd), {"mode": "nearest", "nearest_mode": mode}, constant=(2,)) for mode in _NEAREST),
        Sample("Resize", (_X, None, odd), {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, constant=(2,)),
        Sample("Resize", (_X, None, down), {"mode": "linear", "antialias": 1}, constant=(2,)),
        Sample("Resize", (_X, None, down), {"mode": "cubic", "antialias": 1}, constant=(2,)),
        Sample("Resize", (_X, None, _scales(2.0)), {"mode": "linear", "axes": [3]}, constant=(2,)),
        Sample("Resize", (_LONG, None, None, _sizes(1, 1, 2, 2)), {"mode": "linear", "antialias": 1}, constant=(3,)),
        *(Sample("Resize", (_X, _REGION, None, _sizes(2, 2, 3, 7)), {"mode": mode, **crop}, constant=(1, 3)) for mode in ("nearest", "linear")),
        Sample("Resize", (_X, _REGION, None, _sizes(2, 2, 1, 4)), {"mode": "linear", **crop}, constant=(3,)),
        Sample("Upsample", (_X, up), {"mode": "nearest"}, opset=9, constant=(1,)),
        Sample("Upsample", (_X, up), {"mode": "linear"}, opset=9, constant=(1,)),
    )


_HALF = 0.5 + 1e-6
"""Positions this close to the middle of two elements count as the middle, as in ONNX Runtime."""

_NEAREST = {"round_prefer_floor": ("ceil", -_HALF), "round_prefer_ceil": ("floor", _HALF), "floor": ("floor", 0.0), "ceil": ("ceil", 0.0)}
"""How a position becomes a whole one: the function, and what is added before."""

_TABLE_LIMIT = 1 << 24
"""Taps of all positions of an axis: a table of more of them is no image's."""

_MOST_TAPS = 4
"""Taps of one resampled element: of linear interpolation along two axes, or of cubic along one."""

_TAPS_LIMIT = 32
"""Taps of a position up to which an axis is a sum of gathers; beyond, it is a product with a matrix."""


_SIMPLE = 1000
"""Denominators of ratios that are taken to be meant."""

_LONGEST = 1 << 16
"""Lengths for which such a ratio must give what rounding to float32 does."""

_ANY_LENGTH = 8
"""A length to try what holds for all."""


@register
class ResizeNearest(IndexMap):
    """Every element repeated ``scales[axis]`` times along each axis: output i reads input ``i // scale``."""

    name = "resize_nearest"
    samples = _resize_samples()

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x = first_type(inputs)
        return (TensorType(x.dtype, tuple(dim * scale for dim, scale in zip(x.shape, attr_ints(attrs, "scales"), strict=True))),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        scales = attr_ints(attrs, "scales")
        if any(bound % scale for span, scale in zip(box, scales, strict=True) for bound in span):
            return None
        return Part((tuple((begin // scale, end // scale) for (begin, end), scale in zip(box, scales, strict=True)),), attrs)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x = array(inputs[0])
        for axis, scale in enumerate(attr_ints(attrs, "scales")):
            x = x if scale == 1 else np.repeat(x, scale, axis)
        return (x,)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        scales = attr_ints(attrs, "scales")
        shape = self.infer(inputs, attrs)[0].shape
        index = tuple(floordiv(axis_symbol(axis), scale) for axis, scale in enumerate(scales))
        return (Region((0,) * len(scales), shape, 0, index),)


def _linear(context: FormContext, x: Value) -> Value:
    distance = computed(context, "abs", x)
    return combined(context, "maximum", combined(context, "add", computed(context, "neg", distance), 1), 0)


def _polynomial(context: FormContext, x: Value, *coefficients: float) -> Value:
    """By Horner's rule, the highest power first."""
    total = combined(context, "mul", x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        total = computed(context, "mul", combined(context, "add", total, coefficient), x)
    return combined(context, "add", total, coefficients[-1])


def _cubic(context: FormContext, x: Value) -> Value:
    """Keys' convolution kernel (1981)."""
    a, x = float(context.attrs.get("cubic_coeff_a", -0.75)), computed(context, "abs", x)
    near, far = _polynomial(context, x, a + 2, -(a + 3), 0, 1), _polynomial(context, x, a, -5 * a, 8 * a, -4 * a)
    outer = computed(context, "where", combined(context, "less", x, 2), far, scalar_like(context, x, 0))
    return computed(context, "where", combined(context, "less_or_equal", x, 1), near, outer)


@dataclass(frozen=True)
class _Change:
    """How an axis is resized: from ``length`` to ``resized`` elements by ``scale``, a float32 that only a run may tell.

    ``region`` is the part of the axis that is taken, its begin and end in lengths, for ``tf_crop_and_resize``.
    """

    scale: Value
    length: Dim
    resized: Dim
    region: tuple[Value, Value] | None = None


def _positions(context: FormContext, transform: str, change: _Change) -> Value:
    """Where in the input each output position lies."""
    i, length, resized = computed(context, "cast", iota(context, change.resized), to=DType.FLOAT32), change.length, change.resized
    single = combined(context, "less", _real(context, resized), 2)

    def scaled(shift: float) -> Value:
        return combined(context, "sub", combined(context, "div", combined(context, "add", i, shift), change.scale), shift)

    match transform:
        case "half_pixel":
            return scaled(0.5)
        case "pytorch_half_pixel":
            return computed(context, "where", single, i, scaled(0.5))
        case "half_pixel_symmetric":
            exact = combined(context, "mul", change.scale, _real(context, length))
            missing = combined(context, "sub", exact, _real(context, resized))
            half = combined(context, "mul", _real(context, length), 0.5)
            return combined(context, "add", scaled(0.5), combined(context, "mul", combined(context, "div", missing, exact), half))
        case "align_corners":
            scaled_up = combined(context, "mul", i, _real(context, length - 1))
            return combined(context, "div", scaled_up, _real(context, maximum(resized - 1, 1)))
        case "asymmetric":
            return scaled(0.0)
        case "tf_crop_and_resize" if change.region is not None:
            begin, end = (combined(context, "mul", at, _real(context, length - 1)) for at in change.region)
            middle = combined(context, "mul", combined(context, "add", begin, end), 0.5)
            extent = combined(context, "sub", end, begin)
            moved = combined(context, "div", combined(context, "mul", i, extent), _real(context, maximum(resized - 1, 1)))
            return combined(context, "add", moved, computed(context, "where", single, middle, begin))
    raise UnsupportedForm(f"coordinate_transformation_mode {transform!r} is not supported")


class _Axis:
    """The interpolation of one axis: for each output position its taps, as indices and weights ``[taps, resized]``."""

    def __init__(self, context: FormContext, mode: str, change: _Change) -> None:
        self._context = context
        self._change = change
        self._weights: Value | None = None
        self._outside: Value | None = None
        attrs, length = context.attrs, change.length
        transform = attrs.get("coordinate_transformation_mode", "half_pixel" if context.op_type == "Resize" and context.opset > 10 else "asymmetric")
        antialias = mode != "nearest" and bool(attrs.get("antialias", 0))
        reach = 1 if mode == "linear" else 2
        if antialias:
            factor = context.builder.array(change.scale)
            least = (
                _least_scale(known(length, "an antialiased axis"), known(change.resized, "an antialiased axis")) if factor is None else float(factor)
            )
            reach = ceil(reach / min(1.0, max(least, 1e-9)))
        taps = 1 if mode == "nearest" else 2 * reach
        if (isinstance(change.resized, int) and change.resized * taps > _TABLE_LIMIT) or taps > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {change.resized}: that is beyond what is supported")
        positions = _positions(context, transform, change)
        if transform == "tf_crop_and_resize":
            self._outside = computed(context, "not", self._is_inside(positions))
        if mode == "nearest":
            op, shift = _NEAREST[attrs.get("nearest_mode", "round_prefer_floor" if context.opset > 10 and context.op_type == "Resize" else "floor")]
            positions = converted(context, computed(context, "reshape", positions, shape=(1, change.resized)), DType.FLOAT64)
            places = converted(context, computed(context, op, combined(context, "add", positions, shift)), DType.FLOAT32)
        else:
            places = combined(
                context, "add", computed(context, "floor", positions), context.const(np.arange(1 - reach, reach + 1, dtype=np.float32)[:, None])
            )
            self._weights = self._weighted(places, positions, _linear if mode == "linear" else _cubic, antialias=antialias)
        self._indices = computed(context, "cast", kept_inside(context, places, length), to=DType.INT64)

    def _is_inside(self, places: Value) -> Value:
        return computed(self._context, "equal", places, kept_inside(self._context, places, self._change.length))

    def _weighted(self, places: Value, positions: Value, kernel: Callable[[FormContext, Value], Value], *, antialias: bool) -> Value:
        """The weights of the elements at ``places``; those of an antialiased axis are spread by its scale."""
        context, distances = self._context, computed(self._context, "sub", places, positions)
        if antialias:
            distances = computed(context, "mul", distances, combined(context, "minimum", self._change.scale, 1))
        weights = kernel(context, distances)
        if context.attrs.get("exclude_outside", 0):
            weights = computed(context, "where", self._is_inside(places), weights, scalar_like(context, weights, 0))
        if not context.attrs.get("exclude_outside", 0) and not antialias:
            return weights
        return computed(context, "div", weights, computed(context, "reduce", weights, kind="sum", axes=(0,), keepdims=True))

    def repeats(self, mode: str) -> int:
        """The whole factor by which it repeats the axis's elements; 1 where it does not."""
        context, change = self._context, self._change
        factor = _factor(change.length, change.resized)
        if self._weights is not None or self._outside is not None or factor is None or factor < 2:
            return 1
        if isinstance(change.length, int) or context.attrs.get("coordinate_transformation_mode") == "align_corners":
            indices = context.builder.array(self._indices)
            return factor if indices is not None and bool((indices[0] == np.arange(indices.shape[1]) // factor).all()) else 1
        # Other transforms place each element by the scale alone, so that one length tells of all.
        return _Axis(context, mode, replace(change, length=_ANY_LENGTH, resized=_ANY_LENGTH * factor)).repeats(mode)

    def apply(self, x: Value, axis: int) -> Value:
        """x with the axis resized."""
        context = self._context
        known = None if self._weights is None else context.builder.array(self._weights), context.builder.array(self._indices)
        if known[0] is not None and known[1] is not None and len(known[0]) > _TAPS_LIMIT:
            x = self._product(x, axis, known[0], known[1])
        else:
            x = self._sum(x, axis)
        return self.outside(x, axis)

    def tables(self, dtype: DType) -> tuple[Value, Value] | None:
        """Places and weights for a ``resample`` of that type, without taps that are known to weigh nothing; None where that does not fit."""
        context, taps = self._context, self._indices.type.shape[0]
        if self._weights is None or not isinstance(taps, int) or taps > _MOST_TAPS or not dtype.is_float or dtype.bits < 16:
            return None
        weights = computed(context, "cast", self._weights, to=compute_dtype(dtype))
        places, numbers = context.builder.array(self._indices), context.builder.array(weights)
        if places is None or numbers is None:
            return self._indices, weights
        used = np.any(numbers != 0, 1)
        return (context.const(places[used]), context.const(numbers[used])) if used.any() else None

    def outside(self, x: Value, axis: int) -> Value:
        """x with what lies outside the region that is resized filled."""
        if self._outside is None:
            return x
        outside = computed(self._context, "reshape", self._outside, shape=(self._change.resized, *(1,) * (x.type.rank - 1 - axis)))
        return self._context.emit("where", outside, scalar_like(self._context, x, float(self._context.attrs.get("extrapolation_value", 0.0))), x)

    def _sum(self, x: Value, axis: int) -> Value:
        """A sum of gathers times weights; taps that are known to weigh nothing are left out."""
        context, total = self._context, None
        shape = (self._change.resized, *(1,) * (x.type.rank - 1 - axis))
        taps = known(self._indices.type.shape[0], "the number of taps")
        if taps > _TAPS_LIMIT:
            raise UnsupportedForm(f"an axis whose length only a run knows is resized by weights of {taps} elements each")
        for tap in range(taps):
            row: dict[str, tuple[Dim, ...]] = {"starts": (tap, 0), "sizes": (1, self._change.resized), "steps": (1, 1)}
            weights = None if self._weights is None else computed(context, "slice", self._weights, **row)
            if is_uniform(context.builder, weights, 0):
                continue
            indices = computed(context, "reshape", computed(context, "slice", self._indices, **row), shape=(self._change.resized,))
            part = gather(context, x, indices, axis)
            if weights is not None and not is_uniform(context.builder, weights, 1):
                weights = computed(context, "cast", computed(context, "reshape", weights, shape=shape), to=x.type.dtype)
                part = context.emit("mul", part, weights)
            total = part if total is None else context.emit("add", total, part)
        if total is None:
            raise UnsupportedForm("an axis is resized to nothing")
        return total

    def _product(self, x: Value, axis: int, weights: Array, indices: Array) -> Value:
        """A product with the matrix of all weights."""
        length, resized = known(self._change.length, "a resized axis"), known(self._change.resized, "a resized axis")
        if length * resized > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {resized} by weights of {len(weights)} elements each")
        matrix = np.zeros((length, resized))
        np.add.at(matrix, (indices, np.arange(resized)[None]), weights)
        last = (*(a for a in range(x.type.rank) if a != axis), axis)
        product = self._context.emit("matmul", transpose(self._context, x, last), self._context.const(matrix.astype(x.type.dtype.numpy)))
        return transpose(self._context, product, tuple(np.argsort(last).tolist()))


def _resize(context: FormContext) -> Value:
    x, mode = context.input(0), str(context.attrs.get("mode", "nearest"))
    shape = x.type.shape
    if mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedForm(f"mode {mode!r} is not supported")
    axes = {axis: _Axis(context, mode, change) for axis, change in _changes(context, shape).items()}
    factors = tuple(axes[axis].repeats(mode) if axis in axes else 1 for axis in range(len(shape)))
    if any(factor > 1 for factor in factors):
        x = context.emit("resize_nearest", x, scales=factors)
    resized = {position: axis for position, axis in axes.items() if factors[position] == 1}
    tables = {position: found for position, axis in resized.items() if (found := axis.tables(x.type.dtype)) is not None}
    for together in _together(tables):
        x = context.emit("resample", x, *(table for position in together for table in tables[position]), axes=together)
    for position, axis in resized.items():
        x = axis.outside(x, position) if position in tables else axis.apply(x, position)
    return x


def _together(tables: Mapping[int, tuple[Value, Value]]) -> list[tuple[int, ...]]:
    """Axes that are resampled at once: as many as take few taps for every element, which then need no tensor between them."""
    found: list[tuple[int, ...]] = []
    for position, (places, _) in tables.items():
        taps = prod(known(tables[other][0].type.shape[0], "the taps") for other in found[-1]) if found else _MOST_TAPS
        if found and taps * known(places.type.shape[0], "the taps") <= _MOST_TAPS:
            found[-1] = (*found[-1], position)
        else:
            found.append((position,))
    return found


def _changes(context: FormContext, shape: Sequence[Dim]) -> dict[int, _Change]:
    """The axes that are resized, by scales or by sizes, whichever of the two the node gives."""
    rank, attrs = len(shape), context.attrs
    axes = [normalize_axis(a, rank) for a in attrs.get("axes", range(rank))]
    lengths = cast_to(context, context.emit("dims", values=tuple(shape[axis] for axis in axes), scalar=False), DType.FLOAT32)
    at, ratios = 1 if context.op_type == "Upsample" or context.opset < 11 else 2, False
    given = context.optional(at)
    if given is not None and given.type.elements != 0:
        scales = cast_to(context, given, DType.FLOAT32)
        sizes = computed(context, "floor", combined(context, "mul", scales, lengths))
    elif "scales" in attrs or "height_scale" in attrs:
        numbers = attrs.get("scales") or (1.0, 1.0, attrs["height_scale"], attrs["width_scale"])
        scales = context.const(np.array(numbers, np.float32))
        sizes = computed(context, "floor", combined(context, "mul", scales, lengths))
    else:
        scales, sizes = _by_sizes(context, lengths)
        # The ratio of two lengths may be a whole number although neither is known.
        ratios = attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if scales.type.shape != (len(axes),):
        raise UnsupportedForm(f"scales or sizes {scales.type} for {len(axes)} axes")
    numbers_known = context.builder.array(scales)
    if numbers_known is not None and not all(0 < scale < inf for scale in numbers_known):
        raise UnsupportedForm(f"the scales are {numbers_known.tolist()}, not positive numbers")
    resized = _resized(context, axes, shape, scales, sizes)
    regions = _regions(context, axes)
    found = {}
    for position, axis in enumerate(axes):
        factor: float | None = None
        if numbers_known is not None:
            factor = float(numbers_known[position])
        elif ratios:
            factor = _factor(shape[axis], resized[position])
        if factor == 1 and resized[position] == shape[axis] and not regions:
            continue
        scale = computed(context, "reshape", computed(context, "slice", scales, starts=(position,), sizes=(1,), steps=(1,)), shape=())
        scale = scale if factor is None else scalar_like(context, scale, factor)
        found[axis] = _Change(scale, shape[axis], resized[position], regions.get(axis))
    return dict(sorted(found.items()))


def _by_sizes(context: FormContext, lengths: Value) -> tuple[Value, Value]:
    """The scales and sizes that input 3 gives; one scale for all axes where the aspect ratio is to be kept."""
    sizes, policy = cast_to(context, context.input(3), DType.FLOAT32), context.attrs.get("keep_aspect_ratio_policy", "stretch")
    scales = combined(context, "div", sizes, lengths)
    if policy == "stretch":
        return scales, sizes
    ratio = computed(context, "reduce", scales, kind="min" if policy == "not_larger" else "max", axes=(0,), keepdims=True)
    rounded = computed(context, "floor", combined(context, "add", combined(context, "mul", ratio, lengths), 0.5))
    return computed(context, "expand", ratio, shape=scales.type.shape), rounded


def _resized(context: FormContext, axes: Sequence[int], shape: Sequence[Dim], scales: Value, sizes: Value) -> list[Dim]:
    """The new lengths of axes; those that a run computes from data are what the model declares, where it does."""
    numbers, factors = context.builder.array(sizes), context.builder.array(scales)
    if numbers is not None:
        return [int(size) for size in numbers]
    if factors is not None:
        lengths = [_scaled(shape[axis], factor) for axis, factor in zip(axes, factors, strict=True)]
        if None not in lengths:
            return [length for length in lengths if length is not None]
    given = context.dims(3) if context.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch" else None
    bound = given if given else context.builder.bind(cast_to(context, sizes, DType.INT64), natural=True)
    result = list(shape)
    for axis, size in zip(axes, bound, strict=True):
        result[axis] = size
    settled = context.settled(result)
    return [settled[axis] for axis in axes]


def _scaled(length: Dim, scale: np.float32) -> Dim | None:
    """``length * scale`` in float32, rounded down, as integer arithmetic; None where none gives the same for lengths up to ``_LONGEST``."""
    if isinstance(length, int):
        return int(np.floor(np.float32(length) * scale))
    lengths = np.arange(_LONGEST + 1)
    scaled = np.floor(lengths.astype(np.float32) * scale)
    exact = Fraction(float(scale))
    for ratio in (exact.limit_denominator(_SIMPLE), exact):
        if max(ratio.numerator, ratio.denominator) <= _LONGEST and np.array_equal(lengths * ratio.numerator // ratio.denominator, scaled):
            return floordiv(length * ratio.numerator, ratio.denominator)
    return None


def _factor(length: Dim, resized: Dim) -> int | None:
    """The whole factor between two lengths; None where there is none that is known."""
    values = dict.fromkeys((*symbols(length), *symbols(resized)), _ANY_LENGTH)
    factor = evaluate(resized, values) // max(evaluate(length, values), 1)
    return factor if length * factor == resized and length != 0 else None


def _least_scale(length: int, resized: int) -> float:
    """The least scale that makes ``resized`` elements of ``length``."""
    return resized / (resized + 1) * resized / max(length, 1)


def _real(context: FormContext, dim: Dim) -> Value:
    """A dim as a float32 scalar."""
    return real(context, dim, DType.FLOAT32)


def _regions(context: FormContext, axes: Sequence[int]) -> dict[int, tuple[Value, Value]]:
    """The begin and end of the part of each axis that ``tf_crop_and_resize`` takes."""
    if context.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return {}
    regions = cast_to(context, context.input(1), DType.FLOAT32)
    if regions.type.shape != (2 * len(axes),):
        raise UnsupportedForm(f"regions {regions.type} for {len(axes)} axes")

    def bound(number: int) -> Value:
        return computed(context, "reshape", computed(context, "slice", regions, starts=(number,), sizes=(1,), steps=(1,)), shape=())

    return {axis: (bound(number), bound(number + len(axes))) for number, axis in enumerate(axes)}


ResizeNearest.forms = (OnnxForm("Resize", _resize, since=10), OnnxForm("Upsample", _resize))
