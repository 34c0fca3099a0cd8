"""Normalisations: by the mean and variance of trailing axes, of batches, of neighbouring channels, by norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Node, Value
from compiler.ir.op import FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.ops.index import slice_axis
from compiler.ops.reduce import mean, reduce
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_float,
    attr_int,
    attr_ints,
    cast_to,
    first_type,
    known,
    normalize_axis,
    onnx_dtype,
    part_of_rows,
    per_channel,
    reshape,
    scalar_like,
)

_X = (np.sin(np.arange(2 * 4 * 3 * 5) * 1.1) * 3 + 1).astype(np.float32).reshape(2, 4, 3, 5)
_C = np.array([0.5, -1.0, 2.0, 1.0], np.float32)
_D = np.array([0.1, 0.2, -0.3, 0.4], np.float32)
_V = np.array([0.5, 1.0, 2.0, 0.01], np.float32)
_ROW = np.array([1.0, 2.0, 0.5, -1.0, 0.25], np.float32)


def groups_of_one(node: Node, builder: GraphBuilder) -> Value | None:
    """Groups of one channel: each normalised for itself, along the other axes."""
    x, axes = node.present_inputs[0], attr_ints(node.attrs, "axes")
    if len(axes) == 1 or x.type.shape[axes[0]] != node.attrs["groups"]:
        return None
    return builder.emit("normalize", x, name=node.name, **{**node.attrs, "axes": axes[1:], "groups": 1})


@register
class Normalize(Op):
    """``(x - mean) / sqrt(variance + epsilon)`` over ``axes`` (sorted, non-negative); without ``center`` ``x / sqrt(mean(x²) + epsilon)``.

    The first of the axes is in ``groups`` equal parts, each normalised by itself.
    """

    name = "normalize"
    simplifications = (groups_of_one,)
    families = ("normalize",)
    computes = True
    samples = (
        Sample("LayerNormalization", (_X, _ROW, _ROW)),
        Sample("LayerNormalization", (_X, np.ones((3, 5), np.float32)), {"axis": 2, "epsilon": 0.01}),
        Sample("InstanceNormalization", (_X, _C, _D)),
        Sample("GroupNormalization", (_X, _C, _D), {"num_groups": 2}, opset=21),
        Sample("MeanVarianceNormalization", (_X,)),
        Sample("MeanVarianceNormalization", (_X,), {"axes": [2, 3]}),
        Sample("RMSNormalization", (_X, _ROW), opset=23),
        Sample("BatchNormalization", (_X, _C, _D, _D, _V), constant=(1, 2, 3, 4)),
        Sample("BatchNormalization", (_X, _C, _D, _D, _V), {"epsilon": 0.01}),
        Sample("BatchNormalization", (_X, _C, _D, _D, _V), {"is_test": 1}, opset=6),
        Sample("BatchNormalization", (_X, _C, _D, _D, _V), {"training_mode": 1, "momentum": 0.7}, outputs=3),
        Sample("LRN", (_X,), {"size": 3, "alpha": 0.01, "beta": 0.6, "bias": 2.0}),
        Sample("LpNormalization", (_X,)),
        Sample("LpNormalization", (_X,), {"p": 1, "axis": 1}),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, groups = first_type(inputs), attr_int(attrs, "groups")
        if groups != 1 and known(x.shape[attr_ints(attrs, "axes")[0]], "what is normalised in groups") % groups:
            raise UnsupportedForm(f"{x} cannot be normalised in {groups} groups")
        return (x,)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        return part_of_rows(inputs[0], attrs, box, attr_ints(attrs, "axes"))

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, (first, *others), groups = array(inputs[0]), attr_ints(attrs, "axes"), attr_int(attrs, "groups")
        wide = x.astype(np.float64).reshape(*x.shape[:first], groups, x.shape[first] // groups, *x.shape[first + 1 :])
        axes = tuple(axis + 1 for axis in (first, *others))
        with np.errstate(all="ignore"):
            centered = wide - wide.mean(axes, keepdims=True) if attrs["center"] else wide
            spread = np.sqrt(np.square(centered).mean(axes, keepdims=True) + attr_float(attrs, "epsilon"))
            return ((centered / spread).reshape(x.shape).astype(x.dtype),)

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        """Channels in blocks where all of them have their own statistics, share those of a pixel, or groups of them those of all pixels."""
        axes, rank = attr_ints(attrs, "axes"), first_type(inputs).rank
        pixel = axes == (1,) and attrs["groups"] == 1
        return Layouts.SAME if axes[0] > 1 or pixel or axes == tuple(range(1, rank)) else Layouts.PLAIN


def normalize(context: FormContext, x: Value, axes: Sequence[int], *, epsilon: float, center: bool = True, groups: int = 1) -> Value:
    """x normalised over axes, the first of which may be in groups."""
    return context.emit("normalize", x, axes=tuple(axes), groups=groups, epsilon=epsilon, center=center)


def _scaled(context: FormContext, x: Value, scale: Value | None, bias: Value | None) -> Value:
    scaled = x if scale is None else context.emit("mul", x, scale)
    return scaled if bias is None else context.emit("add", scaled, bias)


def _epsilon(context: FormContext) -> float:
    return float(context.attrs.get("epsilon", 1e-5))


def _layer_norm(context: FormContext) -> Value:
    return _by_trailing_axes(context, center=True)


def _rms_norm(context: FormContext) -> Value:
    return _by_trailing_axes(context, center=False)


def _by_trailing_axes(context: FormContext, *, center: bool) -> Value:
    if context.outputs > 1:
        raise UnsupportedForm("the mean and deviation (outputs 1 and 2) are not supported")
    x = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", -1)), x.type.rank)
    stash = onnx_dtype(context.attrs.get("stash_type", 1))
    wide = x if x.type.dtype is DType.FLOAT64 or stash is compute_dtype(x.type.dtype) else cast_to(context, x, stash)
    normal = cast_to(context, normalize(context, wide, range(axis, x.type.rank), epsilon=_epsilon(context), center=center), x.type.dtype)
    return _scaled(context, normal, context.input(1), context.optional(2))


def _instance_norm(context: FormContext) -> Value:
    x = context.input(0)
    if x.type.rank < 3:
        raise UnsupportedForm(f"its input {x.type} has no positions behind the channels")
    normal = normalize(context, x, range(2, x.type.rank), epsilon=_epsilon(context))
    return _scaled(context, normal, *(per_channel(context, context.input(i), x.type.rank) for i in (1, 2)))


def _group_norm(context: FormContext) -> Value:
    """Version 18 scales groups, version 21 channels."""
    x, groups = context.input(0), int(context.attrs["num_groups"])
    batch, channels, *dims = x.type.shape
    width = known(channels, "the number of channels")
    if width % groups:
        raise UnsupportedForm(f"{width} channels cannot be split into {groups} groups")
    normal, shape = normalize(context, x, range(1, x.type.rank), epsilon=_epsilon(context), groups=groups), x.type.shape
    scale, bias = context.input(1), context.input(2)
    if scale.type.shape == (groups,) and groups != width:
        split = reshape(context, normal, (batch, groups, width // groups, *dims))
        return reshape(context, _scaled(context, split, *(per_channel(context, v, split.type.rank) for v in (scale, bias))), shape)
    return _scaled(context, normal, *(per_channel(context, v, len(shape)) for v in (scale, bias)))


def _mean_variance(context: FormContext) -> Value:
    x = context.input(0)
    axes = tuple(normalize_axis(axis, x.type.rank) for axis in context.attrs.get("axes", (0, 2, 3)))
    centered = context.emit("sub", x, mean(context, x, axes))
    spread = context.emit("sqrt", mean(context, context.emit("mul", centered, centered), axes))
    return context.emit("div", centered, context.emit("add", spread, scalar_like(context, x, 1e-9)))


def _batch_norm(context: FormContext) -> Sequence[Value]:
    """By given statistics, or by the batch's own in training; with ``spatial`` off, each element of a channel has its own."""
    x, elements = context.input(0), context.opset < 9 and not context.attrs.get("spatial", 1)

    def aligned(value: Value) -> Value:
        value = cast_to(context, value, x.type.dtype)
        return reshape(context, value, (1, *value.type.shape)) if elements else per_channel(context, value, x.type.rank)

    if _is_training(context):
        return _batch_norm_in_training(context, (0, *(() if elements else range(2, x.type.rank))), aligned)
    constants = [context.constant(i) for i in range(1, 5)]
    known_constants = [c.astype(np.float64) for c in constants if c is not None]
    if len(known_constants) == 4:
        # In float64, which no later pass would do.
        scale, bias, average, variance = known_constants
        factor = scale / np.sqrt(variance + _epsilon(context))
        values = [context.const(v.astype(x.type.dtype.numpy)) for v in (factor, bias - average * factor)]
    else:
        values = _factor_and_offset(context, *(context.input(i) for i in range(1, 5)))
    return (_scaled(context, x, *map(aligned, values)),)


