"""Resize and Upsample: each axis is interpolated for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from compiler.ir.graph import Array, Attr, Region, Value
from compiler.ir.intexpr import floordiv
from compiler.ir.op import FormContext, OnnxForm, Sample, UnsupportedForm, lookup, register
from compiler.ir.types import DType, TensorType
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
    known_shape,
    normalize_axis,
    scalar_like,
    transpose,
)

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


_NEAREST = {"round_prefer_floor": ("ceil", -0.5), "round_prefer_ceil": ("floor", 0.5), "floor": ("floor", 0.0), "ceil": ("ceil", 0.0)}
"""How a position becomes a whole one: the function, and what is added before."""

_TABLE_LIMIT = 1 << 24
"""Taps of all positions of an axis: a table of more of them is no image's."""

_TAPS_LIMIT = 32
"""Taps of a position up to which an axis is a sum of gathers; beyond, it is a product with a matrix."""


@register
class ResizeNearest(IndexMap):
    """Every element repeated ``scales[axis]`` times along each axis: output i reads input ``i // scale``."""

    name = "resize_nearest"
    samples = _resize_samples()

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x = first_type(inputs)
        return (TensorType(x.dtype, tuple(dim * scale for dim, scale in zip(x.shape, attr_ints(attrs, "scales"), strict=True))),)

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

    def keeps_channels(self, inputs: Sequence[TensorType], attrs: Attrs, block: int) -> bool:
        return attr_ints(attrs, "scales")[1] == 1


def _computed(context: FormContext, op: str, *inputs: Value, **attrs: Attr) -> Value:
    """A node on the tables of an axis; where all is known, what it gives, however long the axis."""
    known = [context.builder.array(value) for value in inputs]
    if any(data is None for data in known):
        return context.emit(op, *inputs, **attrs)
    return context.const(np.asarray(lookup(op).evaluate(known, attrs)[0]))


def _binary(context: FormContext, op: str, x: Value, y: Value | float) -> Value:
    return _computed(context, op, x, y if isinstance(y, Value) else scalar_like(context, x, y))


def _linear(context: FormContext, x: Value) -> Value:
    distance = _computed(context, "abs", x)
    return _binary(context, "maximum", _binary(context, "add", _computed(context, "neg", distance), 1), 0)


