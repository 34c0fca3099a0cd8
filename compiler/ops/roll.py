"""The elements of an axis from one of them on, then those before it: shifted windows, and the halves that rotary position embedding exchanges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.graph import Array, Region
from compiler.ir.op import register
from compiler.ir.types import TensorType
from compiler.ops.index import IndexMap
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, axis_symbol, first_type, known


@register
class Roll(IndexMap):
    """x along ``axis``, of a known size, from element ``start`` on, and behind them the ``start`` first ones."""

    name = "roll"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, axis, start = first_type(inputs), attr_int(attrs, "axis"), attr_int(attrs, "start")
        if not 0 <= axis < x.rank or not 0 <= start < max(1, known(x.shape[axis], "the axis")):
            raise UnsupportedForm(f"axis {axis} of {x} has no element {start} to begin with")
        return (x,)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (np.roll(array(inputs[0]), -attr_int(attrs, "start"), attr_int(attrs, "axis")),)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        axis, start = attr_int(attrs, "axis"), attr_int(attrs, "start")
        size, (begin, end) = inputs[0].static_shape[axis], box[axis]
        if (begin, end) == (0, size):
            return Part((box,), attrs)
        if begin < size - start < end:
            return None
        moved = start if end <= size - start else start - size
        return Part(((*box[:axis], (begin + moved, end + moved), *box[axis + 1 :]),), {**attrs, "start": 0})

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        x, axis, start = inputs[0], attr_int(attrs, "axis"), attr_int(attrs, "start")
        rest = known(x.shape[axis], "the axis") - start
        found = []
        for offset, extent, first in ((0, rest, start), (rest, start, 0)):
            index = tuple(axis_symbol(a) + (first if a == axis else 0) for a in range(x.rank))
            place = tuple(offset if a == axis else 0 for a in range(x.rank))
            found.append(Region(place, (*x.shape[:axis], extent, *x.shape[axis + 1 :]), 0, index))
        return tuple(found)
