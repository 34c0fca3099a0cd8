"""Fourier transforms of static length, as products with the matrix of the transform."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, Sample
from compiler.ops.support import known, known_shape, normalize_axis, reshape, transpose

_MATRIX_LIMIT = 1 << 24
"""Elements of the largest matrix made: 64 MB of float32."""

_REAL = (np.sin(np.arange(40) * 1.7) * 3).astype(np.float32).reshape(2, 10, 2, 1)
_COMPLEX = _REAL.reshape(2, 5, 2, 2)

SPECTRAL_SAMPLES = (
    Sample("DFT", (_REAL,), {"axis": 1}, opset=19),
    Sample("DFT", (_REAL,), {"axis": 1, "onesided": 1}, opset=19),
    Sample("DFT", (_COMPLEX,), {"axis": 1, "inverse": 1}, opset=19),
    Sample("DFT", (_REAL, np.array(7, np.int64), np.array(1, np.int64)), constant=(1, 2)),
    Sample("DFT", (_REAL, np.array(16, np.int64), np.array(1, np.int64)), {"onesided": 1}, constant=(1, 2)),
    Sample("STFT", (_REAL.reshape(2, 20, 1), np.array(4, np.int64), np.hanning(8).astype(np.float32)), {"onesided": 1}, constant=(1, 2)),
    Sample("STFT", (_REAL.reshape(2, 20, 1), np.array(6, np.int64), None, np.array(8, np.int64)), {"onesided": 0}, constant=(1, 3)),
)


def dft(context: FormContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DFT.html; the axis is an attribute before opset 20, an input since."""
    x = context.input(0)
    rank = x.type.rank
    if "axis" in context.attrs or context.opset < 20:
        axis = int(context.attrs.get("axis", 1))
    else:
        axis = -2 if context.optional(2) is None else known(context.require_dims(2, "the axis")[0], "the axis")
    axis = normalize_axis(axis, rank)
    if axis == rank - 1:
        raise UnsupportedForm("the last axis holds real and imaginary parts")
    inverse, onesided = bool(context.attrs.get("inverse", 0)), bool(context.attrs.get("onesided", 0))
    bins = known_shape(x, "the signal")[axis]
    length = 2 * (bins - 1) if inverse and onesided else bins
    if context.optional(1) is not None:
        length = known(context.require_dims(1, "the length")[0], "the length")
    return _transform(context, x, axis, length, inverse=inverse, onesided=onesided)


def _transform(context: FormContext, x: Value, axis: int, length: int, *, inverse: bool, onesided: bool) -> Value:
    """x ``[..., n, ..., 1 or 2]`` transformed along axis."""
    perm = (*(a for a in range(x.type.rank - 1) if a != axis), axis, x.type.rank - 1)
    moved = transpose(context, x, perm)
    *outer, size, parts = known_shape(moved, "the signal")
    matrix = _matrix(size, parts, length, inverse=inverse, onesided=onesided)
    rows = reshape(context, moved, (prod(outer), size * parts))
    found = context.emit("matmul", rows, context.const(matrix.reshape(size * parts, -1).astype(x.type.dtype.numpy)))
    found = reshape(context, found, (*outer, *matrix.shape[2:]))
    return transpose(context, found, tuple(int(a) for a in np.argsort(perm)))


def _matrix(size: int, parts: int, length: int, *, inverse: bool, onesided: bool) -> Array:
    """What each real or imaginary input element contributes to each output element: ``[size, parts, outputs, 1 or 2]``."""
    if size * parts * length * 2 > _MATRIX_LIMIT:
        raise UnsupportedForm(f"a transform of {size} to {length} elements is too long for a matrix")
    basis = np.eye(size)[:, None] * np.array([1, 1j][:parts])[:, None]
    if inverse and onesided:
        return np.asarray(np.fft.irfft(basis, length)[..., None])
    transform: Callable[..., Array] = np.fft.ifft if inverse else np.fft.fft
    found = transform(basis, length)
    if onesided:
        found = found[..., : length // 2 + 1]
    return np.stack([found.real, found.imag], axis=-1)


def stft(context: FormContext) -> Value:
    """Windowed frames, a gather at known positions, transformed one by one."""
    signal, window = context.input(0), context.optional(2)
    step = known(context.require_dims(1, "the step")[0], "the step")
    if context.optional(3) is not None:
        length = known(context.require_dims(3, "the frame length")[0], "the frame length")
    elif window is not None:
        length = known(window.type.shape[0], "the window's length")
    else:
        raise UnsupportedForm("there is neither a window nor a frame length")
    total = known_shape(signal, "the signal")[1]
    if step < 1 or length > total:
        raise UnsupportedForm(f"frames of {length} elements, {step} apart, in a signal of {total}")
    places = np.arange(1 + (total - length) // step, dtype=np.int64)[:, None] * step + np.arange(length, dtype=np.int64)
    frames = context.emit("gather", signal, context.const(places), axis=1)
    if window is not None:
        frames = context.emit("mul", frames, reshape(context, window, (length, 1)))
    return _transform(context, frames, 2, length, inverse=False, onesided=bool(context.attrs.get("onesided", 1)))
