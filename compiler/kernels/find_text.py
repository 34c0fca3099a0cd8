"""The number of each text among keys: a lookup in a perfect hash table, and one comparison."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.text_table import FINISH, MIX_BITS, MULTIPLIERS
from compiler.ir.types import DType
from compiler.kernels.base import Workload, register_family
from compiler.kernels.texts import INDEX, TextFunctionFamily, Texts

_HASH = VecType(DType.UINT64, 1)


class FindText(TextFunctionFamily):
    """The family: params ``seed`` and ``missing``; the op of that name says what is read and written."""

    name = "find_text"

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        b, (place,), (displacements, slots, numbers) = texts.b, places, tables
        (buckets,), (size,) = (workload.inputs[k].type.static_shape for k in (1, 2))
        value = _hash(b, texts, place, workload.int("seed"))
        bucket = b.bind(b.cast(b.op("and", value, b.const(buckets - 1, _HASH)), DType.INT64))
        picked = b.op("mul", b.op("xor", value, b.load(displacements, bucket)), b.const(MULTIPLIERS[1], _HASH))
        slot = b.bind(b.cast(b.op("shr", picked, b.const(65 - size.bit_length(), _HASH)), DType.INT64))
        same = texts.equal(place, texts.place(slots, slot))
        return b.op("select", same, b.load(numbers, slot), b.const(workload.int("missing"), INDEX))


def _hash(b: LoopBuilder, texts: Texts, place: Dim, seed: int) -> Reg:
    """``text_hash`` of the text at a place."""
    length = texts.length(place)
    begin = _mixed(b, b.op("xor", b.cast(length, DType.UINT64), b.const(seed, _HASH)))
    with b.loop("w", 0, b.bind(texts.words(length)), carried=[begin]) as loop:
        word = b.cast(texts.word(place, loop.var), DType.UINT64)
        loop.yield_([_mixed(b, b.op("xor", loop.carried[0], word))])
    (value,) = loop.results
    for shift, multiplier in FINISH:
        value = b.op("xor", value, b.op("shr", value, b.const(shift, _HASH)))
        value = value if multiplier is None else b.op("mul", value, b.const(MULTIPLIERS[multiplier], _HASH))
    return value


def _mixed(b: LoopBuilder, value: Reg) -> Reg:
    product = b.op("mul", value, b.const(MULTIPLIERS[0], _HASH))
    return b.op("xor", product, b.op("shr", product, b.const(MIX_BITS, _HASH)))


register_family(FindText())
