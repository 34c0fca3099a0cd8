"""Making texts: StringConcat, StringSplit and StringNormalizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Attr, Value
from compiler.ir.intexpr import maximum
from compiler.ir.op import FormContext, OnnxForm, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.compact import selected
from compiler.ops.index import slice_axis
from compiler.ops.reduce import reduce
from compiler.ops.support import Arrays, Attrs, Types, array, attr_dim, attr_int, attr_str, first_type, reshape
from compiler.ops.texts import TextFunction, find_text

_WORDS = np.array([["a b", " é  ", ""], ["\u2003x\u00a0y", "a,b,,", "\U0001f600"]], object)
_NAMES = np.array(["Monday", "tuesday", "x", "tuesday"], object)


class TextMaker(TextFunction):
    """A function whose results are texts."""

    takes_epilogue = False
    result = DType.STRING


def _concat(context: FormContext) -> Value:
    return context.emit("concat_text", context.input(0), context.input(1))


@register
class ConcatText(TextMaker):
    """One text and another."""

    name = "concat_text"
    families = ("concat_text",)
    broadcasts = 0
    texts = 2
    forms = (OnnxForm("StringConcat", _concat, since=20),)
    samples = (Sample("StringConcat", (_WORDS, _WORDS[:, :1])), Sample("StringConcat", (np.array("ab", object), _WORDS[:, :0])))

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return str.__add__


def _pieces(text: str, attrs: Attrs) -> list[str]:
    return text.split(attr_str(attrs, "delimiter") or None, attr_int(attrs, "limit"))


@register
class CountPieces(TextFunction):
    """How many pieces a text is split into: at every ``delimiter``, or where that is empty at white space, ``limit`` times at most (-1: always)."""

    name = "count_pieces"
    families = ("count_pieces",)
    result = DType.INT64

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return lambda text: len(_pieces(text, attrs))


@register
class PieceBounds(TextFunction):
    """The first byte and the length of each piece, i64 ``[…, width, 2]``; zeros where there are fewer. ``width`` is enough for all."""

    name = "piece_bounds"
    families = ("piece_bounds",)
    takes_epilogue = False
    result = DType.INT64

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        def bounds(text: str) -> list[list[int]]:
            found, at, delimiter = [], 0, attr_str(attrs, "delimiter")
            for piece in _pieces(text, attrs):
                at = at if delimiter else text.index(piece, at)
                found.append([len(text[:at].encode()), len(piece.encode())])
                at += len(piece) + len(delimiter)
            return found + [[0, 0]] * (attr_int(attrs, "width") - len(found))

        return bounds

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(DType.INT64, (*first_type(inputs).shape, attr_dim(attrs, "width"), 2)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, function = array(inputs[0]), self.function((), attrs)
        found = [function(text) for text in x.reshape(-1).tolist()]
        return (np.array(found, np.int64).reshape(*x.shape, attr_int(attrs, "width"), 2),)


def _split(context: FormContext) -> Sequence[Value]:
    """https://onnx.ai/onnx/operators/onnx__StringSplit.html"""
    x = context.input(0)
    attrs: dict[str, Attr] = {"delimiter": str(context.attrs.get("delimiter", "")), "limit": int(context.attrs.get("maxsplit", -1))}
    counts = context.emit("count_pieces", x, **attrs)
    none = context.const(np.zeros(1, np.int64))
    (width,) = context.builder.bind(
        reduce(context, context.emit("concat", none, reshape(context, counts, (counts.type.elements,)), axis=0), "max", (0,)), natural=True
    )
    bounds = context.emit("piece_bounds", x, width=width, **attrs)
    last = x.type.rank + 1
    starts, lengths = (reshape(context, slice_axis(context, bounds, last, k, 1), bounds.type.shape[:-1]) for k in (0, 1))
    return [context.emit("part_of_text", reshape(context, x, (*x.type.shape, 1)), starts, lengths), counts]


