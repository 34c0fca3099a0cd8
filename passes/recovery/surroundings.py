"""What exporters put around an operator and the operator does itself: zeros around a convolution's input, transposes, conversions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim
from compiler.ir.types import compute_dtype
from compiler.ops.support import attr_dims, attr_int, attr_ints
from passes.pattern import Match, either, op, value
from passes.rules import Rule

_PADDED = op("pad", value("x"), mode="constant", name="padded")
_CONV = op("conv", _PADDED, value("weights"), name="window")
_POOL = op("pool", _PADDED, name="window")


def _check_padding(match: Match) -> str | None:
    attrs = match.node("padded").attrs
    begins, ends = attr_dims(attrs, "begins"), attr_dims(attrs, "ends")
    if any(dim != 0 for dim in (*begins[:2], *ends[:2])):
        return f"%{match['padded'].name} has more batches or channels"
    return None if all(isinstance(dim, int) and dim >= 0 for dim in (*begins, *ends)) else f"%{match['padded'].name} leaves something out"


def _check_conv(match: Match) -> str | None:
    number = match.node("padded").attrs["value"]
    return _check_padding(match) if number == 0 else f"%{match['padded'].name} is padded with {number}, not with 0"


def _check_pool(match: Match) -> str | None:
    """An average counts zeros, which it must do for its own padding as well; a maximum counts nothing below all numbers."""
    attrs, number = match.node("window").attrs, match.node("padded").attrs["value"]
    if attrs["ceil_mode"]:
        return "the pool's last windows may begin in its padding"
    if attrs["kind"] == "average" and any(attr_dims(attrs, "pads")) and not attrs["count_include_pad"]:
        return "the pool does not count its own padding"
    wanted = 0.0 if attrs["kind"] == "average" else -inf
    return _check_padding(match) if number == wanted else f"%{match['padded'].name} is padded with {number}, not with {wanted}"


def _with_padding(match: Match, builder: GraphBuilder) -> Value:
    window, padded = match.node("window"), match.node("padded").attrs
    around = (*attr_dims(padded, "begins")[2:], *attr_dims(padded, "ends")[2:])
    attrs = {**window.attrs, "pads": tuple(own + more for own, more in zip(attr_dims(window.attrs, "pads"), around, strict=True))}
    if window.op == "pool":
        attrs["count_include_pad"] = True
    return builder.emit(window.op, match["x"], *window.inputs[1:], name=window.name, **attrs)


_SOFTMAX = op("transpose", op("softmax", op("transpose", value("x"), name="before"), name="softmax"))


def _check_transposes(match: Match) -> str | None:
    before, after = (attr_ints(node.attrs, "perm") for node in (match.node("before"), match.root))
    return None if tuple(before[axis] for axis in after) == tuple(range(len(after))) else "the transposes do not undo each other"


def _untransposed(match: Match, builder: GraphBuilder) -> Value:
    attrs = match.node("softmax").attrs
    axis = attr_ints(match.node("before").attrs, "perm")[attr_int(attrs, "axis")]
    return builder.emit("softmax", match["x"], name=match.root.name, **{**attrs, "axis": axis})


_WIDENED = op("cast", op("normalize|softmax", op("cast", value("x")), name="wide"))


def _check_widened(match: Match) -> str | None:
    narrow, result = match["x"].type.dtype, match.root.output.type.dtype
    if not narrow.is_float or narrow is not result or compute_dtype(narrow) is narrow:
        return f"from {narrow.value} to {result.value} is not there and back from what is computed in a wider type"
    return None


def _narrow(match: Match, builder: GraphBuilder) -> Value:
    wide = match.node("wide")
    return builder.emit(wide.op, match["x"], name=match.root.name, **wide.attrs)


_SHUFFLED = op("reshape", op("transpose", op("reshape", value("x"), name="split"), name="swapped"))


def _check_shuffle(match: Match) -> str | None:
    x, split, perm = match["x"].type.shape, match["split"].type.shape, attr_ints(match.node("swapped").attrs, "perm")
    if len(x) < 2 or match.root.output.type.shape != x or not isinstance(x[1], int):
        return f"%{match.root.output.name} has not the shape of %{match['x'].name}"
    if len(split) < 3 or split[0] != x[0] or split[1] * split[2] != x[1]:
        return f"%{match['split'].name} does not split the channels alone in two"
    return None if perm == (0, 2, 1, *range(3, len(split))) else "it is not the two parts of the channels that are swapped"


def _shuffle(match: Match, builder: GraphBuilder) -> Value:
    group, channels = match["split"].type.shape[1], match["x"].type.shape[1]
    return builder.emit("shuffle_channels", match["x"], name=match.root.name, group=group, start=0, size=channels)


_PART_SHUFFLED = op("slice", op("shuffle_channels", value("x"), name="shuffled"))


def _check_part(match: Match) -> str | None:
    shuffled, result, attrs = match["shuffled"].type.shape, match.root.output.type.shape, match.root.attrs
    whole = (shuffled[0], *shuffled[2:]) == (result[0], *result[2:]) and set(attr_dims(attrs, "steps")) == {1}
    known = isinstance(attr_dims(attrs, "starts")[1], int) and isinstance(result[1], int)
    return None if whole and known else "it is not neighbouring channels, of a known number, as they are"


def _shuffle_part(match: Match, builder: GraphBuilder) -> Value:
    shuffled, starts = match.node("shuffled").attrs, attr_dims(match.root.attrs, "starts")
    attrs = {"group": shuffled["group"], "start": attr_int(shuffled, "start") + starts[1], "size": match.root.output.type.shape[1]}
    return builder.emit("shuffle_channels", match["x"], name=match.root.name, **attrs)


_MADE = op("conv", value("image"), value("weights"))
_PIXELS = op("reshape", op("transpose", op("reshape", either(op("add", _MADE, value("bias")), _MADE, name="x"), name="split"), name="spread"))


def _check_pixels(match: Match) -> str | None:
    """``[N, C * P, *S]`` as ``[N, C, *strides, *S]``, each stride behind the axis it goes into: ``strides`` are what an axis becomes longer by."""
    x, split, result = (v.type.shape for v in (match["x"], match["split"], match.root.output))
    axes, dtype = len(x) - 2, match["x"].type.dtype
    if match.builder.array(match["weights"]) is None or compute_dtype(dtype) is not dtype:
        return "only a convolution of constant weights, not in half precision, can take the order of the channels"
    if "bias" in match and (match.builder.array(match["bias"]) is None or not _is_along_channels(match["bias"].type.shape, len(x))):
        return f"%{match['bias'].name} is not one number for each channel"
    if len(split) != 2 + 2 * axes or len(result) != len(x) or (split[0], *split[2 + axes :]) != (x[0], *x[2:]) or result[:2] != split[:2]:
        return f"%{match['split'].name} does not split the channels alone"
    grown = tuple(size * stride for size, stride in zip(x[2:], split[2 : 2 + axes], strict=True))
    perm = (0, 1, *(k for axis in range(axes) for k in (2 + axes + axis, 2 + axis)))
    if attr_ints(match.node("spread").attrs, "perm") != perm or result[2:] != grown:
        return "it is not parts of the channels that become neighbouring elements"
    return None if all(isinstance(size, int) for size in split[1 : 2 + axes]) else "how many channels there are is known only to a run"


def _is_along_channels(shape: Sequence[Dim], rank: int) -> bool:
    return all(size == 1 for axis, size in enumerate(shape, rank - len(shape)) if axis != 1)


def _interleaved(match: Match, builder: GraphBuilder) -> Value:
    """The parts of the channels first, which the convolution can give at no cost, and channels are whole blocks of neighbours."""
    x, split = match["x"], match["split"].type.shape
    ordered = builder.emit("shuffle_channels", x, name=match.root.name, group=split[1], start=0, size=x.type.shape[1])
    return builder.emit("interleave", ordered, name=match.root.name, strides=split[2 : len(x.type.shape)], group=1)


RULES = (
    Rule("padded-conv", _CONV, _with_padding, _check_conv, shared=True),
    Rule("padded-pool", _POOL, _with_padding, _check_pool, shared=True),
    Rule("transposed-softmax", _SOFTMAX, _untransposed, _check_transposes),
    Rule("pixel-shuffle", _PIXELS, _interleaved, _check_pixels),
    Rule("channel-shuffle", _SHUFFLED, _shuffle, _check_shuffle),
    Rule("part-of-shuffle", _PART_SHUFFLED, _shuffle_part, _check_part, shared=True),
    Rule("widened", _WIDENED, _narrow, _check_widened),
)
"""Widened: kernels compute narrow floats in float32 and round once, as conversions around them say."""
