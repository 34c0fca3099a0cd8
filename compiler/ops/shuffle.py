"""Channel shuffle: the channels of several groups in turn, what follows grouped convolutions (ShuffleNet, arXiv:1707.01083, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, sizes
from compiler.ir.graph import Array, Region
from compiler.ir.intexpr import Dim, floordiv, mod
from compiler.ir.op import register
from compiler.ir.types import TensorType
from compiler.ops.index import IndexMap
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, axis_symbol, first_type, known


@register
class ShuffleChannels(IndexMap):
    """``size`` channels from ``start`` on of ``x [N, group * K, *S]`` with its groups in turn.

    Channel ``k * group + g`` of all of them is channel ``g * K + k`` of x.
    """

    name = "shuffle_channels"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, group, start, size = first_type(inputs), *(attr_int(attrs, name) for name in ("group", "start", "size"))
        channels = known(x.shape[1], "the channels")
        if group < 1 or channels % group or not 0 <= start <= start + size <= channels:
            raise UnsupportedForm(f"{size} channels from {start} on of {group} groups do not fit {x}")
        return (TensorType(x.dtype, (x.shape[0], size, *x.shape[2:])),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, group, start = array(inputs[0]), attr_int(attrs, "group"), attr_int(attrs, "start")
        split = x.reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])
        return (split.swapaxes(1, 2).reshape(x.shape)[:, start : start + attr_int(attrs, "size")],)

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        x, start = inputs[0].static_shape, attr_int(attrs, "start") + box[1][0]
        return Part(((box[0], (0, x[1]), *box[2:]),), {**attrs, "start": start, "size": sizes(box)[1]})

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        x, group = inputs[0], attr_int(attrs, "group")
        (result,) = self.infer(inputs, attrs)
        number = axis_symbol(1) + attr_int(attrs, "start")
        channel: Dim = mod(number, group) * (known(x.shape[1], "the channels") // group) + floordiv(number, group)
        index = (axis_symbol(0), channel, *(axis_symbol(axis) for axis in range(2, x.rank)))
        return (Region((0,) * x.rank, result.shape, 0, index),)
