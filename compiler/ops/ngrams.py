"""TfIdfVectorizer: how often the n-grams of a pool occur in sequences of integers or strings, by comparing every window with every n-gram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.index import slice_axis
from compiler.ops.scatter import Scatter, scatter
from compiler.ops.support import cast_to, known_shape, reshape, scalar_like
from compiler.ops.texts import find_text

_MODES = ("TF", "IDF", "TFIDF")

_X = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]], np.int32)
_POOL = {
    "ngram_counts": [0, 4],
    "ngram_indexes": [0, 1, 2, 3, 4, 5, 6],
    "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
    "max_skip_count": 5,
    "min_gram_length": 1,
    "max_gram_length": 2,
    "mode": "TF",
}
_WEIGHTS = [0.5, 1.0, 2.0, 1.5, 0.25, 4.0, 3.0]


def _tf_idf(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html; of strings their numbers in the pool are compared."""
    attrs, x = context.attrs, context.input(0)
    indexes = np.array(attrs["ngram_indexes"], np.int64)
    strings = x.type.dtype is DType.STRING
    pool = tuple(attrs.get("pool_strings" if strings else "pool_int64s") or ())
    if not pool or str(attrs["mode"]) not in _MODES or x.type.rank not in (1, 2) or indexes.size == 0 or indexes.min() < 0:
        raise UnsupportedForm(
            f"mode {attrs['mode']!r} of {x.type}; integers or strings of rank 1 or 2, a pool of them and modes {', '.join(_MODES)} are possible"
        )
    if strings:
        words = list(dict.fromkeys(pool))
        x, pool = find_text(context, x, words), tuple(map({word: number for number, word in enumerate(words)}.__getitem__, pool))
    size = int(indexes.max()) + 1
    rows, length = (1, *known_shape(x, "the input"))[-2:]
    tokens = cast_to(context, reshape(context, x, (rows, length)), DType.INT64)
    counts: Value = context.const(np.zeros((rows, size), np.float32))
    for grams, numbers in _grams(context, pool):
        for skip in range(1 if grams.shape[1] == 1 else int(attrs["max_skip_count"]) + 1):
            found = _occurrences(context, tokens, grams, skip + 1)
            if found is not None:
                places = np.arange(rows, dtype=np.int64).reshape(-1, 1) * size + indexes[numbers]
                counts = scatter(context, counts, context.const(places), found, (), "add")
    return reshape(context, _weighted(context, counts, size), (*x.type.shape[:-1], size))


def _grams(context: FormContext, members: Sequence[int]) -> list[tuple[Array, Array]]:
    """For each length wanted: the n-grams ``[K, n]`` and their numbers in the pool; of equal ones the last."""
    attrs, found = context.attrs, []
    pool, starts = np.array(members, np.int64), [int(start) for start in attrs["ngram_counts"]]
    first = 0
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], pool.size], strict=True), 1):
        grams = pool[start : start + (end - start) // n * n].reshape(-1, n)
        numbers = {tuple(gram): first + number for number, gram in enumerate(grams.tolist())}
        first += len(grams)
        if numbers and int(attrs["min_gram_length"]) <= n <= int(attrs["max_gram_length"]):
            found.append((np.array(list(numbers), np.int64), np.array(list(numbers.values()))))
    return found


def _occurrences(context: FormContext, tokens: Value, grams: Array, step: int) -> Value | None:
    """How often each n-gram occurs in each row of tokens, its members ``step`` apart: ``[rows, K]``; None where none can."""
    rows, length = known_shape(tokens, "the tokens")
    windows = length - (grams.shape[1] - 1) * step
    if windows < 1:
        return None
    matches: Value | None = None
    for position, members in enumerate(grams.T):
        window = reshape(context, slice_axis(context, tokens, 1, position * step, windows), (rows, windows, 1))
        same = context.emit("equal", window, context.const(members))
        matches = same if matches is None else context.emit("and", matches, same)
    if matches is None:
        return None
    return context.emit("reduce", cast_to(context, matches, DType.FLOAT32), kind="sum", axes=(1,), keepdims=False)


def _weighted(context: FormContext, counts: Value, size: int) -> Value:
    """Counts, or whether there were any, times the weight of each result."""
    mode, weights = str(context.attrs["mode"]), context.attrs.get("weights")
    if mode == "IDF":
        counts = cast_to(context, context.emit("greater", counts, scalar_like(context, counts, 0)), DType.FLOAT32)
    if mode == "TF" or not weights:
        return counts
    return context.emit("mul", counts, context.const(np.array(weights, np.float32)[:size]))


def _sample(x: Array, **attrs: object) -> Sample:
    return Sample("TfIdfVectorizer", (x,), {name: value for name, value in {**_POOL, **attrs}.items() if value is not None}, opset=9)


extend(
    Scatter,
    forms=(OnnxForm("TfIdfVectorizer", _tf_idf, since=9),),
    samples=(
        _sample(_X),
        _sample(_X[1], min_gram_length=2, max_skip_count=0),
        _sample(_X.astype(np.int64), mode="IDF", weights=_WEIGHTS),
        _sample(_X, mode="TFIDF", max_skip_count=1, weights=_WEIGHTS),
        _sample(_X, mode="IDF", ngram_indexes=[3, 2, 1, 0, 0, 5, 4]),
        _sample(_X[:, :1], min_gram_length=2),
        _sample(_X.astype(str).astype(object), pool_int64s=None, pool_strings=list("2354567867"), weights=_WEIGHTS, mode="TFIDF"),
    ),
)
