"""The left operand of a matrix multiplication: where its elements lie, and rows of it that are made in scratch.

Rows are made where elements are computed from other tensors, or arrive in a narrower type than is computed in: each once for all of its uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compiler.ir.intexpr import Dim, ceildiv, floordiv, mod
from compiler.ir.loop import Access, Buffer, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Arg, Call, Scalar, parts
from compiler.ir.types import DType
from compiler.kernels.loops import load_as

_ROWS_BYTES = 1 << 18
"""The most that rows which are computed take in scratch, all at once."""
_FEWEST_ROWS = 32
"""Rows from which a piece of them is worth a walk over all of b."""


@dataclass(frozen=True)
class Batch:
    """An outer loop: its extent and what one step adds to the indices of a and b."""

    extent: Dim
    a: Dim
    b: Dim


@dataclass(frozen=True)
class Source:
    """A tensor that elements of a are computed from: where it begins, and what a step of each batch, of a row and of k adds to the index into it.

    A step of k adds ``k`` within a vector; one from vector to vector adds ``block``.
    """

    start: Dim
    batches: tuple[Dim, ...]
    row: Dim
    k: Dim
    block: Dim

    @property
    def is_number(self) -> bool:
        """Whether it is one element for all of a."""
        return not any(step != 0 for step in (*self.batches, self.row, self.k, self.block))


@dataclass(frozen=True)
class Gemm:
    """The shape and addressing of one multiplication, in elements.

    Element (m, k) of a is at ``a_start + m * a_row + (k // lanes) * a_block + (k % lanes) * a_lane``. b begins at ``b_start``;
    ``b_row`` is the distance of two k of an unpacked one; None: it is packed. ``coordinates`` gives the physical output coordinates
    of (batch indices, m, vector index). ``sources`` are what a is computed from, if it is.
    """

    batches: tuple[Batch, ...]
    m: Dim
    n: Dim
    k: Dim
    lanes: int
    dtype: DType
    a_row: Dim
    a_block: Dim
    a_lane: Dim
    b_row: Dim | None
    coordinates: Callable[[Sequence[Dim], Dim, Dim], tuple[Dim, ...]]
    sources: tuple[Source, ...] = ()
    a_start: Dim = 0
    b_start: Dim = 0

    @property
    def vectors(self) -> Dim:
        """Vectors in a row of the output, the last perhaps partial."""
        return ceildiv(self.n, self.lanes)

    @property
    def rows_fit(self) -> bool:
        """Whether all rows of a that are computed stay in a cache of the second level beside what else it holds."""
        return isinstance(self.m, int) and self.m <= self._most_rows

    @property
    def _most_rows(self) -> int:
        return _ROWS_BYTES // max(1, self.k * self.dtype.itemsize) if isinstance(self.k, int) else 0

    def in_pieces(self) -> Gemm:
        """The same multiplication, where rows are computed that do not fit a cache, with pieces of them that do, of one size, as one more batch."""
        most = self._most_rows
        if not self.sources or not isinstance(self.m, int) or self.m <= most:
            return self
        size = next((size for size in range(most, _FEWEST_ROWS - 1, -1) if self.m % size == 0), None)
        if size is None:
            return self
        whole = self.coordinates

        def coordinates(indices: Sequence[Dim], m: Dim, vector: Dim) -> tuple[Dim, ...]:
            return whole(indices[:-1], indices[-1] * size + m, vector)

        return replace(
            self,
            batches=(*self.batches, Batch(self.m // size, size * self.a_row, 0)),
            m=size,
            coordinates=coordinates,
            sources=tuple(replace(source, batches=(*source.batches, source.row * size)) for source in self.sources),
        )


class MadeRows:
    """Rows of a in scratch, as channels in blocks lie: ``[k / lanes][rows][lanes]``, in the type computed in.

    ``buffers`` are what ``Gemm.sources`` are, of which ``prologue`` computes an element, or a itself. What the prologue makes of single numbers is
    computed where this is made, once.
    """

    def __init__(self, builder: LoopBuilder, gemm: Gemm, buffers: Sequence[Buffer], prologue: Scalar | None, rows: Dim) -> None:
        self._builder = builder
        self._gemm = gemm
        self._buffers = buffers
        self.row, self.block = gemm.lanes, rows * gemm.lanes
        self.buffer = builder.buffer("rows", gemm.dtype, ceildiv(gemm.k, gemm.lanes) * self.block, Access.SCRATCH)
        self._numbers: list[Reg] = []
        self._prologue = None if prologue is None else self._hoisted(prologue)

    def make(self, indices: Sequence[Dim], first: Dim, rows: int, to: Dim) -> None:
        """Make rows of a from ``first`` on at row ``to`` of scratch."""
        b, gemm = self._builder, self._gemm
        whole, rest = floordiv(gemm.k, gemm.lanes), mod(gemm.k, gemm.lanes)

        def part(number: Dim, count: Dim) -> None:
            for r in range(rows):
                made = self._made(indices, first + r, number, count)
                b.store(self.buffer, number * self.block + (to + r) * self.row, made, count=count)

        with b.loop("k", 0, whole) as loop:
            part(loop.var, gemm.lanes)
        if isinstance(rest, int) and rest:
            part(whole, rest)
        elif rest != 0:
            with b.if_less(0, rest):
                part(whole, rest)

    def _hoisted(self, expr: Scalar) -> Scalar:
        """The prologue with operands, behind its own, for what is one number all over a: it is computed here, once."""
        b, gemm = self._builder, self._gemm
        numbers = {number for number, source in enumerate(gemm.sources) if source.is_number}
        same: set[Scalar] = set()
        first: dict[Scalar, Scalar] = {}
        for part in parts(expr):
            if isinstance(part, Call):
                varies = [arg for arg in part.args if arg not in same]
                first.update({arg: arg for arg in part.args if varies and arg in same and isinstance(arg, Call)})
                same.update(() if varies else (part,))
            elif not isinstance(part, Arg) or part.index in numbers:
                same.add(part)
        loads = {number: b.load(self._buffers[number], gemm.sources[number].start, gemm.lanes, stride=0) for number in sorted(numbers)}
        unread = next(iter(loads.values()), None)
        values = [loads.get(number, unread) for number in range(len(self._buffers))]
        self._numbers = b.scalars([*first], [value for value in values if value is not None])
        for number, part in enumerate(first):
            first[part] = Arg(len(self._buffers) + number, part.dtype)
        made: dict[Scalar, Scalar] = {}
        for part in parts(expr):
            made[part] = first.get(part) or (Call(part.fn, tuple(made[arg] for arg in part.args), part.dtype) if isinstance(part, Call) else part)
        return made[expr]

    def _made(self, indices: Sequence[Dim], row: Dim, number: Dim, count: Dim) -> Reg:
        """The elements of a row of a in vector ``number`` of k."""
        b, gemm = self._builder, self._gemm
        if self._prologue is None:
            index = gemm.a_start + row * gemm.a_row + number * gemm.a_block
            for position, batch in zip(indices, gemm.batches, strict=True):
                index = index + position * batch.a
            return load_as(b, gemm.dtype, self._buffers[0], index, gemm.lanes, stride=gemm.a_lane, count=count if gemm.a_lane != 0 else None)
        values = []
        for buffer, source in zip(self._buffers, gemm.sources, strict=True):
            index = source.start + row * source.row + number * source.block
            for position, step in zip(indices, source.batches, strict=True):
                index = index + position * step
            values.append(b.load(buffer, index, gemm.lanes, stride=source.k, count=count if source.k != 0 else None))
        return b.scalar(self._prologue, [*values, *self._numbers])
