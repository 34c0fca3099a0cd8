"""Sequences whose length or element shapes only a run knows: their operators, made of operations on the tensors that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, maximum, product
from compiler.ir.run_time import wrapped
from compiler.ir.types import DType
from compiler.ops.support import normalize_axis
from frontend.onnx.emitter import Emitter
from frontend.onnx.entries import (
    Content,
    ContentForm,
    Element,
    Entry,
    Form,
    ListForm,
    Maybe,
    MaybeForm,
    Ragged,
    RaggedForm,
    TensorForm,
    common_element,
    values_of,
)


def length_of(sequence: tuple[Value, ...] | Ragged) -> Dim:
    """The number of elements."""
    return len(sequence) if isinstance(sequence, tuple) else sequence.shapes.type.shape[0]


def position_in(emit: Emitter, value: Value, length: Dim) -> Dim:
    """A position that a tensor gives, from the end where it is negative, among ``length`` of them; runs check that it is one."""
    (position,) = emit.builder.bind(value)
    emit.check(
        -length, position, length - 1, f"position {{value}} does not exist among {length if isinstance(length, int) else 'those'} of a sequence"
    )
    return emit.builder.natural(wrapped(position, length))


# -- forms --------------------------------------------------------------------------------------------------------


def brought(emit: Emitter, entry: Entry, form: Form) -> Entry:
    """entry in a form that ``common_form`` has found."""
    if not isinstance(form, MaybeForm):
        return entry if entry is None or form is None or isinstance(entry, Maybe) else _brought(emit, entry, form)
    if isinstance(entry, Maybe):
        return Maybe(entry.present, _brought(emit, entry.content, form.content))
    present = emit.builder.constant(np.array(entry is not None))
    return Maybe(present, _absent(emit, form.content) if entry is None else _brought(emit, entry, form.content))


def _brought(emit: Emitter, content: Content, form: ContentForm) -> Content:
    if not isinstance(form, RaggedForm) or isinstance(content, Value):
        return content
    found = ragged(emit, content, form.dtype, form.element) if isinstance(content, tuple) else content
    return replace(found, element=form.element) if form.element is not None else _mixed(emit, found, found.shapes.type.shape[1])


def _absent(emit: Emitter, form: ContentForm) -> Content:
    """What stands for content that is not there."""
    match form:
        case TensorForm():
            return emit.blank(form.dtype, form.shape)
        case ListForm():
            return tuple(emit.blank(tensor.dtype, tensor.shape) for tensor in form.tensors)
        case RaggedForm():
            return _brought(emit, (), form)


def ragged(emit: Emitter, values: Sequence[Value], dtype: DType, element: Element | None = ()) -> Ragged:
    """A sequence of known length as tensors; ``dtype`` and ``element`` are said of its elements where it has none."""
    ranks = [value.type.rank for value in values]
    known: list[Element | None] = [tuple(dim if isinstance(dim, int) else None for dim in value.type.shape) for value in values]
    element = reduce(common_element, known) if known else element
    width = max(ranks, default=len(element or ()))
    rows = [dim for value in values for dim in (*value.type.shape, *(1,) * (width - value.type.rank))]
    flat = [emit.reshaped(value, product(value.type.shape)) for value in values]
    data = emit.joined(flat) if flat else emit.blank(dtype, (0,))
    shapes = emit.reshaped(emit.vector(rows), len(values), width)
    return Ragged(data, shapes, emit.vector(ranks) if element is None else None, element)


def _mixed(emit: Emitter, sequence: Ragged, width: Dim) -> Ragged:
    """The sequence as one of elements of different ranks, with rows of ``width`` dims."""
    length, have = sequence.shapes.type.shape
    shapes = sequence.shapes
    if width != have:
        shapes = emit.joined([shapes, emit.filled(1, (length, emit.builder.natural(width - have)))], axis=1)
    ranks = sequence.ranks
    if ranks is None:
        ranks = emit.builder.emit("expand", emit.reshaped(emit.number(have), 1), shape=(length,))
    return Ragged(sequence.data, shapes, ranks, None)


# -- parts --------------------------------------------------------------------------------------------------------


def at(emit: Emitter, sequence: Ragged, position: Dim, rank: int | None) -> Value:
    """One element; ``rank`` is what the model declares its rank to be."""
    begin = _offset(emit, sequence, position)
    if sequence.ranks is not None:
        rank = _declared(rank)
        (met,) = emit.sizes(emit.part(sequence.ranks, position, 1))
        emit.check(rank, met, rank, "an element of a sequence has rank {value}, and the model declares it as {low}")
    element = _element(sequence, rank)
    shape: tuple[Dim, ...] = tuple(dim or 0 for dim in element)
    if None in element:
        row = emit.part(emit.part(sequence.shapes, position, 1), 0, len(element), axis=1)
        numbers = emit.sizes(emit.reshaped(row, len(element)))
        shape = tuple(number if dim is None else dim for dim, number in zip(element, numbers, strict=True))
    return emit.reshaped(emit.part(sequence.data, begin, product(shape)), *shape)


def item(emit: Emitter, entry: Entry, position: Dim, rank: int | None) -> Entry:
    """The element of a sequence at a position that exists; what is no sequence, as it is."""
    if isinstance(entry, Ragged):
        return at(emit, entry, position, rank)
    return entry[position] if isinstance(entry, tuple) and isinstance(position, int) else entry


def appended(emit: Emitter, entry: Entry, value: Value) -> Entry:
    """A sequence with one more element behind the others."""
    return inserted(emit, entry, value, length_of(entry)) if isinstance(entry, Ragged) else (*values_of(entry), value)


def inserted(emit: Emitter, sequence: Ragged, value: Value, position: Dim) -> Ragged:
    """The sequence with one more element, which gets that position."""
    before, after = _split(emit, sequence, position)
    return _joined(emit, [before, ragged(emit, [value], value.type.dtype), after])


def erased(emit: Emitter, sequence: Ragged, position: Dim) -> Ragged:
    """The sequence without one of its elements."""
    before, rest = _split(emit, sequence, position)
    return _joined(emit, [before, _split(emit, rest, 1)[1]])


def _split(emit: Emitter, sequence: Ragged, position: Dim) -> tuple[Ragged, Ragged]:
    """The elements before a position, and those from there on."""
    middle, (length,), (end,) = _offset(emit, sequence, position), sequence.shapes.type.shape[:1], sequence.data.type.shape
    rest, tail = emit.builder.natural(length - position), emit.builder.natural(end - middle)

    def piece(begin: Dim, size: Dim, first: Dim, count: Dim) -> Ragged:
        ranks = None if sequence.ranks is None else emit.part(sequence.ranks, begin, size)
        return Ragged(emit.part(sequence.data, first, count), emit.part(sequence.shapes, begin, size), ranks, sequence.element)

    return piece(0, position, 0, middle), piece(position, rest, middle, tail)


def _joined(emit: Emitter, parts: Sequence[Ragged]) -> Ragged:
    """Sequences one after another; those that are known to be empty are left out."""
    used = [part for part in parts if part.shapes.type.shape[0] != 0] or [parts[0]]
    element = used[0].element
    for part in used[1:]:
        if part.data.type.dtype is not used[0].data.type.dtype:
            raise UnsupportedForm(f"a sequence of {used[0].data.type.dtype.value} cannot have an element of {part.data.type.dtype.value}")
        element = common_element(element, part.element)
    if element is None:
        width: Dim = 0
        for part in used:
            width = maximum(width, part.shapes.type.shape[1])
        used = [_mixed(emit, part, emit.builder.natural(width)) for part in used]
    ranks = emit.joined([part.ranks for part in used if part.ranks is not None]) if element is None else None
    return Ragged(emit.joined([part.data for part in used]), emit.joined([part.shapes for part in used]), ranks, element)


def _offset(emit: Emitter, sequence: Ragged, position: Dim) -> Dim:
    """Where in the data the element of that position begins."""
    if position == sequence.shapes.type.shape[0]:
        return sequence.data.type.shape[0]
    if sequence.element is not None and None not in sequence.element:
        return position * product([dim or 0 for dim in sequence.element])
    if position == 0:
        return 0
    elements = emit.folded("prod", emit.part(sequence.shapes, 0, position), 1)
    return emit.sizes(emit.folded("sum", elements, 0))[0]


def _element(sequence: Ragged, rank: int | None) -> Element:
    """What is known of the shapes of elements; of their ranks, if by nothing else, by what the model declares."""
    return (None,) * _declared(rank) if sequence.element is None else sequence.element


def _declared(rank: int | None) -> int:
    if rank is None:
        raise UnsupportedForm(
            "the elements of the sequence may differ in rank, and the model does not declare which one this result has; declare its shape"
        )
    return rank


# -- joining and splitting tensors --------------------------------------------------------------------------------


def stacked(emit: Emitter, sequence: Ragged, axis: int, rank: int | None) -> Value:
    """The elements, all of one shape, along a new axis."""
    shape, _ = _agreed(emit, sequence, None, rank)
    whole = emit.reshaped(sequence.data, sequence.shapes.type.shape[0], *shape)
    at = normalize_axis(axis, len(shape) + 1)
    return whole if at == 0 else emit.builder.emit("transpose", whole, perm=(*range(1, at + 1), 0, *range(at + 1, len(shape) + 1)))


def concatenated(emit: Emitter, sequence: Ragged, axis: int, rank: int | None) -> Value:
    """The elements one after another along an axis."""
    along = normalize_axis(axis, len(_element(sequence, rank)))
    shape, total = _agreed(emit, sequence, along, rank)
    result = (*shape[:along], total, *shape[along + 1 :])
    outer, inner = product(shape[:along]), product(shape[along + 1 :])
    if outer == 1:
        return emit.reshaped(sequence.data, *result)
    lengths = emit.part(sequence.shapes, along, 1, axis=1)
    places = _places(emit, emit.reshaped(lengths, length_of(sequence)), outer, total)
    rows = emit.reshaped(sequence.data, outer * total, inner)
    return emit.reshaped(emit.builder.emit("gather", rows, places, axis=0), *result)


def divided(emit: Emitter, value: Value, axis: int, sizes: Value) -> Ragged:
    """Parts of a tensor along an axis, of sizes (int64 [n]) that add up to its length."""
    shape = value.type.shape
    outer, inner, length = product(shape[:axis]), product(shape[axis + 1 :]), shape[axis]
    (count,) = sizes.type.shape
    columns = [emit.reshaped(sizes, count, 1) if a == axis else _column(emit, dim, count) for a, dim in enumerate(shape)]
    data = emit.reshaped(value, product(shape))
    if outer != 1:
        rows, places = emit.reshaped(value, outer * length, inner), _places(emit, sizes, outer, length)
        scattered = emit.builder.emit("scatter", rows, emit.reshaped(places, outer * length), rows, kind="none")
        data = emit.reshaped(scattered, product(shape))
    element = tuple(dim if isinstance(dim, int) and a != axis else None for a, dim in enumerate(shape))
    return Ragged(data, emit.joined(columns, axis=1), None, element)


def unbound(emit: Emitter, value: Value, axis: int) -> Ragged:
    """The slices of a tensor along an axis, which is dropped."""
    shape = value.type.shape
    moved = value if axis == 0 else emit.builder.emit("transpose", value, perm=(axis, *(a for a in range(len(shape)) if a != axis)))
    rest = (*shape[:axis], *shape[axis + 1 :])
    row = emit.reshaped(emit.vector(rest), 1, len(rest))
    shapes = emit.builder.emit("expand", row, shape=(shape[axis], len(rest)))
    return Ragged(emit.reshaped(moved, product(shape)), shapes, None, tuple(dim if isinstance(dim, int) else None for dim in rest))


def _column(emit: Emitter, dim: Dim, count: Dim) -> Value:
    return emit.builder.emit("expand", emit.reshaped(emit.number(dim), 1, 1), shape=(count, 1))


def _agreed(emit: Emitter, sequence: Ragged, axis: int | None, rank: int | None) -> tuple[tuple[Dim, ...], Dim]:
    """The shape that all elements have, but along ``axis``, and the sum of their dims along it; a run checks that they do."""
    length = length_of(sequence)
    emit.check(1, length, None, "an empty sequence has nothing to concatenate")
    if sequence.ranks is not None:
        least, most = emit.sizes(emit.folded("min", sequence.ranks, 0), emit.folded("max", sequence.ranks, 0))
        for met in (least, most):
            emit.check(
                _declared(rank), met, rank, "an element of a sequence has rank {value}, and the model declares a result of which it must be {low}"
            )
    element = _element(sequence, rank)
    if not element or None not in element:
        return tuple(dim or 0 for dim in element), 0 if axis is None else length * (element[axis] or 0)
    rows = emit.part(sequence.shapes, 0, len(element), axis=1)
    numbers = emit.sizes(*(emit.folded(kind, rows, 0) for kind in ("min", "max", "sum")))
    least_dims, most_dims, sums = (numbers[i * len(element) : (i + 1) * len(element)] for i in range(3))
    for a, (least, most) in enumerate(zip(least_dims, most_dims, strict=True)):
        if a != axis and element[a] is None:
            emit.check(least, most, least, f"elements of a sequence are concatenated whose dims along axis {a} differ: {{low}} and {{value}}")
    shape = tuple(number if dim is None else dim for dim, number in zip(element, least_dims, strict=True))
    return shape, 0 if axis is None else sums[axis]


def _places(emit: Emitter, lengths: Value, outer: Dim, total: Dim) -> Value:
    """Where element ``[o, j]`` of parts joined along their second axis lies when they lie one after another: int64 ``[outer, total]``.

    With j in the part of length a that begins at s, which is behind ``outer * s`` others, that is ``outer * s + o * a + (j - s)``.
    """
    emitted = emit.builder.emit
    (count,) = lengths.type.shape
    starts = emit.running_sum(lengths)
    numbered = emitted("iota", length=(count,))
    # Of parts that begin at one place all but the last are empty, and rows are updated in order.
    marks = emitted("scatter", emit.filled(0, (total, 1)), starts, emit.reshaped(numbered, count, 1), kind="none")
    owner = emit.running_max(emit.reshaped(marks, total))
    start, length = (emit.reshaped(emitted("gather", table, owner, axis=0), 1, total) for table in (starts, lengths))
    along = emit.reshaped(emitted("iota", length=(total,)), 1, total)
    row = emit.reshaped(emitted("iota", length=(outer,)), outer, 1)
    base = emitted("add", emitted("mul", start, emit.number(outer - 1)), along)
    return emitted("add", base, emitted("mul", row, length))
