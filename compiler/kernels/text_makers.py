"""Kernels that make texts: how long each is, then its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.texts import INDEX, WORD, Element, TextFamily, Texts, TextSchedule, elements
from compiler.target import Target

_BYTES = VecType(DType.UINT8, WORD)


@dataclass(frozen=True)
class Making:
    """What the kernels of a maker work with: the texts, the workload, its inputs, and the element that is made."""

    texts: Texts
    workload: Workload
    inputs: Sequence[Buffer]
    element: Element

    @property
    def b(self) -> LoopBuilder:
        return self.texts.b

    def operand(self, number: int) -> Reg:
        """The element of an input that broadcasts."""
        return self.b.load(self.inputs[number], self.element.indices[number])

    def place(self, number: int) -> Dim:
        """The text of an input that broadcasts."""
        return self.b.bind(self.operand(number), "place")


class Record:
    """A record being written at a place: words go over what is behind them, which is written later or is to be zeros."""

    def __init__(self, texts: Texts, place: Dim) -> None:
        self._texts = texts
        self._place = place

    def put(self, at: Dim, word: Reg) -> None:
        """Eight bytes from byte ``at`` on, which is no further than the end of the text."""
        b = self._texts.b
        b.store(self._texts.buffer, (self._place + 1) * WORD + at, b.let("bitcast", (word,), _BYTES))

    def put_byte(self, at: Dim, byte: Reg) -> None:
        """One byte of the text."""
        self._texts.b.store(self._texts.buffer, (self._place + 1) * WORD + at, byte)

    def copy(self, at: Dim, source: Dim, start: Dim, length: Reg) -> None:
        """``length`` bytes of the text at ``source``, from byte ``start`` on."""
        b = self._texts.b
        with b.loop("w", 0, b.bind(self._texts.words(length))) as loop:
            self.put(at + loop.var * WORD, self._texts.word_at(source, start + loop.var * WORD))

    def end(self, length: Reg) -> None:
        """The length, and zeros behind the text."""
        b = self._texts.b
        self.put(b.bind(length), b.const(0, INDEX))
        self.put(-WORD, length)


class TextMakerFamily(TextFamily, ABC):
    """A family whose results are texts, each made of the operands at the same position; ``texts`` counts all operands that broadcast."""

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors, no epilogue."""
        return super().supports(workload, target) and workload.stores_plainly

    def build_sizes(self, workload: Workload, schedule: TextSchedule, target: Target, name: str) -> Function:
        """One worker gives every element the place where the one before it ends."""
        b = LoopBuilder(name)
        inputs, _, out = declare_buffers(b, workload)
        texts, end = Texts(b), b.buffer("end", DType.INT64, 1, Access.TEXTS_END)
        if workload.output.elements != 0:
            with elements(b, workload, self.texts, shared=False) as element:
                length = self.length(Making(texts, workload, inputs, element))
                place = b.load(end, 0)
                b.store(out, element.index, b.op("shr", place, b.const(3, INDEX)))
                taken = b.op("and", b.op("add", length, b.const(3 * WORD - 1, INDEX)), b.const(-WORD, INDEX))
                b.store(end, 0, b.op("add", place, taken))
        return b.function()

    def build(self, workload: Workload, schedule: TextSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, _, out = declare_buffers(b, workload)
        texts = Texts(b)
        if workload.output.elements != 0:
            with elements(b, workload, self.texts) as element:
                record = Record(texts, texts.place(out, element.index))
                record.end(self.write(Making(texts, workload, inputs, element), record))
        return b.function()

    @abstractmethod
    def length(self, making: Making) -> Reg:
        """The bytes of a text."""

    @abstractmethod
    def write(self, making: Making, record: Record) -> Reg:
        """Write the bytes of a text; how many they are."""


class ConcatText(TextMakerFamily):
    """The family: two string tensors that broadcast."""

    name = "concat_text"
    texts = 2

    def length(self, making: Making) -> Reg:
        return making.b.op("add", *(making.texts.length(making.place(number)) for number in range(2)))

    def write(self, making: Making, record: Record) -> Reg:
        b, texts = making.b, making.texts
        left, right = making.place(0), making.place(1)
        first, second = texts.length(left), texts.length(right)
        record.copy(0, left, 0, first)
        record.copy(b.bind(first), right, 0, second)
        return b.op("add", first, second)


class PartOfText(TextMakerFamily):
    """The family: strings, and i64 starts and lengths in bytes, which broadcast."""

    name = "part_of_text"
    texts = 3

    def length(self, making: Making) -> Reg:
        return making.operand(2)

    def write(self, making: Making, record: Record) -> Reg:
        length = making.operand(2)
        record.copy(0, making.place(0), making.b.bind(making.operand(1)), length)
        return length


class ChangeCase(TextMakerFamily):
    """The family: the op of that name says what its tables are."""

    name = "change_case"

    def length(self, making: Making) -> Reg:
        return self._converted(making, None)

    def write(self, making: Making, record: Record) -> Reg:
        return self._converted(making, record)

    def _converted(self, making: Making, record: Record | None) -> Reg:
        """The bytes of the converted text, which go to a record where there is one.

        Every byte is looked at as if a character began with it; what is put for one that does not begin one is written over.
        """
        b, texts, place = making.b, making.texts, making.place(0)
        with b.loop("i", 0, b.bind(texts.length(place)), carried=[b.const(0, INDEX)]) as loop:
            word = texts.word_at(place, loop.var)
            begins, size, length, new = self._character(making, word)
            (at,) = loop.carried
            if record is not None:
                record.put(b.bind(at), b.op("select", b.op("eq", length, b.const(0, INDEX)), word, new))
            taken = b.op("select", b.op("eq", length, b.const(0, INDEX)), size, length)
            loop.yield_([b.op("add", at, b.op("select", begins, taken, b.const(0, INDEX)))])
        return loop.results[0]

    def _character(self, making: Making, word: Reg) -> tuple[Reg, Reg, Reg, Reg]:
        """Whether a character begins with a word, its bytes, and the bytes and the word of what stands for it, 0 where it stays."""
        b, (_, pages, entries, lengths, words) = making.b, making.inputs
        code, size, begins = decoded(b, word)
        page = b.bind(b.cast(b.load(pages, b.bind(b.op("shr", code, b.const(7, INDEX)))), DType.INT64))
        entry = b.bind(b.cast(b.load(entries, page * 128 + b.bind(b.op("and", code, b.const(127, INDEX)))), DType.INT64))
        return begins, size, b.load(lengths, entry), b.load(words, entry)


def decoded(b: LoopBuilder, word: Reg) -> tuple[Reg, Reg, Reg]:
    """The code point of the character that a word of UTF-8 begins with, its bytes, and whether one begins there (otherwise some code point)."""

    def number(value: int) -> Reg:
        return b.const(value, INDEX)

    def low(bits: int, shift: int) -> Reg:
        return b.op("and", b.op("shr", word, number(shift)), number(bits))

    lead, tails = low(0xFF, 0), [low(0x3F, 8 * k) for k in (1, 2, 3)]
    code, size = lead, number(1)
    for count, (limit, mask) in enumerate(((0x80, 0x1F), (0xE0, 0x0F), (0xF0, 0x07)), 2):
        value = b.op("and", lead, number(mask))
        for tail in tails[: count - 1]:
            value = b.op("or", b.op("shl", value, number(6)), tail)
        longer = b.op("ge", lead, number(limit))
        code, size = b.op("select", longer, value, code), b.op("select", longer, number(count), size)
    begins = b.op("ne", low(0xC0, 0), number(0x80))
    return b.op("min", code, number(0x10FFFF)), size, begins


register_family(ConcatText())
register_family(PartOfText())
register_family(ChangeCase())
