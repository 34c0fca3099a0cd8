"""Sequences of tensors and optional values, which exist while a model is imported: tuples of values, and values that may be absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim
from compiler.ops.support import known, normalize_axis
from frontend.onnx.scope import Entry


@dataclass(frozen=True)
class Call:
    """One node: its operands and attributes, and the builder that its results are made with."""

    builder: GraphBuilder
    entries: Sequence[Entry]
    attrs: Mapping[str, Any]

    def sequence(self, index: int) -> tuple[Value, ...]:
        """Operand ``index``, which must be a sequence."""
        entry = self.entries[index] if index < len(self.entries) else None
        if not isinstance(entry, tuple):
            raise UnsupportedForm(f"input {index} is not a sequence")
        return entry

    def tensor(self, index: int) -> Value:
        """Operand ``index``, which must be a tensor."""
        entry = self.entries[index] if index < len(self.entries) else None
        if not isinstance(entry, Value):
            raise UnsupportedForm(f"input {index} is not a tensor")
        return entry

    def optional(self, index: int) -> Value | None:
        """Operand ``index``, a tensor that may be absent."""
        return self.tensor(index) if index < len(self.entries) and self.entries[index] is not None else None


def _position(builder: GraphBuilder, value: Value | None, length: int, default: int) -> int:
    """A position in a sequence, from the end where it is negative; ``length`` positions exist."""
    dims = (default,) if value is None else builder.dims(value)
    if dims is None or not isinstance(dims[0], int):
        raise UnsupportedForm("the position in a sequence is computed at run time")
    position = dims[0]
    if not -length <= position < length:
        raise UnsupportedForm(f"position {position} does not exist among {length} of a sequence")
    return position % length


def _construct(call: Call) -> Entry:
    return tuple(call.tensor(index) for index in range(len(call.entries)))


def _insert(call: Call) -> Entry:
    sequence, value = call.sequence(0), call.tensor(1)
    given = call.optional(2)
    dims = None if given is None else call.builder.dims(given)
    # A negative position counts from the element at the end, before which it inserts.
    backwards = dims is not None and isinstance(dims[0], int) and dims[0] < 0
    at = _position(call.builder, given, len(sequence) + (not backwards), len(sequence))
    return (*sequence[:at], value, *sequence[at:])


def _erase(call: Call) -> Entry:
    sequence = call.sequence(0)
    at = _position(call.builder, call.optional(1), len(sequence), len(sequence) - 1)
    return (*sequence[:at], *sequence[at + 1 :])


def _at(call: Call) -> Entry:
    sequence, position = call.sequence(0), call.tensor(1)
    if call.builder.dims(position) is not None or len({value.type for value in sequence}) != 1:
        return sequence[_position(call.builder, position, len(sequence), 0)]
    (number,) = call.builder.bind(position)
    message = f"position {{value}} does not exist in a sequence of {len(sequence)}"
    call.builder.check(-len(sequence), number, len(sequence) - 1, message, "SequenceAt node")
    parts = [call.builder.emit("reshape", value, shape=(1, *value.type.shape)) for value in sequence]
    return call.builder.emit("gather", _joined(call.builder, parts, 0), call.builder.emit("reshape", position, shape=()), axis=0)


def _length(call: Call) -> Entry:
    return call.builder.constant(np.array(len(call.sequence(0)), np.int64))


def _split(call: Call) -> Entry:
    x, given = call.tensor(0), call.optional(1)
    axis = normalize_axis(int(call.attrs.get("axis", 0)), x.type.rank)
    dim = x.type.shape[axis]
    dims: tuple[Dim, ...] | None = (1,) if given is None else call.builder.dims(given)
    sizes: list[Dim]
    if given is None or given.type.rank == 0:
        length = known(dim, "the length of a split axis")
        part_size = known(dims[0], "the size of the parts") if dims is not None else 0
        if part_size < 1:
            raise UnsupportedForm("the size of the parts is not a positive number that is known before the model runs")
        sizes = [min(part_size, length - start) for start in range(0, length, part_size)]
    else:
        sizes = list(call.builder.bind(given))
    call.builder.check(dim, sum(sizes, start=0), dim, "parts of {value} elements do not make {low}", "SplitToSequence node")
    parts: list[Value] = []
    shape = x.type.shape
    begin: Dim = 0
    for size in sizes:
        starts = tuple(begin if a == axis else 0 for a in range(len(shape)))
        part = call.builder.emit("slice", x, starts=starts, sizes=(*shape[:axis], size, *shape[axis + 1 :]), steps=(1,) * len(shape))
        dropped = given is None and not call.attrs.get("keepdims", 1)
        parts.append(call.builder.emit("reshape", part, shape=(*shape[:axis], *shape[axis + 1 :])) if dropped else part)
        begin = begin + size
    return tuple(parts)


def _joined(builder: GraphBuilder, values: Sequence[Value], axis: int) -> Value:
    return values[0] if len(values) == 1 else builder.emit("concat", *values, axis=axis)


def _concat(call: Call) -> Entry:
    sequence = call.sequence(0)
    if not sequence:
        raise UnsupportedForm("an empty sequence has nothing to concatenate")
    new = bool(call.attrs.get("new_axis", 0))
    axis = normalize_axis(int(call.attrs["axis"]), sequence[0].type.rank + new)
    if new:
        shapes = [(*v.type.shape[:axis], 1, *v.type.shape[axis:]) for v in sequence]
        sequence = tuple(call.builder.emit("reshape", v, shape=shape) for v, shape in zip(sequence, shapes, strict=True))
    return _joined(call.builder, sequence, axis)


def _has_element(call: Call) -> Entry:
    return call.builder.constant(np.array(bool(call.entries) and call.entries[0] is not None))


def _element(call: Call) -> Entry:
    if call.entries[0] is None:
        raise UnsupportedForm("an optional value is read that is absent")
    return call.entries[0]


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
