"""Conversion between layouts."""

from __future__ import annotations

from compiler.ir.graph import Array
from compiler.ir.op import Op, register
from compiler.ir.types import TensorType
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, first_type


@register
class ToLayout(Op):
    """The same logical values with channels in blocks of ``block`` (1: row-major)."""

    name = "to_layout"
    families = ("layout",)

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (first_type(inputs).with_block(attr_int(attrs, "block")),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return (array(inputs[0]),)
