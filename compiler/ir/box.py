"""Boxes of tensors: parts of results that can be computed by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from compiler.ir.graph import Attr

Span = tuple[int, int]
"""The elements of one axis from the first number up to, without, the second; there is at least one."""

Box = tuple[Span, ...]
"""A span for every axis."""


@dataclass(frozen=True)
class Part:
    """How a node's op computes a box of its result: the box that it reads of each operand that is there, and its attributes on these."""

    boxes: tuple[Box, ...]
    attrs: Mapping[str, Attr]


def whole(shape: Iterable[int]) -> Box:
    """All of a tensor."""
    return tuple((0, dim) for dim in shape)


def sizes(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(end - begin for begin, end in box)


def hull(one: Box, other: Box) -> Box:
    """The smallest box around two."""
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def within(box: Box, around: Box) -> Box:
    """A box as seen from one around it."""
    return tuple((begin - origin, end - origin) for (begin, end), (origin, _) in zip(box, around, strict=True))


def slices(box: Box) -> tuple[slice, ...]:
    """A box as numpy's index."""
    return tuple(slice(begin, end) for begin, end in box)


def broadcast_part(shape: Sequence[int], box: Box) -> Box:
    """What an operand gives to a box of a result that it broadcasts to by numpy's rules."""
    own = box[len(box) - len(shape) :]
    return tuple((0, 1) if dim == 1 else span for dim, span in zip(shape, own, strict=True))


def window_part(span: Span, size: int, extent: int, stride: int, pad: int) -> tuple[Span, Span] | None:
    """What windows read of an axis of ``size`` elements after ``pad`` of padding: its span, and the padding before and after that.

    None where they read padding alone.
    """
    first, last = span[0] * stride - pad, (span[1] - 1) * stride - pad + extent
    begin, end = max(first, 0), min(last, size)
    return ((begin, end), (begin - first, last - end)) if begin < end else None


def reshaped(box: Box, shape: Sequence[int], source: Sequence[int]) -> Box | None:
    """The box of a tensor of shape ``source`` that holds, in order, the elements of a box of it as ``shape``; None where there is none."""
    found: list[Span] = []
    left, right = list(zip(shape, box, strict=True)), list(source)
    while left or right:
        own, dims = [left.pop(0)] if left else [], [right.pop(0)] if right else []
        while prod(dim for dim, _ in own) != prod(dims):
            if prod(dim for dim, _ in own) < prod(dims):
                own.append(left.pop(0))
            else:
                dims.append(right.pop(0))
        spans = _block([(dim, span) for dim, span in own if dim != 1], [dim for dim in dims if dim != 1])
        if spans is None:
            return None
        inner = iter(spans)
        found += [(0, 1) if dim == 1 else next(inner) for dim in dims]
    return tuple(found)


def _block(own: Sequence[tuple[int, Span]], dims: Sequence[int]) -> list[Span] | None:
    """Spans of axes ``dims`` for those of axes with as many elements in all; neither has axes of 1."""
    partial = [axis for axis, (dim, span) in enumerate(own) if span != (0, dim)]
    if not partial:
        return [(0, dim) for dim in dims]
    if [dim for dim, _ in own] == list(dims):
        return [span for _, span in own]
    if partial != [0]:
        return None
    begin, end = (bound * prod(dim for dim, _ in own[1:]) for bound in own[0][1])
    step = prod(dims[1:])
    if begin % step or end % step:
        return None
    return [(begin // step, end // step), *((0, dim) for dim in dims[1:])]
