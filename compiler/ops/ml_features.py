"""Feature preparation from the domain ``ai.onnx.ml``: choosing, scaling, encoding and replacing columns.

https://onnx.ai/onnx/operators/index.html#ai-onnx-ml
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.binary import Where
from compiler.ops.reduce import reduce
from compiler.ops.support import cast_to, known, known_shape, reshape, scalar_like
from compiler.ops.texts import find_text

MACHINE_LEARNING = "ai.onnx.ml"


def _array_feature_extractor(context: FormContext) -> Value:
    """Columns of the last axis; a vector gives one row."""
    x, columns = context.input(0), context.input(1)
    (count,) = reshape(context, columns, (known(columns.type.elements, "the number of columns"),)).type.shape
    taken = context.emit("gather", x, reshape(context, columns, (count,)), axis=x.type.rank - 1)
    return reshape(context, taken, (1, count)) if x.type.rank == 1 else taken


def _binarizer(context: FormContext) -> Value:
    x = context.input(0)
    above = context.emit("greater", x, scalar_like(context, x, float(context.attrs.get("threshold", 0.0))))
    return cast_to(context, above, x.type.dtype)


def _feature_vectorizer(context: FormContext) -> Value:
    """All inputs side by side, each cut or filled with zeros to its width in ``inputdimensions``; a vector is one row."""
    parts = []
    widths = [int(width) for width in context.attrs["inputdimensions"]]
    if len(widths) != len(context.inputs):
        raise UnsupportedForm(f"inputdimensions has {len(widths)} numbers for {len(context.inputs)} inputs")
    for index, width in enumerate(widths):
        x = cast_to(context, context.input(index), DType.FLOAT32)
        x = reshape(context, x, (1, *x.type.shape)) if x.type.rank == 1 else x
        if x.type.rank != 2:
            raise UnsupportedForm(f"input {index} is {x.type}; rows or one row are possible")
        columns = known(x.type.shape[1], "the number of columns")
        parts.append(context.emit("pad", x, begins=(0, 0), ends=(0, width - columns), mode="constant", value=0))
    return context.emit("concat", *parts, axis=1)


def _imputer(context: FormContext) -> Value:
    """NaN, or elements equal to a number, become their column's value."""
    x, attrs = context.input(0), context.attrs
    floats = x.type.dtype.is_float
    values = attrs.get("imputed_value_floats" if floats else "imputed_value_int64s")
    if not values or (len(values) > 1 and len(values) != x.type.shape[-1]):
        raise UnsupportedForm(f"{len(values or ())} values for {x.type}; one or one a column are needed")
    old = attrs.get("replaced_value_float", 0.0) if floats else attrs.get("replaced_value_int64", 0)
    missing = context.emit("is_nan", x) if np.isnan(old) else context.emit("equal", x, scalar_like(context, x, old))
    return context.emit("where", missing, context.const(np.array(values, x.type.dtype.numpy)), x)


def _scaler(context: FormContext) -> Value:
    x = cast_to(context, context.input(0), DType.FLOAT32)
    for op, name in (("sub", "offset"), ("mul", "scale")):
        x = context.emit(op, x, context.const(np.array(context.attrs[name], np.float32)))
    return x


def _normalizer(context: FormContext) -> Value:
    """Rows divided by their largest element, or by the sum or the root of the sum of squares of their magnitudes, unless that is zero."""
    x, kind = cast_to(context, context.input(0), DType.FLOAT32), str(context.attrs.get("norm", "MAX"))
    axes = (x.type.rank - 1,)
    if kind == "MAX":
        norm = reduce(context, x, "max", axes)
    elif kind == "L1":
        norm = reduce(context, context.emit("abs", x), "sum", axes)
    elif kind == "L2":
        norm = context.emit("sqrt", reduce(context, context.emit("mul", x, x), "sum", axes))
    else:
        raise UnsupportedForm(f"norm {kind!r} is none of MAX, L1, L2")
    zero = context.emit("equal", norm, scalar_like(context, norm, 0))
    return context.emit("div", x, context.emit("where", zero, scalar_like(context, norm, 1), norm))


def _one_hot_encoder(context: FormContext) -> Value:
    """A new last axis with one at the category of each element; other elements give zeros."""
    x, strings = context.input(0), context.attrs.get("cats_strings")
    categories = strings or context.attrs.get("cats_int64s")
    if not categories or bool(strings) != (x.type.dtype is DType.STRING):
        raise UnsupportedForm(f"the categories are not of the type of {x.type}")
    if not context.attrs.get("zeros", 1):
        raise UnsupportedForm("zeros = 0, which asks for an error where an element has no category, is not supported")
    if strings:
        x, categories = find_text(context, x, strings), range(len(strings))
    wide = reshape(context, cast_to(context, x, DType.INT64), (*x.type.shape, 1))
    return cast_to(context, context.emit("equal", wide, context.const(np.array(categories, np.int64))), DType.FLOAT32)


