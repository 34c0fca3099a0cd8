"""Branches and loops. Their types and meaning lie in their regions: see ``compiler.ir.control`` and ``compiler.ir.interp``."""

from __future__ import annotations

from compiler.errors import InternalError
from compiler.ir.graph import Array
from compiler.ir.op import Op, register
from compiler.ir.types import TensorType
from compiler.ops.support import Arrays, Attrs, Types


class Branching(Op):
    """An op of regions."""

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        raise InternalError(f"the results of {self.name} have the types that its regions give", where="compiler.ops.control")

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        raise InternalError(f"{self.name} runs its regions, not numpy", where="compiler.ops.control")


@register
class If(Branching):
    """One of two regions, by a condition."""

    name = "if"


@register
class Loop(Branching):
    """A region again and again, while a condition holds or for a number of times."""

    name = "loop"
