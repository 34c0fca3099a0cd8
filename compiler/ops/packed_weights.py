"""MatMulNBits: products with weights of 2, 4 or 8 bits, packed into bytes, with a scale for each block of a column."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, UnsupportedForm, extend
from compiler.ir.types import DType
from compiler.ops.matmul import MatMul
from compiler.ops.quantize import MICROSOFT
from compiler.ops.reduce import reduce
from compiler.ops.support import cast_to, known, reshape, scalar_like, transpose

_INT8_ACTIVATIONS = 4
"""The value of attribute ``accuracy_level`` that asks for activations of 8 bits."""

_X = np.sin(np.arange(2 * 3 * 40)).astype(np.float32).reshape(2, 3, 40)
_PACKED = (np.arange(5 * 3 * 8) * 41 % 256).astype(np.uint8).reshape(5, 3, 8)
_SCALES = np.linspace(0.1, 0.9, 15).astype(np.float32)
_ZEROS = (np.arange(10) * 29 % 256).astype(np.uint8)
_SHAPE = {"K": 40, "N": 5, "block_size": 16}


def _unpacked(data: Array, bits: int) -> Array:
    """Unsigned integers of ``bits`` bits from bytes, the lowest bits first, along the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(values.reshape(*data.shape[:-1], data.shape[-1] * len(shifts)))


def _weights(context: FormContext, bits: int, columns: int, blocks: int) -> tuple[Array, Array]:
    """The weights' integers less their zero points, ``[columns, blocks, block_size]``, and the scales, ``[columns, blocks]``; both float32."""
    packed, scales, zeros = (context.constant(i) for i in (1, 2, 3))
    if packed is None or scales is None or (zeros is None and context.optional(3) is not None):
        raise UnsupportedForm("packed weights, scales and zero points must be constants")
    block = int(context.attrs["block_size"])
    codes = _unpacked(packed.reshape(columns, blocks, -1), bits)[:, :, :block].astype(np.float32)
    if zeros is None:
        points = np.full((columns, blocks), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        points = _unpacked(zeros.reshape(columns, -1), bits)[:, :blocks].astype(np.float32)
    else:
        points = zeros.reshape(columns, blocks).astype(np.float32)
    return codes - points[:, :, None], scales.reshape(columns, blocks).astype(np.float32)


def _real_product(context: FormContext, x: Value, codes: Array, scales: Array, stored: np.dtype[Any]) -> Value:
    """x times the weights as real numbers, rounded to the scales' type as they are stored."""
    columns, blocks, block = codes.shape
    depth = known(x.type.shape[-1], "the depth of a product")
    real = (codes * scales[:, :, None]).reshape(columns, blocks * block)[:, :depth].T.astype(stored)
    return context.emit("matmul", x, cast_to(context, context.const(np.ascontiguousarray(real)), x.type.dtype))


def _integer_product(context: FormContext, x: Value, codes: Array, scales: Array) -> Value:
    """x rounded to integers in steps of 1/127 of the greatest magnitude of each block, times the weights' integers.

    The products of one block are summed exactly: they are integers that float32 holds. The two scales of the block multiply that sum.
    """
    blocks, block = codes.shape[1:]
    rank, rest = x.type.rank, blocks * block - known(x.type.shape[-1], "the depth of a product")
    ends = (0,) * (rank - 1) + (rest,)
    whole = context.emit("pad", x, begins=(0,) * rank, ends=ends, mode="constant", value=0.0) if rest else x
    split = reshape(context, whole, (*x.type.shape[:-1], blocks, block))
    split = transpose(context, split, (*range(rank - 2), rank - 1, rank - 2, rank))
    greatest, zero, full = reduce(context, context.emit("abs", split), "max", (rank,)), scalar_like(context, x, 0), scalar_like(context, x, 127)
    inverse = context.emit("where", context.emit("equal", greatest, zero), zero, context.emit("div", full, greatest))
    integers = context.emit("round", context.emit("mul", split, inverse))
    sums = context.emit("matmul", integers, context.const(np.ascontiguousarray(codes.transpose(1, 2, 0))))
    scale = context.emit("mul", context.emit("div", greatest, full), context.const(np.ascontiguousarray(scales.T[:, None])))
    return reduce(context, context.emit("mul", sums, scale), "sum", (rank - 2,), keepdims=False)


def _matmul_n_bits(context: FormContext) -> Value:
    bits, columns, depth = int(context.attrs.get("bits", 4)), int(context.attrs["N"]), int(context.attrs["K"])
    if bits not in (2, 4, 8) or context.optional(4) is not None:
        raise UnsupportedForm("weights of 2, 4 or 8 bits in the order of their columns (no g_idx) are supported")
    x, bias = context.input(0), context.optional(5)
    codes, scales = _weights(context, bits, columns, -(-depth // int(context.attrs["block_size"])))
    if int(context.attrs.get("accuracy_level", 0)) == _INT8_ACTIVATIONS and x.type.rank > 1:
        result = cast_to(context, _integer_product(context, cast_to(context, x, DType.FLOAT32), codes, scales), x.type.dtype)
    else:
        result = _real_product(context, x, codes, scales, context.input(2).type.dtype.numpy)
    return result if bias is None else context.emit("add", result, bias)


extend(
    MatMul,
    forms=(OnnxForm("MatMulNBits", _matmul_n_bits, domain=MICROSOFT),),
    samples=(
        Sample("MatMulNBits", (_X, _PACKED, _SCALES), _SHAPE | {"bits": 4}, opset=1, constant=(1, 2), domain=MICROSOFT),
        Sample("MatMulNBits", (_X, _PACKED, _SCALES, _ZEROS), _SHAPE | {"bits": 4}, opset=1, constant=(1, 2, 3), domain=MICROSOFT),
        Sample("MatMulNBits", (_X, _PACKED, _SCALES), _SHAPE | {"bits": 4, "accuracy_level": 4}, opset=1, constant=(1, 2), domain=MICROSOFT),
        Sample("MatMulNBits", (_X, _PACKED.repeat(2, 2), _SCALES), _SHAPE | {"bits": 8}, opset=1, constant=(1, 2), domain=MICROSOFT),
    ),
)