def _label_encoder(context: FormContext) -> Value:
    """The value of each element's key, or the default."""
    return _looked_up(context, *_table(context))


def _looked_up(context: FormContext, keys: Array, values: Array, default: Array) -> Value:
    """The value of each element's key, of equal ones the last; the default where there is none."""
    x = context.input(0)
    default = default.astype(values.dtype).reshape(())
    if DType.of(keys.dtype) is not x.type.dtype:
        raise UnsupportedForm(f"keys of type {DType.of(keys.dtype).value} for {x.type}")
    if keys.shape != values.shape or keys.ndim != 1 or not keys.size:
        raise UnsupportedForm(f"keys of shape {list(keys.shape)} and values of shape {list(values.shape)}")
    if x.type.dtype is DType.STRING:
        return context.emit("gather", context.const(np.append(values, default)), find_text(context, x, keys.tolist()), axis=0)
    # Of equal keys the last counts, and NaN, which is equal to nothing, is looked for by itself.
    order = np.argsort(keys, kind="stable")
    ordered, results = keys[order], values[order]
    places = _last_not_above(context, x, ordered[~np.isnan(ordered)] if x.type.dtype.is_float else ordered)
    same = context.emit("equal", context.emit("gather", context.const(ordered), places, axis=0), x)
    found = context.emit("gather", context.const(results), places, axis=0)
    found = context.emit("where", same, found, context.const(default))
    if x.type.dtype.is_float and np.isnan(keys).any():
        found = context.emit("where", context.emit("is_nan", x), context.const(results[-1:].reshape(())), found)
    return found


def _label_encoder_of_classes(context: FormContext) -> Value:
    """Version 1: strings that are classes become their numbers, and numbers strings."""
    classes = np.array(context.attrs.get("classes_strings", ()), object)
    return _mapped(context, classes, np.arange(classes.size))


def _category_mapper(context: FormContext) -> Value:
    strings, numbers = np.array(context.attrs["cats_strings"], object), np.array(context.attrs["cats_int64s"], np.int64)
    return _mapped(context, strings, numbers)


def _mapped(context: FormContext, strings: Array, numbers: Array) -> Value:
    """The number of each string, or the string of each number."""
    pairs = (strings, numbers, np.array(context.attrs.get("default_int64", -1)))
    if context.input(0).type.dtype is not DType.STRING:
        pairs = (numbers, strings, np.array(context.attrs.get("default_string", "_Unused"), object))
    return _looked_up(context, *pairs)


def _table(context: FormContext) -> tuple[Array, Array, Array]:
    """Keys, values and the default."""
    attrs, found = context.attrs, []
    for role in ("keys", "values"):
        if attrs.get(f"{role}_int64s"):
            found.append(np.array(attrs[f"{role}_int64s"], np.int64))
        elif attrs.get(f"{role}_floats"):
            found.append(np.array(attrs[f"{role}_floats"], np.float32))
        elif attrs.get(f"{role}_strings"):
            found.append(np.array(attrs[f"{role}_strings"], object))
        elif isinstance(attrs.get(f"{role}_tensor"), np.ndarray):
            found.append(attrs[f"{role}_tensor"])
        else:
            raise UnsupportedForm(f"it has no {role}")
    keys, values = found
    if isinstance(attrs.get("default_tensor"), np.ndarray):
        return keys, values, attrs["default_tensor"]
    names: dict[str, tuple[str, object]] = {"f": ("default_float", -0.0), "O": ("default_string", "_Unused")}
    return keys, values, np.array(attrs.get(*names.get(values.dtype.kind, ("default_int64", -1))), values.dtype)


def _last_not_above(context: FormContext, x: Value, ordered: Array) -> Value:
    """The last position in ``ordered`` whose element is not above x, or zero: a binary search, one gather for each bit."""
    places: Value = context.emit("expand", context.const(np.zeros((), np.int64)), shape=x.type.shape)
    table, step = context.const(ordered), 1 << max(0, len(ordered) - 1).bit_length()
    while step > 1:
        step //= 2
        further = context.emit("add", places, context.const(np.array(step, np.int64)))
        inside = context.emit("minimum", further, context.const(np.array(len(ordered) - 1, np.int64)))
        reached = context.emit("less_or_equal", context.emit("gather", table, inside, axis=0), x)
        inside_too = context.emit("equal", further, inside)
        places = context.emit("where", context.emit("and", reached, inside_too), further, places)
    return places


