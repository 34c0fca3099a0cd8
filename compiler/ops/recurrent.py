"""Recurrent networks: LSTM, GRU, RNN.

The input products of all time steps are one matrix product; ``recurrence`` runs the rest, one step after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import FormBuild, FormContext, OnnxForm, Op, Sample, register
from compiler.ir.recurrence import QUANTIZED_STEPS, Read, Stage, stages_from, state_rows
from compiler.ir.scalar import Arg, Const, Scalar, call, evaluate
from compiler.ir.types import DType, TensorType
from compiler.ops.index import slice_axis
from compiler.ops.quantize import quantize_dynamically
from compiler.ops.support import Arrays, Attrs, Types, array, cast_to, first_type, given, known, reshape, transpose

_MICROSOFT = "com.microsoft"
_RNG = np.random.default_rng(5)


def _random(*shape: int) -> Array:
    return _RNG.normal(size=shape).astype(np.float32)


_X = _random(4, 3, 5)
_LENGTHS = np.array([4, 2, 3], np.int32)


def _weights(directions: int, gates: int) -> tuple[Array, Array, Array]:
    """The weights and bias of nodes on ``_X`` with six hidden units."""
    return _random(directions, gates * 6, 5), _random(directions, gates * 6, 6), _random(directions, 2 * gates * 6)


def _state(directions: int) -> Array:
    return _random(directions, 3, 6)


_SIZE = {"hidden_size": 6}
_BOTH = {**_SIZE, "direction": "bidirectional"}
_LSTM, _LSTM2 = (_X, *_weights(1, 4)), (_X, *_weights(2, 4))
_GRU, _GRU2 = (_X, *_weights(1, 3)), (_X, *_weights(2, 3))
_INT8 = (
    *(_RNG.integers(-128, 128, size=shape).astype(np.int8) for shape in ((1, 5, 24), (1, 6, 24))),
    _LSTM[3],
    None,
    *(_random(1, 1, 6), _random(1, 1, 6), None),
    *(np.full(1, 0.004, np.float32), np.full(1, 3, np.int8), np.full(1, 0.005, np.float32), np.full(1, -2, np.int8)),
)
_RNN, _RNN2 = (_X, *_weights(1, 1)), (_X, *_weights(2, 1))


@register
class Recurrence(Op):
    """A recurrent cell run along the time axis. Gates G, hidden units H, directions D, time steps T, batch B.

    ``operands`` names the inputs: ``projection [T, B, D*G*H]``, ``weights [D, H, G*H]``, ``hidden [D, B, H]`` (the initial state), and
    where the cell needs them ``scratch [D, B, H]``, ``peepholes [D, n*H]``, ``bias [D, n*H]``, ``scales [D, G*H]``, ``lengths [B]``. ``steps``
    are each direction's stages (``compiler.ir.recurrence``), ``reverse`` the directions that run from the last step to the first.

    The result is ``[T + S, D, B, H]``: the hidden state after every step, zero from a sequence's length on, then the S rows that
    ``state_rows`` names, as the last step leaves them.
    """

    name = "recurrence"
    families = ("recurrence",)
    takes_epilogue = False
    samples = (
        Sample("LSTM", _LSTM, _SIZE, outputs=3, constant=(1, 2, 3)),
        Sample("LSTM", _LSTM[:3], {**_SIZE, "direction": "reverse"}, outputs=3),
        Sample("LSTM", (*_LSTM2, _LENGTHS, _state(2), _state(2), _random(2, 18)), _BOTH, outputs=3),
        Sample("LSTM", _LSTM, {**_SIZE, "input_forget": 1, "clip": 0.5}, outputs=3, opset=14),
        Sample("LSTM", _LSTM, {**_SIZE, "activations": ["HardSigmoid", "Softsign", "Affine"], "activation_alpha": [0.3, 1.5]}, outputs=1),
        Sample("DynamicQuantizeLSTM", (_X[:, :1], *_INT8), _SIZE, opset=1, domain=_MICROSOFT, outputs=3, constant=(1, 2, 8, 9, 10, 11)),
        Sample("GRU", _GRU, _SIZE, outputs=2, constant=(1, 2, 3)),
        Sample("GRU", _GRU, {**_SIZE, "linear_before_reset": 1, "direction": "reverse"}, outputs=2),
        Sample("GRU", _GRU[:3], {**_SIZE, "linear_before_reset": 1, "clip": 0.7}, outputs=2),
        Sample("GRU", (*_GRU2, _LENGTHS, _state(2)), {**_BOTH, "linear_before_reset": 1}, outputs=2, opset=7),
        Sample("GRU", (*_GRU2, _LENGTHS, _state(2)), _BOTH, outputs=2, constant=(4,)),
        Sample("RNN", _RNN, _SIZE, outputs=2),
        Sample("RNN", (*_RNN2, _LENGTHS, _state(2)), {**_BOTH, "activations": ["Relu", "Sigmoid"]}, outputs=2),
        Sample("RNN", _RNN2, {**_BOTH, "activations": ["Elu", "LeakyRelu"], "activation_alpha": [0.5, 0.2], "clip": 1.5}, outputs=2),
        Sample(
            "RNN",
            _RNN2,
            {**_BOTH, "activations": ["ThresholdedRelu", "ScaledTanh"], "activation_alpha": [0.1, 0.9], "activation_beta": [0.8]},
            outputs=2,
        ),
        Sample("RNN", _RNN, {**_SIZE, "activations": ["Softplus"], "clip": 2.0}, outputs=2),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        projection, weights = first_type(inputs), given(inputs[1])
        directions, size = weights.shape[:2]
        rows = state_rows(_steps(attrs)[0])
        return (TensorType(projection.dtype, (projection.shape[0] + len(rows), directions, projection.shape[1], size)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        operands = dict(zip(_names(attrs), map(array, inputs), strict=True))
        steps, reverse = _steps(attrs), _reverse(attrs)
        (out,) = self.infer([TensorType(DType.of(x.dtype), x.shape) for x in operands.values()], attrs)
        result = np.zeros(out.static_shape, out.dtype.numpy)
        for direction, stages in enumerate(steps):
            for row in range(result.shape[2]):
                result[:, direction, row] = _run(operands, stages, direction, row, reverse=reverse[direction])
        return (result,)


def _run(operands: dict[str, Array], stages: tuple[Stage, ...], direction: int, row: int, *, reverse: bool) -> Array:
    """One sequence of one direction."""
    projection, weights = operands["projection"], operands["weights"][direction]
    steps = len(projection)
    size, columns = weights.shape
    base = direction * columns
    length = min(max(int(operands["lengths"][row]), 0), steps) if "lengths" in operands else steps
    states = state_rows(stages)
    rows = {name: operands[name][direction, row] if name in operands else np.zeros(size, projection.dtype) for name in states}
    result = np.zeros((steps + len(states), size), projection.dtype)
    for step in range(length):
        time = length - 1 - step if reverse else step
        shared: dict[str, Array] = {name: operands[name][direction] for name in ("bias", "peepholes", "scales") if name in operands}
        vectors: dict[str, Array] = {**shared, "projection": projection[time, row, base : base + columns]}

        def read(what: Read, vectors: dict[str, Array] = vectors) -> Array:
            return rows[what[0]] if what[0] in rows else vectors[what[0]][what[1] * size : (what[1] + 1) * size]

        for stage in stages:
            scale = np.ones((), projection.dtype)
            if stage.source == "quantized":
                rows["quantized"], scale = _quantized(rows["hidden"])
            source = rows[stage.source].astype(np.float64)
            sums = []
            for gate, start in zip(stage.gates, stage.starts, strict=True):
                product = source @ weights[:, gate * size : (gate + 1) * size]
                scaled = product * (scale * read(("scales", gate))) if stage.source == "quantized" else product
                sums.append((read(start) + scaled).astype(projection.dtype))
            args = [*sums, *map(read, stage.reads)]
            for name, expr in stage.writes:
                rows[name] = evaluate(expr, args)
                args.append(rows[name])
        result[time] = rows["hidden"] = rows["out"]
    for number, name in enumerate(states):
        result[steps + number] = rows[name]
    return result


def _quantized(row: Array) -> tuple[Array, Array]:
    """A row in steps of its scale from its zero point, and the scale."""
    least, greatest = np.minimum(row.min(initial=0), 0), np.maximum(row.max(initial=0), 0)
    scale = np.asarray((greatest - least) / row.dtype.type(QUANTIZED_STEPS) if greatest > least else 1, row.dtype)
    zero = np.rint(-least / scale)
    return np.clip(np.rint(row / scale), -zero, QUANTIZED_STEPS - zero), scale


def _names(attrs: Attrs) -> tuple[str, ...]:
    value = attrs["operands"]
    return tuple(map(str, value)) if isinstance(value, tuple) else ()


def _steps(attrs: Attrs) -> tuple[tuple[Stage, ...], ...]:
    value = attrs["steps"]
    return tuple(map(stages_from, value)) if isinstance(value, tuple) else ()


def _reverse(attrs: Attrs) -> tuple[bool, ...]:
    value = attrs["reverse"]
    return tuple(map(bool, value)) if isinstance(value, tuple) else ()


# -- activations ------------------------------------------------------------------------------------------------------

Activation = Callable[[Scalar], Scalar]


def _const(number: float, x: Scalar) -> Const:
    return Const(float(number), x.dtype)


def _elu(x: Scalar, alpha: Scalar) -> Scalar:
    return call("select", call("ge", x, _const(0, x)), x, call("mul", alpha, call("sub", call("exp", x), _const(1, x))))


def _softplus(x: Scalar) -> Scalar:
    tail = call("log", call("add", _const(1, x), call("exp", call("neg", call("abs", x)))))
    return call("add", call("max", x, _const(0, x)), tail)


def _hard_sigmoid(x: Scalar, alpha: Scalar, beta: Scalar) -> Scalar:
    return call("min", call("max", call("add", call("mul", alpha, x), beta), _const(0, x)), _const(1, x))


_ACTIVATIONS: dict[str, tuple[Callable[..., Scalar], tuple[float, ...]]] = {
    "relu": (lambda x: call("max", x, _const(0, x)), ()),
    "tanh": (lambda x: call("tanh", x), ()),
    "sigmoid": (lambda x: call("sigmoid", x), ()),
    "softsign": (lambda x: call("div", x, call("add", _const(1, x), call("abs", x))), ()),
    "softplus": (_softplus, ()),
    "affine": (lambda x, alpha, beta: call("add", call("mul", alpha, x), beta), (1.0, 0.0)),
    "leakyrelu": (lambda x, alpha: call("select", call("lt", x, _const(0, x)), call("mul", alpha, x), x), (0.01,)),
    "thresholdedrelu": (lambda x, alpha: call("select", call("ge", x, alpha), x, _const(0, x)), (1.0,)),
    "scaledtanh": (lambda x, alpha, beta: call("mul", alpha, call("tanh", call("mul", beta, x))), (1.0, 1.0)),
    "hardsigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "elu": (_elu, (1.0,)),
}
"""By name in lower case: the function of x, alpha and beta (of which some have none or one), and the defaults of these."""


def _activations(context: FormContext, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """Each direction's activations; the lists of alphas and betas serve, in order, the functions that have one."""
    names = [str(name) for name in context.attrs.get("activations") or (*defaults,) * directions]
    if len(names) != len(defaults) * directions:
        raise UnsupportedForm(f"{len(names)} activations are given, {len(defaults) * directions} are needed")
    alphas, betas = ([float(v) for v in context.attrs.get(key) or ()] for key in ("activation_alpha", "activation_beta"))
    found = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise UnsupportedForm(f"activation {name} is not one of {', '.join(_ACTIVATIONS)}")
        curve, defaults_of = _ACTIVATIONS[name.lower()]
        given_lists = zip((alphas, betas), defaults_of, strict=False)
        found.append(_bound(curve, [values.pop(0) if values else default for values, default in given_lists]))
    return [found[k * len(defaults) : (k + 1) * len(defaults)] for k in range(directions)]


