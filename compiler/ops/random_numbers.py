"""Random numbers: RandomNormal, RandomUniform and their like, Bernoulli, Multinomial, Dropout in training.

The generator is counter-based: element k of a node's numbers is a mixture of k and the node's key, so that they are the same on any number
of threads and on every run. The key comes from attribute ``seed``; a node without one takes its name, which is fixed when it is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from zlib import crc32

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import Elementwise, FormContext, OnnxForm, Sample, register
from compiler.ir.scalar import Const, Scalar, call, cast
from compiler.ir.types import DType
from compiler.ops.dims import iota, number
from compiler.ops.support import Attrs, attr_int, cast_to, is_uniform, onnx_dtype, reshape, scalar_like

_GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio: consecutive counters begin far apart."""
_MASK = 0xFFFFFFFF

_X = np.array([[0.0, -1.5, 2.0], [3.0, 0.5, -0.25]], np.float32)
_CERTAIN = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], np.float32)
_LOGITS = np.where(np.eye(3, 4, 1) > 0, 0, -np.inf).astype(np.float32)


def _mixed_number(x: int) -> int:
    """``_mixed`` of a number that is known."""
    x = (x ^ x >> 16) * 0x21F0AAAD & _MASK
    x = (x ^ x >> 15) * 0x735A2D97 & _MASK
    return x ^ x >> 15


def _u32(number: int) -> Const:
    return Const(number & _MASK, DType.UINT32)


def _folded(x: Scalar, shift: int) -> Scalar:
    return call("xor", x, call("shr", x, _u32(shift)))


def _mixed(x: Scalar) -> Scalar:
    """A permutation of 32-bit numbers in which every bit depends on every other (Wellons, 2018; constants of https://github.com/skeeto/hash-prospector)."""
    x = call("mul", _folded(x, 16), _u32(0x21F0AAAD))
    x = call("mul", _folded(x, 15), _u32(0x735A2D97))
    return _folded(x, 15)


def _bits(counter: Scalar, key: int) -> Scalar:
    """32 random bits for a counter."""
    first, second = _mixed_number(key), _mixed_number(key + _GOLDEN & _MASK)
    return _mixed(call("xor", _mixed(call("add", call("mul", counter, _u32(_GOLDEN)), _u32(first))), _u32(second)))


def _high_bits(counter: Scalar, key: int, count: int, dtype: DType) -> Scalar:
    """``count < 32`` random bits as a float; by way of int32, from which vectors convert."""
    return cast(cast(call("shr", _bits(counter, key), _u32(32 - count)), DType.INT32), dtype)


@register
class RandomUniform(Elementwise):
    """Uniform numbers in [0, 1) for counters (uint32), float32 of 24 bits or, with ``wide``, float64 of 53; by attribute ``key``."""

    name = "random_uniform"
    samples = (
        Sample("RandomUniform", (), {"shape": [2, 3], "low": 1.5, "high": 1.5, "dtype": 11}),
        Sample("RandomUniform", (), {"shape": [1], "low": -2.0, "high": -2.0}),
        Sample("RandomUniformLike", (_X,), {"low": 0.5, "high": 0.5}),
        Sample("RandomUniformLike", (_X[:, :0],)),
        Sample("RandomNormal", (), {"shape": [3], "mean": 4.0, "scale": 0.0, "dtype": 10}),
        Sample("RandomNormalLike", (_X.astype(np.int32),), {"mean": -0.5, "scale": 0.0, "dtype": 11}),
        Sample("Bernoulli", (_CERTAIN,)),
        Sample("Bernoulli", (_CERTAIN.astype(np.float64),), {"dtype": 7}),
        Sample("Multinomial", (_LOGITS,), {"sample_size": 5}),
        Sample("Multinomial", (_LOGITS,), {"sample_size": 2, "dtype": 7}),
        Sample("Dropout", (_X,)),
        Sample("Dropout", (_X,), {"ratio": 0.25}, opset=10),
        Sample("Dropout", (_X, np.array(0.75, np.float32), np.array(False)), outputs=2),
        Sample("Dropout", (_X, np.array(0.0, np.float32), np.array(True)), outputs=2),
    )

    def scalar(self, args: Sequence[Scalar], attrs: Attrs) -> Scalar:
        counter, key = args[0], attr_int(attrs, "key")
        if not attrs["wide"]:
            return call("mul", _high_bits(counter, key, 24, DType.FLOAT32), Const(2.0**-24, DType.FLOAT32))
        high, low = _high_bits(counter, key, 26, DType.FLOAT64), _high_bits(counter, key + 1, 27, DType.FLOAT64)
        whole = call("add", call("mul", high, Const(2.0**27, DType.FLOAT64)), low)
        return call("mul", whole, Const(2.0**-53, DType.FLOAT64))


def _key(context: FormContext) -> int:
    """By attribute ``seed``, whose bits are mixed; else by the node's name."""
    seed = context.attrs.get("seed")
    data = context.name.encode() if seed is None else np.float32(seed).tobytes()
    return crc32(data)


def _uniform(context: FormContext, shape: Sequence[Dim], dtype: DType, stream: int = 0) -> Value:
    """Uniform numbers of a shape in [0, 1), float32 or float64; streams of one node are independent of each other."""
    context.check(None, product(tuple(shape)), _MASK, "{value} random numbers are asked for, and the generator counts up to {high}")
    counters: Value = context.const(np.zeros((1,) * len(shape), np.uint32))
    for axis, extent in enumerate(shape):
        places = context.emit("mul", iota(context, extent), number(context, product(tuple(shape[axis + 1 :]))))
        along = reshape(context, cast_to(context, places, DType.UINT32), (extent, *(1,) * (len(shape) - 1 - axis)))
        counters = context.emit("add", counters, along)
    return context.emit("random_uniform", counters, key=_mixed_number(_key(context) + 2 * stream & _MASK), wide=dtype is DType.FLOAT64)


