"""Sliding windows (convolution, pooling) as tiles whose border taps are known at build time, or masked where sizes are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, IntExpr, ceildiv, floordiv, maximum, minimum, mod
from compiler.ir.loop import Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Workload
from compiler.kernels.loops import power_of_two
from compiler.kernels.tiles import sections

UNROLLED_TAPS = 16
"""Taps along an axis up to which each has code of its own; more are walked by loops."""


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window operation, in elements; ``pad`` is what lies before the input."""

    size: Dim
    out: Dim
    kernel: int
    stride: int
    dilation: int
    pad: Dim

    @property
    def is_static(self) -> bool:
        """Whether every size is known."""
        return isinstance(self.size, int) and isinstance(self.out, int) and isinstance(self.pad, int)

    @property
    def cut(self) -> bool:
        """Whether some output may have taps outside the input."""
        beyond = self.stop - self.out
        return self.pad != 0 or not isinstance(beyond, int) or beyond < 0

    @property
    def start(self) -> Dim:
        """The first output none of whose taps lies before the input."""
        return ceildiv(self.pad, self.stride)

    @property
    def stop(self) -> Dim:
        """The first output some of whose taps lie behind the input; it may be past the last."""
        return floordiv(self.size + self.pad - (self.kernel - 1) * self.dilation - 1, self.stride) + 1

    def first(self, position: Dim) -> Dim:
        """The input position that tap 0 of output ``position`` reads."""
        return position * self.stride - self.pad


@dataclass(frozen=True)
class TileRun:
    """``count`` tiles of ``size`` outputs from ``start`` on; ``taps[i]`` are the taps of each tile's output i.

    ``masked``: which of these taps fall inside the input is only known at run time. Tiles from number ``gap[0]`` on stand ``gap[1]`` tiles
    later: what lies between is a run of its own.
    """

    start: Dim
    count: Dim
    size: int
    taps: tuple[tuple[int, ...], ...]
    masked: bool = False
    gap: tuple[Dim, Dim] = (0, 0)

    def position(self, tile: Dim) -> Dim:
        """The first output of a tile."""
        begin, length = self.gap
        behind = 0 if length == 0 else minimum(maximum(tile - begin + 1, 0), 1)
        return (tile + behind * length) * self.size + self.start


