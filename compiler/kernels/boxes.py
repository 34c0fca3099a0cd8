"""Boxes of an output and the loops that compute them: what injective kernels and layout conversions are made of.

A box is walked along axes after neighbours that every tensor walks as one have been joined. Lanes run along the last axis. Where the
source is contiguous along another axis instead, squares of lanes x lanes elements are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

from compiler.ir.intexpr import Apply, Dim, IntExpr, Sym, floordiv, maximum, mod, product, substitute, sym, symbols
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.kernels.base import Epilogue, Workload, broadcast_strides
from compiler.kernels.loops import (
    Axis,
    Chunk,
    collapse,
    coordinates,
    expression_dtypes,
    load_used_lanes,
    parallel_nest,
    transpose_square,
    vector_lanes,
    vector_loop,
    vector_nest,
)
from compiler.target import Target

_MOST_LANES_TRANSPOSED = 16
_MOST_VECTORS_IN_A_PERIOD = 8


@dataclass(frozen=True)
class Box:
    """Part of the output, at physical coordinates ``offset``, as axes to walk.

    The anchor's element is ``inputs[source]`` at flat ``index``, in the axes' symbols; without a source it is ``fill``. ``ends``: every
    channel after those walked in a block is padding.
    """

    offset: tuple[Dim, ...]
    axes: tuple[Axis, ...]
    source: int | None = None
    index: Dim = 0
    fill: float | int | bool = 0
    ends: bool = False


class BoxWriter:
    """Writes one parallel loop nest after another. ``vectors`` is how many vectors one iteration handles."""

    def __init__(
        self, b: LoopBuilder, workload: Workload, target: Target, buffers: tuple[Sequence[Buffer], Sequence[Buffer], Buffer], vectors: int
    ) -> None:
        self._b = b
        self._workload = workload
        self._target = target
        self._inputs, operands, self._out = buffers
        self._vectors = vectors
        self._epilogue = Epilogue(b, workload, operands)
        self._tables = [workload.output_strides, *(broadcast_strides(o.type, workload.output) for o in workload.operands)]
        self._dtypes = [workload.anchor.dtype, *expression_dtypes(*workload.elements)]

    def write(self, box: Box) -> None:
        """Emit the loops of one box."""
        if any(axis.extent == 0 for axis in box.axes):
            return
        steps = [coefficient(box.index, axis.symbol) for axis in box.axes]
        axes = collapse([self._with_strides(axis, step) for axis, step in zip(box.axes, steps, strict=True)])
        if axes and axes[-1].step != 1:  # lanes are stored side by side
            axes = (*axes, Axis(1, len(box.offset) - 1, symbol="one", strides=(0,) * len(axes[-1].strides)))
        kept = {axis.symbol for axis in axes}
        gone = {axis.symbol: 0 for axis in box.axes if axis.symbol not in kept}
        box = self._interleaved(replace(box, axes=axes, index=substitute(box.index, gone)))
        axes = box.axes
        rows = self._contiguous_axis(box)
        if not axes:
            with parallel_nest(self._b, (), self._workload.threads):
                self._vector(box, [], 0, 1, 1, {})
        elif rows is None:
            self._lanes(box)
        else:
            self._transposed(box, rows)

    def _with_strides(self, axis: Axis, step: Dim | None) -> Axis:
        return replace(axis, strides=(*(table[axis.output] * axis.step for table in self._tables), step))

    def _interleaved(self, box: Box) -> Box:
        """The last two axes as one where the last is shorter than a vector and only the source walks them apart."""
        if len(box.axes) < 2 or box.source is None:
            return box
        *rest, outer, last = box.axes
        if not isinstance(last.extent, int) or last.extent == 1:
            return box
        lanes = vector_lanes(self._target, self._dtypes, outer.extent * last.extent)
        vectors = lcm(lanes, last.extent) // lanes
        plain = [replace(axis, strides=axis.strides[:-1]) for axis in (outer, last)]
        if last.extent >= lanes or vectors > _MOST_VECTORS_IN_A_PERIOD or len(collapse(plain)) == 2:
            return box
        both = sym(last.symbol)
        values = {outer.symbol: floordiv(both, last.extent), last.symbol: mod(both, last.extent)}
        axis = replace(last, extent=outer.extent * last.extent, strides=(*plain[1].strides, None))
        return replace(box, axes=(*rest, axis), index=substitute(box.index, values))

    # -- lanes along the last axis ------------------------------------------------------------------------------

    def _lanes(self, box: Box) -> None:
        *outer, last = box.axes
        lanes = vector_lanes(self._target, self._dtypes, last.extent)
        threads, extents = self._workload.threads, [axis.extent for axis in outer]
        if outer and isinstance(last.extent, int) and last.extent <= lanes:
            width = last.extent
            unroll = self._unroll(_period(box.index, outer[-1].symbol))

            def columns(indices: Sequence[Dim], chunks: Sequence[Chunk]) -> None:
                loads: dict[object, Reg] = {}
                for column, _ in chunks:
                    self._vector(box, [*indices, column], 0, lanes, width, loads)

            vector_nest(self._b, extents[:-1], extents[-1], 1, unroll, threads, columns)
            return

        def row(indices: Sequence[Dim], chunks: Sequence[Chunk]) -> None:
            loads: dict[object, Reg] = {}
            for position, count in chunks:
                self._vector(box, indices, position, lanes, count, loads)

        unroll = self._unroll(lcm(lanes, _period(box.index, last.symbol)) // lanes)
        vector_nest(self._b, extents, last.extent, lanes, unroll, threads, row)

    def _unroll(self, period: int) -> int:
        """Vectors of one iteration: whole periods of the index, so that its quotients and remainders are worked out here."""
        return period if 1 < period <= _MOST_VECTORS_IN_A_PERIOD else self._vectors

    def _vector(self, box: Box, outer: Sequence[Dim], position: Dim, lanes: int, count: Dim, loads: dict[object, Reg]) -> None:
        point = [*outer, position] if box.axes else []
        value = self._anchor(box, point, lanes, count, loads)
        axis = box.axes[-1].output if box.axes else -1
        self._store(box, value, point, axis, count, loads)

    def _anchor(self, box: Box, point: Sequence[Dim], lanes: int, count: Dim, loads: dict[object, Reg]) -> Reg:
        if box.source is None:
            return self._b.const(box.fill, VecType(self._workload.anchor.dtype, lanes))
        return load_used_lanes(self._b, self._inputs[box.source], lambda lane: _at(box, point, lane), count, lanes, loads)

    def _store(self, box: Box, value: Reg, point: Sequence[Dim], axis: int, count: Dim, loads: dict[object, Reg] | None = None) -> None:
        place = coordinates(box.offset, box.axes, point)
        partial = count != value.type.lanes and not (box.ends and self._ends_in_padding(place, axis, value.type.lanes))
        self._epilogue.store(self._out, value, place, count if partial else None, loads, axis)

    def _ends_in_padding(self, place: Sequence[Dim], axis: int, lanes: int) -> bool:
        """Whether a vector's unused lanes fall on padding lanes of its channel block, where anything may be stored."""
        lane = place[-1] if self._epilogue.padded and axis == len(place) - 1 else None
        return isinstance(lane, int) and lane + lanes <= self._workload.output.block

    # -- squares transposed in registers ------------------------------------------------------------------------

    def _contiguous_axis(self, box: Box) -> int | None:
        """The axis to read along when lanes along the last one would be read one by one."""
        if box.source is None or len(box.axes) < 2 or box.axes[-1].strides[-1] in (None, 0, 1):
            return None
        lanes, step = vector_lanes(self._target, self._dtypes, box.axes[-1].extent), box.axes[-1].strides[-1]
        for number, axis in enumerate(box.axes[:-1]):
            if axis.strides[-1] == 1:
                return (
                    number if not isinstance(axis.extent, int) or axis.extent * 2 >= lanes or (isinstance(step, int) and abs(step) >= lanes) else None
                )
        return None

    def _transposed(self, box: Box, number: int) -> None:
        rows, last = box.axes[number], box.axes[-1]
        lanes = min(vector_lanes(self._target, self._dtypes, maximum(rows.extent, last.extent)), _MOST_LANES_TRANSPOSED)
        for axis in (number, len(box.axes) - 1):
            if not isinstance(box.axes[axis].extent, int):
                box, rest_box = _split(box, axis, lanes)
                if rest_box.axes[axis].extent != 0:
                    self._lanes(rest_box)
        extents = [axis.extent for axis in box.axes[:-1]]
        rows, last = box.axes[number], box.axes[-1]
        whole, rest = floordiv(rows.extent, lanes), mod(rows.extent, lanes)
        for tiles, height in ((whole, lanes), (1, rest)):
            if tiles == 0 or not isinstance(height, int) or height == 0:
                continue
            extents[number] = tiles
            with parallel_nest(self._b, extents, self._workload.threads) as outer:
                outer[number] = outer[number] * lanes + (whole * lanes if height != lanes else 0)
                vector_loop(self._b, last.extent, lanes, 1, lambda chunks: self._square(box, outer, number, chunks[0], lanes, height))  # noqa: B023 # called at once

    def _square(self, box: Box, outer: Sequence[Dim], number: int, chunk: Chunk, lanes: int, height: int) -> None:
        """Read ``chunk``'s positions as rows of ``height`` elements along axis ``number``, store them as ``height`` vectors."""
        b, (position, count) = self._b, chunk
        if box.source is None or not isinstance(count, int):
            return
        buffer = self._inputs[box.source]
        vectors = [b.load(buffer, _at(box, [*outer, position], lane), lanes, count=height) for lane in range(count)]
        vectors += [vectors[0]] * (lanes - count)
        for row, vector in enumerate(transpose_square(b, vectors)[:height]):
            point = [*outer, position]
            point[number] = point[number] + row
            self._store(box, vector, point, box.axes[-1].output, count)


