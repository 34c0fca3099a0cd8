"""Attention operators of the ``com.microsoft`` domain, as products, softmax and the index mappings around them.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.gather import gather
from compiler.ops.index import slice_axis
from compiler.ops.integer import matmul_integer_to_float
from compiler.ops.quantize import MICROSOFT
from compiler.ops.softmax import Softmax
from compiler.ops.support import cast_to, known, reshape, scalar_like, transpose

LOWEST = float(np.finfo(np.float32).min)


def _wave(*shape: int, step: float = 1.3) -> Array:
    return np.asarray(np.sin(np.arange(np.prod(shape)) * step) * 2, np.float32).reshape(shape)


def _sample(op_type: str, *inputs: Array | None, outputs: int = 1, constant: tuple[int, ...] = (), **attrs: Any) -> Sample:
    return Sample(op_type, inputs, attrs, opset=1, constant=constant, outputs=outputs, domain=MICROSOFT)


@dataclass(frozen=True)
class _Heads:
    """Query, key and value as ``[batch, heads, length, size]``, what is added to the scores, and their factor."""

    query: Value
    key: Value
    value: Value
    masks: tuple[Value, ...]
    scale: float


def split_heads(context: FormContext, x: Value, heads: int) -> Value:
    """``[batch, length, heads * size]`` as ``[batch, heads, length, size]``."""
    batch, length, width = x.type.shape
    size = known(width, "the hidden size") // heads
    return transpose(context, reshape(context, x, (batch, length, heads, size)), (0, 2, 1, 3))


def merge_heads(context: FormContext, x: Value) -> Value:
    """The inverse of ``split_heads``."""
    batch, heads, length, size = x.type.shape
    return reshape(context, transpose(context, x, (0, 2, 1, 3)), (batch, length, heads * size))


def _attend(context: FormContext, heads: _Heads) -> tuple[Value, Value]:
    """``softmax(scale * q @ k^T + masks) @ v``, merged, and the softmax."""
    scores = context.emit("matmul", heads.query, transpose(context, heads.key, (0, 1, 3, 2)))
    scores = context.emit("mul", scores, scalar_like(context, scores, heads.scale))
    for mask in heads.masks:
        scores = context.emit("add", scores, mask)
    weights = context.emit("softmax", scores, axis=3, log=False)
    return merge_heads(context, context.emit("matmul", weights, heads.value)), weights


def scale_of(context: FormContext, query: Value) -> float:
    """Attribute ``scale``; zero or absent means one over the root of the head's size."""
    scale = float(context.attrs.get("scale", 0.0))
    return scale or 1 / sqrt(known(query.type.shape[-1], "the size of a head"))


def joined(context: FormContext, past: Value | None, x: Value) -> Value:
    """Keys or values with those of the past before them."""
    return x if past is None else context.emit("concat", past, x, axis=2)


def positions_along(context: FormContext, length: Dim, rank: int, axis: int) -> Value:
    """0, 1, … (int64) along one axis of that rank."""
    shape: list[Dim] = [1] * rank
    shape[axis] = length
    return reshape(context, iota(context, length), shape)


def where_kept(context: FormContext, kept: Value, like: Value, filtered: float) -> Value:
    """Zero where kept, else ``filtered``."""
    return context.emit("where", kept, scalar_like(context, like, 0), scalar_like(context, like, filtered))


def _causal(context: FormContext, query: Value, key: Value) -> Value:
    """The mask that lets each query see the keys up to its own place, the last query being at the last key."""
    rows, columns = query.type.shape[2], key.type.shape[2]
    row = context.emit("add", positions_along(context, rows, 4, 2), number(context, columns - rows))
    kept = context.emit("less_or_equal", positions_along(context, columns, 4, 3), row)
    return where_kept(context, kept, query, LOWEST)


