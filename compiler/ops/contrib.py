"""Fused operators that ONNX Runtime's optimiser writes, mostly of the ``com.microsoft`` domain, as the canonical operators they stand for.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.conv import Conv, conv
from compiler.ops.gather import Gather, gather, trilu
from compiler.ops.grid_sample import grid_sample
from compiler.ops.matmul import MatMul, gemm
from compiler.ops.normalize import Normalize, normalize
from compiler.ops.quantize import MICROSOFT
from compiler.ops.reduce import mean, reduce
from compiler.ops.support import cast_to, known, normalize_axis, reshape, scalar_like, transpose
from compiler.ops.unary import Gelu

_GEMM_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")

_X = (np.sin(np.arange(2 * 3 * 4) * 1.7) * 3).astype(np.float32).reshape(2, 3, 4)
_Y = (np.cos(np.arange(2 * 3 * 4) * 1.3) * 2).astype(np.float32).reshape(2, 3, 4)
_ROW, _OTHER = np.array([1.0, -2.0, 0.5, 0.25], np.float32), np.array([0.1, 0.2, -0.3, 0.4], np.float32)
_IMAGE = np.sin(np.arange(1 * 2 * 5 * 5) * 1.1).astype(np.float32).reshape(1, 2, 5, 5)
_FILTERS = np.cos(np.arange(3 * 2 * 3 * 3) * 0.7).astype(np.float32).reshape(3, 2, 3, 3)
_IDS = np.array([[3, 0, 1], [2, 2, 4]], np.int32)
_SEGMENTS = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
_WORDS = np.sin(np.arange(20) * 2.1).astype(np.float32).reshape(5, 4)


def _sample(op_type: str, *inputs: Array | None, outputs: int = 1, constant: tuple[int, ...] = (), **attrs: Any) -> Sample:
    return Sample(op_type, inputs, attrs, opset=1, constant=constant, outputs=outputs, domain=MICROSOFT)


def _plus(context: FormContext, x: Value, bias: Value | None) -> Value:
    return x if bias is None else context.emit("add", x, bias)


def _gelu(context: FormContext) -> Value:
    return context.emit("gelu", context.input(0), approximate="none")


def _bias_gelu(context: FormContext) -> Value:
    return context.emit("gelu", _plus(context, context.input(0), context.optional(1)), approximate="none")


def _fast_gelu(context: FormContext) -> Value:
    return context.emit("gelu", _plus(context, context.input(0), context.optional(1)), approximate="tanh")


def _quick_gelu(context: FormContext) -> Value:
    return context.emit("swish", context.input(0), alpha=float(context.attrs.get("alpha", 1.702)))


def _fused_matmul(context: FormContext) -> Value:
    """``alpha * a @ b`` with an operand's first axis moved before its last, then its last two exchanged, on demand."""
    operands = []
    for index, name in enumerate("AB"):
        x = context.input(index)
        if x.type.rank < 2:
            raise UnsupportedForm(f"operand {index} has rank {x.type.rank}; at least 2 is needed")
        axes = tuple(range(x.type.rank))
        if context.attrs.get(f"transBatch{name}", 0):
            axes = (*axes[1:-1], 0, axes[-1])
        if context.attrs.get(f"trans{name}", 0):
            axes = (*axes[:-2], axes[-1], axes[-2])
        operands.append(transpose(context, x, axes))
    result = context.emit("matmul", *operands)
    alpha = float(context.attrs.get("alpha", 1.0))
    return result if alpha == 1 else context.emit("mul", result, scalar_like(context, result, alpha))


def _activated(context: FormContext, x: Value) -> Value:
    """The activation that attributes ``activation`` and ``activation_params`` name."""
    name = str(context.attrs.get("activation", ""))
    parameters = tuple(float(p) for p in context.attrs.get("activation_params", ()))
    if name in ("", "Relu", "Tanh", "Sigmoid"):
        return context.emit(name.lower(), x) if name else x
    if name == "LeakyRelu":
        return context.emit("leaky_relu", x, alpha=parameters[0] if parameters else 0.01)
    if name == "Clip" and len(parameters) == 2:
        return context.emit("clip", x, low=parameters[0], high=parameters[1])
    if name == "HardSigmoid" and len(parameters) == 2:
        return context.emit("hard_sigmoid", x, alpha=parameters[0], beta=parameters[1])
    raise UnsupportedForm(f"activation {name!r} with {len(parameters)} parameters is not supported")


def _fused_gemm(context: FormContext) -> Value:
    parameters = tuple(float(context.attrs[name]) for name in _GEMM_PARAMETERS if name in context.attrs)
    return _activated(replace(context, attrs={**context.attrs, "activation_params": parameters}), gemm(context))


