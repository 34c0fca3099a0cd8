"""LinearRegressor and LinearClassifier, and how models of the domain ``ai.onnx.ml`` turn scores into results."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, extend
from compiler.ir.types import DType
from compiler.ops.matmul import MatMul
from compiler.ops.ml_features import MACHINE_LEARNING, first_rows, sample
from compiler.ops.reduce import reduce
from compiler.ops.support import scalar_like
from compiler.ops.tables import combined

_PROBIT = 0.147
"""The parameter of Winitzki's approximation of the inverse error function (2008), which the operators' implementations share."""


def floats_of(context: FormContext, index: int = 0) -> Value:
    """An input as float32, or as it is where it is float64."""
    x = context.input(index)
    return x if x.type.dtype is DType.FLOAT64 else context.emit("cast", x, to=DType.FLOAT32) if x.type.dtype is not DType.FLOAT32 else x


def transformed(context: FormContext, scores: Value, kind: str) -> Value:
    """Scores ``[N, C]`` by ``post_transform``."""
    match kind:
        case "NONE":
            return scores
        case "LOGISTIC":
            return context.emit("sigmoid", scores)
        case "SOFTMAX":
            return context.emit("softmax", scores, axis=1, log=False)
        case "SOFTMAX_ZERO":
            return _softmax_of_the_others(context, scores)
        case "PROBIT":
            return _probit(context, scores)
    raise UnsupportedForm(f"post_transform {kind!r} is none of NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO, PROBIT")


def _softmax_of_the_others(context: FormContext, scores: Value) -> Value:
    """A softmax in which scores that are (almost) zero stay so."""
    zero = context.emit("less_or_equal", context.emit("abs", scores), scalar_like(context, scores, 1e-7))
    largest = reduce(context, scores, "max", (1,))
    raised = context.emit("exp", context.emit("sub", scores, largest))
    shares = context.emit("where", zero, context.emit("mul", scores, context.emit("exp", context.emit("neg", largest))), raised)
    return context.emit("div", shares, reduce(context, shares, "sum", (1,)))


def _probit(context: FormContext, scores: Value) -> Value:
    """``√2 erf⁻¹(2 s - 1)``."""
    x = combined(context, "sub", combined(context, "mul", scores, 2), 1)
    one = scalar_like(context, x, 1)
    logarithm = context.emit("log", context.emit("mul", context.emit("sub", one, x), context.emit("add", one, x)))
    first = combined(context, "add", combined(context, "mul", logarithm, 0.5), 2 / (pi * _PROBIT))
    root = context.emit("sqrt", context.emit("sub", context.emit("mul", first, first), combined(context, "mul", logarithm, 1 / _PROBIT)))
    size = context.emit("sqrt", context.emit("sub", root, first))
    return combined(context, "mul", context.emit("mul", context.emit("sign", x), size), sqrt(2))


def labels_of(context: FormContext, name: str) -> Array:
    """The classes' labels."""
    labels = context.attrs.get(name)
    if not labels:
        raise UnsupportedForm("labels that are strings are not supported")
    return np.array(labels, np.int64)


def best_label(context: FormContext, scores: Value, labels: Array) -> Value:
    """The label of each row's largest score."""
    best = context.emit("arg_reduce", scores, kind="max", axis=1, keepdims=False, last=False)
    return context.emit("gather", context.const(labels), best, axis=0)


def two_labels(context: FormContext, score: Value, threshold: float, labels: Array) -> Value:
    """The second label of each row whose only score ``[N, 1]`` is above the threshold, else the first."""
    above = context.emit("reshape", combined(context, "greater", score, threshold), shape=score.type.shape[:1])
    first, second = (context.const(label.reshape(())) for label in labels)
    return context.emit("where", above, second, first)


def _scores(context: FormContext, targets: int) -> Value:
    """``x @ coefficients^T + intercepts``."""
    x, _, columns = first_rows(context, floats_of(context))
    coefficients = np.array(context.attrs["coefficients"], x.type.dtype.numpy)
    if targets < 1 or coefficients.size != targets * columns:
        raise UnsupportedForm(f"{coefficients.size} coefficients for {targets} targets and {columns} columns")
    scores = context.emit("matmul", x, context.const(np.ascontiguousarray(coefficients.reshape(targets, columns).T)))
    intercepts = np.array(context.attrs.get("intercepts") or [0.0], x.type.dtype.numpy)
    return context.emit("add", scores, context.const(intercepts))


def _linear_regressor(context: FormContext) -> Value:
    scores = _scores(context, int(context.attrs.get("targets", 1)))
    return context.emit("cast", transformed(context, scores, str(context.attrs.get("post_transform", "NONE"))), to=DType.FLOAT32)


def _linear_classifier(context: FormContext) -> Sequence[Value]:
    """Outputs: labels and scores. Two classes may share one score, which is that of the second."""
    labels, kind = labels_of(context, "classlabels_ints"), str(context.attrs.get("post_transform", "NONE"))
    targets = len(context.attrs.get("intercepts") or labels)
    scores = _scores(context, targets)
    if targets > 1 or len(labels) != 2:
        if targets != len(labels):
            raise UnsupportedForm(f"{targets} scores for {len(labels)} labels")
        return best_label(context, scores, labels), transformed(context, scores, kind)
    chosen = two_labels(context, scores, 0.0, labels)
    if kind == "LOGISTIC":
        both = context.emit("concat", context.emit("neg", scores), scores, axis=1)
        return chosen, transformed(context, both, kind)
    if kind != "NONE":
        raise UnsupportedForm(f"post_transform {kind} of one score for two classes, of which implementations make different results")
    return chosen, context.emit("concat", context.emit("sub", scalar_like(context, scores, 1), scores), scores, axis=1)


_X = (np.sin(np.arange(20) * 1.3) * 2).astype(np.float32).reshape(5, 4)
_COEFFICIENTS = np.cos(np.arange(12) * 0.7).tolist()
_KINDS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")

extend(
    MatMul,
    forms=(
        OnnxForm("LinearRegressor", _linear_regressor, domain=MACHINE_LEARNING),
        OnnxForm("LinearClassifier", _linear_classifier, domain=MACHINE_LEARNING),
    ),
    samples=(
        sample("LinearRegressor", _X, coefficients=_COEFFICIENTS[:4], intercepts=[0.5]),
        sample("LinearRegressor", _X, coefficients=_COEFFICIENTS, targets=3, intercepts=[0.5, -1.0, 0.25]),
        *(
            sample(
                "LinearClassifier",
                _X,
                outputs=2,
                coefficients=_COEFFICIENTS,
                intercepts=[0.5, -1.0, 0.25],
                classlabels_ints=[4, 2, 7],
                post_transform=kind,
            )
            for kind in _KINDS[:4]
        ),
        *(
            sample("LinearClassifier", _X, outputs=2, coefficients=_COEFFICIENTS[:4], intercepts=[0.5], classlabels_ints=[3, 8], post_transform=kind)
            for kind in _KINDS[:2]
        ),
        sample(
            "LinearClassifier",
            _X.astype(np.int64),
            outputs=2,
            coefficients=_COEFFICIENTS[:8],
            intercepts=[0.5, 0.25],
            classlabels_ints=[3, 8],
            post_transform="SOFTMAX",
        ),
    ),
)
