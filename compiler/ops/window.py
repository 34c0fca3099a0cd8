"""Sliding windows: the arithmetic that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as cartesian

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, window_part
from compiler.ir.graph import Array, Attr
from compiler.ir.intexpr import Dim, ceildiv, floordiv, maximum, minimum
from compiler.ir.op import FormContext
from compiler.ops.support import Attrs, attr_ints


def spatial(context: FormContext, name: str, axes: int, default: int) -> tuple[int, ...]:
    """An attribute with one number for each spatial axis, none of them below the default."""
    values = tuple(int(v) for v in context.attrs.get(name, (default,) * axes))
    if len(values) != axes:
        raise UnsupportedForm(f"attribute {name} has {len(values)} numbers for {axes} spatial axes")
    if any(value < default for value in values):
        raise UnsupportedForm(f"attribute {name} is {list(values)}, with a number below {default}")
    return values


def pixel_windows(axes: int) -> dict[str, Attr]:
    """The attributes of a convolution with each position by itself, of a number of spatial axes."""
    ones = (1,) * axes
    return {"strides": ones, "pads": (0,) * 2 * axes, "dilations": ones, "group": 1}


_PADS = 1 << 14
"""Elements of padding along an axis: code depends on which taps of each output lie in it."""


def window_pads(
    context: FormContext, shape: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Dim, ...]:
    """Padding of the spatial axes, begins then ends, from ``pads`` or ``auto_pad``. A run checks what is not known of a window's size."""
    pads = _pads(context, shape, kernel, strides, dilations)
    for axis, dim in enumerate(shape):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if not isinstance(dim, int):
            context.check(1, dim, None, "a spatial axis of its input has {value} elements, where a window needs at least one")
            context.check(extent, dim + pads[axis] + pads[len(shape) + axis], None, "a window of {low} does not fit in {value} elements")
    return pads


def _pads(context: FormContext, shape: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[Dim, ...]:
    axes = len(shape)
    auto = context.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(int(v) for v in context.attrs.get("pads", (0,) * 2 * axes))
        if len(pads) != 2 * axes:
            raise UnsupportedForm(f"attribute pads has {len(pads)} numbers for {axes} spatial axes")
        if not all(0 <= pad <= _PADS for pad in pads):
            raise UnsupportedForm(f"attribute pads is {list(pads)}, with a number that is not from 0 to {_PADS}")
        return pads
    if auto == "VALID":
        return (0,) * 2 * axes
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedForm(f"auto_pad {auto!r} is not known")
    begins: list[Dim] = []
    ends: list[Dim] = []
    for dim, size, stride, dilation in zip(shape, kernel, strides, dilations, strict=True):
        extent = (size - 1) * dilation + 1
        total = (ceildiv(dim, stride) - 1) * stride + extent - dim
        if extent < stride:
            total = maximum(total, 0)
        begin = floordiv(total, 2) if auto == "SAME_UPPER" else total - floordiv(total, 2)
        begins.append(begin)
        ends.append(total - begin)
    return (*begins, *ends)


def output_dim(dim: Dim, kernel: int, stride: int, begin: Dim, end: Dim, dilation: int, *, ceil: bool = False) -> Dim:
    """Windows along one axis; with ``ceil`` a last partial one counts if it starts before the end padding."""
    room = dim + (begin + end - (kernel - 1) * dilation - 1)
    if isinstance(room, int) and room < 0:
        raise UnsupportedForm(f"a window of {(kernel - 1) * dilation + 1} does not fit in {dim} + {begin} + {end} elements")
    if not ceil:
        return floordiv(room, stride) + 1
    count, starts = ceildiv(room, stride) + 1, floordiv(dim + begin - 1, stride) + 1
    shorter = room + stride - (dim + begin)
    return count if isinstance(shorter, int) and shorter <= 0 else minimum(count, starts)


def taps(
    padded: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], out: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For every position in the window: the strided view ``[N, C, *out]`` of padded that it meets."""
    for tap in cartesian(*(range(size) for size in kernel)):
        steps = zip(tap, strides, dilations, out, strict=True)
        yield tap, padded[(..., *(slice(t * d, t * d + (n - 1) * s + 1, s) if n else slice(0, 0) for t, s, d, n in steps))]


def pad_spatial(x: Array, pads: Sequence[int], fill: float, extra: Sequence[int] = ()) -> Array:
    """x with its spatial axes padded; ``extra`` adds to the ends."""
    axes = len(pads) // 2
    more = extra or (0,) * axes
    widths = [(0, 0), (0, 0)] + [(pads[a], pads[axes + a] + more[a]) for a in range(axes)]
    return np.asarray(np.pad(x, widths, constant_values=fill))


def windows_part(box: Box, shape: Sequence[int], kernel: Sequence[int], attrs: Attrs) -> tuple[Box, tuple[int, ...]] | None:
    """The spatial box that the windows of one of the result read, and their padding; None where some read padding alone."""
    strides, dilations, pads = (attr_ints(attrs, name) for name in ("strides", "dilations", "pads"))
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    found = [window_part(*axis) for axis in zip(box, shape, extents, strides, pads[: len(box)], strict=True)]
    known = [axis for axis in found if axis is not None]
    if len(known) < len(found):
        return None
    return tuple(span for span, _ in known), (*(begin for _, (begin, _) in known), *(end for _, (_, end) in known))
