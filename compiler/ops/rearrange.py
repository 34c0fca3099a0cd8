"""A transpose with the reshapes around it as one index map, so that neither ties a layout."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Region
from compiler.ir.intexpr import Dim, floordiv, mod
from compiler.ir.op import register
from compiler.ir.regroup import Shape, runs
from compiler.ir.types import TensorType
from compiler.ops.index import IndexMap
from compiler.ops.support import Arrays, Attrs, Types, array, attr_dims, attr_ints, axis_symbol, first_type


@register
class Rearrange(IndexMap):
    """``x`` reshaped to ``split``, its axes in the order of ``perm``, and that reshaped to ``shape`` (dims).

    The fold-reshapes pass makes it of a space-to-batch, ``[N, H, B, W, B, C]`` as ``[B, B, N, H, W, C]``, and its like.
    """

    name = "rearrange"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, split, shape = first_type(inputs), attr_dims(attrs, "split"), attr_dims(attrs, "shape")
        moved = tuple(split[axis] for axis in attr_ints(attrs, "perm"))
        if runs(x.shape, split) is None or runs(moved, shape) is None:
            raise UnsupportedForm(f"{x} cannot be split as {split} and joined as {shape}")
        return (TensorType(x.dtype, shape),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        x = array(inputs[0]).reshape(attr_ints(attrs, "split"))
        return (x.transpose(attr_ints(attrs, "perm")).reshape(attr_ints(attrs, "shape")),)

    def regions(self, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Region, ...]:
        split, perm, shape = attr_dims(attrs, "split"), attr_ints(attrs, "perm"), attr_dims(attrs, "shape")
        moved = tuple(split[axis] for axis in perm)
        found = _regrouped([axis_symbol(axis) for axis in range(len(shape))], shape, moved)
        index = _regrouped([found[perm.index(axis)] for axis in range(len(perm))], split, inputs[0].shape)
        return (Region((0,) * len(shape), shape, 0, tuple(index)),)


def _regrouped(index: Sequence[Dim], before: Shape, after: Shape) -> list[Dim]:
    """The index into a tensor of shape ``after`` of the element that has ``index`` under the shape ``before``."""
    found, at = list[Dim](), 0
    for dims, axes in runs(before, after) or ():
        flat: Dim = 0
        for place, dim in zip(index[at : at + len(dims)], dims, strict=True):
            flat = flat * dim + place
        at += len(dims)
        parts = list[Dim]()
        for number, dim in enumerate(reversed(after[axes])):
            outermost = number == axes.stop - axes.start - 1
            parts.append(0 if dim == 1 else flat if outermost else mod(flat, dim))
            flat = floordiv(flat, dim)
        found += reversed(parts)
    return found
