"""GroupQueryAttention of the ``com.microsoft`` domain: attention of language models, whose keys and values are kept between runs.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, maximum
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.contrib_attention import LOWEST, heads_of, merge_heads, positions_along, rotary, split_heads
from compiler.ops.dims import number
from compiler.ops.gather import element_positions
from compiler.ops.index import slice_axis
from compiler.ops.quantize import MICROSOFT
from compiler.ops.scatter import scatter
from compiler.ops.softmax import Softmax
from compiler.ops.support import cast_to, known, reshape, scalar_like, transpose

_REFUSED = {12: "k_scale", 13: "v_scale", 14: "q_norm_weight", 15: "k_norm_weight"}
"""Inputs that are not supported."""


def _group_query_attention(context: FormContext) -> Sequence[Value]:
    """Inputs query (or all packed), key, value, past key, past value, lengths less one, the longest length, cosines, sines, positions,
    attention bias, head sinks; outputs the result, present key, present value.
    """
    _check_attributes(context)
    heads, kept = heads_of(context), int(context.attrs["kv_num_heads"])
    if kept < 1 or heads % kept:
        raise UnsupportedForm(f"{heads} query heads for {kept} key heads")
    query, key, value = _parts(context, heads, kept)
    batch, _, steps, size = query.type.shape
    past = (context.optional(3), context.optional(4))
    before: Dim = 0 if past[0] is None else past[0].type.shape[2]
    total = _total(context, before, steps)
    # One sequence whose past fills its buffer: what comes before is known without looking at the lengths.
    appended = before == 0 or (batch == 1 and total == before + steps)
    start = _start(context, before if appended else None, batch, steps)
    places = context.emit("add", start, positions_along(context, steps, 2, 1))
    if context.attrs.get("do_rotary", 0):
        tables = (context.input(7), context.input(8))
        positions = context.optional(9)
        turns = places if positions is None else cast_to(context, positions, DType.INT64)
        width = 2 * known(tables[0].type.shape[1], "the size of the cosines")
        interleaved = bool(context.attrs.get("rotary_interleaved", 0))
        query, key = (rotary(context, x, turns, tables, width, interleaved=interleaved) for x in (query, key))
    begin = None if appended else start
    present = [_present(context, old, new, places, total, begin) for old, new in zip(past, (key, value), strict=True)]
    scale = float(context.attrs.get("scale", 0.0)) or 1 / sqrt(known(size, "the size of a head"))
    grouped = reshape(context, query, (batch, kept, steps * (heads // kept), size))
    scores = context.emit("matmul", grouped, transpose(context, present[0], (0, 1, 3, 2)))
    scores = reshape(context, context.emit("mul", scores, scalar_like(context, scores, scale)), (batch, heads, steps, total))
    weights = _softmax(context, _masked(context, scores, places), heads)
    weights = reshape(context, weights, (batch, kept, steps * (heads // kept), total))
    result = reshape(context, context.emit("matmul", weights, present[1]), (batch, heads, steps, size))
    return merge_heads(context, result), *present


def _check_attributes(context: FormContext) -> None:
    attrs = context.attrs
    given = [name for index, name in _REFUSED.items() if context.optional(index) is not None]
    given += [name for name in ("qk_output", "sliding_window_cache") if attrs.get(name, 0)]
    given += [name for name in ("k_quant_type", "v_quant_type") if str(attrs.get(name, "NONE")) != "NONE"]
    if given or context.outputs > 3:
        raise UnsupportedForm(f"{', '.join(given) or 'output 3'} is not supported")


def _parts(context: FormContext, heads: int, kept: int) -> tuple[Value, Value, Value]:
    """Query, key and value as ``[batch, heads, length, size]``."""
    query = context.input(0)
    if context.optional(1) is not None and context.optional(2) is not None:
        return split_heads(context, query, heads), split_heads(context, context.input(1), kept), split_heads(context, context.input(2), kept)
    width = known(query.type.shape[2], "the hidden size")
    if width % (heads + 2 * kept):
        raise UnsupportedForm(f"queries, keys and values packed in {query.type} are not {heads} + 2 * {kept} heads")
    size = width // (heads + 2 * kept)
    sizes = (heads * size, kept * size, kept * size)
    starts = (0, sizes[0], sizes[0] + sizes[1])
    parts = [slice_axis(context, query, 2, start, width) for start, width in zip(starts, sizes, strict=True)]
    return split_heads(context, parts[0], heads), split_heads(context, parts[1], kept), split_heads(context, parts[2], kept)


def _total(context: FormContext, before: Dim, steps: Dim) -> Dim:
    """The length of the present keys: the longest sequence's, or their buffer's where that is longer.

    A longest length that only a run tells is taken for that of a past which fills its buffer, unless the model declares the result's shape.
    """
    longest = context.dims(6)
    if longest is not None:
        return maximum(before, longest[0])
    declared = context.declared[1] if len(context.declared) > 1 else None
    return before + steps if declared is None else declared[2]


def _start(context: FormContext, before: Dim | None, batch: Dim, steps: Dim) -> Value:
    """The place of each sequence's first new key ``[B, 1]``: ``before``, or its length less the new ones."""
    if before is not None:
        return reshape(context, number(context, before), (1, 1))
    lengths = cast_to(context, reshape(context, context.input(5), (batch, 1)), DType.INT64)
    earlier = context.emit("add", lengths, number(context, 1 - steps))
    return context.emit("maximum", earlier, context.const(np.array(0, np.int64)))


