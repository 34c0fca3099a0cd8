"""Fourier transforms, as products with the matrix of the transform."""

from __future__ import annotations

from math import pi

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, floordiv, maximum, product
from compiler.ir.op import FormContext, Sample
from compiler.ir.run_time import natural
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.run_time_axes import gathered, named, ungathered
from compiler.ops.support import known, normalize_axis, reshape, scalar_like, transpose
from compiler.ops.tables import combined, computed, converted, laid, real

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
    axis: Dim = -2
    if "axis" in context.attrs or context.opset < 20:
        axis = int(context.attrs.get("axis", 1))
    elif context.optional(2) is not None:
        (axis,) = context.require_dims(2, "the axis")
    inverse, onesided = bool(context.attrs.get("inverse", 0)), bool(context.attrs.get("onesided", 0))
    hits = named(context, [axis], rank) if not isinstance(axis, int) else [int(a == normalize_axis(axis, rank)) for a in range(rank)]
    context.check(0, hits[-1], 0, "the last axis holds real and imaginary parts")
    bins = context.builder.define(sum((hit * dim for hit, dim in zip(hits, x.type.shape, strict=True)), start=0))
    length = 2 * (bins - 1) if inverse and onesided else bins
    if context.optional(1) is not None:
        (length,) = context.require_dims(1, "the length")
    transform = _Transform(context, bins, known(x.type.shape[-1], "the number of parts"), length, inverse=inverse, onesided=onesided)
    if isinstance(axis, int):
        return _along(context, x, hits.index(1), transform)
    hits = [*hits[:-1], 1]
    found = transform.apply(gathered(context, x, hits))
    shape = [dim + hit * (transform.outputs - dim) for dim, hit in zip(x.type.shape[:-1], hits[:-1], strict=True)]
    return ungathered(context, found, context.settled([*shape, transform.parts]), hits)


def _along(context: FormContext, x: Value, axis: int, transform: _Transform) -> Value:
    """x ``[..., n, ..., 1 or 2]`` transformed along axis."""
    perm = (*(a for a in range(x.type.rank - 1) if a != axis), axis, x.type.rank - 1)
    moved = transpose(context, x, perm)
    *outer, size, parts = moved.type.shape
    found = transform.apply(reshape(context, moved, (product(outer), size * parts)))
    found = reshape(context, found, (*outer, transform.outputs, transform.parts))
    return transpose(context, found, tuple(int(a) for a in np.argsort(perm)))


class _Transform:
    """The transform of ``size`` elements of ``parts`` parts, cut or padded with zeros to ``length``: ``outputs`` elements of ``parts`` parts."""

    def __init__(self, context: FormContext, size: Dim, parts: int, length: Dim, *, inverse: bool, onesided: bool) -> None:
        context.check(1, length, None, "the length of its transform is {value}, which must be at least {low}")
        if parts not in (1, 2):
            raise UnsupportedForm(f"its last axis is of {parts} elements, not a real part and perhaps an imaginary one")
        if isinstance(size, int) and isinstance(length, int) and size * parts * length * 2 > _MATRIX_LIMIT:
            raise UnsupportedForm(f"a transform of {size} to {length} elements is too long for a matrix")
        half = floordiv(length, 2) + 1
        self._context, self._size, self._given, self._length = context, size, parts, length
        self._inverse, self._symmetric = inverse, inverse and onesided
        self.parts = 1 if self._symmetric else 2
        self.outputs = half if onesided and not inverse else length
        self._kept = half if self._symmetric else length

    def apply(self, rows: Value) -> Value:
        """Rows ``[N, size * parts]`` transformed, ``[N, outputs * parts]``."""
        return self._context.emit("matmul", rows, converted(self._context, self._matrix(), rows.type.dtype))

    def _matrix(self) -> Value:
        """What each part of each input element contributes to each part of each output element."""
        context = self._context
        at, to = laid(context, iota(context, self._size), 0, 2), laid(context, iota(context, self.outputs), 1, 2)
        turns = converted(
            context, combined(context, "mod", combined(context, "mul", at, to), number(context, self._length), fmod=False), DType.FLOAT64
        )
        angle = combined(context, "mul", combined(context, "div", turns, real(context, self._length)), 2 * pi if self._inverse else -2 * pi)
        weight = self._weights(at)
        cosine, sine = (combined(context, "mul", computed(context, fn, angle), weight) for fn in ("cos", "sin"))
        blocks = [[cosine, sine], [computed(context, "neg", sine), cosine]]
        shape = (self._size, 1, self.outputs, 1)
        taken = [[computed(context, "reshape", block, shape=shape) for block in row[: self.parts]] for row in blocks[: self._given]]
        matrix = computed(context, "concat", *(computed(context, "concat", *row, axis=3) for row in taken), axis=1)
        return computed(context, "reshape", matrix, shape=(self._size * self._given, self.outputs * self.parts))

    def _weights(self, at: Value) -> Value:
        """How often each input element counts, one that only its mirror image repeats twice, one beyond the length not at all."""
        context = self._context
        weight = converted(context, computed(context, "less", at, number(context, self._kept)), DType.FLOAT64)
        if self._symmetric:
            twice = combined(context, "mul", at, 2)
            alone = computed(
                context, "equal", combined(context, "mod", twice, number(context, self._length), fmod=False), scalar_like(context, at, 0)
            )
            weight = combined(
                context, "mul", weight, combined(context, "sub", scalar_like(context, weight, 2), converted(context, alone, DType.FLOAT64))
            )
        return combined(context, "div", weight, real(context, self._length)) if self._inverse else weight


def stft(context: FormContext) -> Value:
    """Windowed frames, a gather at positions that follow from the sizes, transformed one by one."""
    signal, window = context.input(0), context.optional(2)
    (step,) = context.require_dims(1, "the step")
    if context.optional(3) is not None:
        (length,) = context.require_dims(3, "the frame length")
    elif window is not None:
        length = window.type.shape[0]
    else:
        raise UnsupportedForm("there is neither a window nor a frame length")
    total = signal.type.shape[1]
    context.check(1, step, None, "frames are {value} elements apart")
    context.check(1, length, total, "frames of {value} elements in a signal of {high}")
    frames, length = (context.builder.define(natural(dim)) for dim in (1 + floordiv(total - length, maximum(step, 1)), length))
    starts = combined(context, "mul", laid(context, iota(context, frames), 0, 2), number(context, step))
    places = combined(context, "add", starts, laid(context, iota(context, length), 1, 2))
    taken = context.emit("gather", signal, places, axis=1)
    if window is not None:
        taken = context.emit("mul", taken, reshape(context, window, (length, 1)))
    parts = known(signal.type.shape[-1], "the number of parts") if signal.type.rank == 3 else 0
    onesided = bool(context.attrs.get("onesided", 1))
    return _along(context, taken, 2, _Transform(context, length, parts, length, inverse=False, onesided=onesided))
