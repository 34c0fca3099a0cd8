"""Reductions along axes, and the position of the extreme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormBuild, FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.ops.dims import number
from compiler.ops.run_time_axes import gathered, named, without
from compiler.ops.simplify_arithmetic import single_elements
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_int,
    attr_ints,
    attr_str,
    axes_of,
    cast_to,
    first_type,
    known,
    normalize_axes,
    normalize_axis,
    reshape,
    scalar_like,
)

_X = (np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 7 % 11 - 5) / 4
_EMPTY = np.zeros((2, 0, 3), np.float32)
_I = np.array([[4, -7, 2], [0, 3, 3]], np.int32)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_KINDS: dict[str, Callable[..., Array]] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


def _samples(*names: str) -> tuple[Sample, ...]:
    found: list[Sample] = []
    for name in names:
        positive = (np.abs(_X) + 0.5,) if name == "ReduceLogSum" else (_X,)
        found += [
            Sample(name, (*positive, _ints(-1)), constant=(1,)),
            Sample(name, (*positive, _ints(0, 2)), {"keepdims": 0}, constant=(1,)),
            Sample(name, positive),
            Sample(name, (*positive, _ints()), {"noop_with_empty_axes": 1}, constant=(1,)),
            Sample(name, positive, {"axes": [1], "keepdims": 0}, opset=11),
        ]
    return tuple(found)


_LIMITS = {"max": ("-inf", "min"), "min": ("inf", "max")}


def _initial(kind: str, dtype: np.dtype[Any]) -> object:
    """What a reduction over nothing gives."""
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    infinity, limit = _LIMITS[kind]
    if dtype.kind == "b":
        return kind == "min"
    return getattr(np.iinfo(dtype), limit) if dtype.kind in "iu" else dtype.type(float(infinity))


@register
class Reduce(Op):
    """``kind`` (sum, prod, max, min) over ``axes`` (sorted, non-negative), which stay as 1 where ``keepdims``."""

    name = "reduce"
    simplifications = (single_elements,)
    families = ("reduce",)
    computes = True
    samples = (
        *_samples("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *_samples("ReduceLogSum", "ReduceLogSumExp"),
        Sample("ReduceSum", (_EMPTY, _ints(1)), constant=(1,)),
        Sample("ReduceMax", (_I, _ints(1)), constant=(1,)),
        Sample("ReduceSum", (_I, _ints(0)), constant=(1,)),
        Sample("ReduceMax", (np.array([1, np.nan, np.inf], np.float32),)),
        Sample("ReduceSum", (np.array(2.5, np.float32),)),
        Sample("GlobalAveragePool", (_X,)),
        Sample("GlobalMaxPool", (_X[..., None],)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axes = first_type(inputs), attr_ints(attrs, "axes")
        if attrs["keepdims"]:
            return (TensorType(x.dtype, tuple(1 if axis in axes else dim for axis, dim in enumerate(x.shape))),)
        return (TensorType(x.dtype, tuple(dim for axis, dim in enumerate(x.shape) if axis not in axes)),)

    def takes_prologue(self, inputs: Types, attrs: Attrs, constant: Sequence[bool]) -> bool:
        return True

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        shape, axes = inputs[0].static_shape, attr_ints(attrs, "axes")
        kept = iter(box)
        spans = [next(kept) if attrs["keepdims"] or axis not in axes else (0, 1) for axis in range(len(shape))]
        return Part((tuple((0, shape[axis]) if axis in axes else span for axis, span in enumerate(spans)),), attrs)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, kind = array(inputs[0]), attr_str(attrs, "kind")
        dtype = np.float64 if x.dtype.kind not in "iubO" and kind in ("sum", "prod") else x.dtype
        with np.errstate(all="ignore"):
            result = _KINDS[kind](
                x.astype(dtype, copy=False), axis=attr_ints(attrs, "axes"), keepdims=bool(attrs["keepdims"]), initial=_initial(kind, x.dtype)
            )
            return (np.asarray(result).astype(x.dtype, copy=False),)

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        (content,) = contents
        if content is None or content.dtype.kind not in "iuO" or attrs["kind"] not in ("sum", "prod"):
            return None
        function = _KINDS[attr_str(attrs, "kind")]
        return np.asarray(function(content.astype(object), axis=attr_ints(attrs, "axes"), keepdims=bool(attrs["keepdims"])), dtype=object)

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        """Channels in blocks where each stays, or all of them are folded: a result of one channel is read in any layout."""
        axes = attr_ints(attrs, "axes")
        blocks = (attrs["keepdims"] and axes == (1,)) or (len(axes) > 0 and axes[0] >= 2)
        return Layouts.SAME if blocks and first_type(inputs).rank >= 3 else Layouts.PLAIN


def _reduced_axes(context: FormContext, x: Value) -> tuple[int, ...] | None:
    """The axes; None where only a run knows them, and the shape that the model declares does not tell them."""
    if context.optional(1) is not None and context.dims(1) is None:
        declared = context.declared[0] if context.declared else None
        return None if declared is None else _axes_between(x.type.shape, declared, bool(context.attrs.get("keepdims", 1)))
    axes = axes_of(context, 1)
    if axes:
        return normalize_axes(axes, x.type.rank)
    return () if context.attrs.get("noop_with_empty_axes", 0) else tuple(range(x.type.rank))


def _axes_between(before: Sequence[Dim], after: Sequence[int], keepdims: bool) -> tuple[int, ...] | None:
    """The axes whose reduction makes one shape of the other; an axis of one element counts only where its dim disappears."""
    if keepdims:
        axes = tuple(axis for axis, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
        if all(after[axis] == 1 for axis in axes):
            return axes
    else:
        first = _matched(before, after)
        last = [len(before) - 1 - axis for axis in reversed(_matched(before[::-1], after[::-1]))]
        if len(first) == len(after) and first == last:
            return tuple(axis for axis in range(len(before)) if axis not in first)
    return None


def _matched(before: Sequence[Dim], after: Sequence[int]) -> list[int]:
    """The first axes of before that have the dims of after, in order."""
    found: list[int] = []
    for axis, dim in enumerate(before):
        if len(found) < len(after) and dim == after[len(found)]:
            found.append(axis)
    return found


def reduce(context: FormContext, x: Value, kind: str, axes: tuple[int, ...], *, keepdims: bool = True) -> Value:
    """x reduced along axes; x itself where there are none."""
    return context.emit("reduce", x, kind=kind, axes=axes, keepdims=keepdims) if axes else x


def mean(context: FormContext, x: Value, axes: tuple[int, ...], *, keepdims: bool = True) -> Value:
    """The arithmetic mean along axes: a sum times a constant, or divided by a number (for integers, or where a run knows it)."""
    count = product([x.type.shape[axis] for axis in axes])
    total = reduce(context, x, "sum", axes, keepdims=keepdims)
    if count == 1:
        return total
    if not isinstance(count, int):
        wide = compute_dtype(x.type.dtype)
        quotient = context.emit("div", cast_to(context, total, wide), cast_to(context, number(context, count), wide))
        return cast_to(context, quotient, x.type.dtype)
    if not x.type.dtype.is_float:
        return context.emit("div", total, scalar_like(context, x, count))
    return context.emit("mul", total, scalar_like(context, x, 1 / count if count else np.nan))


def _square(context: FormContext, x: Value) -> Value:
    return context.emit("mul", x, x)


def _log_sum_exp(context: FormContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """With the largest element taken out first, so that nothing overflows; an infinite one is left in."""
    largest = reduce(context, x, "max", axes)
    finite = context.emit("less", context.emit("abs", largest), scalar_like(context, x, np.inf))
    shift = context.emit("where", finite, largest, scalar_like(context, x, 0))
    total = reduce(context, context.emit("exp", context.emit("sub", x, shift)), "sum", axes)
    result = context.emit("add", context.emit("log", total), shift)
    return result if keepdims else reshape(context, result, [d for axis, d in enumerate(result.type.shape) if axis not in axes])


Reduction = Callable[[FormContext, Value, tuple[int, ...], bool], Value]


def _kind(kind: str, before: str | None = None, after: str | None = None) -> Reduction:
    """A plain reduction between two optional unary ops; ``square`` stands for ``x * x``."""

    def build(context: FormContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
        if before is not None:
            x = _square(context, x) if before == "square" else context.emit(before, x)
        total = reduce(context, x, kind, axes, keepdims=keepdims)
        return total if after is None else context.emit(after, total)

    return build


def _mean(context: FormContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    return mean(context, x, axes, keepdims=keepdims)


def _form(reduction: Reduction) -> FormBuild:
    def build(context: FormContext) -> Value:
        x = context.input(0)
        axes = _reduced_axes(context, x)
        rounded = x.type.dtype.is_float or reduction not in _FLOATING
        computed = x if rounded else cast_to(context, x, DType.FLOAT64)
        keepdims = bool(context.attrs.get("keepdims", 1))
        result = _along_named(context, computed, reduction, keepdims) if axes is None else reduction(context, computed, axes, keepdims)
        return cast_to(context, result, x.type.dtype)

    return build


def _along_named(context: FormContext, x: Value, reduction: Reduction, keepdims: bool) -> Value:
    """A reduction along axes that only a run knows: of rows that are gathered to hold what is reduced."""
    axes, shape = context.require_dims(1, "the axes"), x.type.shape
    if not axes:
        return reduction(context, x, () if context.attrs.get("noop_with_empty_axes", 0) else tuple(range(x.type.rank)), keepdims)
    hits = named(context, axes, x.type.rank)
    kept = (
        [dim + hit * (1 - dim) for dim, hit in zip(shape, hits, strict=True)] if keepdims else without(context, shape, hits, len(shape) - len(axes))
    )
    return reshape(context, reduction(context, gathered(context, x, hits), (1,), False), context.settled(kept))


_L2 = _kind("sum", "square", "sqrt")
_LOG_SUM = _kind("sum", None, "log")
_FLOATING = (_L2, _LOG_SUM, _log_sum_exp)


def _global_pool(reduction: Reduction) -> FormBuild:
    def build(context: FormContext) -> Value:
        x = context.input(0)
        return reduction(context, x, tuple(range(2, x.type.rank)), True)

    return build


Reduce.forms = (
    OnnxForm("ReduceSum", _form(_kind("sum"))),
    OnnxForm("ReduceMean", _form(_mean)),
    OnnxForm("ReduceMax", _form(_kind("max"))),
    OnnxForm("ReduceMin", _form(_kind("min"))),
    OnnxForm("ReduceProd", _form(_kind("prod"))),
    OnnxForm("ReduceL1", _form(_kind("sum", "abs"))),
    OnnxForm("ReduceL2", _form(_L2)),
    OnnxForm("ReduceSumSquare", _form(_kind("sum", "square"))),
    OnnxForm("ReduceLogSum", _form(_LOG_SUM)),
    OnnxForm("ReduceLogSumExp", _form(_log_sum_exp)),
    OnnxForm("GlobalAveragePool", _global_pool(_mean)),
    OnnxForm("GlobalMaxPool", _global_pool(_kind("max"))),
)


@register
class ArgReduce(Op):
    """The position (i64) of the largest or smallest element along ``axis``: ``kind`` max or min; ties go to the first, or ``last``."""

    name = "arg_reduce"
    families = ("arg_reduce",)
    samples = (
        Sample("ArgMax", (_X,), {"axis": 1}),
        Sample("ArgMax", (_X.astype(np.int32),), {"axis": -1, "keepdims": 0, "select_last_index": 1}),
        Sample("ArgMin", (_X.astype(np.int32),), {"axis": 2}),
        Sample("ArgMin", (_X,), {"axis": 0, "keepdims": 0}),
        Sample("Hardmax", (_X,)),
        Sample("Hardmax", (_X,), {"axis": 1}, opset=11),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axis = first_type(inputs), attr_int(attrs, "axis")
        if x.shape[axis] == 0:
            raise UnsupportedForm(f"axis {axis} of {x} has no element to choose")
        return (TensorType(DType.INT64, (*x.shape[:axis], *((1,) if attrs["keepdims"] else ()), *x.shape[axis + 1 :])),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, axis = array(inputs[0]), attr_int(attrs, "axis")
        find = np.argmax if attrs["kind"] == "max" else np.argmin
        if attrs["last"]:
            position = x.shape[axis] - 1 - find(np.flip(x, axis), axis)
        else:
            position = find(x, axis)
        return (np.asarray(np.expand_dims(position, axis) if attrs["keepdims"] else position, np.int64),)


def _arg(kind: str) -> FormBuild:
    def build(context: FormContext) -> Value:
        x = context.input(0)
        axis = normalize_axis(int(context.attrs.get("axis", 0)), x.type.rank)
        last, keepdims = bool(context.attrs.get("select_last_index", 0)), bool(context.attrs.get("keepdims", 1))
        return context.emit("arg_reduce", x, kind=kind, axis=axis, keepdims=keepdims, last=last)

    return build


def _hardmax(context: FormContext) -> Value:
    x = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", -1 if context.opset >= 13 else 1)), x.type.rank)
    shape = x.type.shape
    if context.opset < 13:
        x = reshape(context, x, (*shape[:axis], prod(known(d, "a dim") for d in shape[axis:])))
    classes = known(x.type.shape[axis], "the number of classes")
    best = context.emit("arg_reduce", x, kind="max", axis=axis, keepdims=True, last=False)
    positions = np.arange(classes, dtype=np.int64).reshape(-1, *(1,) * (x.type.rank - 1 - axis))
    return reshape(context, cast_to(context, context.emit("equal", best, context.const(positions)), x.type.dtype), shape)


ArgReduce.forms = (OnnxForm("ArgMax", _arg("max")), OnnxForm("ArgMin", _arg("min")), OnnxForm("Hardmax", _hardmax))
