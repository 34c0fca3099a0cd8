"""What stands at a graph's borders: tensors, sequences of tensors and optional values, as the model declares them, and the tensors they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from compiler.errors import UnsupportedForm
from compiler.ir.builder import GraphBuilder
from compiler.ir.containers import Container
from compiler.ir.graph import Attr, Value
from compiler.ir.types import TensorType
from compiler.ops.support import ONNX_DTYPES, onnx_dtype
from frontend.onnx.emitter import Emitter
from frontend.onnx.entries import Element, Entry, Maybe, MaybeForm, Ragged, RaggedForm, TensorForm, kind_of, replaced, values_of
from frontend.onnx.ragged import brought, ragged
from frontend.onnx.sequences import content_of


@dataclass(frozen=True)
class Declared:
    """What the model says of an input or output. ``tensor`` is the type of the tensor, or of a sequence's elements."""

    optional: bool
    sequence: bool
    tensor: onnx.TypeProto.Tensor

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> Declared | None:
        """None for what has no type. Raises UnsupportedForm for what is made of other than tensors."""
        type_, kinds = value.type, list[str | None]()
        for kind in ("optional_type", "sequence_type"):
            if type_.WhichOneof("value") == kind:
                kinds.append(kind)
                type_ = getattr(type_, kind).elem_type
        if type_.WhichOneof("value") is None and not kinds:
            return None
        if type_.WhichOneof("value") != "tensor_type":
            raise UnsupportedForm(f"{value.name!r} is neither a tensor, nor a sequence of tensors, nor an optional one of these")
        return cls("optional_type" in kinds, "sequence_type" in kinds, type_.tensor_type)

    @property
    def element(self) -> Element | None:
        """The dims that are numbers; None where not even a rank is declared."""
        if not self.tensor.HasField("shape"):
            return None
        return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in self.tensor.shape.dim)

    def form(self) -> MaybeForm:
        """The form of an optional value. Raises UnsupportedForm where the declaration is not enough for it."""
        dtype = onnx_dtype(self.tensor.elem_type)
        if self.sequence:
            return MaybeForm(RaggedForm(dtype, self.element))
        if self.element is None:
            raise UnsupportedForm("an optional tensor is absent, and the model does not declare its rank")
        return MaybeForm(TensorForm(dtype, len(self.element), self.element))


def declared_sequence(value: onnx.ValueInfoProto) -> RaggedForm | None:
    """What is declared of a sequence of tensors; None for what is none of a type that is supported."""
    type_ = value.type.sequence_type.elem_type.tensor_type
    dtype = ONNX_DTYPES.get(type_.elem_type)
    return None if dtype is None else RaggedForm(dtype, Declared(False, True, type_).element)


@dataclass(frozen=True)
class Input:
    """A graph input: what is declared of it, what is known of the shapes of a sequence's elements, and the types of its tensors."""

    optional: bool
    sequence: bool
    element: Element | None
    types: tuple[TensorType, ...]

    def entry(self, builder: GraphBuilder, name: str) -> Entry:
        """What stands for it: new inputs of the graph."""
        values = [Value(name, type_) for type_ in self.types]
        held, rest = values[0], values[int(self.optional) :]
        content = Ragged(rest[0], rest[1], rest[2] if self.element is None else None, self.element) if self.sequence else rest[0]
        entry = Maybe(held, content) if self.optional else content
        labels = iter(part_names(name, entry))
        return replaced(entry, lambda value: builder.input(next(labels), value.type))


def part_names(name: str, entry: Entry) -> list[str]:
    """Names for the tensors that a graph input or output of that name consists of."""
    match entry:
        case Maybe():
            return [f"{name}.present", *part_names(f"{name}.value" if isinstance(entry.content, Value) else name, entry.content)]
        case Ragged():
            return [f"{name}.{part}" for part in ("data", "shapes", "ranks")][: len(values_of(entry))]
    return [name]


def handed_out(emit: Emitter, entry: Entry, value: onnx.ValueInfoProto) -> Entry:
    """An output as it is declared: a tensor, a ``Ragged``, or a ``Maybe`` of one of them."""
    declared = Declared.of(value)
    if declared is not None and declared.optional and entry is None:
        return brought(emit, None, declared.form())
    optional = isinstance(entry, Maybe) if declared is None else declared.optional
    present = (entry.present if isinstance(entry, Maybe) else emit.builder.constant(np.array(True))) if optional else None
    content = entry.content if isinstance(entry, Maybe) and optional else content_of(emit, entry)
    if declared is not None and declared.sequence == isinstance(content, Value):
        raise UnsupportedForm(f"the model declares it as {'a sequence' if declared.sequence else 'a tensor'}, and it is {kind_of(content)}")
    if isinstance(content, tuple):
        if not content and declared is None:
            raise UnsupportedForm(f"output {value.name!r} is an empty sequence, and the model does not declare what its elements would be")
        dtype = content[0].type.dtype if content or declared is None else onnx_dtype(declared.tensor.elem_type)
        content = ragged(emit, content, dtype)
    return content if present is None else Maybe(present, content)


def border_attrs(role: str, entries: Mapping[str, Entry]) -> dict[str, Attr]:
    """What a graph's attributes say of its inputs or outputs: the names of tensors, and what those stand for that the model does not have."""
    names: list[str] = []
    containers: list[Attr] = []
    for name, entry in entries.items():
        if not isinstance(entry, Value):
            containers.append(_container(name, len(names), entry).attr)
        names += part_names(name, entry)
    return {f"{role}_names": tuple(names)} | ({f"{role}_containers": tuple(containers)} if containers else {})


def _container(name: str, first: int, entry: Entry) -> Container:
    content = entry.content if isinstance(entry, Maybe) else entry
    dims: tuple[int | str, ...] = ("...",)
    if isinstance(content, Value):
        dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in content.type.shape)
    elif isinstance(content, Ragged) and content.element is not None:
        dims = tuple("?" if dim is None else dim for dim in content.element)
    return Container(first, len(values_of(entry)), name, isinstance(entry, Maybe), not isinstance(content, Value), dims)
