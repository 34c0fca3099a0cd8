"""Comparing texts: equality, and looking texts up among keys known when a model is compiled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from compiler.ir.automaton import Automaton, automaton
from compiler.ir.broadcast import broadcast_assumptions, broadcast_shapes
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.text_table import text_table
from compiler.ir.types import DType, TensorType
from compiler.ops.support import Arrays, Attrs, Types, array, attr_int, given

_TEXTS = np.array(["a.b@c.com", "a@b.org", "@b.com", "a@b.com\n", ""], object)


class TextFunction(Op):
    """A function of texts: its first ``texts`` operands are strings, which broadcast; the others are tables."""

    takes_strings = True
    texts: ClassVar[int] = 1
    result: ClassVar[DType]

    @abstractmethod
    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        """What it is of one text of each operand."""

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(self.result, broadcast_shapes([given(t).shape for t in inputs[: self.texts]])),)

    def assumes(self, inputs: Types, attrs: Attrs) -> Sequence[tuple[Dim, Dim]]:
        return broadcast_assumptions([given(t).shape for t in inputs[: self.texts]])

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        texts = np.broadcast_arrays(*(array(x) for x in inputs[: self.texts]))
        function = self.function(inputs[self.texts :], attrs)
        found: Array = np.empty(texts[0].size, self.result.numpy)
        found[:] = [function(*items) for items in zip(*(x.reshape(-1).tolist() for x in texts), strict=True)]
        return (found.reshape(texts[0].shape),)


@register
class EqualText(TextFunction):
    """Whether two texts are the same."""

    name = "equal_text"
    families = ("equal_text",)
    broadcasts = 0
    texts = 2
    result = DType.BOOL

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        return str.__eq__


@register
class FindText(TextFunction):
    """The number of each text among keys, ``missing`` where it is none of them.

    The keys are given as a perfect hash table (``compiler/ir/text_table.py``): u64 displacements, and for each slot its key and its number; an
    empty slot has the number ``missing``.
    """

    name = "find_text"
    families = ("find_text",)
    result = DType.INT64

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        missing, (_, slots, numbers) = attr_int(attrs, "missing"), map(array, tables)
        found = {key: number for key, number in zip(slots.tolist(), numbers.tolist(), strict=True) if number != missing}
        return lambda text: found.get(text, missing)


def find_text(context: FormContext, x: Value, keys: Sequence[str]) -> Value:
    """The number of each text among keys, of equal ones the last; as many as there are keys where it is none of them."""
    numbers = {key: number for number, key in enumerate(keys)}
    table = text_table(list(numbers))
    order = list(numbers)
    slots = np.array(["" if slot is None else order[slot] for slot in table.slots], object)
    values = np.array([len(keys) if slot is None else numbers[order[slot]] for slot in table.slots], np.int64)
    tables = (np.array(table.displacements, np.uint64), slots, values)
    return context.emit("find_text", x, *map(context.const, tables), seed=table.seed, missing=len(keys))


def _full_match(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RegexFullMatch.html, with RE2's meaning of patterns."""
    return match_text(context, context.input(0), str(context.attrs["pattern"]))


def match_text(context: FormContext, x: Value, pattern: str) -> Value:
    """Whether texts match a pattern."""
    found = automaton(pattern)
    tables = np.array(found.classes, np.uint8), np.array(found.table, np.int32), np.array(found.accepts)
    return context.emit("match_text", x, *(context.const(table) for table in tables))


@register
class MatchText(TextFunction):
    """Whether all of a text matches an automaton (``compiler/ir/automaton.py``): classes of bytes, states after each class, and which accept."""

    name = "match_text"
    families = ("match_text",)
    result = DType.BOOL
    forms = (OnnxForm("RegexFullMatch", _full_match, since=20),)
    samples = (
        Sample("RegexFullMatch", (_TEXTS,), {"pattern": r"[\w.]+@\w+\.(com|org)"}),
        Sample("RegexFullMatch", (_TEXTS[:0],), {"pattern": "a|b*"}),
    )

    def function(self, tables: Arrays, attrs: Attrs) -> Callable[..., Any]:
        classes, table, accepts = (array(x).tolist() for x in tables)
        found = Automaton(tuple(classes), tuple(map(tuple, table)), tuple(accepts))
        return lambda text: found.matches(text.encode())
