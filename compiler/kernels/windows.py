"""Sliding windows (convolution, pooling) as tiles whose border taps are known at build time."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir.intexpr import Dim, maximum, minimum
from compiler.kernels.gemm import sections


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window operation, in elements; ``pad`` is what lies before the input."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    pad: int

    def taps(self, position: int) -> tuple[int, ...]:
        """The taps of output ``position`` that fall inside the input."""
        first = position * self.stride - self.pad
        return tuple(k for k in range(self.kernel) if 0 <= first + k * self.dilation < self.size)


@dataclass(frozen=True)
class TileRun:
    """``count`` consecutive tiles of ``size`` outputs from ``start`` on; ``taps[i]`` are the taps of each tile's output i."""

    start: int
    count: int
    size: int
    taps: tuple[tuple[int, ...], ...]


def tile_runs(axis: Axis, largest: int) -> list[TileRun]:
    """The outputs of an axis in tiles of at most ``largest``, neighbours of equal size and taps joined in one run."""
    runs: list[TileRun] = []
    for section in sections(axis.out, largest):
        for tile in range(section.count):
            start = section.start + tile * section.size
            taps = tuple(axis.taps(start + i) for i in range(section.size))
            last = runs[-1] if runs else None
            if last is not None and (last.size, last.taps) == (section.size, taps):
                runs[-1] = TileRun(last.start, last.count + 1, last.size, taps)
            else:
                runs.append(TileRun(start, 1, section.size, taps))
    return runs


def spatial_axes(
    size: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...]
) -> list[Axis]:
    """The axes of a window operation from ONNX-style attributes (``pads``: all begins, then all ends)."""
    return [Axis(*values) for values in zip(size, out, kernel, strides, dilations, pads[: len(size)], strict=True)]


def tap_bounds(axis: Axis, first: Dim) -> tuple[Dim, Dim]:
    """The range of taps of an output whose tap 0 reads input position ``first`` that fall inside the input."""
    if axis.pad == 0 and (axis.out - 1) * axis.stride + (axis.kernel - 1) * axis.dilation < axis.size:
        return 0, axis.kernel
    low = maximum(0, (-first + (axis.dilation - 1)) // axis.dilation)
    high = minimum(axis.kernel, (-first + (axis.size - 1)) // axis.dilation + 1)
    return low, high
