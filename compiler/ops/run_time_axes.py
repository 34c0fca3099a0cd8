"""Axes that only a run knows: which ones are named, and the shapes without or with them, as arithmetic on dims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext
from compiler.ir.run_time import is_equal, wrapped
from compiler.ops.dims import iota, number
from compiler.ops.support import reshape
from compiler.ops.tables import combined, laid


def named(context: FormContext, axes: Sequence[Dim], rank: int) -> list[Dim]:
    """For every axis of a tensor of that rank 1 where it is one of axes, else 0; that none is named twice is checked."""
    for axis in axes:
        context.check(-rank, axis, rank - 1, f"axis {{value}} does not exist in a tensor of rank {rank}")
    places = [wrapped(axis, rank) for axis in axes]
    found = [context.builder.define(sum((is_equal(place, axis) for place in places), start=0)) for axis in range(rank)]
    for hit in found:
        context.check(None, hit, 1, "an axis is named {value} times")
    return found


def without(context: FormContext, dims: Sequence[Dim], hits: Sequence[Dim], count: int) -> list[Dim]:
    """The ``count`` dims that are not named, in order."""
    before = [sum((1 - hit for hit in hits[:axis]), start=0) for axis in range(len(dims))]
    kept = [[(1 - hit) * is_equal(place, j) * dim for dim, hit, place in zip(dims, hits, before, strict=True)] for j in range(count)]
    return [context.builder.define(sum(terms, start=0)) for terms in kept]


def spread(context: FormContext, dims: Sequence[Dim], hits: Sequence[Dim]) -> list[Dim]:
    """dims with a 1 at every axis that is named."""
    before = [sum((1 - hit for hit in hits[:axis]), start=0) for axis in range(len(hits))]
    taken = [sum((is_equal(place, b) * dim for b, dim in enumerate(dims)), start=0) for place in before]
    return [context.builder.define(hit + (1 - hit) * dim) for hit, dim in zip(hits, taken, strict=True)]


def gathered(context: FormContext, x: Value, hits: Sequence[Dim]) -> Value:
    """x as ``[elements of the axes that are not named, elements of the named ones]``."""
    shape = x.type.shape
    kept = [context.builder.define(dim + hit * (1 - dim)) for dim, hit in zip(shape, hits, strict=True)]
    rest = [context.builder.define(1 + hit * (dim - 1)) for dim, hit in zip(shape, hits, strict=True)]
    rows, columns = context.builder.define(product(kept)), context.builder.define(product(rest))
    if product(shape) == 0:
        return context.emit("expand", context.const(np.zeros((), x.type.dtype.numpy)), shape=(rows, columns))
    down = _positions(context, reshape(context, iota(context, rows), (rows, 1)), kept, shape)
    across = _positions(context, reshape(context, iota(context, columns), (1, columns)), rest, shape)
    flat = reshape(context, x, (product(shape),))
    return context.emit("gather", flat, context.emit("add", down, across), axis=0)


def _positions(context: FormContext, numbers: Value, sizes: Sequence[Dim], shape: Sequence[Dim]) -> Value:
    """The row-major positions, in a tensor of ``shape``, of elements counted row-major in a part of it of ``sizes``."""
    total = context.emit("mul", numbers, number(context, 0))
    for axis, size in enumerate(sizes):
        outer = context.emit("div", numbers, number(context, context.builder.define(product(sizes[axis + 1 :]))))
        along = context.emit("mod", outer, number(context, size), fmod=False)
        total = context.emit("add", total, context.emit("mul", along, number(context, product(shape[axis + 1 :]))))
    return total


def ungathered(context: FormContext, x: Value, shape: Sequence[Dim], hits: Sequence[Dim]) -> Value:
    """What ``gathered`` gave, or something with as many rows, as a tensor of ``shape``."""
    kept, rest = (
        [context.builder.define(1 + part * (dim - 1)) for dim, part in zip(shape, parts, strict=True)] for parts in ([1 - h for h in hits], hits)
    )
    columns, places = product(rest), None
    for axis, (dim, hit) in enumerate(zip(shape, hits, strict=True)):
        stride = (1 - hit) * product(kept[axis + 1 :]) * columns + hit * product(rest[axis + 1 :])
        along = laid(context, combined(context, "mul", iota(context, dim), number(context, context.builder.define(stride))), axis, len(shape))
        places = along if places is None else context.emit("add", places, along)
    flat = reshape(context, x, (product(x.type.shape),))
    return flat if places is None else context.emit("gather", flat, places, axis=0)