def _bound(curve: Callable[..., Scalar], numbers: Sequence[float]) -> Activation:
    return lambda x: curve(x, *(_const(number, x) for number in numbers))


def _clipped(clip: float, activation: Activation) -> Activation:
    """The activation of its argument clipped to [-clip, clip]; 0: not clipped."""
    return (lambda x: activation(call("min", call("max", x, _const(-clip, x)), _const(clip, x)))) if clip else activation


# -- cells ------------------------------------------------------------------------------------------------------------


def _projected(*gates: int) -> tuple[Read, ...]:
    return tuple(("projection", gate) for gate in gates)


def _mixed(z: Scalar, old: Scalar, new: Scalar) -> Scalar:
    """``(1 - z) * new + z * old``."""
    return call("add", call("mul", call("sub", _const(1, z), z), new), call("mul", z, old))


@dataclass(frozen=True)
class _Cell:
    """A kind of cell: its gates, default activations, and the stages of its step."""

    gates: int
    activations: tuple[str, ...]
    stages: Callable[[FormContext, Sequence[Activation], DType], tuple[Stage, ...]]
    quantized: bool = False


def _lstm_stages(context: FormContext, functions: Sequence[Activation], dtype: DType) -> tuple[Stage, ...]:
    """Gates i, o, f, c; peepholes i, o, f."""
    clip = float(context.attrs.get("clip", 0.0))
    f, g, h = _clipped(clip, functions[0]), _clipped(clip, functions[1]), functions[2]
    coupled = bool(context.attrs.get("input_forget", 0))
    gates = (0, 1, 3) if coupled else (0, 1, 2, 3)
    sums: list[Scalar] = [Arg(k, dtype) for k in range(len(gates))]
    peeping = context.optional(7) is not None
    reads: tuple[Read, ...] = (("scratch", 0), *((("peepholes", k) for k in range(3)) if peeping else ()))
    old, *peepholes = [Arg(len(gates) + k, dtype) for k in range(len(reads))]
    new = Arg(len(gates) + len(reads), dtype)

    def peeped(gate: int, cell: Scalar) -> Scalar:
        return call("add", sums[gate], call("mul", peepholes[gate], cell)) if peeping else sums[gate]

    i = f(peeped(0, old))
    forget = call("sub", _const(1, i), i) if coupled else f(peeped(2, old))
    cell = call("add", call("mul", forget, old), call("mul", i, g(sums[-1])))
    hidden = call("mul", f(peeped(1, new)), h(new))
    return (Stage("hidden", gates, _projected(*gates), reads, (("scratch", cell), ("out", hidden))),)