def _at(box: Box, point: Sequence[Dim], lane: Dim) -> Dim:
    """The source index ``lane`` positions after ``point`` along the last axis."""
    values = {axis.symbol: index for axis, index in zip(box.axes, point, strict=True)}
    step = box.axes[-1].strides[-1] if box.axes else 0
    if step is not None:
        return substitute(box.index, values) + step * lane
    last = box.axes[-1].symbol
    return substitute(box.index, {**values, last: values[last] + lane})


def _split(box: Box, number: int, lanes: int) -> tuple[Box, Box]:
    """box cut along one of its axes: whole vectors, and the positions after them."""
    axis = box.axes[number]
    whole = floordiv(axis.extent, lanes) * lanes

    def part(start: Dim, extent: Dim) -> Box:
        axes = (*box.axes[:number], replace(axis, extent=extent), *box.axes[number + 1 :])
        offset = tuple(x + start * axis.step if k == axis.output else x for k, x in enumerate(box.offset))
        return replace(box, axes=axes, offset=offset, index=substitute(box.index, {axis.symbol: sym(axis.symbol) + start}))

    return part(0, whole), part(whole, axis.extent - whole)


def coefficient(index: Dim, symbol: str) -> Dim | None:
    """What one step of symbol adds to index; None where that depends on where it is taken."""
    if isinstance(index, int):
        return 0
    step: Dim = 0
    for monomial, factor in index.terms:
        rest = tuple(atom for atom in monomial if atom != Sym(symbol))
        without = product([IntExpr((((atom,), 1),), 0) for atom in rest]) * factor
        if len(rest) + 1 == len(monomial) and symbol not in symbols(without):
            step = step + without
        elif symbol in symbols(IntExpr(((monomial, 1),), 0)):
            return None
    return step


def _period(index: Dim, symbol: str) -> int:
    """Steps of symbol after which the quotients and remainders in index repeat, up to an offset."""
    period = 1
    if isinstance(index, IntExpr):
        for monomial, _ in index.terms:
            for atom in monomial:
                if isinstance(atom, Apply):
                    step = coefficient(atom.lhs, symbol)
                    if atom.op in ("floordiv", "mod") and isinstance(atom.rhs, int) and isinstance(step, int) and step:
                        period = lcm(period, atom.rhs // gcd(atom.rhs, step))
                    period = lcm(period, _period(atom.lhs, symbol), _period(atom.rhs, symbol))
    return period