def _distances(context: FormContext) -> Value:
    """Between every row of a and every row of b."""
    a, b, metric = context.input(0), context.input(1), str(context.attrs.get("metric", "sqeuclidean"))
    if metric not in ("euclidean", "sqeuclidean") or a.type.rank != 2 or b.type.rank != 2:
        raise UnsupportedForm(f"metric {metric!r} of {a.type} and {b.type}; euclidean and sqeuclidean of matrices are possible")
    difference = context.emit("sub", reshape(context, a, (a.type.shape[0], 1, a.type.shape[1])), b)
    squared = reduce(context, context.emit("mul", difference, difference), "sum", (2,), keepdims=False)
    return squared if metric == "sqeuclidean" else context.emit("sqrt", squared)


def _expand_dims(context: FormContext) -> Value:
    x, axes = context.input(0), context.require_dims(1, "the axis")
    axis = normalize_axis(known(axes[0], "the axis"), x.type.rank + 1)
    return reshape(context, x, (*x.type.shape[:axis], 1, *x.type.shape[axis:]))


def _channels_last_conv(context: FormContext) -> Value:
    """Conv of x, and of what is added to the result (input 3), whose channels are the last axis; the weights' are where they always are."""
    rank = context.input(0).type.rank
    first, last = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
    x, added = transpose(context, context.input(0), first), context.optional(3)
    inputs = (x, *context.inputs[1:3], None if added is None else transpose(context, added, first))
    return transpose(context, _fused_conv(replace(context, inputs=inputs)), last)


def _fused_conv(context: FormContext) -> Value:
    """Conv of inputs 0 to 2, plus input 3, activated."""
    return _activated(context, _plus(context, conv(replace(context, inputs=context.inputs[:3])), context.optional(3)))


def _normalized(context: FormContext, x: Value, scale: Value, bias: Value | None, *, center: bool, axis: int = -1) -> tuple[Value, Value, Value]:
    """x normalised from ``axis`` on, scaled and shifted; with the mean and the inverse deviation."""
    epsilon = float(context.attrs.get("epsilon", 1e-12 if context.op_type.startswith(("Skip", "Embed")) else 1e-5))
    first = normalize_axis(axis, x.type.rank)
    axes = tuple(range(first, x.type.rank))
    wide = x if x.type.dtype is DType.FLOAT64 else cast_to(context, x, DType.FLOAT32)
    normal = cast_to(context, normalize(context, wide, axes, epsilon=epsilon, center=center), x.type.dtype)
    result = _plus(context, context.emit("mul", normal, scale), bias)
    if context.outputs == 1:
        return result, result, result
    average = mean(context, wide, axes)
    centered = context.emit("sub", wide, average) if center else wide
    variance = context.emit("add", mean(context, context.emit("mul", centered, centered), axes), scalar_like(context, wide, epsilon))
    return result, average, context.emit("reciprocal", context.emit("sqrt", variance))


def _simplified_layer_norm(context: FormContext) -> Sequence[Value]:
    """Outputs: the result and the inverse deviation."""
    axis = int(context.attrs.get("axis", -1))
    result, _, deviation = _normalized(context, context.input(0), context.input(1), None, center=False, axis=axis)
    return result, deviation


def _skip_layer_norm(context: FormContext) -> Sequence[Value]:
    """Inputs x, skip, scale, shift, bias; outputs: the result, the mean, the inverse deviation, the sum."""
    total = _plus(context, context.emit("add", context.input(0), context.input(1)), context.optional(4))
    return (*_normalized(context, total, context.input(2), context.optional(3), center=True), total)


def _skip_simplified_layer_norm(context: FormContext) -> Sequence[Value]:
    """Inputs x, skip, scale, bias; outputs as those of SkipLayerNormalization."""
    total = _plus(context, context.emit("add", context.input(0), context.input(1)), context.optional(3))
    return (*_normalized(context, total, context.input(2), None, center=False), total)


def _embed_layer_norm(context: FormContext) -> Sequence[Value]:
    """Word, position and segment embeddings, summed and normalised; then how many tokens the mask keeps, and the sum itself."""
    ids, segments, words, positions = context.input(0), context.optional(1), context.input(2), context.input(3)
    total = gather(context, words, ids, 0)
    places = context.optional(8)
    if places is not None:
        total = context.emit("add", total, gather(context, positions, places, 0))
    else:
        rows, width = ids.type.shape[1], positions.type.shape[1]
        total = context.emit("add", total, context.emit("slice", positions, starts=(0, 0), sizes=(rows, width), steps=(1, 1)))
    if segments is not None:
        total = context.emit("add", total, gather(context, context.input(4), segments, 0))
    result, _, _ = _normalized(context, total, context.input(5), context.input(6), center=True)
    mask = context.optional(7)
    if mask is None:
        kept = context.emit("expand", context.const(np.array(0, np.int32)), shape=ids.type.shape[:1])
    else:
        kept = reduce(context, cast_to(context, mask, DType.INT32), "sum", (1,), keepdims=False)
    return result, kept, total


