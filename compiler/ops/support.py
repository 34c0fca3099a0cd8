"""What op files share: typed attribute access, axes, small constants and shape arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Attr, Value
from compiler.ir.intexpr import Dim, IntExpr, floordiv, product, sym
from compiler.ir.op import FormBuild, FormContext
from compiler.ir.run_time import depends_on_run, is_equal, wrapped
from compiler.ir.types import DType, TensorType

Attrs = Mapping[str, Attr]
Types = Sequence[TensorType | None]
Arrays = Sequence[Array | None]


def part_of_rows(x: TensorType, attrs: Attrs, box: Box, axes: Iterable[int]) -> Part | None:
    """The part of an op that computes each element from those of its operand that differ in ``axes`` alone; all of these are needed."""
    whole_axes = all(box[axis] == (0, x.shape[axis]) for axis in axes)
    return Part((box,), attrs) if whole_axes else None


ONNX_DTYPES: dict[int, DType] = {
    1: DType.FLOAT32,
    2: DType.UINT8,
    3: DType.INT8,
    4: DType.UINT16,
    5: DType.INT16,
    6: DType.INT32,
    7: DType.INT64,
    8: DType.STRING,
    9: DType.BOOL,
    10: DType.FLOAT16,
    11: DType.FLOAT64,
    12: DType.UINT32,
    13: DType.UINT64,
    16: DType.BFLOAT16,
    17: DType.FLOAT8E4M3FN,
    18: DType.FLOAT8E4M3FNUZ,
    19: DType.FLOAT8E5M2,
    20: DType.FLOAT8E5M2FNUZ,
    21: DType.UINT4,
    22: DType.INT4,
    23: DType.FLOAT4E2M1,
    24: DType.FLOAT8E8M0,
    25: DType.UINT2,
    26: DType.INT2,
    27: DType.FLOAT6E2M3,
    28: DType.FLOAT6E3M2,
}
"""Element types by their number in ONNX (``TensorProto.DataType``)."""


def onnx_dtype(number: object) -> DType:
    """The element type of an ONNX attribute such as ``to``. Raises UnsupportedForm for one we do not have."""
    dtype = ONNX_DTYPES.get(number) if isinstance(number, int) else None
    if dtype is None:
        raise UnsupportedForm(f"element type {number} is not supported")
    return dtype


def attr_dims(attrs: Attrs, name: str) -> tuple[Dim, ...]:
    """An attribute that is a tuple of dims."""
    value = attrs[name]
    if not isinstance(value, tuple):
        raise UnsupportedForm(f"attribute {name} is {value!r}, not a list of integers")
    return tuple(d for d in value if isinstance(d, (int, IntExpr)))


def attr_ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    """An attribute that is a tuple of known integers. Raises ValueError where one is symbolic."""
    dims = attr_dims(attrs, name)
    known = tuple(d for d in dims if isinstance(d, int))
    if len(known) != len(dims):
        raise ValueError(f"attribute {name} has symbolic entries: {dims}")
    return known


def attr_int(attrs: Attrs, name: str) -> int:
    """An attribute that is an integer."""
    value = attrs[name]
    if not isinstance(value, int):
        raise UnsupportedForm(f"attribute {name} is {value!r}, not an integer")
    return value


def attr_dim(attrs: Attrs, name: str) -> Dim:
    """An attribute that is an integer, perhaps a symbolic one."""
    value = attrs[name]
    if not isinstance(value, int | IntExpr):
        raise UnsupportedForm(f"attribute {name} is {value!r}, not an integer")
    return value


def attr_float(attrs: Attrs, name: str) -> float:
    """An attribute that is a number."""
    value = attrs[name]
    if not isinstance(value, (int, float)):
        raise UnsupportedForm(f"attribute {name} is {value!r}, not a number")
    return float(value)


def attr_str(attrs: Attrs, name: str) -> str:
    """An attribute that is a string."""
    value = attrs[name]
    if not isinstance(value, str):
        raise UnsupportedForm(f"attribute {name} is {value!r}, not a string")
    return value


def first_type(inputs: Types) -> TensorType:
    """The type of input 0."""
    return given(inputs[0] if inputs else None)


def given(type_: TensorType | None) -> TensorType:
    """A type that must be there."""
    if type_ is None:
        raise UnsupportedForm("a required input is missing")
    return type_


def array(value: Array | None) -> Array:
    """An array that must be there."""
    if value is None:
        raise UnsupportedForm("a required input is missing")
    return value


def normalize_axis(axis: int, rank: int) -> int:
    """The non-negative form of an axis of a tensor of that rank."""
    if not -rank <= axis < rank:
        raise UnsupportedForm(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


def normalize_axes(axes: Sequence[Dim], rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes; a repeated one is refused."""
    found = sorted(normalize_axis(known(axis, "an axis"), rank) for axis in axes)
    if len(set(found)) != len(found):
        raise UnsupportedForm(f"axes {list(axes)} repeat an axis")
    return tuple(found)


