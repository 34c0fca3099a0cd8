"""Casts between numbers and texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.op import FormContext, register
from compiler.ir.types import DType
from compiler.ops.reduce import reduce
from compiler.ops.support import Arrays, Attrs, cast_to
from compiler.ops.text_makers import TextMaker
from compiler.ops.texts import TextFunction, match_text

_INTEGER = r"\s*[+-]?[0-9]{1,20}(\.[0-9]*)?\s*"
_FLOAT = r"(?i)\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity|nan)\s*"


@register
class ParseInteger(TextFunction):
    """The integer that a text is, modulo 2^64; what follows a point is cut off."""

    name = "parse_integer"
    families = ("parse_integer",)
    result = DType.INT64

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return lambda text: (int(text.partition(".")[0]) + (1 << 63)) % (1 << 64) - (1 << 63)


@register
class ParseFloat(TextFunction):
    """The number that a text is, to a few units in the last place; exact for 15 digits times or over up to 1e22. Operand 1 is powers of ten."""

    name = "parse_float"
    families = ("parse_float",)
    result = DType.FLOAT64

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return float


@register
class FormatInteger(TextMaker):
    """The decimal digits of an i64 or u64, and its sign where it is negative. Operand 1 is powers of ten."""

    name = "format_integer"
    families = ("format_integer",)

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return str


def cast_text(context: FormContext, x: Value, to: DType) -> Value:
    """A cast from or to strings. Texts that are no numbers end the run."""
    if x.type.dtype is to:
        return x
    if to is DType.STRING:
        return _written(context, x)
    if to is DType.BOOL:
        raise UnsupportedForm("texts as truth values are not supported: compare them")
    read = match_text(context, x, _FLOAT if to.is_float else _INTEGER)
    whole = reduce(context, cast_to(context, context.emit("reshape", read, shape=(read.type.elements,)), DType.INT32), "sum", (0,))
    (count,) = context.builder.bind(whole, natural=True)
    context.check(read.type.elements, count, read.type.elements, f"{{value}} of the {{low}} texts are numbers, as {to.value} must be read from")
    if not to.is_float:
        return cast_to(context, context.emit("parse_integer", x), to)
    powers = context.const(np.array([float(f"1e{power}") for power in range(309)]))
    return cast_to(context, context.emit("parse_float", x, powers), to)


def _written(context: FormContext, x: Value) -> Value:
    if x.type.dtype is DType.BOOL:
        return context.emit("where", x, *(context.const(np.array(text, object)) for text in ("True", "False")))
    if x.type.dtype.is_float:
        raise UnsupportedForm("floats as texts, which ask for the fewest digits that tell them apart, are not supported")
    wide = DType.INT64 if x.type.dtype.is_signed else DType.UINT64
    return context.emit("format_integer", cast_to(context, x, wide), context.const(np.array([10**power for power in range(20)], np.uint64)))
