"""Interleaving: groups of channels become the neighbouring positions of fewer channels, what a convolution by phases ends with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Region
from compiler.ir.intexpr import Dim, floordiv, mod
from compiler.ir.op import register
from compiler.ir.types import TensorType
from compiler.ops.index import IndexMap
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, attr_ints, axis_symbol, first_type, known


@register
class Interleave(IndexMap):
    """``x [N, P * C, *S]`` as ``[N, C, *(S * strides)]``, P the product of ``strides``, in each of ``group`` groups of channels.

    Position ``q * strides + r`` of channel c of a group is position q of its channel ``p * C + c``, p the row-major number of r.
    """

    name = "interleave"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, strides = first_type(inputs), attr_ints(attrs, "strides")
        channels = known(x.shape[1], "the channels")
        group = attr_int(attrs, "group")
        if x.rank != 2 + len(strides) or group < 1 or channels % (prod(strides) * group):
            raise UnsupportedForm(f"strides {list(strides)} in {group} groups do not fit {x}")
        spatial = (dim * stride for dim, stride in zip(x.shape[2:], strides, strict=True))
        return (TensorType(x.dtype, (x.shape[0], channels // prod(strides), *spatial)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x, strides, group = array(inputs[0]), attr_ints(attrs, "strides"), attr_int(attrs, "group")
        axes, channels = len(strides), x.shape[1] // prod(strides)
        split = x.reshape(x.shape[0], group, *strides, channels // group, *x.shape[2:])
        order = (0, 1, 2 + axes, *(n for a in range(axes) for n in (3 + axes + a, 2 + a)))
        spatial = (dim * stride for dim, stride in zip(x.shape[2:], strides, strict=True))
        return (split.transpose(order).reshape(x.shape[0], channels, *spatial),)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        strides, (result,) = attr_ints(attrs, "strides"), self.infer(inputs, attrs)
        phase: Dim = 0
        for a, stride in enumerate(strides):
            phase = phase * stride + mod(axis_symbol(2 + a), stride)
        width = max(1, known(result.shape[1], "the channels") // attr_int(attrs, "group"))
        channel = (floordiv(axis_symbol(1), width) * prod(strides) + phase) * width + mod(axis_symbol(1), width)
        channel = channel if width != result.shape[1] else phase * width + axis_symbol(1)
        places = (floordiv(axis_symbol(2 + a), stride) for a, stride in enumerate(strides))
        return (Region((0,) * result.rank, result.shape, 0, (axis_symbol(0), channel, *places)),)