def first_rows(context: FormContext, x: Value) -> tuple[Value, int, int]:
    """x as a matrix, a vector as one row; with its static dims."""
    x = reshape(context, x, (1, *x.type.shape)) if x.type.rank == 1 else x
    if x.type.rank != 2:
        raise UnsupportedForm(f"the input is {x.type}; rows or one row are possible")
    rows, columns = known_shape(x, "the input")
    return x, rows, columns


_X = np.array([[0.0, -1.5, 2.0, 3.0], [7.0, 0.5, np.nan, -0.25], [0.0, 0.0, 0.0, 0.0]], np.float32)
_PLAIN = np.nan_to_num(_X, nan=1.0)
_WORDS = np.array([["a", "b", ""], ["é", "é!", "twelve bytes"]], object)
_INTS = np.array([[3, -1, 7], [0, 3, 9]], np.int64)


def sample(op_type: str, *inputs: Array, opset: int = 3, outputs: int = 1, **attrs: Any) -> Sample:
    """A sample of the domain."""
    return Sample(op_type, inputs, attrs, opset=opset, outputs=outputs, domain=MACHINE_LEARNING)


extend(
    Where,
    forms=tuple(
        OnnxForm(name, build, since, until, domain=MACHINE_LEARNING)
        for name, build, since, until in (
            ("ArrayFeatureExtractor", _array_feature_extractor, 1, None),
            ("Binarizer", _binarizer, 1, None),
            ("CategoryMapper", _category_mapper, 1, None),
            ("FeatureVectorizer", _feature_vectorizer, 1, None),
            ("Imputer", _imputer, 1, None),
            ("LabelEncoder", _label_encoder_of_classes, 1, 1),
            ("LabelEncoder", _label_encoder, 2, None),
            ("Normalizer", _normalizer, 1, None),
            ("OneHotEncoder", _one_hot_encoder, 1, None),
            ("Scaler", _scaler, 1, None),
        )
    ),
    samples=(
        sample("CategoryMapper", _WORDS, cats_strings=["b", "", "a"], cats_int64s=[5, -2, 7], opset=1),
        sample("CategoryMapper", _INTS, cats_strings=["b", "", "a"], cats_int64s=[3, -1, 9], default_string="none", opset=1),
        sample("LabelEncoder", _WORDS, keys_strings=["b", "a"], values_int64s=[5, 6], default_int64=9, opset=2),
        sample("LabelEncoder", _WORDS, keys_strings=["b", "é!"], values_strings=["c", ""], default_string="?", opset=2),
        sample("LabelEncoder", _INTS, keys_int64s=[9, 3], values_strings=["nine", "three"], opset=2),
        sample("LabelEncoder", _WORDS, classes_strings=["b", "a"], opset=1),
        sample("OneHotEncoder", _WORDS, cats_strings=["b", "é"], opset=1),
        sample("ArrayFeatureExtractor", _X, np.array([[2, 0]], np.int64)),
        sample("ArrayFeatureExtractor", _INTS[0], np.array([2], np.int64)),
        sample("Binarizer", _X, threshold=0.25),
        sample("FeatureVectorizer", _X, _PLAIN[:, :2], _X[:, :1], inputdimensions=[4, 1, 2]),
        sample("Imputer", _X, imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan")),
        sample("Imputer", _INTS, imputed_value_int64s=[100], replaced_value_int64=3),
        sample("LabelEncoder", _INTS, keys_int64s=[9, 3, -1], values_int64s=[5, 6, 7], opset=2),
        sample("LabelEncoder", _INTS, keys_int64s=[0, 3, 7, 8, 9], values_floats=[0.5, 1.5, 2.5, 3.5, 4.5], default_float=-7.0, opset=2),
        sample("LabelEncoder", _X, keys_floats=[2.0, 0.5, -1.5], values_int64s=[20, 5, -15], default_int64=99, opset=2),
        sample(
            "LabelEncoder",
            _INTS.astype(np.int32),
            opset=4,
            keys_tensor=np.array([3], np.int32),
            values_tensor=np.array([-3], np.int16),
            default_tensor=np.array([12], np.int16),
        ),
        *(sample("Normalizer", _PLAIN, norm=norm) for norm in ("MAX", "L1", "L2")),
        sample("OneHotEncoder", _INTS, cats_int64s=[7, 3, 1]),
        sample("Scaler", _X, offset=[1.0, 0.5, 0.0, -1.0], scale=[2.0, 1.0, 0.25, 3.0]),
        sample("Scaler", _INTS, offset=[1.5], scale=[2.0]),
    ),
)
