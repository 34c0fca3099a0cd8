"""A concatenation that moves nothing."""

from __future__ import annotations

from itertools import accumulate

from compiler.ir.graph import Array
from compiler.ir.intexpr import Dim, mod, product
from compiler.ir.op import Op, register
from compiler.ir.types import TensorType
from compiler.ops.index import Concat
from compiler.ops.support import Arrays, Attrs, Types, attr_int, given

_CONCAT = Concat()


@register
class Join(Op):
    """The operands one after the other along ``axis``, each made where it lies in the result."""

    name = "join"

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return _CONCAT.infer(inputs, attrs)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        return _CONCAT.evaluate(inputs, attrs)

    def held_offsets(self, inputs: Types, attrs: Attrs, result: TensorType) -> tuple[Dim, ...] | None:
        """Operands lie together if the axes before ``axis`` have one element and, but for the last's, their channels end with a block."""
        axis, types = attr_int(attrs, "axis"), [given(t) for t in inputs]
        if any(t.block != result.block for t in types) or product(result.physical_shape[:axis]) != 1:
            return None
        if axis == 1 and any(mod(t.shape[1], t.block) != 0 for t in types[:-1]):
            return None
        return tuple(accumulate((t.elements for t in types[:-1]), initial=0))