def by_axis(context: FormContext, axes: Sequence[Dim], numbers: Sequence[Dim], rank: int, default: Dim = 0) -> list[Dim]:
    """For every axis of a tensor of that rank the number that goes with it, where only a run may know which axes are named."""
    if all(isinstance(axis, int) for axis in axes):
        found = [default] * rank
        for axis, number in zip(axes, numbers, strict=True):
            found[normalize_axis(known(axis, "an axis"), rank)] = number
        return found
    for axis in axes:
        context.check(-rank, axis, rank - 1, f"axis {{value}} does not exist in a tensor of rank {rank}")
    named = [wrapped(axis, rank) for axis in axes]
    return [default + sum((is_equal(a, axis) * (n - default) for a, n in zip(named, numbers, strict=True)), start=0) for axis in range(rank)]


def known(dim: Dim, role: str) -> int:
    """A dim that must be a number."""
    if isinstance(dim, int):
        return dim
    if depends_on_run(dim):
        raise UnsupportedForm(f"{role} is computed from data at run time; it must be a constant of the model")
    raise UnsupportedForm(f"{role} is {dim}, which is not known before the model runs; give input_shapes")


def known_shape(value: Value, role: str) -> tuple[int, ...]:
    """The shape of a value that must be static."""
    return tuple(known(dim, f"a dim of {role}") for dim in value.type.shape)


def axis_symbol(axis: int) -> IntExpr:
    """The index symbol of an output axis in a ``Region``."""
    return sym(f"i{axis}")


def divide(total: Sequence[Dim], parts: Sequence[Dim]) -> Dim:
    """``product(total) // product(parts)``, with equal dims cancelled first so that symbolic ones divide exactly."""
    rest: list[Dim] = list(total)
    divisors: list[Dim] = []
    for part in parts:
        if part in rest:
            rest.remove(part)
        else:
            divisors.append(part)
    numerator, divisor = product(tuple(rest)), product(tuple(divisors))
    if divisor == 0:
        return 0
    return floordiv(numerator, divisor)


def reshape(context: FormContext, x: Value, shape: Sequence[Dim]) -> Value:
    """x under another shape; x itself where it already has it."""
    return x if x.type.shape == tuple(shape) else context.emit("reshape", x, shape=tuple(shape))


def transpose(context: FormContext, x: Value, perm: Sequence[int]) -> Value:
    """x with its axes permuted; a constant is permuted at once, as a strided view of the same memory."""
    if tuple(perm) == tuple(range(x.type.rank)):
        return x
    data = context.builder.array(x)
    if data is not None:
        return context.const(np.transpose(data, tuple(perm)))
    return context.emit("transpose", x, perm=tuple(perm))


def scalar_like(context: FormContext, x: Value, number: float) -> Value:
    """A constant of rank 0 with x's element type."""
    return context.const(np.asarray(number).astype(x.type.dtype.numpy))


def per_channel(context: FormContext, x: Value, rank: int) -> Value:
    """A vector of C elements as ``[1, C, 1, …]`` of that rank; a constant stays a view of its memory."""
    shape = (1, *x.type.shape, *(1,) * (rank - 2))
    data = context.builder.array(x)
    return context.const(data.reshape(tuple(known(d, "a dim") for d in shape))) if data is not None else reshape(context, x, shape)


def cast_to(context: FormContext, x: Value, dtype: DType) -> Value:
    """x converted to dtype; x itself where it already is."""
    return x if x.type.dtype is dtype else context.emit("cast", x, to=dtype)


def forward(op: str, inputs: int) -> FormBuild:
    """A form that is the canonical op on the same inputs, without attributes."""

    def build(context: FormContext) -> Value:
        return context.emit(op, *(context.input(i) for i in range(inputs)))

    return build


def axes_of(context: FormContext, index: int) -> tuple[Dim, ...] | None:
    """Axes from the attribute of old operator versions or from input ``index`` of new ones; None where absent."""
    if "axes" in context.attrs:
        return tuple(context.attrs["axes"])
    return context.require_dims(index, "axes") if context.optional(index) is not None else None


def is_uniform(builder: GraphBuilder, value: Value | None, number: float) -> bool:
    """Whether value is a constant that holds number everywhere."""
    data = None if value is None else builder.array(value)
    return data is not None and data.size > 0 and data.reshape(-1)[0] == number and bool(np.all(data == number))


def fold_left(op: str) -> Callable[[FormContext], Value]:
    """A form of a variadic operator: the binary op applied from left to right."""

    def build(context: FormContext) -> Value:
        total = context.input(0)
        for index in range(1, len(context.inputs)):
            total = context.emit(op, total, context.input(index))
        return total

    return build