def _is_training(context: FormContext) -> bool:
    """By attribute ``training_mode`` since opset 14; before, where statistics are asked for; before opset 7, unless ``is_test`` is set."""
    if context.opset >= 14:
        return bool(context.attrs.get("training_mode", 0))
    return context.outputs > 1 if context.opset >= 7 else not context.attrs.get("is_test", 0)


def _factor_and_offset(context: FormContext, scale: Value, bias: Value, average: Value, variance: Value) -> list[Value]:
    deviation = context.emit("sqrt", context.emit("add", variance, scalar_like(context, variance, _epsilon(context))))
    factor = context.emit("div", scale, deviation)
    return [factor, context.emit("sub", bias, context.emit("mul", average, factor))]


def _batch_norm_in_training(context: FormContext, axes: tuple[int, ...], aligned: Callable[[Value], Value]) -> Sequence[Value]:
    """Outputs: the result, the running mean and variance, and before opset 14 the batch's own."""
    x, momentum = context.input(0), float(context.attrs.get("momentum", 0.9))
    scale, bias, *running = (context.input(i) for i in range(1, 5))
    wide = cast_to(context, x, compute_dtype(x.type.dtype))
    average = mean(context, wide, axes)
    centered = context.emit("sub", wide, average)
    variance = mean(context, context.emit("mul", centered, centered), axes)
    deviation = context.emit("sqrt", context.emit("add", variance, scalar_like(context, variance, _epsilon(context))))
    result = _scaled(context, cast_to(context, context.emit("div", centered, deviation), x.type.dtype), aligned(scale), aligned(bias))
    batch = [cast_to(context, reshape(context, s, old.type.shape), old.type.dtype) for s, old in zip((average, variance), running, strict=True)]
    moved = []
    for old, new in zip(running, batch, strict=True):
        kept = context.emit("mul", old, scalar_like(context, old, momentum))
        moved.append(context.emit("add", kept, context.emit("mul", new, scalar_like(context, new, 1 - momentum))))
    return (result, *moved, *batch)


