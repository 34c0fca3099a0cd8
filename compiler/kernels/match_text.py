"""Whether texts match a regular expression: a deterministic automaton walks over their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Reg
from compiler.ir.types import DType
from compiler.kernels.base import Workload, register_family
from compiler.kernels.texts import INDEX, TextFunctionFamily, Texts


class MatchText(TextFunctionFamily):
    """The family: strings and the tables of an automaton; the op of that name says what they are. Output bool."""

    name = "match_text"

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        b, (place,), (classes, table, accepts) = texts.b, places, tables
        width = workload.inputs[2].type.static_shape[1]
        with b.loop("i", 0, b.bind(texts.length(place)), carried=[b.const(0, INDEX)]) as loop:
            byte = b.bind(b.cast(texts.byte(place, loop.var), DType.INT64))
            column = b.bind(b.cast(b.load(classes, byte), DType.INT64))
            state = b.load(table, b.bind(loop.carried[0]) * width + column)
            loop.yield_([b.cast(state, DType.INT64)])
        return b.load(accepts, b.bind(loop.results[0]))


register_family(MatchText())
