"""Numpy's broadcasting of shapes whose dims may be known at run time only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import UnsupportedForm
from compiler.ir.intexpr import Dim, maximum, minimum, symbols


def broadcast_shapes(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The numpy broadcast of shapes with symbolic dims. A symbolic dim is taken to be the number or symbol that it meets, unless that is 1.

    Raises UnsupportedForm where two numbers do not fit.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for axis in range(rank):
        met = _dims_at(shapes, axis, rank)
        numbers = [dim for dim in met if isinstance(dim, int)]
        if len(numbers) > 1:
            raise UnsupportedForm(f"shapes {[tuple(map(str, s)) for s in shapes]} do not broadcast at axis {axis}: {numbers[0]} and {numbers[1]}")
        result.append(next(iter((*numbers, *met)), 1))
    return tuple(result)


def broadcast_assumptions(shapes: Sequence[tuple[Dim, ...]]) -> list[tuple[Dim, Dim]]:
    """What ``broadcast_shapes`` takes to be equal: each symbolic dim and the result's where they differ."""
    result = broadcast_shapes(shapes)
    return [(dim, out) for axis, out in enumerate(result) for dim in _dims_at(shapes, axis, len(result)) if dim != out]


def _dims_at(shapes: Sequence[tuple[Dim, ...]], axis: int, rank: int) -> list[Dim]:
    """The different dims other than 1 that meet at an axis of the result."""
    found = (shape[axis - (rank - len(shape))] for shape in shapes if axis >= rank - len(shape))
    return [dim for dim in dict.fromkeys(found) if dim != 1]


@dataclass(frozen=True)
class Meeting:
    """Dims that meet at an axis of a result, counted from the last, and need not be equal in a run: one of two may be 1.

    ``extent`` is the result's; ``zero`` is 0 where the dims fit.
    """

    axis: int
    left: Dim
    right: Dim
    extent: Dim
    zero: Dim


def meetings(shapes: Sequence[tuple[Dim, ...]]) -> list[Meeting]:
    """The axes at which two dims meet that have nothing to do with each other, so that a run may find 1 in one of them.

    Dims made of the same symbols are left to be equal, as they are but for oddities of a graph's shape arithmetic: broadcasting them at run
    time would make a strange size of every plain one.
    """
    rank = max((len(s) for s in shapes), default=0)
    found = []
    for axis in range(rank):
        met = _dims_at(shapes, axis, rank)
        if len(met) < 2 or sum(isinstance(dim, int) for dim in met) > 1:
            continue
        left, right = sorted(met, key=lambda dim: not isinstance(dim, int))[:2]
        if set(symbols(left)) & set(symbols(right)):
            continue
        zero = (right - left) * (right - 1)
        extent = left
        if not isinstance(left, int):
            zero = zero * (left - 1)
            extent = maximum(left, right) * minimum(1, minimum(left, right))
        found.append(Meeting(rank - axis, left, right, extent, zero))
    return found
