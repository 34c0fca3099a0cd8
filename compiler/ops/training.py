"""Steps of gradient descent from the domain ``ai.onnx.preview.training``: Adagrad, Adam, Momentum.

Inputs are the learning rate, the number of steps done, then all tensors, all gradients, and one list after the other of what is kept
between steps; outputs are the new tensors and the new lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormBuild, FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.binary import Where
from compiler.ops.support import cast_to, reshape, scalar_like
from compiler.ops.tables import combined

_DOMAIN = "ai.onnx.preview.training"

Step = Callable[[FormContext, Value, Sequence[Value]], Sequence[Value]]
"""The new tensor and what is kept, from the adjusted rate and the tensor, its gradient and what was kept."""


def _wave(*shape: int, step: float = 1.3) -> Array:
    return np.asarray(np.sin(np.arange(np.prod(shape)) * step), np.float32).reshape(shape)


_RATE, _FIRST, _LATER = np.array(0.1, np.float32), np.array(0, np.int64), np.array(3, np.int64)
_X, _G, _V, _H = _wave(2, 3), _wave(2, 3, step=0.7), _wave(2, 3, step=0.4), np.abs(_wave(2, 3, step=2.1))
_PAIR = (_X, _X[0], _G, _G[0], _V, _V[0])


def _regularized(context: FormContext, x: Value, gradient: Value) -> Value:
    """The gradient of the loss with ``norm_coefficient / 2 * |x|²`` added."""
    return context.emit("add", combined(context, "mul", x, float(context.attrs.get("norm_coefficient", 0.0))), gradient)


def _moved(context: FormContext, x: Value, rate: Value, direction: Value) -> Value:
    return context.emit("sub", x, context.emit("mul", cast_to(context, rate, x.type.dtype), direction))


def _steps_done(context: FormContext) -> tuple[Value, Value]:
    """The number of steps as a float64, in which powers of decays near one are exact enough, and whether there were any."""
    count = reshape(context, cast_to(context, context.input(1), DType.FLOAT64), ())
    return count, context.emit("greater", count, scalar_like(context, count, 0))


def _rate(context: FormContext) -> Value:
    return reshape(context, cast_to(context, context.input(0), DType.FLOAT64), ())


def _adagrad(context: FormContext, rate: Value, tensors: Sequence[Value]) -> Sequence[Value]:
    x, gradient, squares = tensors
    gradient = _regularized(context, x, gradient)
    squares = context.emit("add", squares, context.emit("mul", gradient, gradient))
    deviation = combined(context, "add", context.emit("sqrt", squares), float(context.attrs.get("epsilon", 0.0)))
    return _moved(context, x, rate, context.emit("div", gradient, deviation)), squares


def _adagrad_rate(context: FormContext) -> Value:
    count, _ = _steps_done(context)
    slowed = combined(context, "add", combined(context, "mul", count, float(context.attrs.get("decay_factor", 0.0))), 1.0)
    return context.emit("div", _rate(context), slowed)


def _decays(context: FormContext) -> tuple[float, float]:
    return float(context.attrs.get("alpha", 0.9)), float(context.attrs.get("beta", 0.999))


def _adam(context: FormContext, rate: Value, tensors: Sequence[Value]) -> Sequence[Value]:
    x, gradient, momentum, squares = tensors
    alpha, beta = _decays(context)
    gradient = _regularized(context, x, gradient)
    momentum = context.emit("add", combined(context, "mul", momentum, alpha), combined(context, "mul", gradient, 1 - alpha))
    squared = context.emit("mul", gradient, gradient)
    squares = context.emit("add", combined(context, "mul", squares, beta), combined(context, "mul", squared, 1 - beta))
    deviation = combined(context, "add", context.emit("sqrt", squares), float(context.attrs.get("epsilon", 0.0)))
    moved = _moved(context, x, rate, context.emit("div", momentum, deviation))
    return combined(context, "mul", moved, 1 - float(context.attrs.get("norm_coefficient_post", 0.0))), momentum, squares


def _adam_rate(context: FormContext) -> Value:
    """The rate with the bias of momenta that began at zero taken out."""
    rate, (count, some) = _rate(context), _steps_done(context)
    alpha, beta = (
        context.emit("sub", scalar_like(context, count, 1), context.emit("pow", scalar_like(context, count, decay), count))
        for decay in _decays(context)
    )
    return context.emit("where", some, context.emit("div", context.emit("mul", rate, context.emit("sqrt", beta)), alpha), rate)


def _momentum(context: FormContext, rate: Value, tensors: Sequence[Value]) -> Sequence[Value]:
    """``mode`` is standard or nesterov; the first gradient counts fully."""
    x, gradient, momentum = tensors
    mode = str(context.attrs.get("mode", "standard"))
    if mode not in ("standard", "nesterov"):
        raise UnsupportedForm(f"mode {mode!r} is neither standard nor nesterov")
    gradient = _regularized(context, x, gradient)
    _, some = _steps_done(context)
    share = context.emit("where", some, scalar_like(context, x, float(context.attrs["beta"])), scalar_like(context, x, 1))
    decay = float(context.attrs["alpha"])
    momentum = context.emit("add", combined(context, "mul", momentum, decay), context.emit("mul", share, gradient))
    direction = momentum if mode == "standard" else context.emit("add", gradient, combined(context, "mul", momentum, decay))
    return _moved(context, x, rate, direction), momentum


def _optimizer(step: Step, rate: Callable[[FormContext], Value], lists: int) -> FormBuild:
    """A form of ``lists`` lists of tensors: the tensors themselves, their gradients and what is kept."""

    def build(context: FormContext) -> Sequence[Value]:
        count, rest = divmod(len(context.inputs) - 2, lists)
        if rest or count < 1:
            raise UnsupportedForm(f"{len(context.inputs)} inputs; two and a multiple of {lists} are needed")
        adjusted = rate(context)
        found = [step(context, adjusted, [context.input(2 + k * count + number) for k in range(lists)]) for number in range(count)]
        return [values[k] for k in range(lists - 1) for values in found]

    return build


def _sample(op_type: str, *inputs: Array, outputs: int = 2, **attrs: object) -> Sample:
    return Sample(op_type, inputs, attrs, opset=1, domain=_DOMAIN, outputs=outputs)


extend(
    Where,
    forms=(
        OnnxForm("Adagrad", _optimizer(_adagrad, _adagrad_rate, 3), domain=_DOMAIN),
        OnnxForm("Adam", _optimizer(_adam, _adam_rate, 4), domain=_DOMAIN),
        OnnxForm("Momentum", _optimizer(_momentum, _rate, 3), domain=_DOMAIN),
    ),
    samples=(
        _sample("Adagrad", _RATE, _LATER, _X, _G, _H, norm_coefficient=0.001, epsilon=1e-5, decay_factor=0.1),
        _sample("Adagrad", _RATE, _FIRST, _X, _X[0], _G, _G[0], _H, _H[0], outputs=4, norm_coefficient=0.0, epsilon=1e-5, decay_factor=0.1),
        _sample(
            "Adam",
            *(_RATE, _LATER, *_PAIR, _H, _H[0]),
            outputs=6,
            norm_coefficient=0.001,
            norm_coefficient_post=0.01,
            alpha=0.95,
            beta=0.1,
            epsilon=1e-3,
        ),
        _sample("Adam", *(_RATE, _FIRST, *_PAIR, _H, _H[0]), outputs=6, norm_coefficient=0.0, norm_coefficient_post=0.0, epsilon=1e-2),
        _sample("Momentum", _RATE, _LATER, _X, _G, _V, norm_coefficient=0.001, alpha=0.95, beta=0.1, mode="standard"),
        _sample("Momentum", _RATE, _FIRST, *_PAIR, outputs=4, norm_coefficient=0.0, alpha=0.95, beta=0.1, mode="nesterov"),
    ),
)