def _key_mask(context: FormContext, mask: Value, query: Value, total: Dim) -> Value:
    """The mask of keys: how many are valid ``[B]`` (and, ``[2 B]``, from which on), or which; others get ``mask_filter_value``."""
    filtered = float(context.attrs.get("mask_filter_value", -10000.0))
    batch = query.type.shape[0]
    if mask.type.rank == 1 and mask.type.shape[0] in (batch, batch * 2):
        places, mask = positions_along(context, total, 4, 3), cast_to(context, mask, DType.INT64)
        ends = reshape(context, slice_axis(context, mask, 0, 0, batch), (batch, 1, 1, 1))
        kept = context.emit("less", places, ends)
        if mask.type.shape[0] != batch:
            starts = reshape(context, slice_axis(context, mask, 0, batch, batch), (batch, 1, 1, 1))
            kept = context.emit("and", kept, context.emit("greater_or_equal", places, starts))
        return where_kept(context, kept, query, filtered)
    if mask.type.rank not in (2, 3) or mask.type.shape[-1] != total:
        raise UnsupportedForm(f"a mask {mask.type} is none of [batch], [2 batch], [batch, keys], [batch, queries, keys]")
    rows = mask.type.shape[1] if mask.type.rank == 3 else 1
    kept = context.emit("cast", reshape(context, mask, (mask.type.shape[0], 1, rows, total)), to=DType.BOOL)
    return where_kept(context, kept, query, filtered)


def _masks(context: FormContext, query: Value, key: Value, mask: Value | None, bias: Value | None) -> tuple[Value, ...]:
    found = [] if bias is None else [bias]
    if mask is not None:
        found.append(_key_mask(context, mask, query, key.type.shape[2]))
    if context.attrs.get("unidirectional", 0):
        found.append(_causal(context, query, key))
    return tuple(found)


def heads_of(context: FormContext) -> int:
    """The number of query heads."""
    return int(context.attrs["num_heads"])


def _attention(context: FormContext) -> Sequence[Value]:
    """Inputs x, weights ``[D, 3 H]``, bias, mask, past ``[2, B, heads, P, size]``, attention bias; outputs the result and the present."""
    packed = context.emit("matmul", context.input(0), context.input(1))
    bias = context.optional(2)
    packed = packed if bias is None else context.emit("add", packed, bias)
    return _attend_packed(context, packed, context.optional(3), context.optional(4), context.optional(5))


def _quantized_attention(context: FormContext) -> Sequence[Value]:
    """Inputs x, weights, bias, the scales of x and weights, mask, their zero points, past; outputs as those of Attention."""
    product = replace(context, inputs=tuple(context.optional(index) for index in (0, 1, 3, 4, 6, 7, 2)))
    return _attend_packed(context, matmul_integer_to_float(product), context.optional(5), context.optional(8), None)