def _gru_stages(context: FormContext, functions: Sequence[Activation], dtype: DType) -> tuple[Stage, ...]:
    """Gates z, r, h."""
    f, g = (_clipped(float(context.attrs.get("clip", 0.0)), function) for function in functions)
    a, b, c, d, e = (Arg(k, dtype) for k in range(5))
    if context.attrs.get("linear_before_reset", 0):
        new = g(call("add", d, call("mul", f(b), c)))
        reads = (("projection", 2), ("hidden", 0))
        return (Stage("hidden", (0, 1, 2), (*_projected(0, 1), ("bias", 0)), reads, (("out", _mixed(f(a), e, new)),)),)
    reset = Stage("hidden", (0, 1), _projected(0, 1), (("hidden", 0),), (("out", f(a)), ("scratch", call("mul", f(b), c))))
    update = Stage("scratch", (2,), _projected(2), (("out", 0), ("hidden", 0)), (("out", _mixed(b, c, g(a))),))
    return (reset, update)


def _rnn_stages(context: FormContext, functions: Sequence[Activation], dtype: DType) -> tuple[Stage, ...]:
    f = _clipped(float(context.attrs.get("clip", 0.0)), functions[0])
    return (Stage("hidden", (0,), _projected(0), (), (("out", f(Arg(0, dtype))),)),)


