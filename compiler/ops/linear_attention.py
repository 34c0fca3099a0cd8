"""LinearAttention: attention whose keys and values are summed into a state of fixed size, one time step after another."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.index import slice_axis
from compiler.ops.support import Arrays, Attrs, Types, array, cast_to, first_type, given, known, reshape, scalar_like, transpose

_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
"""Update rules: whether the state decays, and whether what it holds for a key is taken from the value first."""


def _wave(*shape: int, step: float) -> Array:
    return np.asarray(np.sin(np.arange(np.prod(shape)) * step), np.float32).reshape(shape)


_B, _T, _H, _K, _V = 2, 3, 2, 4, 5
_QKV = (_wave(_B, _T, _H * _K, step=1.3), _wave(_B, _T, _H * _K, step=0.7), _wave(_B, _T, _H * _V, step=2.1))
_STATE = _wave(_B, _H, _K, _V, step=0.9)
_DECAY, _HEAD_DECAY = -(_wave(_B, _T, _H * _K, step=0.3) ** 2), -(_wave(_B, _T, _H, step=0.3) ** 2)
_BETA = _wave(_B, _T, _H, step=1.9) ** 2
_HEADS = {"q_num_heads": _H, "kv_num_heads": _H}
_GROUPS = {"q_num_heads": 3 * _H, "kv_num_heads": _H}


@register
class LinearAttention(Op):
    """``S = decay S + k ⊗ u`` and ``o = q S`` for every time step, ``u = v`` or, with ``beta``, ``u = beta (v - decay S k)``.

    ``operands`` names the inputs: ``query [B, T, G*H, K]``, ``key [B, T, H, K]``, ``value [B, T, H, V]``, ``state [B, H, K, V]``, and
    where there are such ``decay [B, T, H, K or 1]`` (the factor) and ``beta [B, T, H or 1, 1]``. G queries read the state of one head.

    The result is ``[B, H, T*G + K, V]``: o of every step and query, then the state that the last step leaves.
    """

    name = "linear_attention"
    families = ("linear_attention",)
    takes_epilogue = False
    samples = (
        Sample("LinearAttention", _QKV, {**_HEADS, "update_rule": "linear"}, opset=27, outputs=2),
        Sample("LinearAttention", (*_QKV, _STATE, _DECAY), {**_HEADS, "update_rule": "gated"}, opset=27, outputs=2),
        Sample("LinearAttention", (*_QKV, None, None, _BETA), {**_HEADS, "update_rule": "delta", "scale": 0.3}, opset=27, outputs=2),
        Sample("LinearAttention", (*_QKV, _STATE, _HEAD_DECAY, _BETA[:, :, :1]), _HEADS, opset=27, outputs=2),
        Sample("LinearAttention", (np.tile(_QKV[0], 3), *_QKV[1:], _STATE, _DECAY, _BETA), _GROUPS, opset=27, outputs=2),
        Sample("LinearAttention", (*(x[:, :0] for x in _QKV), _STATE), {**_HEADS, "update_rule": "linear"}, opset=27, outputs=2),
        Sample("LinearAttention", tuple(x.astype(np.float16) for x in _QKV), {**_HEADS, "update_rule": "linear"}, opset=27),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        query, state = first_type(inputs), given(inputs[3])
        batch, steps, heads = query.shape[:3]
        kept, keys, values = state.shape[1:]
        return (TensorType(query.dtype, (batch, kept, steps * (known(heads, "heads") // known(kept, "heads")) + keys, values)),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        names = attrs["operands"]
        operands = dict(zip(names if isinstance(names, tuple) else (), map(array, inputs), strict=True))
        query, key, value = (operands[name].astype(np.float64) for name in ("query", "key", "value"))
        state = operands["state"].astype(np.float64)
        batch, steps, _, size = query.shape
        heads = state.shape[1]
        grouped = query.reshape(batch, steps, heads, query.shape[2] // max(heads, 1), size)
        rows = []
        for t in range(steps):
            state = state * operands["decay"][:, t, :, :, None] if "decay" in operands else state
            update = value[:, t]
            if "beta" in operands:
                update = operands["beta"][:, t] * (update - np.einsum("bhkv,bhk->bhv", state, key[:, t]))
            state = state + key[:, t, :, :, None] * update[:, :, None]
            rows.append(np.einsum("bhgk,bhkv->bhgv", grouped[:, t], state))
        return (np.concatenate([*rows, state], axis=2).astype(operands["query"].dtype),)


def _linear_attention(context: FormContext) -> Sequence[Value]:
    """https://onnx.ai/onnx/operators/onnx__LinearAttention.html: heads lie in the last axis of ``[B, T, heads * size]``; computed in float32."""
    rule = str(context.attrs.get("update_rule", "gated_delta"))
    heads, queries = int(context.attrs["kv_num_heads"]), int(context.attrs["q_num_heads"])
    decays, corrects = _RULES.get(rule, (False, False))
    found = tuple(context.optional(index) is not None for index in (4, 5))
    if rule not in _RULES or found != (decays, corrects):
        raise UnsupportedForm(f"update_rule {rule!r} {'with' if found[0] else 'without'} decay and {'with' if found[1] else 'without'} beta")
    if heads < 1 or queries < heads or queries % heads or any(context.input(index).type.rank != 3 for index in range(3)):
        raise UnsupportedForm(f"{queries} query heads for {heads} key heads, of {', '.join(str(context.input(i).type) for i in range(3))}")
    given_type = context.input(0).type.dtype
    operands = {"query": _heads(context, 0, queries), "key": _heads(context, 1, heads), "value": _heads(context, 2, heads)}
    batch, steps, _, size = operands["key"].type.shape
    width = operands["value"].type.shape[3]
    past = context.optional(3)
    if past is None:
        operands["state"] = context.emit("expand", context.const(np.zeros((1, 1, 1, 1), np.float32)), shape=(batch, heads, size, width))
    else:
        operands["state"] = cast_to(context, past, DType.FLOAT32)
    if decays:
        each = context.input(4).type.shape[2] == heads
        operands["decay"] = context.emit("exp", _heads(context, 4, heads))
        if not each and operands["decay"].type.shape[3] != size:
            raise UnsupportedForm(f"the decay is {context.input(4).type}, for {heads} heads and keys of {size} elements")
    if corrects:
        operands["beta"] = _heads(context, 5, known(context.input(5).type.shape[2], "the last dim of beta"))
    if operands["query"].type.shape[3] != size or operands["state"].type.shape != (batch, heads, size, width):
        raise UnsupportedForm(f"queries {operands['query'].type}, keys {operands['key'].type} and a state {operands['state'].type} do not fit")
    packed = context.emit("linear_attention", *operands.values(), operands=tuple(operands))
    scale = float(context.attrs.get("scale", 0.0)) or 1 / sqrt(known(size, "the size of a head"))
    rows = steps * (queries // heads)
    result = slice_axis(context, packed, 2, 0, rows)
    result = context.emit("mul", result, scalar_like(context, result, scale))
    result = transpose(context, reshape(context, result, (batch, heads, steps, queries // heads, width)), (0, 2, 1, 3, 4))
    state = slice_axis(context, packed, 2, rows, size)
    result = cast_to(context, reshape(context, result, (batch, steps, queries * width)), given_type)
    return result, cast_to(context, state, given_type if past is None else past.type.dtype)


def _heads(context: FormContext, index: int, heads: int) -> Value:
    """Input ``index``, ``[B, T, heads * size]``, as float32 ``[B, T, heads, size]``."""
    x = cast_to(context, context.input(index), DType.FLOAT32)
    batch, steps, width = x.type.shape
    total = known(width, "the last dim")
    if heads < 1 or total % heads:
        raise UnsupportedForm(f"input {index} is {x.type}, whose last dim is not a multiple of {heads} heads")
    return reshape(context, x, (batch, steps, heads, total // heads))


LinearAttention.forms = (OnnxForm("LinearAttention", _linear_attention, since=27),)
