"""MelWeightMatrix: the triangular filters that turn a spectrum into mel bands."""

from __future__ import annotations

from math import log

import numpy as np

from compiler.ir.graph import Value
from compiler.ir.intexpr import floordiv
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.run_time import natural
from compiler.ir.types import DType
from compiler.ops.binary import Where
from compiler.ops.dims import iota
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, onnx_dtype, reshape, scalar_like
from compiler.ops.tables import combined, converted, laid, real


def _mel(context: FormContext, hertz: Value) -> Value:
    """``2595 log10(1 + f / 700)``."""
    ratio = combined(context, "add", combined(context, "div", hertz, 700), 1)
    return combined(context, "mul", context.emit("log", ratio), 2595 / log(10))


def _mel_weight_matrix(context: FormContext) -> Value:
    """Element j, i: how far spectrum bin j is up from band edge i to i + 1, then down to i + 2; edges lie at whole bins."""
    (bands,), (length,) = context.require_dims(0, "the number of bands"), context.require_dims(1, "the length")
    for dim in (bands, length):
        context.check(0, dim, None, "the number of bands or the length is {value}")
    bins, count = context.settled((natural(floordiv(length, 2) + 1), natural(bands)))
    size, rate, low, high = (reshape(context, cast_to(context, context.input(i), DType.FLOAT64), ()) for i in (1, 2, 3, 4))
    low, high = _mel(context, low), _mel(context, high)
    step = context.emit("div", context.emit("sub", high, low), real(context, count + 2))
    mels = context.emit("add", context.emit("mul", converted(context, iota(context, count + 2), DType.FLOAT64), step), low)
    hertz = combined(context, "mul", combined(context, "sub", context.emit("exp", combined(context, "mul", mels, log(10) / 2595)), 1), 700)
    edges = context.emit("floor", context.emit("div", context.emit("mul", combined(context, "add", size, 1), hertz), rate))
    left, center, right = (slice_axis(context, edges, 0, at, count) for at in range(3))
    places = laid(context, converted(context, iota(context, bins), DType.FLOAT64), 0, 2)
    rising = _slope(context, left, center, places)
    falling = _slope(context, right, center, places)
    upwards = context.emit("less", places, center)
    weights = context.emit("clip", context.emit("where", upwards, rising, falling), low=0.0, high=1.0)
    return cast_to(context, weights, onnx_dtype(context.attrs.get("output_datatype", 1)))


def _slope(context: FormContext, zero: Value, one: Value, places: Value) -> Value:
    """The line through zero and one at these edges; where they are the same, one there and zero elsewhere."""
    extent = context.emit("sub", one, zero)
    same = context.emit("equal", extent, scalar_like(context, extent, 0))
    divisor = context.emit("where", same, scalar_like(context, extent, 1), extent)
    line = context.emit("div", context.emit("sub", places, zero), divisor)
    there = cast_to(context, context.emit("equal", places, one), DType.FLOAT64)
    return context.emit("where", same, there, line)


def _scalars(*numbers: float) -> tuple[np.ndarray, ...]:
    return tuple(np.array(n, np.int64 if isinstance(n, int) else np.float32) for n in numbers)


extend(
    Where,
    forms=(OnnxForm("MelWeightMatrix", _mel_weight_matrix, since=17),),
    samples=(
        Sample("MelWeightMatrix", _scalars(8, 16, 8192, 0.0, 4096.0), constant=(0, 1)),
        Sample("MelWeightMatrix", _scalars(5, 64, 16000, 20.0, 7600.0), {"output_datatype": 11}, constant=(0, 1, 2, 3, 4)),
    ),
)