def _forms(**builds: Any) -> tuple[OnnxForm, ...]:
    return tuple(OnnxForm(name, build, domain=MICROSOFT) for name, build in builds.items())


extend(
    Gelu,
    forms=_forms(Gelu=_gelu, BiasGelu=_bias_gelu, FastGelu=_fast_gelu, QuickGelu=_quick_gelu),
    samples=(
        _sample("Gelu", _X),
        _sample("BiasGelu", _X, _ROW),
        _sample("FastGelu", _X),
        _sample("FastGelu", _X, _ROW),
        _sample("QuickGelu", _X),
        _sample("QuickGelu", _X, alpha=0.5),
    ),
)
extend(
    MatMul,
    forms=_forms(FusedMatMul=_fused_matmul, TransposeMatMul=_fused_matmul, FusedGemm=_fused_gemm, CDist=_distances),
    samples=(
        _sample("FusedMatMul", _X, _Y, transB=1, alpha=0.125),
        _sample("FusedMatMul", _X, _Y, transA=1),
        _sample("FusedMatMul", _X, _Y.transpose(1, 0, 2), transB=1, transBatchB=1),
        _sample("FusedMatMul", _X.transpose(2, 0, 1), _Y.transpose(2, 0, 1), transA=1, transBatchA=1, transBatchB=1),
        _sample("TransposeMatMul", _X, _Y, transB=1, alpha=2.0),
        _sample("FusedGemm", _X[0], _Y[0], _ROW[:3], transB=1, alpha=0.5, activation="LeakyRelu", activation_alpha=0.25),
        _sample("FusedGemm", _X[0], _Y[0], transB=1, activation="Relu"),
        _sample("CDist", _X[0], _Y.reshape(6, 4), metric="euclidean"),
        _sample("CDist", _X[0], _Y[1], metric="sqeuclidean"),
    ),
)
extend(
    Conv,
    forms=_forms(FusedConv=_fused_conv, NhwcConv=_channels_last_conv, NhwcFusedConv=_channels_last_conv),
    samples=(
        _sample("FusedConv", _IMAGE, _FILTERS, _ROW[:3], activation="LeakyRelu", activation_params=[0.25], constant=(1, 2)),
        _sample("FusedConv", _IMAGE, _FILTERS, activation="Clip", activation_params=[-1.0, 1.0], pads=[1, 1, 1, 1], constant=(1,)),
        _sample("FusedConv", _IMAGE, _FILTERS, _ROW[:3], _FILTERS[:1, :1].repeat(3, 1), activation="Relu", constant=(1, 2)),
    ),
)
extend(
    Gather,
    forms=_forms(GridSample=grid_sample, Trilu=trilu, ExpandDims=_expand_dims),
    samples=(
        _sample("GridSample", _IMAGE, _FILTERS[:1, :1, :2, :2].reshape(1, 1, 2, 2), mode="bilinear", align_corners=1),
        _sample("Trilu", _X, np.array(1, np.int64), constant=(1,)),
        _sample("Trilu", _X, upper=0),
        _sample("ExpandDims", _X, np.array(-2, np.int32), constant=(1,)),
    ),
)
extend(
    Normalize,
    forms=(
        OnnxForm("SimplifiedLayerNormalization", _simplified_layer_norm),
        *_forms(
            SkipLayerNormalization=_skip_layer_norm,
            SkipSimplifiedLayerNormalization=_skip_simplified_layer_norm,
            EmbedLayerNormalization=_embed_layer_norm,
        ),
    ),
    samples=(
        Sample("SimplifiedLayerNormalization", (_X, _ROW), {"epsilon": 1e-3}, opset=17),
        _sample("SkipLayerNormalization", _X, _Y, _ROW, _OTHER, _ROW, epsilon=1e-5),
        _sample("SkipLayerNormalization", _X, _Y[:1], _ROW, outputs=1),
        _sample("SkipSimplifiedLayerNormalization", _X, _Y, _ROW, _OTHER, epsilon=1e-5),
        _sample("EmbedLayerNormalization", _IDS, _SEGMENTS, _WORDS, _WORDS + 1, _WORDS[:2], _ROW, _OTHER, _SEGMENTS, outputs=2),
        _sample("EmbedLayerNormalization", _IDS, None, _WORDS, _WORDS + 1, None, _ROW, _OTHER, outputs=3),
    ),
)
