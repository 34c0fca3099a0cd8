"""Numbers in texts: reading them, and writing integers."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Workload, register_family
from compiler.kernels.text_makers import Making, Record, TextMakerFamily
from compiler.kernels.texts import INDEX, TextFunctionFamily, Texts

_DIGITS = VecType(DType.UINT64, 1)
_FLOAT = VecType(DType.FLOAT64, 1)
_MOST_DIGITS = 10**18
"""What a number of digits is below as long as another one fits into 64 bits."""
_LARGEST_EXPONENT = 100_000


class _Byte:
    """A byte of a text, compared with characters."""

    def __init__(self, b: LoopBuilder, byte: Reg) -> None:
        self._b = b
        self._code = b.cast(byte, DType.INT64)

    def one_of(self, characters: str) -> Reg:
        """Whether it is one of some characters."""
        b = self._b
        found = [b.op("eq", self._code, b.const(ord(character), INDEX)) for character in characters]
        total = found[0]
        for other in found[1:]:
            total = b.op("or", total, other)
        return total

    def digit(self) -> tuple[Reg, Reg]:
        """Whether it is a digit, and which."""
        b = self._b
        value = b.op("sub", self._code, b.const(ord("0"), INDEX))
        return b.op("and", b.op("ge", value, b.const(0, INDEX)), b.op("le", value, b.const(9, INDEX))), value


def _number(b: LoopBuilder, flag: Reg) -> Reg:
    return b.cast(flag, DType.INT64)


class ParseInteger(TextFunctionFamily):
    """The family: strings of decimal integers; output i64. What follows a point does not count."""

    name = "parse_integer"

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        b, (place,), zero = texts.b, places, texts.b.const(0, INDEX)
        with b.loop("i", 0, b.bind(texts.length(place)), carried=[zero, zero, zero]) as loop:
            total, negative, behind = loop.carried
            byte = _Byte(b, texts.byte(place, loop.var))
            is_digit, value = byte.digit()
            behind = b.op("or", behind, _number(b, byte.one_of(".")))
            counts = b.op("and", is_digit, b.op("eq", behind, zero))
            longer = b.op("add", b.op("mul", total, b.const(10, INDEX)), value)
            loop.yield_([b.op("select", counts, longer, total), b.op("or", negative, _number(b, byte.one_of("-"))), behind])
        total, negative, _ = loop.results
        return b.op("select", b.op("ne", negative, zero), b.op("sub", zero, total), total)


class ParseFloat(TextFunctionFamily):
    """The family: strings of decimal numbers, and the powers of ten from 1 to 1e308; output f64.

    The first 19 digits count. What they are times a power of ten is exact for up to 15 digits and powers of up to 22, and otherwise a few units in
    the last place of f64 off.
    """

    name = "parse_float"

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        b, (place,), (powers,) = texts.b, places, tables
        zero = b.const(0, INDEX)
        with b.loop("i", 0, b.bind(texts.length(place)), carried=[b.const(0, _DIGITS), *[zero] * 8]) as loop:
            digits, scale, exponent, behind, in_exponent, negative, lowers, infinite, nan = loop.carried
            byte = _Byte(b, texts.byte(place, loop.var))
            is_digit, value = byte.digit()
            of_exponent = b.op("ne", in_exponent, zero)
            counts = b.op("and", is_digit, b.op("not", of_exponent))
            fits = b.op("and", counts, b.op("lt", digits, b.const(_MOST_DIGITS, _DIGITS)))
            dropped = b.op("sub", _number(b, counts), _number(b, fits))
            longer = b.op("add", b.op("mul", digits, b.const(10, _DIGITS)), b.cast(value, DType.UINT64))
            scale = b.op("sub", b.op("add", scale, dropped), b.op("mul", behind, _number(b, counts)))
            larger = b.op("min", b.op("add", b.op("mul", exponent, b.const(10, INDEX)), value), b.const(_LARGEST_EXPONENT, INDEX))
            exponent = b.op("select", b.op("and", is_digit, of_exponent), larger, exponent)
            minus = _number(b, byte.one_of("-"))
            loop.yield_(
                [
                    b.op("select", fits, longer, digits),
                    scale,
                    exponent,
                    b.op("or", behind, _number(b, byte.one_of("."))),
                    b.op("or", in_exponent, _number(b, byte.one_of("eE"))),
                    b.op("or", negative, b.op("mul", minus, b.op("sub", b.const(1, INDEX), in_exponent))),
                    b.op("or", lowers, b.op("mul", minus, in_exponent)),
                    b.op("or", infinite, _number(b, byte.one_of("fF"))),
                    b.op("or", nan, _number(b, byte.one_of("aA"))),
                ]
            )
        digits, scale, exponent, _, _, negative, lowers, infinite, nan = loop.results
        exponent = b.op("select", b.op("ne", lowers, zero), b.op("sub", zero, exponent), exponent)
        found = _scaled(b, b.cast(digits, DType.FLOAT64), b.op("add", scale, exponent), powers)
        for flag, special in ((infinite, float("inf")), (nan, float("nan"))):
            found = b.op("select", b.op("ne", flag, zero), b.const(special, _FLOAT), found)
        return b.op("select", b.op("ne", negative, zero), b.op("neg", found), found)


def _scaled(b: LoopBuilder, value: Reg, exponent: Reg, powers: Buffer) -> Reg:
    """A number times a power of ten, in two steps where one is not in the table; small ones divide, as they are exact."""
    most = int(powers.size) - 1 if isinstance(powers.size, int) else 0
    limit = b.const(most, INDEX)
    negative = b.op("lt", exponent, b.const(0, INDEX))
    left = b.op("abs", exponent)
    for _ in range(3):
        step = b.op("min", left, limit)
        power = b.load(powers, b.bind(step))
        value = b.op("select", negative, b.op("div", value, power), b.op("mul", value, power))
        left = b.op("sub", left, step)
    return value


class FormatInteger(TextMakerFamily):
    """The family: i64 or u64, and the powers of ten that u64 holds."""

    name = "format_integer"

    def length(self, making: Making) -> Reg:
        _, negative, digits = self._parts(making)
        return making.b.op("add", digits, negative)

    def write(self, making: Making, record: Record) -> Reg:
        b, (_, powers) = making.b, making.inputs
        magnitude, negative, digits = self._parts(making)
        record.put_byte(0, b.const(ord("-"), VecType(DType.UINT8, 1)))
        first, count = b.bind(negative), b.bind(digits)
        with b.loop("k", 0, count) as loop:
            shifted = b.op("div", magnitude, b.load(powers, count - 1 - loop.var))
            digit = b.op("add", b.op("mod", shifted, b.const(10, _DIGITS)), b.const(ord("0"), _DIGITS))
            record.put_byte(first + loop.var, b.cast(digit, DType.UINT8))
        return b.op("add", digits, negative)

    def _parts(self, making: Making) -> tuple[Reg, Reg, Reg]:
        """The magnitude, whether there is a sign, and the digits."""
        b, (_, powers) = making.b, making.inputs
        value = making.operand(0)
        zero = b.const(0, value.type)
        below = b.op("lt", value, zero)
        magnitude = b.cast(b.op("select", below, b.op("sub", zero, value), value), DType.UINT64)
        with b.loop("k", 1, powers.size, carried=[b.const(1, INDEX)]) as loop:
            more = b.op("ge", magnitude, b.load(powers, loop.var))
            loop.yield_([b.op("add", loop.carried[0], _number(b, more))])
        return magnitude, _number(b, below), loop.results[0]


register_family(ParseInteger())
register_family(ParseFloat())
register_family(FormatInteger())
