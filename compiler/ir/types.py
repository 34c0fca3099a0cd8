"""Types of values: element types, layouts and tensor types with symbolic dims."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from compiler.ir.intexpr import Dim, ceildiv, product

Array = np.ndarray[Any, np.dtype[Any]]


ADDRESSABLE_BYTES = 1 << 47
"""What a process can address on today's 64-bit machines; nothing larger can be a tensor."""


class DType(Enum):
    """An element type; the value is the name that both IRs print. One element takes whole bytes, as in numpy and ml_dtypes.

    Strings are ``str`` objects in numpy. In memory their elements are 64-bit integers, which say where in the texts of a run the bytes are
    (``runtime/texts.py``); Loop IR has those alone.
    """

    FLOAT64 = "f64"
    FLOAT32 = "f32"
    FLOAT16 = "f16"
    BFLOAT16 = "bf16"
    FLOAT8E4M3FN = "f8e4m3fn"
    FLOAT8E4M3FNUZ = "f8e4m3fnuz"
    FLOAT8E5M2 = "f8e5m2"
    FLOAT8E5M2FNUZ = "f8e5m2fnuz"
    FLOAT8E8M0 = "f8e8m0"
    FLOAT6E2M3 = "f6e2m3"
    FLOAT6E3M2 = "f6e3m2"
    FLOAT4E2M1 = "f4e2m1"
    INT64 = "i64"
    INT32 = "i32"
    INT16 = "i16"
    INT8 = "i8"
    INT4 = "i4"
    INT2 = "i2"
    UINT64 = "u64"
    UINT32 = "u32"
    UINT16 = "u16"
    UINT8 = "u8"
    UINT4 = "u4"
    UINT2 = "u2"
    BOOL = "bool"
    STRING = "str"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype with the same values."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return _STRING_BYTES if self is DType.STRING else _NUMPY[self].itemsize

    @property
    def bits(self) -> int:
        """Bits that carry the value: the low ones of its bytes in memory, the rest of which are zero."""
        return _SUB_BYTE.get(self, 8 * self.itemsize)

    @property
    def is_float(self) -> bool:
        return self.value[0] in "fb" and self is not DType.BOOL

    @property
    def is_signed(self) -> bool:
        """Whether negative values exist (signed integers, and floats but for the powers of two of ``f8e8m0``)."""
        return self.value[0] != "u" and self not in (DType.BOOL, DType.FLOAT8E8M0, DType.STRING)

    @classmethod
    def of(cls, dtype: np.dtype[np.generic] | type[np.generic]) -> DType:
        """The element type of a numpy dtype. Raises KeyError for one we do not have."""
        return _OF_NUMPY[np.dtype(dtype)]


_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.FLOAT64: np.dtype(np.float64),
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.FLOAT8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.FLOAT6E2M3: np.dtype(ml_dtypes.float6_e2m3fn),
    DType.FLOAT6E3M2: np.dtype(ml_dtypes.float6_e3m2fn),
    DType.FLOAT4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.INT64: np.dtype(np.int64),
    DType.INT32: np.dtype(np.int32),
    DType.INT16: np.dtype(np.int16),
    DType.INT8: np.dtype(np.int8),
    DType.INT4: np.dtype(ml_dtypes.int4),
    DType.INT2: np.dtype(ml_dtypes.int2),
    DType.UINT64: np.dtype(np.uint64),
    DType.UINT32: np.dtype(np.uint32),
    DType.UINT16: np.dtype(np.uint16),
    DType.UINT8: np.dtype(np.uint8),
    DType.UINT4: np.dtype(ml_dtypes.uint4),
    DType.UINT2: np.dtype(ml_dtypes.uint2),
    DType.BOOL: np.dtype(np.bool_),
    DType.STRING: np.dtype(np.object_),
}
_OF_NUMPY = {numpy: dtype for dtype, numpy in _NUMPY.items()}
_STRING_BYTES = 8
_SUB_BYTE = {
    DType.FLOAT6E2M3: 6,
    DType.FLOAT6E3M2: 6,
    DType.FLOAT4E2M1: 4,
    DType.INT4: 4,
    DType.UINT4: 4,
    DType.INT2: 2,
    DType.UINT2: 2,
}
_COMPUTED = {
    DType.INT4: DType.INT8,
    DType.INT2: DType.INT8,
    DType.UINT4: DType.UINT8,
    DType.UINT2: DType.UINT8,
    **{dtype: DType.FLOAT32 for dtype in DType if dtype.is_float and dtype.itemsize <= 2},
}


