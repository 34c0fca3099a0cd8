"""Resize and Upsample: each axis is interpolated for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, inf

import numpy as np

from compiler.ir.graph import Array, Region, Value
from compiler.ir.intexpr import floordiv
from compiler.ir.op import FormContext, OnnxForm, Sample, UnsupportedForm, register
from compiler.ir.types import TensorType
from compiler.ops.gather import gather
from compiler.ops.index import IndexMap
from compiler.ops.support import Arrays, Attrs, Types, array, attr_ints, axis_symbol, first_type, known_shape, normalize_axis, transpose

_X = (np.sin(np.arange(2 * 2 * 4 * 5) * 1.9) * 3).astype(np.float32).reshape(2, 2, 4, 5)

_LONG = np.cos(np.arange(100) * 0.7).astype(np.float32).reshape(1, 1, 50, 2)


def _scales(*values: float) -> Array:
    return np.array(values, np.float32)


def _sizes(*values: int) -> Array:
    return np.array(values, np.int64)


def _resize_samples() -> tuple[Sample, ...]:
    up, odd, down = _scales(1, 1, 2, 3), _scales(1, 1, 1.6, 2.3), _scales(1, 1, 0.6, 0.5)
    legacy = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
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
        Sample("Upsample", (_X, up), {"mode": "nearest"}, opset=9, constant=(1,)),
        Sample("Upsample", (_X, up), {"mode": "linear"}, opset=9, constant=(1,)),
    )


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

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


def _positions(transform: str, scale: float, length: int, resized: int) -> Array:
    """Where in the input each output position lies."""
    i: Array = np.arange(resized, dtype=np.float64)
    match transform:
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if resized > 1 else i
        case "half_pixel_symmetric":
            return (i + 0.5) / scale - 0.5 + length / 2 * (1 - resized / (length * scale))
        case "align_corners":
            return i * (length - 1) / max(resized - 1, 1)
        case "asymmetric":
            return i / scale
    raise UnsupportedForm(f"coordinate_transformation_mode {transform!r} is not supported")


def _linear(x: Array) -> Array:
    weights: Array = np.clip(1 - np.abs(x), 0.0, None)
    return weights


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' convolution kernel (1981) with parameter a."""

    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


class _Axis:
    """The interpolation of one axis: for each output position its taps, as indices and weights ``[taps, resized]``."""

    def __init__(self, context: FormContext, mode: str, scale: float, length: int, resized: int) -> None:
        attrs = context.attrs
        transform = attrs.get("coordinate_transformation_mode", "half_pixel" if context.op_type == "Resize" and context.opset > 10 else "asymmetric")
        kernel, radius = (_linear, 1) if mode == "linear" else (_cubic(float(attrs.get("cubic_coeff_a", -0.75))), 2)
        shrink = min(1.0, scale) if attrs.get("antialias", 0) else 1.0
        reach = ceil(radius / shrink)
        if resized * (1 if mode == "nearest" else 2 * reach) > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {resized}, by a scale of {scale:g}: that is beyond what is supported")
        positions = _positions(transform, scale, length, resized)
        if mode == "nearest":
            rounding = _NEAREST[attrs.get("nearest_mode", "round_prefer_floor" if context.opset > 10 and context.op_type == "Resize" else "floor")]
            self.indices = rounding(positions).astype(np.int64)[None]
            self.weights = np.ones((1, resized))
        else:
            offsets = np.arange(1 - reach, reach + 1)
            self.indices = np.floor(positions).astype(np.int64)[None] + offsets[:, None]
            self.weights = kernel((self.indices - positions[None]) * shrink)
            if attrs.get("exclude_outside", 0) or shrink != 1:
                inside = (self.indices >= 0) & (self.indices < length)
                self.weights = np.where(inside, self.weights, 0) if attrs.get("exclude_outside", 0) else self.weights
                self.weights = self.weights / self.weights.sum(0, keepdims=True)
        self.indices = np.clip(self.indices, 0, length - 1)

    def apply(self, context: FormContext, x: Value, axis: int) -> Value:
        """x with the axis resized: a weighted sum of gathers, or, of many, a product with the matrix of all weights."""
        if len(self.weights) > _TAPS_LIMIT:
            return self._product(context, x, axis)
        total: Value | None = None
        broadcast = (-1, *(1,) * (x.type.rank - 1 - axis))
        for indices, weights in zip(self.indices, self.weights, strict=True):
            if not weights.any():
                continue
            part = gather(context, x, context.const(indices), axis)
            if not (weights == 1).all():
                part = context.emit("mul", part, context.const(weights.astype(x.type.dtype.numpy).reshape(broadcast)))
            total = part if total is None else context.emit("add", total, part)
        if total is None:
            raise UnsupportedForm("an axis is resized to nothing")
        return total

    def _product(self, context: FormContext, x: Value, axis: int) -> Value:
        length, resized = known_shape(x, "the input")[axis], self.indices.shape[1]
        if length * resized > _TABLE_LIMIT:
            raise UnsupportedForm(f"an axis of {length} elements is resized to {resized} by weights of {len(self.weights)} elements each")
        matrix = np.zeros((length, resized))
        np.add.at(matrix, (self.indices, np.arange(resized)[None]), self.weights)
        last = (*(a for a in range(x.type.rank) if a != axis), axis)
        product = context.emit("matmul", transpose(context, x, last), context.const(matrix.astype(x.type.dtype.numpy)))
        return transpose(context, product, tuple(np.argsort(last).tolist()))