def _present(context: FormContext, old: Value | None, new: Value, places: Value, total: Dim, begin: Value | None) -> Value:
    """Keys or values ``[B, heads, total, size]``: the past's before ``begin`` (None: all of them), the new ones at their places, then zeros."""
    if begin is None or old is None:
        joined = new if old is None else context.emit("concat", old, new, axis=2)
        return _with_room(context, joined, total - joined.type.shape[2])
    buffer = _with_room(context, old, total - old.type.shape[2])
    batch, heads, length, size = buffer.type.shape
    steps = new.type.shape[2]
    rows = positions_along(context, length, 4, 2)
    earlier = context.emit("less", rows, reshape(context, begin, (batch, 1, 1, 1)))
    buffer = context.emit("where", earlier, buffer, scalar_like(context, buffer, 0))
    along = context.emit("expand", reshape(context, places, (batch, 1, steps)), shape=(batch, heads, steps))
    return scatter(context, buffer, element_positions(context, (batch, heads, length), along, 2), new, (size,))


def _with_room(context: FormContext, x: Value, rest: Dim) -> Value:
    """x with ``rest`` rows of zeros after those of each head."""
    if rest == 0:
        return x
    return context.emit("pad", x, begins=(0, 0, 0, 0), ends=(0, 0, rest, 0), mode="constant", value=0)


def _masked(context: FormContext, scores: Value, places: Value) -> Value:
    """Scores ``[B, heads, S, T]`` capped, biased, and lowest where a query at its place does not see a key."""
    cap, window = float(context.attrs.get("softcap", 0.0)), int(context.attrs.get("local_window_size", -1))
    if cap:
        capped = context.emit("tanh", context.emit("div", scores, scalar_like(context, scores, cap)))
        scores = context.emit("mul", capped, scalar_like(context, scores, cap))
    bias = context.optional(10)
    if bias is not None:
        scores = context.emit("add", scores, bias)
    if not context.attrs.get("causal", 1):
        return scores
    rows, steps = places.type.shape
    keys = positions_along(context, scores.type.shape[3], 4, 3)
    behind = context.emit("sub", reshape(context, places, (rows, 1, steps, 1)), keys)
    seen = context.emit("greater_or_equal", behind, context.const(np.array(0, np.int64)))
    if window > 0:
        seen = context.emit("and", seen, context.emit("less", behind, context.const(np.array(window, np.int64))))
    lowest = np.asarray(max(LOWEST, float(np.finfo(np.float16).min)) if scores.type.dtype is DType.FLOAT16 else LOWEST)
    return context.emit("where", seen, scores, context.const(lowest.astype(scores.type.dtype.numpy)))


def _softmax(context: FormContext, scores: Value, heads: int) -> Value:
    """Over the keys and, where there is one, a further score that takes a share and gives nothing: a head's sink, or zero."""
    sink = context.optional(11)
    if sink is None and not context.attrs.get("smooth_softmax", 0):
        return context.emit("softmax", scores, axis=3, log=False)
    share = scalar_like(context, scores, 0) if sink is None else reshape(context, cast_to(context, sink, scores.type.dtype), (1, heads, 1, 1))
    column = context.emit("expand", share, shape=(*scores.type.shape[:3], 1))
    weights = context.emit("softmax", context.emit("concat", scores, column, axis=3), axis=3, log=False)
    return slice_axis(context, weights, 3, 0, scores.type.shape[3])


def _wave(*shape: int, step: float = 1.3) -> Array:
    return np.asarray(np.sin(np.arange(np.prod(shape)) * step) * 2, np.float32).reshape(shape)


def _sample(inputs: tuple[Array | None, ...], lengths: Sequence[int], total: int, *rest: Array | None, **attrs: Any) -> Sample:
    """A node of two batches, four query heads, two key heads of sixteen elements."""
    numbers = (np.array(lengths, np.int32) - 1, np.array(total, np.int32))
    given = {"num_heads": 4, "kv_num_heads": 2, **attrs}
    return Sample("GroupQueryAttention", (*inputs, *numbers, *rest), given, opset=1, constant=(6,), outputs=3, domain=MICROSOFT)


_NEW = (_wave(2, 3, 64), _wave(2, 3, 32, step=0.7), _wave(2, 3, 32, step=0.4))
_ONE = tuple(x[:, :1] for x in _NEW)
_PACKED = np.concatenate(_NEW, axis=2)
_PAST = (_wave(2, 2, 5, 16, step=0.9), _wave(2, 2, 5, 16, step=0.3))
_ANGLES = np.arange(10 * 8, dtype=np.float32).reshape(10, 8) / 7
_TABLES = (np.cos(_ANGLES), np.sin(_ANGLES))

extend(
    Softmax,
    forms=(OnnxForm("GroupQueryAttention", _group_query_attention, domain=MICROSOFT),),
    samples=(
        _sample((*_NEW, None, None), (3, 3), 3),
        _sample((_PACKED, None, None, None, None), (3, 3), 3, *_TABLES, do_rotary=1, scale=0.2),
        _sample((*_ONE, *_PAST), (6, 6), 6, *_TABLES, do_rotary=1, rotary_interleaved=1),
        _sample((*_ONE, *_PAST), (6, 3), 6, *_TABLES, do_rotary=1, local_window_size=2),
        _sample((*(x[:1] for x in (*_ONE, *_PAST)),), (6,), 6, *_TABLES, do_rotary=1, softcap=5.0),
        _sample((*_ONE, *_PAST), (6, 6), 6, None, None, None, _wave(1, 4, 1, 6), smooth_softmax=1),
        _sample((*_NEW, None, None), (3, 3), 3, None, None, None, None, _wave(4), local_window_size=2),
        _sample((*(x[:1] for x in (*_NEW, *_PAST)),), (8,), 8),
        _sample((*_NEW, *(x[:, :, :0] for x in _PAST)), (3, 3), 3, *_TABLES, do_rotary=1),
    ),
)
