"""NonMaxSuppression: boxes in the order of their scores, each suppressing those that it overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, OnnxForm, Sample, UnsupportedForm, extend
from compiler.ir.types import DType
from compiler.ops.compact import NonzeroPositions, selected
from compiler.ops.control import repeat
from compiler.ops.dims import iota, number
from compiler.ops.gather import take_along
from compiler.ops.index import slice_axis
from compiler.ops.support import cast_to, reshape, scalar_like

_BOXES = np.array(
    [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.1, 1.0, 1.1], [0.0, -0.1, 1.0, 0.9], [0.0, 10.0, 1.0, 11.0], [0.0, 10.1, 1.0, 11.1], [0.0, 100.0, 1.0, 101.0]]],
    np.float32,
)
_SCORES = np.array([[[0.9, 0.75, 0.6, 0.95, 0.5, 0.3], [0.1, 0.2, 0.9, 0.9, 0.0, 0.8]]], np.float32)
_LIMITS = (np.array([3], np.int64), np.array([0.5], np.float32), np.array([0.15], np.float32))

_SAMPLES = (
    Sample("NonMaxSuppression", (_BOXES, _SCORES, *_LIMITS)),
    Sample("NonMaxSuppression", (_BOXES[:, :, ::-1].copy(), _SCORES, *_LIMITS), {"center_point_box": 1}),
    Sample("NonMaxSuppression", (_BOXES, _SCORES, *_LIMITS[:2])),
    Sample("NonMaxSuppression", (_BOXES, _SCORES, np.array([0], np.int64), *_LIMITS[1:])),
    Sample("NonMaxSuppression", (np.repeat(_BOXES, 2, 0), np.repeat(_SCORES, 2, 0), *_LIMITS), constant=(2, 3, 4)),
)


def _non_max_suppression(context: FormContext) -> Value:
    """Per class, a loop over its candidates in descending order of score; it ends with the candidates of the class that has most of them."""
    boxes, scores = context.input(0), context.input(1)
    if boxes.type.rank != 3 or scores.type.rank != 3 or boxes.type.shape[2] != 4:
        raise UnsupportedForm(f"boxes {boxes.type} and scores {scores.type} are not [batch, n, 4] and [batch, classes, n]")
    batches, _, count = scores.type.shape
    for met, asked in ((boxes.type.shape[0], batches), (boxes.type.shape[1], count)):
        context.check(asked, met, asked, "its boxes have a dim of {value} where its scores have {low}")
    order = context.emit("top_positions", scores, axis=2, k=count, largest=True)
    ranked = take_along(context, scores, order, 2)
    threshold = context.optional(4)
    valid = context.emit("expand", context.const(np.array(True)), shape=scores.type.shape)
    if threshold is not None:
        valid = context.emit("greater", ranked, reshape(context, threshold, ()))
    wanted = _at_most(context, context.optional(2))
    corners = [_sorted(context, side, order) for side in _sides(context, boxes)]
    overlap = context.optional(3)
    limit = context.const(np.zeros((), np.float32)) if overlap is None else reshape(context, overlap, ())
    candidates = context.emit("reduce", cast_to(context, valid, DType.INT64), kind="sum", axes=(2,), keepdims=False)
    most = context.emit("reduce", candidates, kind="max", axes=(0, 1), keepdims=False)
    (trips,) = context.builder.bind(context.emit("maximum", most, context.const(np.array(0, np.int64))), natural=True)
    kept = _kept(context, valid, corners, limit, wanted, trips)
    return _positions(context, kept, order)


def _at_most(context: FormContext, given: Value | None) -> Value:
    """How many boxes of a class are wanted, i64; none where it is not said."""
    if given is None:
        return context.const(np.zeros((), np.int64))
    return reshape(context, cast_to(context, given, DType.INT64), ())


def _sides(context: FormContext, boxes: Value) -> list[Value]:
    """Top, left, bottom and right (in whichever axes the model means), each ``[batch, n]``."""
    parts = [reshape(context, slice_axis(context, boxes, 2, at, 1), boxes.type.shape[:2]) for at in range(4)]
    if context.attrs.get("center_point_box", 0):
        x, y, *sizes = parts
        width, height = (context.emit("mul", size, scalar_like(context, size, 0.5)) for size in sizes)
        low = [context.emit("sub", y, height), context.emit("sub", x, width)]
        return [*low, context.emit("add", y, height), context.emit("add", x, width)]
    low = [context.emit("minimum", parts[a], parts[a + 2]) for a in range(2)]
    return [*low, *(context.emit("maximum", parts[a], parts[a + 2]) for a in range(2))]


def _sorted(context: FormContext, side: Value, order: Value) -> Value:
    """A coordinate of every box ``[batch, n]``, for each class in the order of its scores: ``[batch, classes, n]``."""
    batches, _, count = order.type.shape
    spread = context.emit("expand", reshape(context, side, (batches, 1, count)), shape=order.type.shape)
    return take_along(context, spread, order, 2)


def _kept(context: FormContext, valid: Value, corners: Sequence[Value], limit: Value, wanted: Value, trips: Dim) -> Value:
    """Which of the sorted boxes stay, bool ``[batch, classes, n]``."""
    batches, classes, _ = valid.type.shape
    none = context.emit("expand", context.const(np.zeros((), np.int64)), shape=(batches, classes, 1))

    def step(inner: FormContext, at: Dim, carried: Sequence[Value], seen: Sequence[Value]) -> tuple[None, Sequence[Value]]:
        alive, taken = carried
        *sides, limit, wanted = seen
        here = slice_axis(inner, alive, 2, at, 1)
        chosen = inner.emit("and", here, inner.emit("less", taken, wanted))
        later = inner.emit("greater", iota(inner, alive.type.shape[2]), number(inner, at))
        overlapping = inner.emit("greater", _overlap(inner, sides, [slice_axis(inner, side, 2, at, 1) for side in sides]), limit)
        # A box that is not chosen because enough are already, goes itself.
        itself = inner.emit("equal", iota(inner, alive.type.shape[2]), number(inner, at))
        beaten = inner.emit("and", inner.emit("and", later, chosen), overlapping)
        surplus = inner.emit("and", itself, inner.emit("not", chosen))
        gone = inner.emit("or", beaten, surplus)
        return None, [inner.emit("and", alive, inner.emit("not", gone)), inner.emit("add", taken, cast_to(inner, chosen, DType.INT64))]

    return repeat(context, trips, None, (valid, none), (*corners, limit, wanted), step)[0]


def _overlap(context: FormContext, boxes: Sequence[Value], box: Sequence[Value]) -> Value:
    """Intersection over union of every box with one; 0 where they do not meet."""
    zero = scalar_like(context, boxes[0], 0)
    lengths = []
    for low, high, start, end in ((boxes[a], boxes[a + 2], box[a], box[a + 2]) for a in range(2)):
        length = context.emit("sub", context.emit("minimum", high, end), context.emit("maximum", low, start))
        lengths.append(context.emit("maximum", length, zero))
    shared = context.emit("mul", *lengths)
    areas = [context.emit("mul", *(context.emit("sub", b[a + 2], b[a]) for a in range(2))) for b in (boxes, box)]
    union = context.emit("sub", context.emit("add", *areas), shared)
    return context.emit("where", context.emit("greater", shared, zero), context.emit("div", shared, union), zero)


def _positions(context: FormContext, kept: Value, order: Value) -> Value:
    """Rows of batch, class and box, i64 ``[selected, 3]``."""
    _, classes, count = kept.type.shape
    shape = context.declared[0] if context.declared else None
    flat = selected(context, kept, None if shape is None else shape[0])
    box = context.emit("gather", reshape(context, order, (product(order.type.shape),)), flat, axis=0)
    group = context.emit("div", flat, number(context, count))
    columns = [context.emit("div", group, number(context, classes)), context.emit("mod", group, number(context, classes), fmod=False), box]
    return context.emit("concat", *(reshape(context, column, (*flat.type.shape, 1)) for column in columns), axis=1)


extend(NonzeroPositions, (OnnxForm("NonMaxSuppression", _non_max_suppression),), _SAMPLES)