# -- forms ------------------------------------------------------------------------------------------------------------


def _recurrent(cell: _Cell) -> FormBuild:
    def build(context: FormContext) -> Sequence[Value]:
        return _emit(context, cell)

    return build


def _emit(context: FormContext, cell: _Cell) -> Sequence[Value]:
    asked = str(context.attrs.get("direction", "forward")).lower()
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(asked)
    if reverse is None:
        raise UnsupportedForm(f"direction {asked!r} is not forward, reverse or bidirectional")
    batch_first = bool(context.attrs.get("layout", 0))
    if any(context.input(index).type.rank != 3 for index in range(3)):
        raise UnsupportedForm("inputs 0, 1 and 2 must be of rank 3")
    given_type = context.input(0).type.dtype
    dtype = DType.FLOAT64 if given_type is DType.FLOAT64 else DType.FLOAT32
    x = transpose(context, cast_to(context, context.input(0), dtype), (1, 0, 2) if batch_first else (0, 1, 2))
    steps, batch, width = x.type.shape
    directions, size = len(reverse), known(context.input(2).type.shape[1 if cell.quantized else 2], "hidden_size")
    if int(context.attrs.get("hidden_size", size)) != size:
        raise UnsupportedForm(f"hidden_size is {context.attrs['hidden_size']}, and its weights are of {size} units")
    columns = cell.gates * size
    stages = [cell.stages(context, functions, dtype) for functions in _activations(context, cell.activations, directions)]
    if cell.quantized:
        stages = [tuple(replace(stage, source="quantized") for stage in direction) for direction in stages]
        operands = _quantized_products(context, reshape(context, x, (steps * batch, width)), directions, columns, size)
    else:
        weights = transpose(context, _expect(context, 1, (directions, columns, width), dtype), (2, 0, 1))
        product = context.emit("matmul", reshape(context, x, (steps * batch, width)), reshape(context, weights, (width, directions * columns)))
        recurrent = _expect(context, 2, (directions, columns, size), dtype)
        operands = {"projection": product, "weights": transpose(context, recurrent, (0, 2, 1))}
    separate = any(("bias", 0) in stage.starts for stage in stages[0])
    if separate:
        operands["bias"] = context.const(np.zeros((directions, size), dtype.numpy))
    if context.optional(3) is not None:
        bias = _expect(context, 3, (directions, 2 * columns), dtype)
        inner = slice_axis(context, bias, 1, columns, columns)
        if separate:
            operands["bias"] = slice_axis(context, inner, 1, columns - size, size)
            inner = context.emit("mul", inner, context.const(np.repeat(np.array([1, 1, 0], dtype.numpy), size)[None]))
        total = context.emit("add", slice_axis(context, bias, 1, 0, columns), inner)
        operands["projection"] = context.emit("add", operands["projection"], reshape(context, total, (1, directions * columns)))
    operands["projection"] = reshape(context, operands["projection"], (steps, batch, directions * columns))
    for name, index, needed in (("hidden", 5, True), ("scratch", 6, cell.gates == 4)):
        if context.optional(index) is not None:
            state = _expect(context, index, (batch, directions, size) if batch_first else (directions, batch, size), dtype)
            operands[name] = transpose(context, state, (1, 0, 2)) if batch_first else state
        elif needed:
            operands[name] = context.emit("expand", context.const(np.zeros((1, 1, 1), dtype.numpy)), shape=(directions, batch, size))
    if cell.gates == 4 and context.optional(7) is not None:
        operands["peepholes"] = _expect(context, 7, (directions, 3 * size), dtype)
    lengths, known_lengths = context.optional(4), context.constant(4)
    if lengths is not None and not (known_lengths is not None and isinstance(steps, int) and bool(np.all(known_lengths == steps))):
        if lengths.type.dtype.is_float:
            raise UnsupportedForm(f"the lengths (input 4) are {lengths.type}, where {batch} integers are needed")
        operands["lengths"] = _expect(context, 4, (batch,), lengths.type.dtype)
    packed = context.emit(
        "recurrence",
        *operands.values(),
        operands=tuple(operands),
        steps=tuple(tuple(stage.as_attr() for stage in direction) for direction in stages),
        reverse=reverse,
    )
    states = [reshape(context, slice_axis(context, packed, 0, steps + row, 1), (directions, batch, size)) for row in range(_cell_states(cell))]
    sequence = slice_axis(context, packed, 0, 0, steps)
    if batch_first:
        sequence, states = transpose(context, sequence, (2, 0, 1, 3)), [transpose(context, state, (1, 0, 2)) for state in states]
    return [cast_to(context, value, given_type) for value in (sequence, *states)][: context.outputs]