def _polynomial(context: FormContext, x: Value, *coefficients: float) -> Value:
    """By Horner's rule, the highest power first."""
    total = _binary(context, "mul", x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        total = _computed(context, "mul", _binary(context, "add", total, coefficient), x)
    return _binary(context, "add", total, coefficients[-1])


def _cubic(context: FormContext, x: Value) -> Value:
    """Keys' convolution kernel (1981)."""
    a, x = float(context.attrs.get("cubic_coeff_a", -0.75)), _computed(context, "abs", x)
    near, far = _polynomial(context, x, a + 2, -(a + 3), 0, 1), _polynomial(context, x, a, -5 * a, 8 * a, -4 * a)
    outer = _computed(context, "where", _binary(context, "less", x, 2), far, scalar_like(context, x, 0))
    return _computed(context, "where", _binary(context, "less_or_equal", x, 1), near, outer)


@dataclass(frozen=True)
class _Change:
    """How an axis is resized: from ``length`` to ``resized`` elements by ``scale``, a float64 that only a run may tell.

    ``region`` is the part of the axis that is taken, its begin and end in lengths, for ``tf_crop_and_resize``.
    """

    scale: Value
    length: int
    resized: int
    region: tuple[Value, Value] | None = None


def _positions(context: FormContext, transform: str, change: _Change) -> Value:
    """Where in the input each output position lies."""
    i, length, resized = context.const(np.arange(change.resized, dtype=np.float64)), change.length, change.resized

    def scaled(shift: float) -> Value:
        return _binary(context, "sub", _binary(context, "div", _binary(context, "add", i, shift), change.scale), shift)

    match transform:
        case "half_pixel":
            return scaled(0.5)
        case "pytorch_half_pixel":
            return scaled(0.5) if resized > 1 else i
        case "half_pixel_symmetric":
            exact = _binary(context, "mul", change.scale, length)
            missing = _binary(context, "sub", exact, resized)
            return _binary(context, "add", scaled(0.5), _binary(context, "mul", _binary(context, "div", missing, exact), length / 2))
        case "align_corners":
            return _binary(context, "mul", i, (length - 1) / max(resized - 1, 1))
        case "asymmetric":
            return scaled(0.0)
        case "tf_crop_and_resize" if change.region is not None:
            begin, end = (_binary(context, "mul", at, length - 1) for at in change.region)
            if resized == 1:
                return _binary(context, "add", i, _binary(context, "mul", _binary(context, "add", begin, end), 0.5))
            step = _binary(context, "mul", _binary(context, "sub", end, begin), 1 / (resized - 1))
            return _binary(context, "add", _binary(context, "mul", i, step), begin)
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
            known = context.builder.array(change.scale)
            least = change.resized / (change.resized + 1) * change.resized / max(length, 1) if known is None else float(known)
            reach = ceil(reach / min(1.0, max(least, 1e-9)))
        if change.resized * (1 if mode == "nearest" else 2 * reach) > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {change.resized}: that is beyond what is supported")
        positions = _positions(context, transform, change)
        if transform == "tf_crop_and_resize":
            self._outside = _computed(context, "not", self._is_inside(positions))
        if mode == "nearest":
            op, shift = _NEAREST[attrs.get("nearest_mode", "round_prefer_floor" if context.opset > 10 and context.op_type == "Resize" else "floor")]
            places = _computed(context, op, _binary(context, "add", _computed(context, "reshape", positions, shape=(1, change.resized)), shift))
        else:
            places = _binary(context, "add", _computed(context, "floor", positions), context.const(np.arange(1.0 - reach, reach + 1)[:, None]))
            self._weights = self._weighted(places, positions, _linear if mode == "linear" else _cubic, antialias=antialias)
        inside = _computed(context, "clip", places, low=0.0, high=length - 1.0)
        self._indices = _computed(context, "cast", inside, to=DType.INT64)

    def _is_inside(self, places: Value) -> Value:
        return _computed(self._context, "equal", places, _computed(self._context, "clip", places, low=0.0, high=self._change.length - 1.0))

    def _weighted(self, places: Value, positions: Value, kernel: Callable[[FormContext, Value], Value], *, antialias: bool) -> Value:
        """The weights of the elements at ``places``; those of an antialiased axis are spread by its scale."""
        context, distances = self._context, _computed(self._context, "sub", places, positions)
        if antialias:
            distances = _computed(context, "mul", distances, _binary(context, "minimum", self._change.scale, 1))
        weights = kernel(context, distances)
        if context.attrs.get("exclude_outside", 0):
            weights = _computed(context, "where", self._is_inside(places), weights, scalar_like(context, weights, 0))
        if not context.attrs.get("exclude_outside", 0) and not antialias:
            return weights
        return _computed(context, "div", weights, _computed(context, "reduce", weights, kind="sum", axes=(0,), keepdims=True))

    def repeats(self) -> int:
        """The whole factor by which it repeats the axis's elements; 1 where it does not."""
        indices, (length, resized) = self._context.builder.array(self._indices), (self._change.length, self._change.resized)
        factor = resized // length if length else 1
        if indices is None or self._weights is not None or self._outside is not None or factor < 2 or factor * length != resized:
            return 1
        return factor if bool((indices[0] == np.arange(resized) // factor).all()) else 1

    def apply(self, x: Value, axis: int) -> Value:
        """x with the axis resized."""
        context = self._context
        known = None if self._weights is None else context.builder.array(self._weights), context.builder.array(self._indices)
        if known[0] is not None and known[1] is not None and len(known[0]) > _TAPS_LIMIT:
            x = self._product(x, axis, known[0], known[1])
        else:
            x = self._sum(x, axis)
        if self._outside is None:
            return x
        outside = _computed(context, "reshape", self._outside, shape=(self._change.resized, *(1,) * (x.type.rank - 1 - axis)))
        return context.emit("where", outside, scalar_like(context, x, float(context.attrs.get("extrapolation_value", 0.0))), x)

    def _sum(self, x: Value, axis: int) -> Value:
        """A sum of gathers times weights; taps that are known to weigh nothing are left out."""
        context, total = self._context, None
        shape = (self._change.resized, *(1,) * (x.type.rank - 1 - axis))
        for tap in range(int(known_shape(self._indices, "the taps")[0])):
            row = {"starts": (tap, 0), "sizes": (1, self._change.resized), "steps": (1, 1)}
            weights = None if self._weights is None else _computed(context, "slice", self._weights, **row)
            if is_uniform(context.builder, weights, 0):
                continue
            indices = _computed(context, "reshape", _computed(context, "slice", self._indices, **row), shape=(self._change.resized,))
            part = gather(context, x, indices, axis)
            if weights is not None and not is_uniform(context.builder, weights, 1):
                weights = _computed(context, "cast", _computed(context, "reshape", weights, shape=shape), to=x.type.dtype)
                part = context.emit("mul", part, weights)
            total = part if total is None else context.emit("add", total, part)
        if total is None:
            raise UnsupportedForm("an axis is resized to nothing")
        return total

    def _product(self, x: Value, axis: int, weights: Array, indices: Array) -> Value:
        """A product with the matrix of all weights."""
        length, resized = self._change.length, self._change.resized
        if length * resized > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {resized} by weights of {len(weights)} elements each")
        matrix = np.zeros((length, resized))
        np.add.at(matrix, (indices, np.arange(resized)[None]), weights)
        last = (*(a for a in range(x.type.rank) if a != axis), axis)
        product = self._context.emit("matmul", transpose(self._context, x, last), self._context.const(matrix.astype(x.type.dtype.numpy)))
        return transpose(self._context, product, tuple(np.argsort(last).tolist()))


def _resize(context: FormContext) -> Value:
    x, mode = context.input(0), str(context.attrs.get("mode", "nearest"))
    shape = known_shape(x, "the input")
    if mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedForm(f"mode {mode!r} is not supported")
    axes = {axis: _Axis(context, mode, change) for axis, change in _changes(context, shape).items()}
    factors = tuple(axes[axis].repeats() if axis in axes else 1 for axis in range(len(shape)))
    if any(factor > 1 for factor in factors):
        x = context.emit("resize_nearest", x, scales=factors)
    for position, axis in axes.items():
        if factors[position] == 1:
            x = axis.apply(x, position)
    return x


def _changes(context: FormContext, shape: Sequence[int]) -> dict[int, _Change]:
    """The axes that are resized, by scales or by sizes, whichever of the two the node gives."""
    rank, attrs = len(shape), context.attrs
    axes = [normalize_axis(a, rank) for a in attrs.get("axes", range(rank))]
    lengths = np.array([shape[axis] for axis in axes], np.float64)
    at = 1 if context.op_type == "Upsample" or context.opset < 11 else 2
    given = context.optional(at)
    if given is not None and given.type.elements != 0:
        scales = cast_to(context, given, DType.FLOAT64)
        sizes = _computed(context, "floor", _binary(context, "mul", scales, context.const(lengths)))
    elif "scales" in attrs or "height_scale" in attrs:
        numbers = attrs.get("scales") or (1.0, 1.0, attrs["height_scale"], attrs["width_scale"])
        scales = context.const(np.array(numbers, np.float64))
        sizes = _computed(context, "floor", _binary(context, "mul", scales, context.const(lengths)))
    else:
        scales, sizes = _by_sizes(context, lengths)
    if scales.type.shape != (len(axes),):
        raise UnsupportedForm(f"scales or sizes {scales.type} for {len(axes)} axes")
    known = context.builder.array(scales)
    if known is not None and not all(0 < scale < inf for scale in known):
        raise UnsupportedForm(f"the scales are {known.tolist()}, not positive numbers")
    resized = _resized(context, axes, sizes, rank)
    regions = _regions(context, axes)
    found = {}
    for number, axis in enumerate(axes):
        if known is not None and known[number] == 1 and resized[number] == shape[axis] and not regions:
            continue
        scale = _computed(context, "reshape", _computed(context, "slice", scales, starts=(number,), sizes=(1,), steps=(1,)), shape=())
        found[axis] = _Change(scale, shape[axis], resized[number], regions.get(axis))
    return dict(sorted(found.items()))


def _by_sizes(context: FormContext, lengths: Array) -> tuple[Value, Value]:
    """The scales and sizes that input 3 gives; one scale for all axes where the aspect ratio is to be kept."""
    sizes, policy = cast_to(context, context.input(3), DType.FLOAT64), context.attrs.get("keep_aspect_ratio_policy", "stretch")
    scales = _binary(context, "div", sizes, context.const(lengths))
    if policy == "stretch":
        return scales, sizes
    ratio = _computed(context, "reduce", scales, kind="min" if policy == "not_larger" else "max", axes=(0,), keepdims=True)
    rounded = _computed(context, "floor", _binary(context, "add", _binary(context, "mul", ratio, context.const(lengths)), 0.5))
    return _computed(context, "expand", ratio, shape=scales.type.shape), rounded


def _resized(context: FormContext, axes: Sequence[int], sizes: Value, rank: int) -> list[int]:
    """The new lengths of axes: ``sizes`` where they are known, else what the model declares, which a run checks."""
    known = context.builder.array(sizes)
    if known is not None:
        return [int(size) for size in known]
    declared = context.declared_shape(0, "the size", rank)
    for axis, size in zip(axes, context.builder.bind(cast_to(context, sizes, DType.INT64)), strict=True):
        context.check(declared[axis], size, declared[axis], f"axis {axis} is resized to {{value}} elements, and the model declares {{low}}")
    return [declared[axis] for axis in axes]


def _regions(context: FormContext, axes: Sequence[int]) -> dict[int, tuple[Value, Value]]:
    """The begin and end of the part of each axis that ``tf_crop_and_resize`` takes."""
    if context.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return {}
    regions = cast_to(context, context.input(1), DType.FLOAT64)
    if regions.type.shape != (2 * len(axes),):
        raise UnsupportedForm(f"regions {regions.type} for {len(axes)} axes")

    def bound(number: int) -> Value:
        return _computed(context, "reshape", _computed(context, "slice", regions, starts=(number,), sizes=(1,), steps=(1,)), shape=())

    return {axis: (bound(number), bound(number + len(axes))) for number, axis in enumerate(axes)}


ResizeNearest.forms = (OnnxForm("Resize", _resize, since=10), OnnxForm("Upsample", _resize))
