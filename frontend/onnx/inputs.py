"""Graph inputs: element types, symbolic dims by name, and the shapes a user binds them to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from compiler.errors import UnsupportedForm, UserError
from compiler.ir.intexpr import Dim, substitute, sym
from compiler.ir.types import ADDRESSABLE_BYTES, TensorType
from compiler.ops.support import ONNX_DTYPES

_OWN_SYMBOL = re.compile(r"[iun]\d+|lane")
"""Symbols that the compiler makes itself: positions in a tensor, and numbers that only a run knows."""

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


def input_types(values: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]] | None, where: str) -> dict[str, TensorType]:
    """The type of each graph input, with symbolic dims replaced by what ``shapes`` says.

    Raises UserError for shapes that do not fit the model and UnsupportedForm for inputs that are no tensors of a supported type.
    """
    names = DimNames()
    known = {value.name for value in values}
    for name in shapes or {}:
        if name not in known:
            raise UserError(f"input_shapes names {name!r}, which is not an input", where=where, hint=f"the inputs are {', '.join(sorted(known))}")
    types = {}
    bound: dict[str, int] = {}
    for value in values:
        wanted = None if shapes is None else shapes.get(value.name)
        declared = _declared(value, names, wanted, where)
        if wanted is not None:
            _bind(value.name, declared, wanted, bound, where)
        types[value.name] = declared
    values_of: dict[str, Dim] = dict(bound)
    resolved = {name: TensorType(t.dtype, tuple(substitute(dim, values_of) for dim in t.shape)) for name, t in types.items()}
    for name, type_ in resolved.items():
        if isinstance(type_.nbytes, int) and type_.nbytes > ADDRESSABLE_BYTES:
            raise UserError(f"{name} needs {type_.nbytes:.3g} bytes", where=where, hint="compile for smaller inputs: see input_shapes")
    return resolved


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


def _declared(value: onnx.ValueInfoProto, names: DimNames, wanted: Sequence[int] | None, where: str) -> TensorType:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedForm(f"input {value.name!r} is not a tensor")
    tensor = value.type.tensor_type
    dtype = ONNX_DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise UnsupportedForm(f"input {value.name!r} has element type number {tensor.elem_type}, which is not supported")
    if not tensor.HasField("shape"):
        if wanted is None:
            raise UserError(
                f"input {value.name!r} has no shape, not even a rank",
                where=where,
                hint=f"give it: input_shapes={{{value.name!r}: [...]}}",
            )
        return TensorType(dtype, tuple(sym(names.symbol(f"{value.name}_{axis}")) for axis in range(len(wanted))))
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        dims.append(dim.dim_value if fixed else sym(names.symbol(dim.dim_param or f"{value.name}_{axis}")))
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
