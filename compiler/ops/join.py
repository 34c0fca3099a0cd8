"""A concatenation that moves nothing."""

from __future__ import annotations

from itertools import accumulate

from compiler.ir.graph import Array
from compiler.ir.intexpr import Dim, floordiv, mod
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

    def held_starts(self, inputs: Types, attrs: Attrs, result: TensorType) -> tuple[tuple[Dim, ...], ...] | None:
        """Operands in the result's layout, whose channels, but for the last's, end with a block where they are joined; dims are known to agree."""
        axis, types = attr_int(attrs, "axis"), [given(t) for t in inputs]
        blocked = axis == 1 and result.block != 1
        if any(t.block != result.block or t.shape != (*result.shape[:axis], t.shape[axis], *result.shape[axis + 1 :]) for t in types):
            return None
        if blocked and any(mod(t.shape[1], t.block) != 0 for t in types[:-1]):
            return None
        begins = accumulate((t.shape[axis] for t in types[:-1]), initial=0)
        rank = len(result.physical_shape)
        return tuple(tuple((floordiv(begin, result.block) if blocked else begin) if k == axis else 0 for k in range(rank)) for begin in begins)
