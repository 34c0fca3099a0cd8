"""Graph inputs: element types, symbolic dims by name, and the shapes a user binds them to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from compiler.errors import UnsupportedForm, UserError
from compiler.ir.intexpr import Dim, substitute, sym
from compiler.ir.types import ADDRESSABLE_BYTES, DType, TensorType
from compiler.ops.support import ONNX_DTYPES
from frontend.onnx.borders import Declared, Input

_OWN_SYMBOL = re.compile(r"[iun]\d+|lane")
"""Symbols that the compiler makes itself: positions in a tensor, and numbers that only a run knows."""

_PRESENT = (TensorType(DType.BOOL, ()),)
"""What tells whether an optional value is there."""

_LONGEST = 64
"""Characters of a dim's name that its symbol keeps; LLVM tells long names apart by their beginning alone."""


class DimNames:
    """Gives each symbolic dim of a model an identifier of its own."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def symbol(self, label: str) -> str:
        """The identifier of the dim the model calls label."""
        if label not in self._names:
            clean = re.sub(r"\W", "_", label[:_LONGEST], flags=re.ASCII)
            stem = clean if re.match(r"[A-Za-z_]", clean) and not _OWN_SYMBOL.fullmatch(clean) else f"dim_{clean}"
            name, count = stem, 1
            while name in self._names.values():
                name, count = f"{stem}_{count}", count + 1
            self._names[label] = name
        return self._names[label]


def graph_inputs(values: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]] | None, where: str) -> dict[str, Input]:
    """The graph inputs by name, with symbolic dims replaced by what ``shapes`` says; of a sequence, by the shape of its elements.

    Raises UserError for shapes that do not fit the model and UnsupportedForm for inputs that are not made of tensors of a supported type.
    """
    names = DimNames()
    known = {value.name for value in values}
    for name in shapes or {}:
        if name not in known:
            raise UserError(f"input_shapes names {name!r}, which is not an input", where=where, hint=f"the inputs are {', '.join(sorted(known))}")
    found = {}
    bound: dict[str, int] = {}
    for value in values:
        wanted = None if shapes is None else shapes.get(value.name)
        declared = Declared.of(value)
        if declared is None:
            raise UnsupportedForm(f"input {value.name!r} has no type")
        if declared.sequence:
            found[value.name] = _sequence(value.name, declared, names, wanted, where)
            continue
        type_ = _declared(value.name, declared.tensor, names, wanted, where)
        if wanted is not None:
            _bind(value.name, type_, wanted, bound, where)
        found[value.name] = Input(declared.optional, False, None, (*_PRESENT * declared.optional, type_))
    values_of: dict[str, Dim] = dict(bound)
    for name, given in found.items():
        types = tuple(TensorType(t.dtype, tuple(substitute(dim, values_of) for dim in t.shape)) for t in given.types)
        for type_ in types:
            if isinstance(type_.nbytes, int) and type_.nbytes > ADDRESSABLE_BYTES:
                raise UserError(f"{name} needs {type_.nbytes:.3g} bytes", where=where, hint="compile for smaller inputs: see input_shapes")
        found[name] = replace(given, types=types)
    return found


def static_shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    """The shapes of those tensors of which every dim is a number."""
    shapes = {}
    for value in values:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def declared_ranks(values: Sequence[onnx.ValueInfoProto]) -> dict[str, int]:
    """The ranks of those tensors that have a shape."""
    tensors = {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
    return {name: len(tensor.shape.dim) for name, tensor in tensors.items() if tensor.HasField("shape")}


def _sequence(name: str, declared: Declared, names: DimNames, wanted: Sequence[int] | None, where: str) -> Input:
    """A sequence, of elements of the shape wanted where one is given."""
    element, dtype = declared.element, _dtype(name, declared.tensor)
    if wanted is not None:
        shape = TensorType(dtype, tuple(wanted) if element is None else tuple(sym(f"{name}.{a}") if d is None else d for a, d in enumerate(element)))
        _bind(name, shape, wanted, {}, where)
        element = tuple(wanted)
    length, rank = sym(names.symbol(f"{name}_length")), sym(names.symbol(f"{name}_rank")) if element is None else len(element)
    types = [TensorType(dtype, (sym(names.symbol(f"{name}_elements")),)), TensorType(DType.INT64, (length, rank))]
    ranks = [TensorType(DType.INT64, (length,))] if element is None else []
    return Input(declared.optional, True, element, (*_PRESENT * declared.optional, *types, *ranks))


def _dtype(name: str, tensor: onnx.TypeProto.Tensor) -> DType:
    dtype = ONNX_DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise UnsupportedForm(f"input {name!r} has element type number {tensor.elem_type}, which is not supported")
    return dtype


def _declared(name: str, tensor: onnx.TypeProto.Tensor, names: DimNames, wanted: Sequence[int] | None, where: str) -> TensorType:
    dtype = _dtype(name, tensor)
    if not tensor.HasField("shape"):
        if wanted is None:
            raise UserError(
                f"input {name!r} has no shape, not even a rank",
                where=where,
                hint=f"give it: input_shapes={{{name!r}: [...]}}",
            )
        return TensorType(dtype, tuple(sym(names.symbol(f"{name}_{axis}")) for axis in range(len(wanted))))
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        dims.append(dim.dim_value if fixed else sym(names.symbol(dim.dim_param or f"{name}_{axis}")))
    return TensorType(dtype, tuple(dims))


def _bind(name: str, declared: TensorType, wanted: Sequence[int], bound: dict[str, int], where: str) -> None:
    """Record what the dims of one input stand for."""
    shape = f"[{', '.join(map(str, declared.shape))}]"
    hint = f"the model declares {name!r} as {shape}; give one non-negative integer for each dim"
    if len(wanted) != declared.rank or any(isinstance(w, bool) or not isinstance(w, int) or w < 0 for w in wanted):
        raise UserError(f"input_shapes gives {list(wanted)} for {name!r}, which has shape {shape}", where=where, hint=hint)
    for dim, size in zip(declared.shape, wanted, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise UserError(f"input_shapes gives {list(wanted)} for {name!r}, but the model fixes {shape}", where=where, hint=hint)
        elif bound.setdefault(str(dim), size) != size:
            raise UserError(
                f"input_shapes binds dim {str(dim)!r} to {bound[str(dim)]} and, with {name!r}, to {size}",
                where=where,
                hint="dims of one name are one number; give shapes that agree",
            )
