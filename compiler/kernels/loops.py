"""Loop-nest writing shared by the kernel families: loops over boxes, vector loops with tails, lane permutations, folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from compiler.ir.intexpr import Dim, ceildiv, floordiv, minimum, mod, product
from compiler.ir.loop import Buffer, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array, Scalar, parts
from compiler.ir.types import DType, pack_physical
from compiler.kernels.base import Workload, broadcast_strides, physical_strides
from compiler.target import Target

_PARTS_PER_WORKER = 4
"""Iterations of a parallel loop for each worker: what is left uneven is at most a quarter of one worker's part."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def vector_lanes(target: Target, dtypes: Sequence[DType], extent: Dim) -> int:
    """Lanes for values of all these types over an axis of ``extent`` elements: the widest type fills a vector.

    Half-precision values count as float32, in which they are computed.
    """
    widest = max(max(dtype.itemsize, 4 if dtype.is_float else 1) for dtype in dtypes)
    widest_vector = target.vector_bits // (8 * widest)
    return max(1, min(widest_vector, power_of_two(extent)) if isinstance(extent, int) else widest_vector)


def fewer(most: int, extent: Dim, size: int = 1) -> int:
    """``most``, or as many parts of ``size`` as cover ``extent`` where that is known to be fewer."""
    return min(most, -(-extent // size)) if isinstance(extent, int) else most


def expression_dtypes(*exprs: Scalar) -> set[DType]:
    """The types of all sub-expressions."""
    return {part.dtype for part in parts(*exprs)}


def pack_plain(workload: Workload, constants: Sequence[Array | None]) -> list[Array | None]:
    """Constant inputs and operands as they lie in memory in their own layouts."""
    operands = (*workload.inputs, *workload.operands)
    return [None if c is None else pack_physical(c, operand.type.block) for operand, c in zip(operands, constants, strict=True)]


# -- axes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A loop over ``extent``: one step adds ``step`` to the coordinate along physical output axis ``output`` (-1: it is folded away).

    It adds ``strides[t]`` to the index into tensor t of those walked together. ``symbol`` is its variable in a box's index.
    """

    extent: Dim
    output: int
    step: int = 1
    symbol: str = ""
    strides: tuple[Dim | None, ...] = ()

    @property
    def stride(self) -> Dim:
        """The stride of the first tensor."""
        return self.strides[0] or 0


def collapse(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """axes without those of extent 1, neighbours that every tensor walks as one joined. A stride of None joins with nothing."""
    found: list[Axis] = []
    for axis in axes:
        if axis.extent == 1:
            continue
        if found and _joins(found[-1], axis):
            outer = found.pop()
            found.append(replace(axis, extent=outer.extent * axis.extent))
        else:
            found.append(axis)
    return tuple(found)


def _joins(outer: Axis, inner: Axis) -> bool:
    pairs = zip(outer.strides, inner.strides, strict=True)
    return (outer.output < 0) == (inner.output < 0) and all(a is not None and b is not None and a == b * inner.extent for a, b in pairs)


def axes_of(workload: Workload) -> list[Axis]:
    """The axes of a row-major output, walked together with ``inputs[0]`` of the same shape and the epilogue's operands."""
    output = workload.output
    tables = [physical_strides(workload.inputs[0].type), workload.output_strides, *(broadcast_strides(o.type, output) for o in workload.operands)]
    return [Axis(extent, k, strides=tuple(table[k] for table in tables)) for k, extent in enumerate(output.shape)]


def coordinates(offset: Sequence[Dim], axes: Sequence[Axis], indices: Sequence[Dim]) -> tuple[Dim, ...]:
    """Physical output coordinates of one point of a box at ``offset``."""
    place = list(offset)
    for axis, index in zip(axes, indices, strict=True):
        if axis.output >= 0:
            place[axis.output] = place[axis.output] + index * axis.step
    return tuple(place)


def offset(axes: Sequence[Axis], indices: Sequence[Dim]) -> Dim:
    """The index into the first tensor that a point of axes gives."""
    total: Dim = 0
    for axis, index in zip(axes, indices, strict=True):
        total = total + index * axis.stride
    return total


# -- loops --------------------------------------------------------------------------------------------------------------


@contextmanager
def parallel_nest(b: LoopBuilder, extents: Sequence[Dim], threads: int) -> Iterator[list[Dim]]:
    """Loops over extents; the outermost of them, as many as keep every worker busy, are one parallel loop. Gives the indices."""
    shared = next((k for k in range(1, len(extents)) if _keeps_busy(product(extents[:k]), threads)), len(extents))
    with b.loop("p", 0, product(extents[:shared]), parallel=True) as loop:
        indices = unflatten(loop.var, extents[:shared])
        with serial_nest(b, extents[shared:]) as rest:
            yield indices + rest


def _keeps_busy(extent: Dim, threads: int) -> bool:
    """Whether a parallel loop over extent is known to give every worker enough to do."""
    return extent != 1 if threads == 1 else isinstance(extent, int) and extent >= _PARTS_PER_WORKER * threads


@contextmanager
def serial_nest(b: LoopBuilder, extents: Sequence[Dim]) -> Iterator[list[Dim]]:
    """Loops over extents, the first outermost. Gives the indices."""
    with ExitStack() as stack:
        yield [0 if extent == 1 else stack.enter_context(b.loop("i", 0, extent)).var for extent in extents]


def unflatten(flat: Dim, extents: Sequence[Dim]) -> list[Dim]:
    """The indices along extents of row-major position ``flat``."""
    indices: list[Dim] = []
    outermost = next((k for k, extent in enumerate(extents) if extent != 1), len(extents))
    for k in reversed(range(len(extents))):
        if k <= outermost:
            indices.append(flat if k == outermost else 0)
        else:
            indices.append(mod(flat, extents[k]))
            flat = floordiv(flat, extents[k])
    return indices[::-1]


Chunk = tuple[Dim, Dim]
"""A vector's first position along its axis and how many of its lanes are in use."""


def vector_loop(b: LoopBuilder, extent: Dim, lanes: int, unroll: int, body: Callable[[list[Chunk]], None], *, parallel: bool = False) -> None:
    """``body`` for groups of up to ``unroll`` vectors that cover ``extent`` positions; the last vector may be partial."""
    step = lanes * unroll
    groups = floordiv(extent, step)
    if groups != 0:
        with b.loop("v", 0, groups, parallel=parallel) as loop:
            body([(loop.var * step + u * lanes, lanes) for u in range(unroll)])
    if not isinstance(extent, int):
        with b.loop("v", groups * unroll, ceildiv(extent, lanes), parallel=parallel) as loop:
            body([(loop.var * lanes, used_lanes(loop.var * lanes, extent, lanes))])
        return
    rest: list[Chunk] = [(position, min(lanes, extent - position)) for position in range(extent - extent % step, extent, lanes)]
    if rest and parallel:
        with b.loop("v", 0, 1, parallel=True):
            body(rest)
    elif rest:
        body(rest)


def used_lanes(position: Dim, extent: Dim, lanes: int) -> Dim:
    """Lanes in use of a vector at a position below ``extent``."""
    return minimum(lanes, extent - position) if lanes > 1 else 1


def vector_nest(
    b: LoopBuilder, extents: Sequence[Dim], last: Dim, lanes: int, unroll: int, threads: int, body: Callable[[Sequence[Dim], list[Chunk]], None]
) -> None:
    """``body`` for every point of ``extents`` and every group of vectors that covers ``last`` positions.

    The workers share the outer loops, or the vectors where there are too few outer iterations.
    """
    outer_extent = product(extents)
    if not isinstance(outer_extent, int) or outer_extent >= threads or (isinstance(last, int) and last < threads * lanes):
        with parallel_nest(b, extents, threads) as outer:
            vector_loop(b, last, lanes, unroll, lambda chunks: body(outer, chunks))
        return

    def across(chunks: list[Chunk]) -> None:
        with serial_nest(b, extents) as outer:
            body(outer, chunks)

    vector_loop(b, last, lanes, unroll, across, parallel=True)


# -- lanes --------------------------------------------------------------------------------------------------------------


def load_as(b: LoopBuilder, dtype: DType, buffer: Buffer, index: Dim, lanes: int, *, stride: Dim = 1, count: Dim | None = None) -> Reg:
    """A load converted to dtype; one element for every lane is converted once."""
    if stride == 0 and buffer.dtype is not dtype:
        return b.splat(b.cast(b.load(buffer, index), dtype), lanes)
    return b.cast(b.load(buffer, index, lanes, stride=stride, count=count), dtype)


def load_used_lanes(
    b: LoopBuilder, buffer: Buffer, index: Callable[[Dim], Dim], count: Dim, lanes: int, loads: dict[object, Reg] | None = None
) -> Reg:
    """``load_lanes`` of ``index(lane)`` for the first ``count`` lanes, which may be known at run time only."""
    if isinstance(count, int):
        return load_lanes(b, buffer, [index(lane) for lane in range(count)], lanes, loads)
    indices = [index(lane) for lane in range(lanes)]
    known = {} if loads is None else loads
    if all(right - left == 1 for left, right in pairwise(indices)):
        return _load(b, known, buffer, indices[0], lanes, 1, count)
    if all(other == indices[0] for other in indices):
        return _load(b, known, buffer, indices[0], lanes, 0)
    return _inserted(b, known, buffer, [index(minimum(lane, count - 1)) for lane in range(lanes)], lanes)


def load_lanes(b: LoopBuilder, buffer: Buffer, indices: Sequence[Dim], lanes: int, loads: dict[object, Reg] | None = None) -> Reg:
    """One vector whose first lanes are the elements at ``indices``; the other lanes are unspecified.

    Indices that lie a constant apart are read as few whole vectors and permuted; nothing but the elements from the
    first to the last index of such a vector is read. ``loads`` remembers the vectors read.
    """
    known = {} if loads is None else loads
    count = len(indices)
    if lanes == 1 or all(index == indices[0] for index in indices):
        return _load(b, known, buffer, indices[0], lanes, 0)
    if all(right - left == 1 for left, right in pairwise(indices)):
        return _load(b, known, buffer, indices[0], lanes, 1, count)
    distances = [d for d in (index - indices[0] for index in indices) if isinstance(d, int)]
    if len(distances) == count:
        windows = _windows(distances, lanes)
        if len(windows) * 2 <= count:
            return _permuted(b, known, buffer, indices[0], lanes, distances, windows)
    return _inserted(b, known, buffer, indices, lanes)


def _inserted(b: LoopBuilder, known: dict[object, Reg], buffer: Buffer, indices: Sequence[Dim], lanes: int) -> Reg:
    """Elements read one by one."""
    vector = b.const(0, VecType(buffer.dtype, lanes))
    for lane, index in enumerate(indices):
        vector = b.let("insert", (vector, _load(b, known, buffer, index, 1, 0)), vector.type, lane)
    return vector


def _windows(distances: Sequence[int], lanes: int) -> list[tuple[int, int]]:
    """The fewest (start, elements) that cover distances with at most ``lanes`` elements each."""
    found: list[tuple[int, int]] = []
    for distance in sorted(set(distances)):
        if found and distance - found[-1][0] < lanes:
            found[-1] = (found[-1][0], distance - found[-1][0] + 1)
        else:
            found.append((distance, 1))
    return found


def _permuted(
    b: LoopBuilder, known: dict[object, Reg], buffer: Buffer, first: Dim, lanes: int, distances: Sequence[int], windows: Sequence[tuple[int, int]]
) -> Reg:
    vector: Reg | None = None
    for start, size in windows:
        window = _load(b, known, buffer, first + start, lanes, 1, size)
        picks = [distance - start if start <= distance < start + size else None for distance in distances]
        if vector is None:
            mask = tuple(pick or 0 for pick in picks)
            vector = b.shuffle(window, window, mask + (0,) * (lanes - len(mask)))
        else:
            mask = tuple(lane if pick is None else lanes + pick for lane, pick in enumerate(picks))
            vector = b.shuffle(vector, window, mask + (0,) * (lanes - len(mask)))
    return vector if vector is not None else b.const(0, VecType(buffer.dtype, lanes))


def _load(b: LoopBuilder, known: dict[object, Reg], buffer: Buffer, index: Dim, lanes: int, stride: int, count: Dim | None = None) -> Reg:
    key = (buffer.name, index, lanes, stride, count)
    if key not in known:
        known[key] = b.load(buffer, index, lanes, stride=stride if lanes > 1 else 1, count=count if lanes > 1 else None)
    return known[key]


def transpose_square(b: LoopBuilder, rows: Sequence[Reg]) -> list[Reg]:
    """The columns of n vectors of n lanes, n a power of two, by log2(n) rounds of exchanges between pairs of rows."""
    vectors, lanes = list(rows), len(rows)
    half = lanes // 2
    while half:
        low = tuple(lane if lane & half == 0 else lanes + lane - half for lane in range(lanes))
        high = tuple(lane + half if lane & half == 0 else lanes + lane for lane in range(lanes))
        for row in range(lanes):
            if row & half == 0:
                pair = vectors[row], vectors[row + half]
                vectors[row], vectors[row + half] = b.shuffle(*pair, low), b.shuffle(*pair, high)
        half //= 2
    return vectors


def number(b: LoopBuilder, value: Dim, dtype: DType) -> Reg:
    """A number that may be known at run time only, as a scalar of dtype."""
    return b.const(value, VecType(dtype, 1)) if isinstance(value, int) else b.cast(b.index_value(value), dtype)


def mask_tail(b: LoopBuilder, value: Reg, count: Dim, identity: Reg) -> Reg:
    """value with the lanes from ``count`` on replaced by those of identity."""
    lanes = value.type.lanes
    return value if count == lanes else b.op("select", b.first_lanes(count, lanes), value, identity)
