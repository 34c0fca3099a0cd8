"""Branches and loops. Their types and meaning lie in their regions: see ``compiler.ir.control`` and ``compiler.ir.interp``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Node, Value
from compiler.ir.intexpr import Dim, sym
from compiler.ir.op import FormContext, Op, register
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


Body = Callable[[FormContext, Dim, Sequence[Value], Sequence[Value]], tuple[Value | None, Sequence[Value]]]
"""Emits an iteration from its number, the carried values and what is captured: the condition to go on (None: always), the next values."""


def repeat(
    context: FormContext, trips: Dim | None, condition: Value | None, initial: Sequence[Value], captured: Sequence[Value], body: Body
) -> list[Value]:
    """The last of carried values, whose types stay, after a ``loop`` for as long as conditions hold and at most ``trips`` times."""
    builder = context.builder
    inner = GraphBuilder("body", around=builder)
    carried = [inner.input(v.name, v.type) for v in initial]
    seen = [inner.input(v.name, v.type) for v in captured]
    number = builder.symbol(natural=True)
    going, following = body(replace(context, builder=inner, declared=()), sym(number), carried, seen)
    results = [*([] if going is None else [going]), *following]
    outputs = tuple(Value(builder.unique(context.name or "loop"), v.type) for v in initial)
    attrs = {"trips": trips, "iteration": number, "carried": len(initial), "has_condition": going is not None, "symbols": ()}
    region = inner.graph(results)
    count = builder.symbol(natural=True)
    builder.append(Node("loop", (condition, *initial, *captured), outputs, {**attrs, "count": count}, (region,), context.name))
    return list(outputs)