def _attend_packed(context: FormContext, packed: Value, mask: Value | None, past: Value | None, bias: Value | None) -> Sequence[Value]:
    """Attention of queries, keys and values that lie side by side in ``packed [B, S, 3 H]``: the result and the present."""
    if context.attrs.get("past_present_share_buffer", 0) or context.attrs.get("do_rotary", 0):
        raise UnsupportedForm("a past that shares the present's buffer and rotary embeddings are not supported")
    heads, width = heads_of(context), known(packed.type.shape[2], "the hidden size")
    sizes = tuple(context.attrs.get("qkv_hidden_sizes", ())) or (width // 3,) * 3
    starts = (0, sizes[0], sizes[0] + sizes[1])
    query, key, value = (split_heads(context, slice_axis(context, packed, 2, start, size), heads) for start, size in zip(starts, sizes, strict=True))
    if past is not None:
        before = [reshape(context, slice_axis(context, past, 0, k, 1), past.type.shape[1:]) for k in (0, 1)]
        key, value = joined(context, before[0], key), joined(context, before[1], value)
    masks = _masks(context, query, key, mask, bias)
    result, _ = _attend(context, _Heads(query, key, value, masks, scale_of(context, query)))
    if context.outputs == 1:
        return (result,)
    present = [reshape(context, x, (1, *x.type.shape)) for x in (key, value)]
    return result, context.emit("concat", *present, axis=0)


def _multi_head_attention(context: FormContext) -> Sequence[Value]:
    """Inputs query, key, value, bias, key mask, attention bias, past key, past value; outputs result, present key, present value, weights."""
    if context.optional(8) is not None or context.optional(9) is not None:
        raise UnsupportedForm("a past that shares the present's buffer and beams are not supported")
    heads, bias = heads_of(context), context.optional(3)
    parts: list[Value] = []
    start: Dim = 0
    for x in _separate(context, [context.optional(index) for index in range(3)]):
        width = x.type.shape[2] if x.type.rank == 3 else heads * known(x.type.shape[3], "the size of a head")
        if bias is not None and x.type.rank == 3:
            x = context.emit("add", x, slice_axis(context, bias, 0, start, width))
        start = start + width
        parts.append(split_heads(context, x, heads) if x.type.rank == 3 else x)
    key, value = joined(context, context.optional(6), parts[1]), joined(context, context.optional(7), parts[2])
    masks = _masks(context, parts[0], key, context.optional(4), context.optional(5))
    result, weights = _attend(context, _Heads(parts[0], key, value, masks, scale_of(context, parts[0])))
    return result, key, value, weights


def _separate(context: FormContext, given: Sequence[Value | None]) -> Sequence[Value]:
    """Query, key and value, of which those that are packed as ``[B, S, heads, 2 or 3, size]`` become ``[B, S, heads * size]``."""
    found: list[Value] = []
    for x in given:
        if x is not None and x.type.rank == 5:
            batch, length, heads, count, size = x.type.shape
            rows = (batch, length, heads * size)
            found += [reshape(context, slice_axis(context, x, 3, k, 1), rows) for k in range(known(count, "the number packed"))]
        elif x is not None:
            found.append(x)
    if len(found) != 3:
        raise UnsupportedForm(f"{len(found)} of query, key and value are there, packed ones counted")
    return found


def rotated(context: FormContext, x: Value, cosine: Value, sine: Value, interleaved: bool) -> Value:
    """Pairs of x ``[B, heads, S, 2 R]`` (halves, or neighbours) turned by angles ``[B or 1, 1, S, R]``."""
    batch, heads, length, width = x.type.shape
    half = known(width, "the rotated size") // 2
    axis, shape = (4, (batch, heads, length, half, 2)) if interleaved else (3, (batch, heads, length, 2, half))
    pairs = reshape(context, x, shape)
    left, right = (reshape(context, slice_axis(context, pairs, axis, k, 1), (batch, heads, length, half)) for k in (0, 1))
    turned = (
        context.emit("sub", context.emit("mul", left, cosine), context.emit("mul", right, sine)),
        context.emit("add", context.emit("mul", left, sine), context.emit("mul", right, cosine)),
    )
    one = (batch, heads, length, half, 1) if interleaved else (batch, heads, length, 1, half)
    return reshape(context, context.emit("concat", *(reshape(context, t, one) for t in turned), axis=axis), x.type.shape)


def rotary(context: FormContext, x: Value, positions: Value, tables: Sequence[Value], width: int, *, interleaved: bool) -> Value:
    """The first ``width`` elements of every head of x ``[B, heads, S, size]`` turned by ``positions [B or 1, S]`` in the cosines and sines."""
    angles = [gather(context, table, positions, 0) for table in tables]
    cosine, sine = (reshape(context, a, (a.type.shape[0], 1, *a.type.shape[1:])) for a in angles)
    turned = rotated(context, slice_axis(context, x, 3, 0, width), cosine, sine, interleaved)
    rest = known(x.type.shape[3], "the size of a head") - width
    return context.emit("concat", turned, slice_axis(context, x, 3, width, rest), axis=3) if rest else turned


def _rotary_embedding(context: FormContext) -> Value:
    """Inputs x (``[B, S, D]`` or ``[B, heads, S, size]``), positions (``[1]``, the first one, or ``[B, S]``), tables of cosines and sines."""
    x, positions, cosines, sines = (context.input(i) for i in range(4))
    heads = int(context.attrs.get("num_heads", 0))
    if x.type.rank == 3:
        heads = heads or known(x.type.shape[2], "the hidden size") // (2 * known(cosines.type.shape[1], "the size of the cosines"))
    split = split_heads(context, x, heads) if x.type.rank == 3 else x
    if positions.type.rank == 1:
        steps = positions_along(context, split.type.shape[2], 2, 1)
        positions = context.emit("add", reshape(context, positions, (1, 1)), cast_to(context, steps, positions.type.dtype))
    width = int(context.attrs.get("rotary_embedding_dim", 0)) or known(split.type.shape[3], "the size of a head")
    result = rotary(context, split, positions, (cosines, sines), width, interleaved=bool(context.attrs.get("interleaved", 0)))
    return merge_heads(context, result) if x.type.rank == 3 else result


_INPUT, _WEIGHTS, _BIAS = _wave(2, 3, 8), _wave(8, 24, step=0.7) / 4, _wave(24, step=0.9)
_MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
_PAST = _wave(2, 2, 2, 2, 4, step=0.5)
_BYTES = (_wave(2, 3, 8) * 30 + 128).astype(np.uint8), (_wave(8, 24, step=0.7) * 20).astype(np.int8)
_QUANTIZED = (*_BYTES, _BIAS, np.array(0.03, np.float32), np.array(0.02, np.float32))
_ZEROS = (np.array(120, np.uint8), np.array(-3, np.int8))
_TABLE = np.arange(10 * 2, dtype=np.float32).reshape(10, 2) / 7
_PLACES = np.array([[0, 1, 2], [5, 6, 7]], np.int64)

extend(
    Softmax,
    forms=tuple(
        OnnxForm(name, build, domain=MICROSOFT)
        for name, build in (
            ("Attention", _attention),
            ("QAttention", _quantized_attention),
            ("MultiHeadAttention", _multi_head_attention),
            ("RotaryEmbedding", _rotary_embedding),
        )
    ),
    samples=(
        _sample("Attention", _INPUT, _WEIGHTS, _BIAS, num_heads=2, constant=(1, 2)),
        _sample("Attention", _INPUT, _WEIGHTS, _BIAS, _MASK, num_heads=2, constant=(1, 2)),
        _sample("Attention", _INPUT, _WEIGHTS, _BIAS, np.array([3, 2], np.int32), num_heads=2, unidirectional=1),
        _sample("Attention", _INPUT, _WEIGHTS, _BIAS, None, _PAST, num_heads=2, unidirectional=1, outputs=2),
        _sample("Attention", _INPUT, _WEIGHTS, _BIAS, np.array([3, 2, 1, 0], np.int32), num_heads=2, mask_filter_value=-5.0),
        _sample("Attention", _INPUT, _wave(8, 20, step=0.7), _BIAS[:20], _MASK[:, None].repeat(3, 1), num_heads=2, qkv_hidden_sizes=[8, 8, 4]),
        _sample("QAttention", *_QUANTIZED, None, *_ZEROS, num_heads=2),
        _sample("QAttention", *_QUANTIZED, _MASK[:, :1].repeat(5, 1), *_ZEROS, _PAST, num_heads=2, unidirectional=1, outputs=2),
        _sample("MultiHeadAttention", _INPUT, _wave(2, 5, 8), _wave(2, 5, 8, step=0.3), _BIAS, num_heads=2, scale=0.25),
        _sample("MultiHeadAttention", _INPUT, _wave(2, 3, 8), _wave(2, 3, 8, step=0.3), None, _MASK, _wave(1, 2, 3, 3), num_heads=2),
        _sample("MultiHeadAttention", _INPUT, _INPUT, _INPUT, None, None, None, _PAST[0], _PAST[1], num_heads=2, outputs=3),
        _sample("MultiHeadAttention", _INPUT, _PAST[0], _PAST[1], _BIAS, num_heads=2, outputs=3),
        _sample("MultiHeadAttention", _INPUT, _INPUT, _INPUT, _BIAS, np.array([3, 2], np.int32), num_heads=2, unidirectional=1),
        _sample("RotaryEmbedding", _wave(2, 2, 3, 4), _PLACES, np.cos(_TABLE), np.sin(_TABLE)),
        _sample("RotaryEmbedding", _INPUT, np.array([2], np.int64), np.cos(_TABLE), np.sin(_TABLE), interleaved=1),
        _sample("RotaryEmbedding", _wave(2, 2, 3, 6), _PLACES, np.cos(_TABLE), np.sin(_TABLE), rotary_embedding_dim=4, num_heads=2),
    ),
)
