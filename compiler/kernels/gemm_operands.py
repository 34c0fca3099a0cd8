"""The operands of a matrix multiplication: where their elements lie, and what of them is made in scratch.

Rows of the left one are made where its elements are computed from other tensors, or arrive in a narrower type than is computed in: each once for
all of its uses. Where they are computed as a tensor times a factor of each k, the factor may go into the panels of the right one instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
    of (batch indices, m, vector index). ``sources`` are what a is computed from, if it is, and ``prologue`` gives its element from theirs.
    ``factor`` is what b is multiplied with, one number for each k.
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
    prologue: Scalar | None = None
    factor: Source | None = None

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

    @property
    def product(self) -> tuple[int, int] | None:
        """The numbers of two sources whose product a is, the second one number for each k, where b is in panels; None where a is anything else."""
        element = self.prologue
        if not isinstance(element, Call) or element.fn != "mul" or self.b_row is not None or not isinstance(self.k, int) or self.k == 0:
            return None
        args = [arg.index for arg in element.args if isinstance(arg, Arg)]
        found = next((pair for pair in (args, args[::-1]) if len(set(pair)) == 2 and self.sources[pair[1]].row == 0), None)
        return None if found is None else (found[0], found[1])

    def factored(self) -> Gemm:
        """The same multiplication of the first source of ``product``, the second as b's ``factor``."""
        if self.product is None:
            return self
        a, factor = (self.sources[number] for number in self.product)
        batches = tuple(replace(batch, a=step) for batch, step in zip(self.batches, a.batches, strict=True))
        plain = replace(self, batches=batches, a_start=a.start, a_row=a.row, a_block=a.block, a_lane=a.k)
        return replace(plain, sources=(), prologue=None, factor=factor)

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

    ``buffers`` are what ``Gemm.sources`` are, or a itself. What the prologue makes of single numbers is computed where this is made, once.
    """

    def __init__(self, builder: LoopBuilder, gemm: Gemm, buffers: Sequence[Buffer], rows: Dim) -> None:
        self._builder = builder
        self._gemm = gemm
        self._buffers = buffers
        self.row, self.block = gemm.lanes, rows * gemm.lanes
        self.buffer = builder.buffer("rows", gemm.dtype, ceildiv(gemm.k, gemm.lanes) * self.block, Access.SCRATCH)
        self._numbers: list[Reg] = []
        self._prologue = None if gemm.prologue is None else self._hoisted(gemm.prologue)

    def make(self, indices: Sequence[Dim], rows: Callable[[], AbstractContextManager[tuple[Dim, int, Dim]]]) -> None:
        """Make rows of a, vector by vector of k, as both lie. ``rows`` opens a loop over them: it gives the first, how many, and to which row of
        scratch they go."""
        b, gemm = self._builder, self._gemm
        whole, rest = floordiv(gemm.k, gemm.lanes), mod(gemm.k, gemm.lanes)

        def part(number: Dim, count: Dim) -> None:
            with rows() as (first, size, to):
                loads: dict[tuple[int, Dim], Reg] = {}
                for r in range(size):
                    made = self._made(indices, first + r, number, count, loads)
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

    def _made(self, indices: Sequence[Dim], row: Dim, number: Dim, count: Dim, loads: dict[tuple[int, Dim], Reg]) -> Reg:
        """The elements of a row of a in vector ``number`` of k. ``loads`` remembers what is in registers."""
        b, gemm = self._builder, self._gemm
        if self._prologue is None:
            index = gemm.a_start + row * gemm.a_row + number * gemm.a_block
            for position, batch in zip(indices, gemm.batches, strict=True):
                index = index + position * batch.a
            return load_as(b, gemm.dtype, self._buffers[0], index, gemm.lanes, stride=gemm.a_lane, count=count if gemm.a_lane != 0 else None)
        values = []
        for place, source in enumerate(gemm.sources):
            index = source.start + row * source.row + number * source.block
            for position, step in zip(indices, source.batches, strict=True):
                index = index + position * step
            if (place, index) not in loads:
                loads[place, index] = b.load(self._buffers[place], index, gemm.lanes, stride=source.k, count=count if source.k != 0 else None)
            values.append(loads[place, index])
        return b.scalar(self._prologue, [*values, *self._numbers])


class ScaledPanels:
    """A panel of b at a time in scratch, ``[k][vectors][lanes]`` of at most ``vectors``, times the factor of each k."""

    def __init__(self, builder: LoopBuilder, gemm: Gemm, b: Buffer, factor: Buffer, vectors: int) -> None:
        self._builder = builder
        self._gemm = gemm
        self._b, self._factor = b, factor
        self.buffer = builder.buffer("panel", gemm.dtype, gemm.k * vectors * gemm.lanes, Access.SCRATCH)

    def make(self, indices: Sequence[Dim], start: Dim, vectors: int) -> None:
        """Make the panel of so many vectors that is at ``start`` of b."""
        b, gemm, factor = self._builder, self._gemm, self._gemm.factor
        width = vectors * gemm.lanes
        if factor is None:
            return
        origin = factor.start
        for position, step in zip(indices, factor.batches, strict=True):
            origin = origin + position * step
        whole, rest = floordiv(gemm.k, gemm.lanes), mod(gemm.k, gemm.lanes)

        def part(block: Dim, steps: Sequence[Dim]) -> None:
            for k in steps:
                scale = b.load(self._factor, origin + block * factor.block + k * factor.k, gemm.lanes, stride=0)
                for v in range(vectors):
                    place = (block * gemm.lanes + k) * width + v * gemm.lanes
                    b.store(self.buffer, place, b.op("mul", load_as(b, gemm.dtype, self._b, start + place, gemm.lanes), scale))

        with b.loop("k", 0, whole) as loop:
            part(loop.var, range(gemm.lanes))
        if isinstance(rest, int) and rest:
            part(whole, range(rest))
