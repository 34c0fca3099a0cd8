"""Where texts are split: at a delimiter, or at white space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, product
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.texts import INDEX, WORD, TextFamily, TextFunctionFamily, Texts, TextSchedule
from compiler.target import Target

_WHITE_SPACE = (
    (1, 0x09, 0x0D),
    (1, 0x1C, 0x20),
    (2, 0xC285, 0xC285),
    (2, 0xC2A0, 0xC2A0),
    (3, 0xE19A80, 0xE19A80),
    (3, 0xE28080, 0xE2808A),
    (3, 0xE280A8, 0xE280A9),
    (3, 0xE280AF, 0xE280AF),
    (3, 0xE2819F, 0xE2819F),
    (3, 0xE38080, 0xE38080),
)
"""Unicode's white space in UTF-8, as numbers of so many bytes: the first and the last of each range."""

_UNLIMITED = 1 << 62

Found = Callable[[Reg, Reg, Reg], None]
"""Called with the number of a piece, its first byte and the one behind it."""


@dataclass(frozen=True)
class _Scan:
    """What is done with one text."""

    texts: Texts
    place: Dim
    delimiter: bytes
    limit: int
    found: Found | None

    def run(self) -> Reg:
        """How many pieces there are."""
        b = self.texts.b
        length = self.texts.length(self.place)
        return self._at_delimiters(b, length) if self.delimiter else self._at_white_space(b, length)

    def _at_delimiters(self, b: LoopBuilder, length: Reg) -> Reg:
        size, zero = len(self.delimiter), b.const(0, INDEX)
        with b.loop("i", 0, b.bind(b.op("sub", length, b.const(size - 1, INDEX))), carried=[zero, zero]) as loop:
            (start, count), here = loop.carried, b.index_value(loop.var)
            hit = b.op("and", b.op("ge", here, start), self._matches(b, loop.var))
            hit = b.op("and", hit, b.op("lt", count, b.const(self.limit, INDEX)))
            self._tell(b, hit, count, start, here)
            behind = b.op("select", hit, b.index_value(loop.var + size), start)
            loop.yield_([behind, b.op("add", count, b.cast(hit, DType.INT64))])
        start, count = loop.results
        if self.found is not None:
            self.found(count, start, length)
        return b.op("add", count, b.const(1, INDEX))

    def _matches(self, b: LoopBuilder, at: Dim) -> Reg:
        """Whether the delimiter stands at a byte, behind which the text goes on for as long."""
        differing = b.const(0, INDEX)
        for begin in range(0, len(self.delimiter), WORD):
            part = self.delimiter[begin : begin + WORD]
            mask = (1 << 8 * len(part)) - 1
            word = b.op("and", self.texts.word_at(self.place, at + begin), b.const(_signed(mask), INDEX))
            differing = b.op("or", differing, b.op("xor", word, b.const(_signed(int.from_bytes(part, "little")), INDEX)))
        return b.op("eq", differing, b.const(0, INDEX))

    def _at_white_space(self, b: LoopBuilder, length: Reg) -> Reg:
        zero, outside = b.const(0, INDEX), b.const(-1, INDEX)
        with b.loop("i", 0, b.bind(length), carried=[outside, zero, zero]) as loop:
            (start, count, behind), here = loop.carried, b.index_value(loop.var)
            white, size = _white_space(b, self.texts.word_at(self.place, loop.var))
            skipped = b.op("or", white, b.op("lt", here, behind))
            inside = b.op("ge", start, zero)
            begins = b.op("and", b.op("not", skipped), b.op("not", inside))
            ends = b.op("and", b.op("and", skipped, inside), b.op("lt", count, b.const(self.limit, INDEX)))
            self._tell(b, ends, count, start, here)
            start = b.op("select", begins, here, b.op("select", ends, outside, start))
            behind = b.op("select", white, b.op("add", here, size), behind)
            loop.yield_([start, b.op("add", count, b.cast(ends, DType.INT64)), behind])
        start, count, _ = loop.results
        last = b.op("ge", start, zero)
        self._tell(b, last, count, start, length)
        return b.op("add", count, b.cast(last, DType.INT64))

    def _tell(self, b: LoopBuilder, hit: Reg, count: Reg, start: Reg, end: Reg) -> None:
        if self.found is not None:
            with b.if_less(0, b.bind(b.cast(hit, DType.INT64))):
                self.found(count, start, end)


def _white_space(b: LoopBuilder, word: Reg) -> tuple[Reg, Reg]:
    """Whether white space stands at the beginning of a word, and its bytes."""
    size, number = b.const(0, INDEX), b.const(0, INDEX)
    for count in (1, 2, 3):
        byte = b.op("and", b.op("shr", word, b.const(8 * (count - 1), INDEX)), b.const(0xFF, INDEX))
        number = b.op("or", b.op("shl", number, b.const(8, INDEX)), byte)
        for _, first, last in (found for found in _WHITE_SPACE if found[0] == count):
            inside = b.op("and", b.op("ge", number, b.const(first, INDEX)), b.op("le", number, b.const(last, INDEX)))
            size = b.op("select", inside, b.const(count, INDEX), size)
    return b.op("gt", size, b.const(0, INDEX)), size


def _signed(word: int) -> int:
    """64 bits as an i64."""
    return word - (1 << 64) if word >> 63 else word


def _scan(texts: Texts, place: Dim, workload: Workload, found: Found | None) -> Reg:
    limit = workload.int("limit")
    return _Scan(texts, place, str(workload.attrs["delimiter"]).encode(), _UNLIMITED if limit < 0 else limit, found).run()


class CountPieces(TextFunctionFamily):
    """The family: params ``delimiter`` and ``limit``; the op of that name says what they are."""

    name = "count_pieces"

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        return _scan(texts, places[0], workload, None)


class PieceBounds(TextFamily):
    """The family: params as those of ``count_pieces``; no epilogue."""

    name = "piece_bounds"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors, no epilogue."""
        return super().supports(workload, target) and workload.stores_plainly

    def build(self, workload: Workload, schedule: TextSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), _, out = declare_buffers(b, workload)
        texts, width = Texts(b), workload.output.shape[-2]
        if workload.output.elements == 0:
            return b.function()
        with b.loop("p", 0, product(workload.inputs[0].type.shape), parallel=True) as loop:
            row = loop.var * width * 2
            with b.loop("k", 0, width * 2) as other:
                b.store(out, row + other.var, b.const(0, INDEX))

            def store(number: Reg, start: Reg, end: Reg) -> None:
                at = row + b.bind(number, "n") * 2
                b.store(out, at, start)
                b.store(out, at + 1, b.op("sub", end, start))

            _scan(texts, texts.place(x, loop.var), workload, store)
        return b.function()


register_family(CountPieces())
register_family(PieceBounds())
