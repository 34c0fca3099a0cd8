"""What exporters put around an operator and the operator does itself: zeros around a convolution's input, transposes, conversions."""

from __future__ import annotations

from math import inf

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.types import compute_dtype
from compiler.ops.support import attr_dims, attr_int, attr_ints
from passes.pattern import Match, op, value
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
    shuffled, result = match["shuffled"].type.shape, match.root.output.type.shape
    others = (shuffled[0], *shuffled[2:]) == (result[0], *result[2:])
    channels = attr_dims(match.root.attrs, "starts")[1], attr_dims(match.root.attrs, "steps")[1]
    return None if others and channels[1] == 1 and isinstance(channels[0], int) else "it takes more than neighbouring channels"


def _shuffle_part(match: Match, builder: GraphBuilder) -> Value:
    shuffled, starts = match.node("shuffled").attrs, attr_dims(match.root.attrs, "starts")
    attrs = {"group": shuffled["group"], "start": attr_int(shuffled, "start") + starts[1], "size": match.root.output.type.shape[1]}
    return builder.emit("shuffle_channels", match["x"], name=match.root.name, **attrs)


RULES = (
    Rule("padded-conv", _CONV, _with_padding, _check_conv, shared=True),
    Rule("padded-pool", _POOL, _with_padding, _check_pool, shared=True),
    Rule("transposed-softmax", _SOFTMAX, _untransposed, _check_transposes),
    Rule("channel-shuffle", _SHUFFLED, _shuffle, _check_shuffle),
    Rule("part-of-shuffle", _PART_SHUFFLED, _shuffle_part, _check_part, shared=True),
    Rule("widened", _WIDENED, _narrow, _check_widened),
)
"""Widened: kernels compute narrow floats in float32 and round once, as conversions around them say."""