def compute_dtype(dtype: DType) -> DType:
    """The type that arithmetic on values of dtype is done in: of narrow floats and of integers below a byte, a wider one."""
    return _COMPUTED.get(dtype, dtype)


def is_coded(dtype: DType) -> bool:
    """Whether an element is a byte that no machine computes with: a code, which a conversion decodes."""
    return dtype in _COMPUTED and dtype.itemsize == 1


def integer_range(dtype: DType) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    return (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if dtype.is_signed else (0, (1 << dtype.bits) - 1)


@dataclass(frozen=True)
class TensorType:
    """A dense tensor: element type, logical shape, and how it lies in memory.

    ``block == 1`` is row-major. ``block == c > 1`` splits axis 1: NCHW becomes ``[N, ceil(C/c), H, W, c]`` (NCHW8c for c = 8);
    lanes past C hold unspecified values that no kernel reads as data.
    """

    dtype: DType
    shape: tuple[Dim, ...]
    block: int = 1

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def physical_shape(self) -> tuple[Dim, ...]:
        """The row-major shape in memory, in elements."""
        if self.block == 1:
            return self.shape
        return (self.shape[0], ceildiv(self.shape[1], self.block), *self.shape[2:], self.block)

    @cached_property
    def elements(self) -> Dim:
        """Elements in memory, padding lanes included."""
        return product(self.physical_shape)

    @property
    def nbytes(self) -> Dim:
        return self.elements * self.dtype.itemsize

    @property
    def is_static(self) -> bool:
        return all(isinstance(dim, int) for dim in self.shape)

    @cached_property
    def static_shape(self) -> tuple[int, ...]:
        """The shape when every dim is known. Raises ValueError when one is symbolic."""
        dims = tuple(dim for dim in self.shape if isinstance(dim, int))
        if len(dims) != len(self.shape):
            raise ValueError(f"{self} has symbolic dims")
        return dims

    @property
    def in_memory(self) -> TensorType:
        """The type of what lies in memory for it: of strings, integers."""
        return replace(self, dtype=DType.INT64) if self.dtype is DType.STRING else self

    def with_block(self, block: int) -> TensorType:
        """The same tensor in another layout."""
        return replace(self, block=block)

    def __str__(self) -> str:
        layout = f"{{{self.block}c}}" if self.block != 1 else ""
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]{layout}"


def begins_with(whole: TensorType, part: TensorType) -> bool:
    """Whether a tensor in one layout is what it is in another, perhaps with padding behind it: nothing stands between the channels of a position."""
    if (whole.dtype, whole.shape) != (part.dtype, part.shape):
        return False
    if whole.block == part.block:
        return True
    padded = whole.block != 1 and part.block == 1 and whole.shape[0] == 1
    return (whole.elements == part.elements or padded) and all(dim == 1 for dim in whole.shape[2:])


def pack_physical(array: Array, block: int) -> Array:
    """A logical array as it lies in memory in the blocked layout; padding lanes are zero."""
    if block == 1:
        return np.ascontiguousarray(array)
    padding = -array.shape[1] % block
    padded = np.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
    split = padded.reshape(array.shape[0], padded.shape[1] // block, block, *array.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def unpack_physical(array: Array, shape: tuple[int, ...], block: int) -> Array:
    """The logical array of ``shape`` from how it lies in memory; the inverse of ``pack_physical``."""
    if block == 1:
        return array.reshape(shape)
    split = array.reshape(shape[0], -(-shape[1] // block), *shape[2:], block)
    merged = np.moveaxis(split, -1, 2).reshape(shape[0], split.shape[1] * block, *shape[2:])
    return np.ascontiguousarray(merged[:, : shape[1]])