def tile_runs(axis: Axis, largest: int, *, known: bool = True) -> list[TileRun]:
    """The outputs of an axis in tiles of at most ``largest``, neighbours of equal size and taps joined in one run.

    Where sizes are known at run time only, or not to be made use of: whole tiles, those at the borders masked, and what is left in powers of two.
    """
    if not known or not (isinstance(axis.out, int) and axis.is_static):
        return [run for run in _run_time_tiles(axis, largest) if run.count != 0]
    runs: list[TileRun] = []
    for section in sections(axis.out, largest):
        tile = 0
        while tile < section.count:
            start = section.start + tile * section.size
            taps = tuple(static_taps(axis, start + i) for i in range(section.size))
            alike = 1
            if isinstance(axis.stop, int) and all(len(found) == axis.kernel for found in taps):
                alike = min(section.count - tile, (axis.stop - start) // section.size)  # up to the border behind, every tap is inside
            last = runs[-1] if runs else None
            if last is not None and (last.size, last.taps) == (section.size, taps):
                runs[-1] = TileRun(last.start, last.count + alike, last.size, taps)
            else:
                runs.append(TileRun(start, alike, section.size, taps))
            tile += alike
    return runs


def _run_time_tiles(axis: Axis, largest: int) -> list[TileRun]:
    every = tuple(range(axis.kernel))
    whole = floordiv(axis.out, largest)
    if axis.cut:
        begin = minimum(ceildiv(axis.start, largest), whole)
        end = maximum(begin, minimum(floordiv(axis.stop, largest), whole))
        border = TileRun(0, begin + whole - end, largest, (every,) * largest, masked=True, gap=(begin, end - begin))
        runs = [border, TileRun(begin * largest, end - begin, largest, (every,) * largest)]
    else:
        runs = [TileRun(0, whole, largest, (every,) * largest)]
    start, rest = whole * largest, mod(axis.out, largest)
    size = power_of_two(largest) // 2
    while size:
        runs.append(TileRun(start, floordiv(rest, size), size, (every,) * size, masked=axis.cut))
        start, rest = start + floordiv(rest, size) * size, mod(rest, size)
        size //= 2
    return runs


@dataclass(frozen=True)
class TapRun:
    """``count`` times ``size`` neighbouring taps, from ``first`` on, which are read by the same outputs of a tile each time."""

    first: int
    count: int
    size: int

    def walk(self, b: LoopBuilder, accs: list[Reg], body: Callable[[Dim, list[Reg]], list[Reg]]) -> list[Reg]:
        """The sums after all its taps; ``body`` gives those after ``size`` taps from a position on."""
        if self.count == 1:
            return body(self.first, accs)
        with b.loop("t", 0, self.count, carried=accs) as t:
            t.yield_(body(t.var * self.size + self.first, list(t.carried)))
        return list(t.results)


def tap_runs(run: TileRun, kernel: int, size: int = 1) -> list[TapRun]:
    """The taps of a tile, at most ``size`` at a time: one run each, or those that are alike in one where they are many."""
    single = [TapRun(section.start + tile * section.size, 1, section.size) for section in sections(kernel, size) for tile in range(section.count)]
    if kernel <= UNROLLED_TAPS:
        return single
    bounds = [(taps[0], taps[-1]) if taps else (kernel, -1) for taps in run.taps]
    found: list[tuple[list[list[bool]], TapRun]] = []
    for taps in single:
        readers = [[low <= tap <= high for low, high in bounds] for tap in range(taps.first, taps.first + taps.size)]
        if found and found[-1][0] == readers:
            last = found[-1][1]
            found[-1] = readers, TapRun(last.first, last.count + 1, last.size)
        else:
            found.append((readers, taps))
    return [taps for _, taps in found]


def static_taps(axis: Axis, position: int) -> tuple[int, ...]:
    """The taps of output ``position`` that fall inside the input, of an axis whose sizes are known."""
    first, size = axis.first(position), axis.size
    if not isinstance(first, int) or not isinstance(size, int):
        raise InternalError(f"the taps of {axis} are not known", where="compiler.kernels")
    return tuple(k for k in range(axis.kernel) if 0 <= first + k * axis.dilation < size)


def spatial_axes(workload: Workload, kernel: Sequence[int]) -> list[Axis]:
    """The axes of a window operation: its sizes, and its ONNX-style params (``pads``: all begins, then all ends)."""
    sizes, outs = workload.inputs[0].type.shape[2:], workload.output.shape[2:]
    begins = window_pads(workload)[: len(sizes)]
    return [Axis(*values) for values in zip(sizes, outs, kernel, workload.ints("strides"), workload.ints("dilations"), begins, strict=True)]


def window_pads(workload: Workload) -> tuple[Dim, ...]:
    """The param ``pads``."""
    pads = workload.attrs["pads"]
    return tuple(pad for pad in pads if isinstance(pad, int | IntExpr)) if isinstance(pads, tuple) else ()


def tap_bounds(axis: Axis, first: Dim) -> tuple[Dim, Dim]:
    """The range of taps of an output whose tap 0 reads input position ``first`` that fall inside the input."""
    if not axis.cut:
        return 0, axis.kernel
    low = maximum(0, (-first + (axis.dilation - 1)) // axis.dilation)
    high = minimum(axis.kernel, (-first + (axis.size - 1)) // axis.dilation + 1)
    return low, high


@dataclass(frozen=True)
class Read:
    """A position of an axis that is read. Where it may lie outside the input, ``inside`` says whether it does not, as all bits or none of an
    i32 vector, and ``place`` is the nearest one inside."""

    place: Dim
    inside: Reg | None = None


def masked_read(b: LoopBuilder, axis: Axis, position: Dim, lanes: int) -> Read:
    """The read of vectors at a position that may lie outside the input, which is not empty."""
    place = minimum(maximum(position, 0), axis.size - 1)
    same = b.op("eq", b.index_value(place), b.index_value(position))
    return Read(place, b.splat(b.op("neg", b.cast(same, DType.INT32)), lanes))


def mask(b: LoopBuilder, value: Reg, insides: Sequence[Reg | None]) -> Reg:
    """A float32 vector where every one of ``insides`` holds, else zeros."""
    given = [inside for inside in insides if inside is not None]
    if not given:
        return value
    bits = given[0]
    for other in given[1:]:
        bits = b.op("and", bits, other)
    kept = b.op("and", b.let("bitcast", (value,), VecType(DType.INT32, value.type.lanes)), bits)
    return b.let("bitcast", (kept,), value.type)
