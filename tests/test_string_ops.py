"""Operators on texts, against Python's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.helper import make_node as node
from string_models import MACHINE_LEARNING, TEXTS, check, model_of, strings

import tensorsmith
from compiler.ir.text_table import slot_of, text_hash, text_table
from tensorsmith import UserError

few = settings(max_examples=8, deadline=None)


def vector(texts: list[str]) -> np.ndarray:
    return strings(*texts)


VECTORS = st.lists(TEXTS, max_size=6).map(vector)


@few
@given(VECTORS, VECTORS)
def test_equal_broadcasts(left: np.ndarray, right: np.ndarray) -> None:
    a, b = left[:, None], np.append(right, left)[None]
    check(model_of(node("Equal", ["a", "b"], ["y"]), a=a, b=b), {"a": a, "b": b}, [(a == b).astype(bool)])


@few
@given(VECTORS, st.lists(TEXTS, min_size=1, max_size=9, unique=True), TEXTS)
def test_encoders(x: np.ndarray, keys: list[str], other: str) -> None:
    texts = np.append(x, vector(keys))
    numbers, names = list(range(5, 5 + len(keys))), [key + "?" for key in keys]
    default = 3 * len(keys)

    def encoder(output: str, **attrs: object) -> object:
        return node("LabelEncoder", ["x"], [output], domain=MACHINE_LEARNING, **attrs)

    model = model_of(
        encoder("y0", keys_strings=keys, values_int64s=numbers, default_int64=default),
        encoder("y1", keys_strings=keys, values_strings=names, default_string=other),
        encoder("y2", keys_strings=keys, values_floats=[float(n) for n in numbers]),
        node("OneHotEncoder", ["x"], ["y3"], domain=MACHINE_LEARNING, cats_strings=keys),
        x=texts,
    )
    found, named = dict(zip(keys, numbers, strict=True)), dict(zip(keys, names, strict=True))
    hot = (texts[:, None] == vector(keys)).astype(np.float32)
    wants = [
        np.array([found.get(text, default) for text in texts], np.int64),
        vector([named.get(text, other) for text in texts]),
        np.array([found.get(text, -0.0) for text in texts], np.float32),
        hot,
    ]
    check(model, {"x": texts}, wants)


def test_a_table_of_many_keys() -> None:
    keys = [f"key {number}" for number in range(20_000)]
    table = text_table(keys)
    for number in range(0, len(keys), 97):
        value = text_hash(keys[number].encode(), table.seed)
        assert table.slots[slot_of(value, table.displacements[value & len(table.displacements) - 1], table.bits)] == number
    model = model_of(node("LabelEncoder", ["x"], ["y"], domain=MACHINE_LEARNING, keys_strings=keys, values_int64s=range(len(keys))), x=strings("a"))
    module = tensorsmith.compile(model, cache=False)
    x = vector([*keys, "key", "key 20000", ""])
    np.testing.assert_array_equal(module(x)[0], [*range(len(keys)), -1, -1, -1])


def test_encoders_of_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="keys of type i64 for str"):
        tensorsmith.compile(model_of(node("LabelEncoder", ["x"], ["y"], domain=MACHINE_LEARNING, keys_int64s=[1], values_int64s=[1]), x=strings("a")))
