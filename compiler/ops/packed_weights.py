"""MatMulNBits: products with weights of 2, 4 or 8 bits, packed into bytes, with a scale for each block of a column."""

from __future__ import annotations

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ops.index import slice_axis
from compiler.ops.matmul import MatMul
from compiler.ops.quantize import MICROSOFT
from compiler.ops.reduce import reduce
from compiler.ops.support import cast_to, known, reshape, scalar_like

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


def _weights(context: FormContext, bits: int, columns: int, depth: int) -> Array:
    """The weights ``[depth, columns]`` in the scales' type, each ``(q - zero_point) * scale`` of its block."""
    packed, scales, zeros = (context.constant(i) for i in (1, 2, 3))
    if packed is None or scales is None or (zeros is None and context.optional(3) is not None):
        raise UnsupportedForm("packed weights, scales and zero points must be constants")
    block = int(context.attrs["block_size"])
    blocks = -(-depth // block)
    codes = _unpacked(packed.reshape(columns, blocks, -1), bits)[:, :, :block].astype(np.float32)
    if zeros is None:
        points = np.full((columns, blocks), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        points = _unpacked(zeros.reshape(columns, -1), bits)[:, :blocks].astype(np.float32)
    else:
        points = zeros.reshape(columns, blocks).astype(np.float32)
    real = (codes - points[:, :, None]) * scales.reshape(columns, blocks, 1).astype(np.float32)
    return np.ascontiguousarray(real.reshape(columns, blocks * block)[:, :depth].T.astype(scales.dtype))


def _rounded(context: FormContext, x: Value, block: int) -> Value:
    """x in steps of 1/127 of the greatest magnitude of its block: what products with 8-bit activations compute, in real numbers.

    The steps are counted with the factor ``127 / greatest`` that ONNX Runtime uses: its rounding decides values near a tie.
    """
    depth = known(x.type.shape[-1], "the depth of a product")
    blocks = -(-depth // block)
    ends = (0,) * (x.type.rank - 1) + (blocks * block - depth,)
    whole = context.emit("pad", x, begins=(0,) * x.type.rank, ends=ends, mode="constant", value=0.0) if ends[-1] else x
    split = reshape(context, whole, (*x.type.shape[:-1], blocks, block))
    greatest = reduce(context, context.emit("abs", split), "max", (x.type.rank,))
    zero, most = scalar_like(context, x, 0), scalar_like(context, x, 127)
    factor = context.emit("where", context.emit("equal", greatest, zero), zero, context.emit("div", most, greatest))
    steps = context.emit("round", context.emit("mul", split, factor))
    real = context.emit("mul", steps, context.emit("div", greatest, most))
    return slice_axis(context, reshape(context, real, whole.type.shape), x.type.rank - 1, 0, depth)


def _matmul_n_bits(context: FormContext) -> Value:
    bits, columns, depth = int(context.attrs.get("bits", 4)), int(context.attrs["N"]), int(context.attrs["K"])
    if bits not in (2, 4, 8) or context.optional(4) is not None:
        raise UnsupportedForm("weights of 2, 4 or 8 bits in the order of their columns (no g_idx) are supported")
    x, bias = context.input(0), context.optional(5)
    weights = cast_to(context, context.const(_weights(context, bits, columns, depth)), x.type.dtype)
    if int(context.attrs.get("accuracy_level", 0)) == _INT8_ACTIVATIONS:
        x = _rounded(context, x, int(context.attrs["block_size"]))
    result = context.emit("matmul", x, weights)
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
