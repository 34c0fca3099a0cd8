"""What the kernels on texts share: loops over elements, and texts read by words and bytes.

``runtime/texts.py`` says how texts lie in memory. A *place* is an element of a string tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, IntExpr, sym
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.program import TEXTS
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers
from compiler.kernels.loops import Axis, collapse, coordinates, pack_plain, parallel_nest, serial_nest
from compiler.target import Target

INDEX = VecType(DType.INT64, 1)
WORD = 8
"""Bytes of a word, and of a record before its text."""


@dataclass(frozen=True)
class TextSchedule:
    """Nothing to choose."""


class TextFamily:
    """What families on texts have in common: row-major tensors, the first ``texts`` inputs strings that broadcast; nothing to choose."""

    name: str
    texts = 1

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors."""
        return all(type_.block == 1 for type_ in (*(o.type for o in (*workload.inputs, *workload.operands)), workload.output))

    def heuristic(self, workload: Workload, target: Target) -> TextSchedule:
        return TextSchedule()

    def space(self, workload: Workload, target: Target) -> Sequence[TextSchedule]:
        return [TextSchedule()]

    def pack(self, workload: Workload, schedule: TextSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def flops(self, workload: Workload) -> Dim:
        return workload.output.elements


class TextFunctionFamily(TextFamily, ABC):
    """A family whose results are a function of the texts at the same position: ``value`` writes it."""

    def build(self, workload: Workload, schedule: TextSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, operands, out = declare_buffers(b, workload)
        texts, tables = Texts(b), inputs[self.texts :]
        if workload.output.elements != 0:
            epilogue = Epilogue(b, workload, operands)
            with elements(b, workload, self.texts) as element:
                places = [texts.place(buffer, index) for buffer, index in zip(inputs, element.indices, strict=False)]
                epilogue.store(out, self.value(texts, places, workload, tables), element.coordinates)
        return b.function()

    @abstractmethod
    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        """The result for the texts at places."""


@dataclass(frozen=True)
class Element:
    """One element of the output: its coordinates and index, and where the inputs that broadcast to it lie."""

    coordinates: tuple[Dim, ...]
    indices: tuple[Dim, ...]
    index: Dim


@contextmanager
def elements(b: LoopBuilder, workload: Workload, texts: int, *, shared: bool = True) -> Iterator[Element]:
    """A loop over the elements of the output, in order, which the workers share or one of them runs; the first ``texts`` inputs broadcast."""
    output = workload.output
    given = [broadcast_strides(operand.type, output) for operand in workload.inputs[:texts]]
    tables = [*given, workload.output_strides, *(broadcast_strides(o.type, output) for o in workload.operands)]
    axes = collapse([Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(output.shape)])
    extents = [axis.extent for axis in axes]
    with parallel_nest(b, extents, workload.threads) if shared else _alone(b, extents) as at:
        indices = [_index(axes, at, table) for table in range(texts + 1)]
        yield Element(coordinates((0,) * output.rank, axes, at), tuple(indices[:-1]), indices[-1])


@contextmanager
def _alone(b: LoopBuilder, extents: Sequence[Dim]) -> Iterator[list[Dim]]:
    with b.loop("p", 0, 1, parallel=True), serial_nest(b, extents) as at:
        yield at


def _index(axes: Sequence[Axis], at: Sequence[Dim], table: int) -> Dim:
    total: Dim = 0
    for axis, position in zip(axes, at, strict=True):
        total = total + position * (axis.strides[table] or 0)
    return total


class Texts:
    """Reads texts; make one when all other buffers but that of a status are declared."""

    def __init__(self, b: LoopBuilder) -> None:
        self.b = b
        self.buffer = b.buffer("texts", DType.UINT8, sym(TEXTS), Access.TEXTS)

    def place(self, buffer: Buffer, index: Dim) -> IntExpr:
        """An element of a string tensor, for indices."""
        return self.b.bind(self.b.load(buffer, index), "place")

    def length(self, place: Dim) -> Reg:
        """The bytes of the text at a place."""
        return self._word(place * WORD)

    def word(self, place: Dim, number: Dim) -> Reg:
        """Eight bytes of the text at a place, as an i64; behind its end there are eight zeros or more."""
        return self._word(place * WORD + number * WORD + WORD)

    def word_at(self, place: Dim, byte: Dim) -> Reg:
        """Eight bytes from a byte of the text on."""
        return self._word(place * WORD + byte + WORD)

    def byte(self, place: Dim, number: Dim) -> Reg:
        """A byte of the text at a place."""
        return self.b.load(self.buffer, place * WORD + number + WORD)

    def words(self, length: Reg) -> Reg:
        """The words that a text of that many bytes takes."""
        b = self.b
        return b.op("shr", b.op("add", length, b.const(WORD - 1, INDEX)), b.const(3, INDEX))

    def equal(self, left: Dim, right: Dim) -> Reg:
        """Whether two texts are the same: their lengths, and where these agree their words."""
        b = self.b
        length, other = self.length(left), self.length(right)
        compared = b.op("mul", self.words(length), b.cast(b.op("eq", length, other), DType.INT64))
        with b.loop("w", 0, b.bind(compared), carried=[b.op("xor", length, other)]) as loop:
            differing = b.op("xor", self.word(left, loop.var), self.word(right, loop.var))
            loop.yield_([b.op("or", loop.carried[0], differing)])
        return b.op("eq", loop.results[0], b.const(0, INDEX))

    def less(self, left: Dim, right: Dim) -> Reg:
        """Whether a text comes before another one: the order of UTF-8's bytes is that of code points."""
        b, zero = self.b, self.b.const(0, INDEX)
        length, other = self.length(left), self.length(right)
        with b.loop("w", 0, b.bind(b.op("min", self.words(length), self.words(other))), carried=[zero]) as loop:
            one, two = (self._in_order(place * WORD + loop.var * WORD + WORD) for place in (left, right))
            sign = b.op("sub", b.cast(b.op("gt", one, two), DType.INT64), b.cast(b.op("lt", one, two), DType.INT64))
            loop.yield_([b.op("select", b.op("eq", loop.carried[0], zero), sign, loop.carried[0])])
        sign = loop.results[0]
        shorter = b.op("and", b.op("eq", sign, zero), b.op("lt", length, other))
        return b.op("or", b.op("lt", sign, zero), shorter)

    def _in_order(self, byte: Dim) -> Reg:
        """Eight bytes, the first one the most significant."""
        b = self.b
        loaded = b.load(self.buffer, byte, WORD)
        return b.let("bitcast", (b.shuffle(loaded, loaded, tuple(reversed(range(WORD)))),), VecType(DType.UINT64, 1))

    def _word(self, byte: Dim) -> Reg:
        return self.b.let("bitcast", (self.b.load(self.buffer, byte, WORD),), INDEX)
