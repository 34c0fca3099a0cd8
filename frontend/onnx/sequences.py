"""The operators on sequences of tensors and on optional values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, floordiv, maximum
from compiler.ir.run_time import wrapped
from compiler.ir.types import DType
from compiler.ops.support import normalize_axis
from frontend.onnx.emitter import Emitter
from frontend.onnx.entries import Content, Entry, Maybe, Ragged, kind_of
from frontend.onnx.ragged import at, concatenated, divided, erased, inserted, length_of, position_in, ragged, stacked, unbound

_LISTED = 256
"""Parts up to which a tensor is split into values of their own."""


@dataclass(frozen=True)
class Call:
    """One node: its operands and attributes, what its results are made with, and the rank that the model declares of the first."""

    emit: Emitter
    entries: Sequence[Entry]
    attrs: Mapping[str, Any]
    rank: int | None

    @property
    def builder(self) -> GraphBuilder:
        return self.emit.builder

    def sequence(self, index: int) -> tuple[Value, ...] | Ragged:
        """Operand ``index``, which must be a sequence."""
        entry = self._entry(index)
        if not isinstance(entry, tuple | Ragged):
            raise UnsupportedForm(f"input {index} is {kind_of(entry)}, not a sequence")
        return entry

    def tensor(self, index: int) -> Value:
        """Operand ``index``, which must be a tensor."""
        entry = self._entry(index)
        if not isinstance(entry, Value):
            raise UnsupportedForm(f"input {index} is {kind_of(entry)}, not a tensor")
        return entry

    def optional(self, index: int) -> Value | None:
        """Operand ``index``, a tensor that may be left out."""
        return None if self._entry(index) is None else self.tensor(index)

    def _entry(self, index: int) -> Entry:
        return self.entries[index] if index < len(self.entries) else None


def _as_ragged(call: Call, sequence: tuple[Value, ...] | Ragged, dtype: DType) -> Ragged:
    return sequence if isinstance(sequence, Ragged) else ragged(call.emit, sequence, dtype)


def _construct(call: Call) -> Entry:
    return tuple(call.tensor(index) for index in range(len(call.entries)))


def _insert(call: Call) -> Entry:
    sequence, value, given = call.sequence(0), call.tensor(1), call.optional(2)
    length = length_of(sequence)
    position = length if given is None else _place(call, given, length)
    if isinstance(sequence, tuple) and isinstance(position, int):
        return (*sequence[:position], value, *sequence[position:])
    return inserted(call.emit, _as_ragged(call, sequence, value.type.dtype), value, position)


def _place(call: Call, given: Value, length: Dim) -> Dim:
    """Where an element is inserted: a position from 0 to the length, or from the end, before the element there, where it is negative."""
    (position,) = call.builder.bind(given)
    call.emit.check(-length, position, length, "an element is inserted at position {value} of a sequence of {high}")
    return call.builder.natural(wrapped(position, length))


def _erase(call: Call) -> Entry:
    sequence, given = call.sequence(0), call.optional(1)
    length = length_of(sequence)
    call.emit.check(1, length, None, "an element is erased from an empty sequence")
    position = call.builder.natural(length - 1) if given is None else position_in(call.emit, given, length)
    if isinstance(position, int) and isinstance(sequence, tuple):
        return (*sequence[:position], *sequence[position + 1 :])
    return erased(call.emit, _as_ragged(call, sequence, DType.FLOAT32), position)


def _at(call: Call) -> Entry:
    return element_at(call.emit, call.sequence(0), call.tensor(1), call.rank)


def element_at(emit: Emitter, sequence: tuple[Value, ...] | Ragged, given: Value, rank: int | None) -> Value:
    """The element at the position that a tensor gives."""
    if sequence == ():
        raise UnsupportedForm("an empty sequence has no elements")
    position = position_in(emit, given, length_of(sequence))
    if isinstance(sequence, Ragged):
        return at(emit, sequence, position, rank)
    if isinstance(position, int):
        return sequence[position]
    if len({value.type for value in sequence}) != 1:
        return at(emit, ragged(emit, sequence, sequence[0].type.dtype), position, rank)
    rows = emit.joined([emit.reshaped(value, 1, *value.type.shape) for value in sequence])
    return emit.reshaped(emit.part(rows, position, 1), *sequence[0].type.shape)


def _length(call: Call) -> Entry:
    return call.emit.number(length_of(call.sequence(0)))


def _split(call: Call) -> Entry:
    x, given, emit = call.tensor(0), call.optional(1), call.emit
    axis = normalize_axis(int(call.attrs.get("axis", 0)), x.type.rank)
    length = x.type.shape[axis]
    if given is not None and given.type.rank == 1:
        return _by_sizes(call, x, axis, given)
    if given is None and not call.attrs.get("keepdims", 1):
        if not isinstance(length, int) or length > _LISTED:
            return unbound(emit, x, axis)
        rest = (*x.type.shape[:axis], *x.type.shape[axis + 1 :])
        return tuple(emit.reshaped(emit.part(x, number, 1, axis), *rest) for number in range(length))
    (size,) = (1,) if given is None else call.builder.bind(given)
    emit.check(1, size, None, "a tensor is split into parts of {value} elements")
    if isinstance(length, int) and isinstance(size, int) and -(-length // size) <= _LISTED:
        return tuple(emit.part(x, begin, min(size, length - begin), axis) for begin in range(0, length, size))
    count = call.builder.natural(floordiv(length + size - 1, maximum(size, 1)))
    begins = call.builder.emit("mul", call.builder.emit("iota", length=(count,)), emit.number(size))
    rests = call.builder.emit("sub", emit.number(length), begins)
    return divided(emit, x, axis, call.builder.emit("minimum", rests, emit.number(size)))


def _by_sizes(call: Call, x: Value, axis: int, given: Value) -> Entry:
    """Parts of given sizes along an axis."""
    emit, length, (count,) = call.emit, x.type.shape[axis], given.type.shape
    message = "parts of {value} elements do not make {low}"
    if isinstance(count, int) and count <= _LISTED:
        parts: list[Value] = []
        begin: Dim = 0
        for size in call.builder.bind(given):
            emit.check(0, size, None, "a part has {value} elements")
            parts.append(emit.part(x, call.builder.natural(begin), call.builder.natural(size), axis))
            begin = begin + size
        emit.check(length, begin, length, message)
        return tuple(parts)
    sizes = emit.as_int64(given)
    least, total = call.builder.bind(emit.joined([emit.folded("min", sizes, 0), emit.folded("sum", sizes, 0)]))
    emit.check(0, least, None, "a part has {value} elements")
    emit.check(length, total, length, message)
    return divided(emit, x, axis, sizes)


def _concat(call: Call) -> Entry:
    sequence, emit = call.sequence(0), call.emit
    axis, new = int(call.attrs["axis"]), bool(call.attrs.get("new_axis", 0))
    if isinstance(sequence, Ragged):
        rank = call.rank if call.rank is None else call.rank - new
        return stacked(emit, sequence, axis, rank) if new else concatenated(emit, sequence, axis, rank)
    if not sequence:
        raise UnsupportedForm("an empty sequence has nothing to concatenate")
    axis = normalize_axis(axis, sequence[0].type.rank + new)
    if new:
        sequence = tuple(emit.reshaped(v, *v.type.shape[:axis], 1, *v.type.shape[axis:]) for v in sequence)
    return sequence[0] if len(sequence) == 1 else call.builder.emit("concat", *sequence, axis=axis)


def _has_element(call: Call) -> Entry:
    entry = call.entries[0] if call.entries else None
    return entry.present if isinstance(entry, Maybe) else call.builder.constant(np.array(entry is not None))


def _element(call: Call) -> Entry:
    return content_of(call.emit, call.entries[0])


def content_of(emit: Emitter, entry: Entry) -> Content:
    """What an optional value holds; a run checks that it is there."""
    if entry is None:
        raise UnsupportedForm("an optional value is read that is absent")
    if not isinstance(entry, Maybe):
        return entry
    (present,) = emit.builder.bind(entry.present)
    emit.check(1, present, 1, "an optional value is read that is absent")
    return entry.content


SEQUENCE_OPS: Mapping[str, Callable[[Call], Entry]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": lambda _: (),
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
    "Optional": lambda call: call.entries[0] if call.entries else None,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _element,
}
"""What each operator on sequences and optional values makes of its operands."""