def _quantized_products(context: FormContext, x: Value, directions: int, columns: int, size: int) -> dict[str, Value]:
    """The input product of 8-bit numbers, and the recurrent weights as whole numbers with their scales.

    Whole numbers are held as float32, whose sums are exact up to 258 products.
    """
    width = x.type.shape[1]
    values, scale, zero = (cast_to(context, value, DType.FLOAT32) for value in quantize_dynamically(context, x))
    numbers = {}
    for index, rows, at in ((1, width, 8), (2, size, 10)):
        raw, offset = _expect(context, index, (directions, rows, columns), DType.FLOAT32), cast_to(context, context.input(at + 1), DType.FLOAT32)
        numbers[index] = context.emit("sub", raw, reshape(context, offset, (directions, 1, *(offset.type.shape[1:] or (1,)))))
    scales = [reshape(context, s, (directions, *(s.type.shape[1:] or (1,)))) for s in (context.input(8), context.input(10))]
    first, second = (context.emit("expand", s, shape=(directions, columns)) for s in scales)
    weights = reshape(context, transpose(context, numbers[1], (1, 0, 2)), (width, directions * columns))
    product = context.emit("matmul", context.emit("sub", values, zero), weights)
    factor = context.emit("mul", reshape(context, first, (1, directions * columns)), scale)
    return {"projection": context.emit("mul", product, factor), "weights": numbers[2], "scales": second}


