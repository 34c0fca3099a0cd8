"""What the names of an ONNX graph stand for while it is imported: tensors, sequences of them, and optional values.

A sequence of known length is a tuple of values; one whose length or element shapes only a run knows is ``Ragged``, a few tensors. An
optional value that is known to be there is what it holds, one that is known to be absent is None; else it is a ``Maybe``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Union

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.types import DType, TensorType

Element = tuple[Union[int, None], ...]
"""What is known of the shapes of a sequence's elements: the dims that all have in common."""


@dataclass(frozen=True)
class Ragged:
    """A sequence of n tensors.

    ``data`` [E] holds what they hold, one after another, and ``shapes`` int64 [n, r] a row of dims for each. ``ranks`` int64 [n] is there
    where ranks may differ: rows then have ones behind the dims of their element, and ``element`` is None.
    """

    data: Value
    shapes: Value
    ranks: Value | None
    element: Element | None


Content = Value | tuple[Value, ...] | Ragged
"""A tensor or a sequence."""


@dataclass(frozen=True)
class Maybe:
    """An optional value: ``content`` where ``present``, a bool of rank 0, is true. Content that is absent is empty, or zeros."""

    present: Value
    content: Content


Entry = Content | Maybe | None
"""What a name stands for."""


def values_of(entry: Entry) -> tuple[Value, ...]:
    """The tensors that an entry consists of."""
    match entry:
        case None:
            return ()
        case Value():
            return (entry,)
        case tuple():
            return entry
        case Ragged():
            return (entry.data, entry.shapes) if entry.ranks is None else (entry.data, entry.shapes, entry.ranks)
        case Maybe():
            return (entry.present, *values_of(entry.content))


def replaced(entry: Entry, change: Callable[[Value], Value]) -> Entry:
    """entry with each of its tensors replaced, in the order of ``values_of``."""
    if isinstance(entry, Maybe):
        return Maybe(change(entry.present), _replaced(entry.content, change))
    return None if entry is None else _replaced(entry, change)


def _replaced(content: Content, change: Callable[[Value], Value]) -> Content:
    match content:
        case Value():
            return change(content)
        case tuple():
            return tuple(change(value) for value in content)
        case Ragged():
            data, shapes = change(content.data), change(content.shapes)
            return Ragged(data, shapes, None if content.ranks is None else change(content.ranks), content.element)


def kind_of(entry: Entry) -> str:
    """An entry for messages."""
    match entry:
        case None:
            return "an optional value that is absent"
        case Value():
            return "a tensor"
        case Maybe():
            return "an optional value"
    return "a sequence"


@dataclass(frozen=True)
class TensorForm:
    """A tensor. ``shape`` is an example, and does not make forms differ."""

    dtype: DType
    rank: int
    shape: Element = field(compare=False)

    @classmethod
    def of(cls, type_: TensorType) -> TensorForm:
        """The form of a tensor of that type."""
        return cls(type_.dtype, type_.rank, tuple(dim if isinstance(dim, int) else None for dim in type_.shape))


@dataclass(frozen=True)
class ListForm:
    """A sequence of known length."""

    tensors: tuple[TensorForm, ...]


@dataclass(frozen=True)
class RaggedForm:
    """A sequence of a length that only a run knows."""

    dtype: DType
    element: Element | None


ContentForm = TensorForm | ListForm | RaggedForm


@dataclass(frozen=True)
class MaybeForm:
    """An optional value of that content."""

    content: ContentForm


Form = ContentForm | MaybeForm | None
"""How an entry is made of tensors: the results of two branches, or of two iterations, must have it in common."""


def form_of(entry: Entry) -> Form:
    """The form of an entry."""
    if isinstance(entry, Maybe):
        return MaybeForm(_content_form(entry.content))
    return None if entry is None else _content_form(entry)


def _content_form(content: Content) -> ContentForm:
    match content:
        case Value():
            return TensorForm.of(content.type)
        case tuple():
            return ListForm(tuple(TensorForm.of(value.type) for value in content))
        case Ragged():
            return RaggedForm(content.data.type.dtype, content.element)


def common_form(first: Form, second: Form, role: str) -> Form:
    """The form that entries of both forms can be brought into. Raises UnsupportedForm, about ``role``, where there is none."""
    if first is None or second is None:
        there = second if first is None else first
        return there if isinstance(there, MaybeForm | None) else MaybeForm(there)
    if isinstance(first, MaybeForm) or isinstance(second, MaybeForm):
        left, right = (form.content if isinstance(form, MaybeForm) else form for form in (first, second))
        return MaybeForm(_common_content(left, right, role))
    return _common_content(first, second, role)


def _common_content(first: ContentForm, second: ContentForm, role: str) -> ContentForm:
    if first == second:
        return first
    if isinstance(first, TensorForm) or isinstance(second, TensorForm):
        raise UnsupportedForm(f"{role} is {_text(first)} in one case and {_text(second)} in the other; they must agree in element type and rank")
    found, *rest = (*_parts(first), *_parts(second))
    for part in rest:
        if part.dtype is not found.dtype:
            raise UnsupportedForm(f"{role} is a sequence of {found.dtype.value} in one case and of {part.dtype.value} in the other")
        found = replace(found, element=common_element(found.element, part.element))
    return found


def loosened(form: Form, empty: RaggedForm | None) -> Form:
    """The form of a sequence of known length if that were not known; ``empty`` where it has no elements that tell what they are."""
    if not isinstance(form, ListForm):
        return form
    return _common_content(form, _parts(form)[0], "a sequence") if form.tensors else empty or form


def _parts(form: ListForm | RaggedForm) -> tuple[RaggedForm, ...]:
    """What a sequence's elements are each for themselves."""
    return (form,) if isinstance(form, RaggedForm) else tuple(RaggedForm(tensor.dtype, tensor.shape) for tensor in form.tensors)


def common_element(first: Element | None, second: Element | None) -> Element | None:
    """What is known of shapes of both kinds; None where their ranks may differ."""
    if first is None or second is None or len(first) != len(second):
        return None
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))


def _text(form: ContentForm) -> str:
    return f"a tensor of {form.dtype.value} and rank {form.rank}" if isinstance(form, TensorForm) else "a sequence"