@register
class PartOfText(TextMaker):
    """Bytes of texts: how many, and from which on, are the other operands, i64."""

    name = "part_of_text"
    families = ("part_of_text",)
    broadcasts = 0
    texts = 3
    forms = (OnnxForm("StringSplit", _split, since=20),)
    samples = (
        Sample("StringSplit", (_WORDS,), outputs=2),
        Sample("StringSplit", (_WORDS,), {"delimiter": ","}, outputs=2),
        Sample("StringSplit", (_WORDS[0],), {"delimiter": "", "maxsplit": 1}, outputs=2),
        Sample("StringSplit", (_WORDS[1, 1:2],), {"delimiter": ",", "maxsplit": 2}, outputs=2),
        Sample("StringSplit", (_WORDS[:, :0],), outputs=2),
    )

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return lambda text, start, length: text.encode()[start : start + length].decode()


@cache
def _case_tables(upper: bool) -> tuple[Array, ...]:
    """Pages of 128 code points: the page of each, the entries of each page, and for each entry the bytes and the word of UTF-8 it becomes."""
    pages: dict[tuple[int, ...], int] = {}
    entries: dict[bytes, int] = {b"": 0}
    numbers = []
    for first in range(0, 0x110000, 128):
        page = []
        for code in range(first, first + 128):
            text = "" if 0xD800 <= code < 0xE000 else chr(code)
            changed = _changed(text, upper)
            page.append(0 if changed == text else entries.setdefault(changed.encode(), len(entries)))
        numbers.append(pages.setdefault(tuple(page), len(pages)))
    words = np.array([int.from_bytes(text, "little") for text in entries], np.uint64).view(np.int64)
    return np.array(numbers, np.int32), np.array(list(pages), np.int32).reshape(-1), np.array([len(text) for text in entries], np.int64), words


def _changed(text: str, upper: bool) -> str:
    return "".join(map(str.upper if upper else str.lower, text))


@register
class ChangeCase(TextMaker):
    """Every character in upper or lower case, by itself, as Unicode maps it (to up to three); ``upper`` says which. The tables follow from it."""

    name = "change_case"
    families = ("change_case",)

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return lambda text: _changed(text, bool(attrs["upper"]))


def change_case(context: FormContext, x: Value, *, upper: bool) -> Value:
    """Texts in upper or lower case."""
    return context.emit("change_case", x, *map(context.const, _case_tables(upper)), upper=upper)


def _normalizer(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__StringNormalizer.html; the case of characters does not depend on ``locale``."""
    x, attrs = context.input(0), context.attrs
    action, stopwords = str(attrs.get("case_change_action", "NONE")), [str(word) for word in attrs.get("stopwords", ())]
    if action not in ("NONE", "LOWER", "UPPER"):
        raise UnsupportedForm(f"case_change_action is {action!r}, none of NONE, LOWER, UPPER")
    if x.type.rank not in (1, 2):
        raise UnsupportedForm(f"the input is {x.type}; [C] and [1, C] are possible")
    if x.type.rank == 2:
        context.check(1, x.type.shape[0], 1, "its input has {value} rows; one is possible")
    words = reshape(context, x, (x.type.shape[-1],))
    upper = action == "UPPER"
    changed = words if action == "NONE" else change_case(context, words, upper=upper)
    if stopwords:
        compared = words
        if not attrs.get("is_case_sensitive", 0):
            compared = changed if action != "NONE" else change_case(context, words, upper=False)
            stopwords = [_changed(word, upper) for word in stopwords]
        missing = context.const(np.array(len(stopwords), np.int64))
        kept = selected(context, context.emit("equal", find_text(context, compared, stopwords), missing))
        changed = context.emit("gather", changed, kept, axis=0)
    (count,) = changed.type.shape
    filled = context.emit("pad", changed, begins=(0,), ends=(maximum(count, 1) - count,), mode="constant", value=0)
    return reshape(context, filled, (1,) * (x.type.rank - 1) + filled.type.shape)


ChangeCase.forms = (OnnxForm("StringNormalizer", _normalizer, since=10),)
ChangeCase.samples = (
    Sample("StringNormalizer", (_NAMES,), {"case_change_action": "UPPER"}),
    Sample("StringNormalizer", (_NAMES[None],), {"case_change_action": "LOWER", "stopwords": ["TUESDAY"]}),
    Sample("StringNormalizer", (_NAMES[:1],), {"case_change_action": "NONE", "stopwords": ["Monday"], "is_case_sensitive": 1}),
)
