"""NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, maximum, minimum
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.index import slice_axis
from compiler.ops.support import Arrays, Attrs, Types, array, attr_dim, attr_int, reshape

_RNG = np.random.default_rng(0)
_CORNERS = np.sort(_RNG.random((2, 12, 2, 2), np.float32), axis=2).reshape(2, 12, 4)
_SCORES = _RNG.random((2, 3, 12), np.float32)


def _sample(count: int, *thresholds: float, boxes: Array = _CORNERS, scores: Array = _SCORES, center: int = 0) -> Sample:
    inputs = (boxes, scores, np.array([count], np.int64), *(np.array([t], np.float32) for t in thresholds))
    return Sample("NonMaxSuppression", inputs, {"center_point_box": center}, opset=11)


@register
class Nms(Op):
    """Boxes kept of each class: i64 ``[1 + 3 * (B * C * limit + 1)]``: how many, then batch, class and box of each; the rest is unspecified.

    Operands: boxes ``[B, N, 4]``, first and second corner; scores ``[B, C, N]``; the positions of the scores in descending order; the
    intersection over union above which a box is dropped, and the score that it must exceed, both float32 of one element.
    """

    name = "nms"
    families = ("nms",)
    takes_epilogue = False
    samples = (
        _sample(3, 0.1, 0.2),
        _sample(20, 0.3),
        _sample(0, 0.5, 0.0),
        _sample(4, 0.2, 0.9),
        _sample(4, 0.2, 2.0),
        _sample(6, 0.1, 0.1, center=1),
        _sample(6, 0.1, 0.1, boxes=_CORNERS[:, :, [2, 3, 0, 1]]),
        _sample(3, 0.5, 0.0, boxes=np.ones((1, 4, 4), np.float32), scores=np.ones((1, 2, 4), np.float32)),
        _sample(3, 0.5, 0.0, boxes=np.ones((1, 0, 4), np.float32), scores=np.ones((1, 2, 0), np.float32)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        scores = inputs[1]
        if scores is None or scores.rank != 3:
            raise UnsupportedForm(f"the scores are {scores}, not of rank 3")
        batches, classes, _ = scores.shape
        return (TensorType(DType.INT64, ((batches * classes * attr_dim(attrs, "limit") + 1) * 3 + 1,)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        boxes, scores, order, overlap, least = map(array, inputs)
        limit, found = attr_int(attrs, "limit"), []
        for batch, class_ in np.ndindex(*scores.shape[:2]):
            kept: list[int] = []
            for place in order[batch, class_]:
                apart = not any(_overlap(boxes[batch, place], boxes[batch, other]) > overlap.reshape(-1)[0] for other in kept)
                if len(kept) < limit and scores[batch, class_, place] > least.reshape(-1)[0] and apart:
                    kept.append(int(place))
            found += [(batch, class_, place) for place in kept]
        result = np.full(3 * (scores.shape[0] * scores.shape[1] * limit + 1) + 1, -1, np.int64)
        result[0] = len(found)
        result[1 : 1 + 3 * len(found)] = np.array(found, np.int64).reshape(-1)
        return (result,)


def _overlap(box: Array, other: Array) -> float:
    """Intersection over union of two boxes given by corners; 0 where the union is empty."""
    sides = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0)
    areas = [np.prod(corner[2:] - corner[:2]) for corner in (box, other)]
    shared = np.prod(sides)
    union = areas[0] + areas[1] - shared
    return float(shared / union) if union > 0 else 0.0


def _build(context: FormContext) -> Value:
    boxes, scores = context.input(0), context.input(1)
    if boxes.type.rank != 3 or scores.type.rank != 3 or boxes.type.shape[2] != 4:
        raise UnsupportedForm(f"boxes are {boxes.type} and scores {scores.type}, not [B, N, 4] and [B, C, N]")
    for met, other in ((boxes.type.shape[0], scores.type.shape[0]), (boxes.type.shape[1], scores.type.shape[2])):
        context.check(other, met, other, "its boxes have a dim of {value} where its scores have {low}")
    asked: Dim = 0
    if context.optional(2) is not None:
        (asked,) = context.require_dims(2, "the most boxes of a class")
    count = scores.type.shape[2]
    limit = minimum(maximum(asked, 0), count)
    order = context.emit("top_positions", scores, axis=2, k=count, largest=True)
    overlap, least = (_threshold(context, position, value) for position, value in ((3, 0.0), (4, -np.inf)))
    found = context.emit("nms", _corners(context, boxes), scores, order, overlap, least, limit=limit)
    (kept,) = context.builder.bind(slice_axis(context, found, 0, 0, 1), natural=True)
    return reshape(context, slice_axis(context, found, 0, 1, kept * 3), (kept, 3))


def _threshold(context: FormContext, position: int, absent: float) -> Value:
    value = context.optional(position)
    return context.const(np.full(1, absent, np.float32)) if value is None else value


def _corners(context: FormContext, boxes: Value) -> Value:
    """Boxes by their smallest and largest coordinates, whichever corners or centres and sizes they are given by."""
    first, second = (slice_axis(context, boxes, 2, start, 2) for start in (0, 2))
    if context.attrs.get("center_point_box", 0):
        half = context.emit("mul", second, context.const(np.array(0.5, np.float32)))
        first, second = context.emit("sub", first, half), context.emit("add", first, half)
    low, high = context.emit("minimum", first, second), context.emit("maximum", first, second)
    return context.emit("concat", low, high, axis=2)


Nms.forms = (OnnxForm("NonMaxSuppression", _build, since=10),)
