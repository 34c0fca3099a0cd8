"""Normalisation of groups of channels that share blocks: sums of each channel, which lanes have, become those of groups in scratch.

A *section* is the fewest whole blocks that hold whole groups; workers share batch and sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import lcm

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, floordiv, minimum, product
from compiler.ir.loop import Access, Buffer, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.kernels.base import Epilogue, Workload
from compiler.kernels.folds import Fold
from compiler.kernels.loops import expression_dtypes, fewer, serial_nest, unflatten, vector_lanes
from compiler.kernels.moments import Center, Factors, Moments, element_dtypes
from compiler.kernels.rows import RowSchedule
from compiler.target import Target


def write_groups(
    b: LoopBuilder, workload: Workload, schedule: RowSchedule, target: Target, buffers: tuple[Buffer, Buffer], epilogue: Epilogue
) -> None:
    """The body of a kernel that normalises groups of any number of channels, in blocks, each with all of its positions."""
    groups = _Groups(b, workload, schedule, target, buffers, epilogue)
    batch, sections = workload.output.shape[0], groups.sections
    with b.loop("p", 0, batch * sections, parallel=True) as loop:
        groups.write(*unflatten(loop.var, (batch, sections)))


class _Groups:
    def __init__(
        self, b: LoopBuilder, workload: Workload, schedule: RowSchedule, target: Target, buffers: tuple[Buffer, Buffer], epilogue: Epilogue
    ) -> None:
        _, channels, *positions = workload.output.shape
        if not isinstance(channels, int):
            raise InternalError(f"{channels} channels are in blocks", where="kernel family normalize")
        self._b = b
        self._anchor = workload.anchor.dtype
        self._x, self._out = buffers
        self._epilogue = epilogue
        self._channels, self._block, self._positions = channels, workload.output.block, positions
        self._width = channels // workload.int("groups")
        self._blocks = -(-channels // self._block)
        self._section = min(lcm(self._width, self._block), self._blocks * self._block)
        self.sections = -(-channels // self._section)
        self._lanes = vector_lanes(target, [*element_dtypes(workload), *expression_dtypes(*workload.elements)], self._block)
        self._unroll = fewer(schedule.vectors, product(positions))
        chain = product(positions) if self._unroll == 1 else floordiv(product(positions), self._unroll) + 1
        self._moments = Moments(b, workload, chain + self._width)
        wide, dtype = self._moments.sum.dtype, self._moments.dtype
        self._totals = [b.buffer(f"total{k}", wide, self._section, Access.SCRATCH) for k in range(self._moments.squares.width)]
        self._mean, self._rest = (b.buffer(name, dtype, self._section, Access.SCRATCH) for name in ("mean", "rest"))
        self._scale, self._shift = (b.buffer(name, dtype, self._section, Access.SCRATCH) for name in ("scale", "shift"))

    def write(self, image: Dim, section: Dim) -> None:
        """One section of one image."""
        moments, width = self._moments, self._width
        if moments.centers:
            self._sum(image, section, moments.sum, self._totals[:1], lambda _: None)
            with self._groups(section) as first:
                (total,) = self._across_channels(self._totals[:1], first)
                center = moments.center(total)
                self._fill(first, width, [(self._mean, center.mean), (self._rest, center.rest)])
        self._sum(image, section, moments.squares, self._totals, lambda channel: self._center(channel, self._lanes))
        with self._groups(section) as first:
            factors = moments.factors(self._across_channels(self._totals, first), self._center(first, 1))
            self._fill(first, width, [(self._scale, factors.scale), (self._shift, factors.shift)])
        self._apply(image, section)

    @contextmanager
    def _groups(self, section: Dim) -> Iterator[Dim]:
        """A loop over the groups of a section. Gives the first channel of each, counted from the section's."""
        with self._b.loop("g", 0, floordiv(self._used(section, self._channels, self._section), self._width)) as loop:
            yield loop.var * self._width

    @contextmanager
    def _vectors(self, section: Dim) -> Iterator[tuple[Dim, list[int]]]:
        """A loop over the blocks of a section. Gives the block, counted from the section's, and the first lane of each of its vectors."""
        with self._b.loop("c", 0, self._used(section, self._blocks, self._section // self._block)) as loop:
            yield loop.var, list(range(0, self._block, self._lanes))

    def _used(self, section: Dim, whole: int, each: int) -> Dim:
        """How many of ``whole`` things a section has, of which all but the last have ``each``."""
        return each if whole % each == 0 else minimum(each, whole - section * each)

    def _sum(self, image: Dim, section: Dim, fold: Fold, into: Sequence[Buffer], center_of: Callable[[Dim], Center | None]) -> None:
        """Sums over the positions of each channel, to scratch, of deviations from the centers of the vectors that begin at a channel."""
        extent = product(self._positions)
        with self._vectors(section) as (block, starts):
            base = self._first(image, section, block)
            for start in starts:
                channel = block * self._block + start
                center = center_of(channel)

                def elements(position: Dim, _: Dim, at: Dim = base + start, center: Center | None = center) -> list[Reg]:
                    return [self._moments.deviation(self._read(at + position * self._block), center)]

                rows = fold.along(extent, 1, [[fold.start(self._lanes)] * len(into)] * self._unroll, elements)
                for buffer, total in zip(into, fold.join(rows), strict=True):
                    self._b.store(buffer, channel, total)

    def _across_channels(self, totals: Sequence[Buffer], first: Dim) -> list[Reg]:
        """The sums of a group from those of its channels."""
        fold, b = self._moments.sum, self._b
        rows = [[fold.start(1)] * len(totals)]
        return fold.join(fold.along(self._width, 1, rows, lambda channel, _: [b.load(total, first + channel) for total in totals]))

    def _fill(self, first: Dim, count: int, numbers: Sequence[tuple[Buffer, Reg | None]]) -> None:
        """Numbers of a group, to scratch for each of its channels."""
        with self._b.loop("i", 0, count) as loop:
            for buffer, number in numbers:
                if number is not None:
                    self._b.store(buffer, first + loop.var, number)

    def _center(self, channel: Dim, lanes: int) -> Center | None:
        if not self._moments.centers:
            return None
        rest = None if self._moments.finds_rest else self._b.load(self._rest, channel, lanes)
        return Center(self._b.load(self._mean, channel, lanes), rest)

    def _apply(self, image: Dim, section: Dim) -> None:
        b, centers = self._b, self._moments.centers
        with self._vectors(section) as (block, starts):
            base, place = self._first(image, section, block), section * (self._section // self._block) + block
            for start in starts:
                channel = block * self._block + start
                scale = b.load(self._scale, channel, self._lanes)
                mean, shift = (b.load(buffer, channel, self._lanes) if centers else None for buffer in (self._mean, self._shift))
                factors = Factors(mean, scale, shift)
                with serial_nest(b, self._positions) as at:
                    index: Dim = 0
                    for position, extent in zip(at, self._positions, strict=True):
                        index = index * extent + position
                    value = self._moments.apply(self._read(base + index * self._block + start), factors)
                    self._epilogue.store(self._out, b.cast(value, self._anchor), (image, place, *at, start))

    def _first(self, image: Dim, section: Dim, block: Dim) -> Dim:
        """The first element of a block of a section."""
        number = image * self._blocks + section * (self._section // self._block) + block
        return number * product(self._positions) * self._block

    def _read(self, index: Dim) -> Reg:
        return self._b.cast(self._b.load(self._x, index, self._lanes), self._moments.dtype)
