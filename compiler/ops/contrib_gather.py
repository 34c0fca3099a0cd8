"""GatherBlockQuantized of the ``com.microsoft`` domain: rows of a table whose elements have few bits and a scale for each block.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.gather import Gather
from compiler.ops.index import slice_axis
from compiler.ops.quantize import MICROSOFT
from compiler.ops.support import cast_to, known, normalize_axis, reshape, scalar_like


def _gather_block_quantized(context: FormContext) -> Value:
    """``(codes - zero points) * scales`` of the gathered rows. Bytes hold several codes, the lowest bits first; no such row gives zeros."""
    data, indices, scales, zeros = context.input(0), cast_to(context, context.input(1), DType.INT64), context.input(2), context.optional(3)
    axis = normalize_axis(int(context.attrs.get("gather_axis", 0)), data.type.rank)
    blocked = normalize_axis(int(context.attrs.get("quantize_axis", 1)), data.type.rank)
    block, bits = int(context.attrs.get("block_size", 128)), int(context.attrs.get("bits", 4))
    in_bytes = data.type.dtype is DType.UINT8
    if axis == blocked or data.type.dtype.is_float or bits not in (2, 4, 8) or block < 1:
        raise UnsupportedForm(f"data {data.type} of {bits} bits gathered along axis {axis} with blocks along axis {blocked}")
    rows = known(data.type.shape[axis], "the number of rows")
    low, high = context.const(np.array(-rows, np.int64)), context.const(np.array(rows, np.int64))
    valid = context.emit("and", context.emit("greater_or_equal", indices, low), context.emit("less", indices, high))
    places = context.emit("where", valid, indices, context.const(np.array(0, np.int64)))
    moved = blocked + places.type.rank - 1 if blocked > axis else blocked

    def gathered(table: Value, count: int | None) -> Value:
        """Rows of a table of numbers, or of packed codes of which ``count`` of the last axis count."""
        found = context.emit("gather", table, places, axis=axis)
        if table.type.dtype is DType.UINT8 and bits < 8 and count is not None:
            found = slice_axis(context, _unpacked(context, found, bits), found.type.rank - 1, 0, count)
        return cast_to(context, found, DType.FLOAT32)

    last = known(data.type.shape[-1], "the last dim") * (8 // bits if in_bytes else 1)
    codes = gathered(data, last)
    length = known(codes.type.shape[moved], "the length of the blocked axis")
    blocks = context.const(np.arange(length, dtype=np.int64) // block)
    if zeros is not None:
        points = context.emit("gather", gathered(zeros, known(scales.type.shape[-1], "the number of scales")), blocks, axis=moved)
        codes = context.emit("sub", codes, points)
    elif in_bytes:
        codes = context.emit("sub", codes, scalar_like(context, codes, float(1 << (bits - 1))))
    real = context.emit("mul", codes, context.emit("gather", gathered(scales, None), blocks, axis=moved))
    shown = reshape(context, valid, (*(1,) * axis, *valid.type.shape, *(1,) * (data.type.rank - axis - 1)))
    return cast_to(context, context.emit("where", shown, real, scalar_like(context, real, 0)), scales.type.dtype)


def _unpacked(context: FormContext, x: Value, bits: int) -> Value:
    """Codes of ``bits`` bits from bytes, along the last axis."""
    shifts = context.const(np.arange(0, 8, bits, dtype=np.uint8))
    spread = context.emit("shift", reshape(context, x, (*x.type.shape, 1)), shifts, direction="RIGHT")
    codes = context.emit("bitwise_and", spread, context.const(np.array((1 << bits) - 1, np.uint8)))
    return reshape(context, codes, (*x.type.shape[:-1], x.type.shape[-1] * (8 // bits)))


_BYTES = (np.arange(5 * 24) * 37 % 256).astype(np.uint8).reshape(5, 24)
_SCALES = np.linspace(0.1, 0.9, 15).astype(np.float32).reshape(5, 3)
_ROWS = np.array([[4, 0], [-1, 2]], np.int64)


def _sample(*inputs: Array, **attrs: Any) -> Sample:
    return Sample("GatherBlockQuantized", inputs, attrs, opset=1, constant=(0, 2, 3)[: len(inputs) - 1], domain=MICROSOFT)


extend(
    Gather,
    forms=(OnnxForm("GatherBlockQuantized", _gather_block_quantized, domain=MICROSOFT),),
    samples=(
        _sample(_BYTES, _ROWS, _SCALES, block_size=16, bits=4),
        _sample(_BYTES, _ROWS, _SCALES, _BYTES[:, :2], block_size=16, bits=4),
        _sample(_BYTES, _ROWS.astype(np.int32), _SCALES[:, :2], block_size=16, bits=8),
    ),
)