def _normal(context: FormContext, shape: Sequence[Dim], dtype: DType) -> Value:
    """Normal numbers of mean 0 and deviation 1 (Box and Muller, 1958)."""
    uniform = _uniform(context, shape, dtype)
    logarithm = context.emit("log", context.emit("sub", scalar_like(context, uniform, 1), uniform))
    radius = context.emit("sqrt", context.emit("mul", logarithm, scalar_like(context, logarithm, -2)))
    angle = _uniform(context, shape, dtype, stream=1)
    return context.emit("mul", radius, context.emit("cos", context.emit("mul", angle, scalar_like(context, angle, 2 * pi))))


def _wide_enough(dtype: DType) -> DType:
    """The type in which numbers of dtype are drawn."""
    return DType.FLOAT64 if dtype is DType.FLOAT64 else DType.FLOAT32


def _result_dtype(context: FormContext, default: DType) -> DType:
    return onnx_dtype(context.attrs["dtype"]) if "dtype" in context.attrs else default


def _random(context: FormContext) -> Value:
    """RandomNormal and RandomUniform, by attributes ``shape`` and ``dtype`` or like input 0."""
    if context.op_type.endswith("Like"):
        x = context.input(0)
        shape, dtype = x.type.shape, _result_dtype(context, x.type.dtype)
    else:
        shape, dtype = tuple(int(n) for n in context.attrs["shape"]), _result_dtype(context, DType.FLOAT32)
    if not dtype.is_float:
        raise UnsupportedForm(f"random numbers of type {dtype.value}; only floats are possible")
    compute = _wide_enough(dtype)
    if context.op_type.startswith("RandomNormal"):
        numbers, offset, scale = _normal(context, shape, compute), *(float(context.attrs.get(k, d)) for k, d in (("mean", 0.0), ("scale", 1.0)))
    else:
        low, high = float(context.attrs.get("low", 0.0)), float(context.attrs.get("high", 1.0))
        numbers, offset, scale = _uniform(context, shape, compute), low, high - low
    scaled = context.emit("mul", numbers, scalar_like(context, numbers, scale))
    return cast_to(context, context.emit("add", scaled, scalar_like(context, scaled, offset)), dtype)


def _bernoulli(context: FormContext) -> Value:
    """One with the probability in x."""
    x = context.input(0)
    chance = cast_to(context, x, _wide_enough(x.type.dtype))
    drawn = context.emit("less", _uniform(context, x.type.shape, chance.type.dtype), chance)
    return cast_to(context, drawn, _result_dtype(context, x.type.dtype))


def _multinomial(context: FormContext) -> Value:
    """``sample_size`` classes for each row of logarithms of probabilities: the class of the largest one plus Gumbel noise (Gumbel, 1954)."""
    x, count = context.input(0), int(context.attrs.get("sample_size", 1))
    rows, classes = x.type.shape
    chance = reshape(context, cast_to(context, x, _wide_enough(x.type.dtype)), (rows, 1, classes))
    uniform = _uniform(context, (rows, count, classes), chance.type.dtype)
    positive = context.emit("maximum", uniform, scalar_like(context, uniform, 2.0**-25))
    noise = context.emit("log", context.emit("neg", context.emit("log", positive)))
    chosen = context.emit("arg_reduce", context.emit("sub", chance, noise), kind="max", axis=2, keepdims=False, last=False)
    return cast_to(context, chosen, _result_dtype(context, DType.INT32))


def _dropout(context: FormContext) -> Sequence[Value]:
    """In training, elements are kept with a probability of one less the ratio and divided by it; else all are kept as they are.

    Before opset 12 there is no training, and what older versions tell apart by ``is_test`` is taken to be inference.
    """
    x, training, flag = context.input(0), context.optional(2), context.constant(2)
    everything = context.const(np.array(True))
    if training is None or (flag is not None and not flag) or is_uniform(context.builder, context.optional(1), 0):
        return x, context.emit("expand", everything, shape=x.type.shape)
    compute, ratio = _wide_enough(x.type.dtype), context.optional(1)
    lost = context.const(np.array(0.5, compute.numpy)) if ratio is None else cast_to(context, reshape(context, ratio, ()), compute)
    kept = context.emit("greater_or_equal", _uniform(context, x.type.shape, compute), lost)
    scaled = context.emit("div", cast_to(context, x, compute), context.emit("sub", scalar_like(context, lost, 1), lost))
    dropped = cast_to(context, context.emit("where", kept, scaled, scalar_like(context, scaled, 0)), x.type.dtype)
    if flag is not None:
        return dropped, kept
    asked = reshape(context, training, ())
    return context.emit("where", asked, dropped, x), context.emit("where", asked, kept, everything)


RandomUniform.forms = (
    OnnxForm("RandomNormal", _random),
    OnnxForm("RandomNormalLike", _random),
    OnnxForm("RandomUniform", _random),
    OnnxForm("RandomUniformLike", _random),
    OnnxForm("Bernoulli", _bernoulli),
    OnnxForm("Multinomial", _multinomial),
    OnnxForm("Dropout", _dropout),
)