def _lrn(context: FormContext) -> Value:
    x, size = context.input(0), int(context.attrs["size"])
    alpha, beta, bias = (float(context.attrs.get(key, value)) for key, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if size < 1:
        raise UnsupportedForm(f"size is {size}, not positive")
    before = (size - 1) // 2
    begins, ends = [0] * x.type.rank, [0] * x.type.rank
    begins[1], ends[1] = before, size - 1 - before
    squares = context.emit("mul", x, x)
    padded = context.emit("pad", squares, begins=tuple(begins), ends=tuple(ends), mode="constant", value=0.0)
    total = slice_axis(context, padded, 1, 0, x.type.shape[1])
    for offset in range(1, size):
        total = context.emit("add", total, slice_axis(context, padded, 1, offset, x.type.shape[1]))
    scaled = context.emit("add", context.emit("mul", total, scalar_like(context, x, alpha / size)), scalar_like(context, x, bias))
    return context.emit("div", x, context.emit("pow", scaled, scalar_like(context, x, beta)))


def _lp_norm(context: FormContext) -> Value:
    """Where the norm is zero the result is zero."""
    x, p = context.input(0), int(context.attrs.get("p", 2))
    axes = (normalize_axis(int(context.attrs.get("axis", -1)), x.type.rank),)
    if p == 1:
        norm = reduce(context, context.emit("abs", x), "sum", axes)
    else:
        norm = context.emit("sqrt", reduce(context, context.emit("mul", x, x), "sum", axes))
    zero = context.emit("equal", norm, scalar_like(context, x, 0))
    return context.emit("div", x, context.emit("where", zero, scalar_like(context, x, 1), norm))


Normalize.forms = (
    OnnxForm("LayerNormalization", _layer_norm),
    OnnxForm("RMSNormalization", _rms_norm),
    OnnxForm("InstanceNormalization", _instance_norm),
    OnnxForm("GroupNormalization", _group_norm),
    OnnxForm("MeanVarianceNormalization", _mean_variance),
    OnnxForm("BatchNormalization", _batch_norm),
    OnnxForm("LRN", _lrn),
    OnnxForm("LpNormalization", _lp_norm),
)