def _cell_states(cell: _Cell) -> int:
    """Final states that the ONNX operator returns: the hidden state, and an LSTM's cell state."""
    return 2 if cell.gates == 4 else 1


def _expect(context: FormContext, index: int, shape: tuple[Dim, ...], dtype: DType) -> Value:
    """Input ``index``, which must be of that shape, as dtype; a run checks dims that are not known."""
    value = context.input(index)
    met = value.type.shape
    if len(met) != len(shape) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(met, shape, strict=True)):
        raise UnsupportedForm(f"input {index} is {value.type}, where the shape [{', '.join(map(str, shape))}] is needed")
    for axis, (dim, wanted) in enumerate(zip(met, shape, strict=True)):
        if dim != wanted:
            context.check(wanted, dim, wanted, f"axis {axis} of its input {index} has {{value}} elements, where {{low}} are needed")
    return cast_to(context, value, dtype)


Recurrence.forms = (
    OnnxForm("LSTM", _recurrent(_Cell(4, ("Sigmoid", "Tanh", "Tanh"), _lstm_stages)), since=7),
    OnnxForm("DynamicQuantizeLSTM", _recurrent(_Cell(4, ("Sigmoid", "Tanh", "Tanh"), _lstm_stages, quantized=True)), domain=_MICROSOFT),
    OnnxForm("GRU", _recurrent(_Cell(3, ("Sigmoid", "Tanh"), _gru_stages)), since=7),
    OnnxForm("RNN", _recurrent(_Cell(1, ("Tanh",), _rnn_stages)), since=7),
)