def _resize(context: FormContext) -> Value:
    x, mode = context.input(0), str(context.attrs.get("mode", "nearest"))
    shape = known_shape(x, "the input")
    if mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedForm(f"mode {mode!r} is not supported")
    scales, resized = _scales_and_sizes(context, shape)
    axes = [_Axis(context, mode, scales[a], shape[a], resized[a]) if resized[a] != shape[a] or scales[a] != 1 else None for a in range(len(shape))]
    factors = tuple(_repeat(axis, n, m) for axis, n, m in zip(axes, shape, resized, strict=True))
    if mode == "nearest" and any(f > 1 for f in factors):
        x = context.emit("resize_nearest", x, scales=factors)
        axes = [axis if factor == 1 else None for axis, factor in zip(axes, factors, strict=True)]
    for position, axis in enumerate(axes):
        if axis is not None:
            x = axis.apply(context, x, position)
    return x


def _repeat(axis: _Axis | None, length: int, resized: int) -> int:
    """The whole factor by which a nearest-neighbour axis repeats its elements; 1 where it does not."""
    factor = resized // length if length else 1
    if axis is None or factor < 2 or factor * length != resized or axis.indices.shape[0] != 1:
        return 1
    return factor if bool((axis.indices[0] == np.arange(resized) // factor).all()) else 1


def _scales_and_sizes(context: FormContext, shape: Sequence[int]) -> tuple[list[float], list[int]]:
    """The scale and the new length of every axis, whichever of the two the node gives."""
    rank = len(shape)
    at = 1 if context.op_type == "Upsample" or context.opset < 11 else 2
    axes = [normalize_axis(a, rank) for a in context.attrs.get("axes", range(rank))]
    scales, resized = [1.0] * rank, list(shape)
    data = context.constant(at)
    given: Sequence[float] | None = context.attrs.get("scales") if data is None or data.size == 0 else [float(v) for v in data]
    if given is not None:
        for axis, scale in zip(axes, given, strict=True):
            if not 0 < scale < inf:
                raise UnsupportedForm(f"the scale of axis {axis} is {scale:g}, not a positive number")
            scales[axis], resized[axis] = float(scale), floor(shape[axis] * float(scale))
        return scales, resized
    if context.optional(at) is not None and data is None:
        raise UnsupportedForm("the scales are computed at run time")
    policy = context.attrs.get("keep_aspect_ratio_policy", "stretch")
    wanted = context.dims(3)
    if wanted is None:
        declared = context.declared_shape(0, "the size", rank)
        if policy != "stretch":
            raise UnsupportedForm("the sizes are computed at run time, and the aspect ratio is to be kept")
        wanted = tuple(declared[axis] for axis in axes)
    sizes = [int(s) for s in wanted if isinstance(s, int)]
    if len(sizes) != len(axes):
        raise UnsupportedForm(f"{len(sizes)} known sizes for {len(axes)} axes")
    ratios = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        ratios, sizes = [ratio] * len(axes), [floor(shape[axis] * ratio + 0.5) for axis in axes]
    for axis, ratio, size in zip(axes, ratios, sizes, strict=True):
        scales[axis], resized[axis] = ratio, size
    return scales, resized


ResizeNearest.forms = (OnnxForm("Resize", _resize, since=10), OnnxForm("Upsample", _resize))
