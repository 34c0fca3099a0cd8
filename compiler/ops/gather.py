"""Reading at computed positions: gather and the operators that become it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Attr, Node, Value
from compiler.ir.intexpr import Dim, minimum, product
from compiler.ir.op import FormBuild, FormContext, Layouts, OnnxForm, Op, Sample, register
from compiler.ir.types import DType, TensorType
from compiler.ops.control import repeat
from compiler.ops.dims import iota, number
from compiler.ops.grid_sample import GRID_SAMPLES, grid_sample
from compiler.ops.index import slice_axis
from compiler.ops.support import (
    Arrays,
    Attrs,
    Types,
    array,
    attr_int,
    cast_to,
    first_type,
    given,
    known,
    normalize_axis,
    reshape,
    transpose,
)
from compiler.ops.wrap_index import check_indices, checked

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


def run_of_positions(node: Node, builder: GraphBuilder) -> Value | None:
    """Positions that are known and follow each other: a slice, once it is known that they are in range."""
    data, indices = node.present_inputs
    axis = attr_int(node.attrs, "axis")
    if node.attrs.get("checked") and not isinstance(data.type.shape[axis], int):
        return None
    return _as_slice(builder, data, indices, axis, node.name)


@register
class Gather(Op):
    """``data[..., indices, ...]`` at ``axis``: the result's shape has the shape of indices in the place of that axis.

    Negative indices count from the end. One that is out of range is an error; attribute ``checked`` says that a run is to look for such.
    """

    name = "gather"
    simplifications = (run_of_positions,)
    families = ("gather",)
    takes_strings = True
    samples = (
        Sample("Gather", (_X, _ints(2, 0, -1)), {"axis": 1}),
        Sample("Gather", (_X, np.array([[0, 1], [1, -1]], np.int32))),
        Sample("Gather", (_X, np.array(1, np.int64)), {"axis": -1}, constant=(1,)),
        Sample("Gather", (_X, np.array(-1, np.int64)), {"axis": 1}),
        Sample("Gather", (_X, _ints(1, 2)), {"axis": 1}, constant=(1,)),
        Sample("Gather", (_X, np.zeros((0,), np.int64))),
        Sample("GatherElements", (_X[0], np.array([[0, 2, -1], [1, 0, 0]], np.int64)), {"axis": 1}),
        Sample("GatherElements", (_X, np.array([[[0, 1, 1, 0]]], np.int64)), {"axis": 0}),
        Sample("GatherND", (_X, np.array([[0, 2], [-1, 0]], np.int64))),
        Sample("GatherND", (_X, np.array([[1, 0, -1]], np.int64))),
        Sample("GatherND", (_X, np.array([[1], [2]], np.int64)), {"batch_dims": 1}),
        Sample("OneHot", (np.array([[1, -1], [7, 0]], np.int64), np.array(4, np.int64), np.array([2, 5], np.float32)), constant=(1, 2)),
        Sample("OneHot", (np.array([1, 3], np.int64), _ints(4), np.array([0, 1], np.float32)), {"axis": 0}, constant=(1,)),
        Sample("ReverseSequence", (_X, _ints(1, 3)), {"batch_axis": 0, "time_axis": 1}),
        Sample("ReverseSequence", (_X, _ints(0, 2, 1, 2)), {"batch_axis": 2, "time_axis": 0}),
        *GRID_SAMPLES,
        Sample("CumSum", (_X, np.array(1, np.int64)), constant=(1,)),
        Sample("CumSum", (_X, np.array(-2, np.int32)), {"reverse": 1}),
        Sample("CumProd", (_X + 1, np.array(2, np.int64)), opset=26, constant=(1,)),
        Sample("CumProd", (_X[0] + 1, np.array(-2, np.int32)), {"exclusive": 1, "reverse": 1}, opset=26),
        Sample("CumSum", (_X, np.array(-1, np.int64)), {"exclusive": 1, "reverse": 1}, constant=(1,)),
        Sample("CumSum", (_X[:0], np.array(0, np.int64)), {"exclusive": 1}, constant=(1,)),
        Sample("Trilu", (_X,), {"upper": 0}),
        Sample("Trilu", (_X, np.array(1, np.int64)), constant=(1,)),
    )

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        data, indices, axis = first_type(inputs), given(inputs[1]), attr_int(attrs, "axis")
        return (TensorType(data.dtype, data.shape[:axis] + indices.shape + data.shape[axis + 1 :]),)

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        data, indices, axis = array(inputs[0]), array(inputs[1]), attr_int(attrs, "axis")
        check_indices(indices, data.shape[axis], axis)
        return (np.take(data, indices, axis),)

    def layouts(self, inputs: Types, attrs: Attrs, block: int) -> Layouts:
        return Layouts.SAME if attr_int(attrs, "axis") >= 2 else Layouts.PLAIN

    def known_content(self, inputs: Types, contents: Arrays, attrs: Attrs) -> Array | None:
        data, indices = contents
        if data is None or indices is None or data.dtype.kind not in "iubO" or indices.dtype.kind not in "iu":
            return None
        return np.asarray(np.take(data.astype(object), indices, attr_int(attrs, "axis")), dtype=object)


def _as_slice(builder: GraphBuilder, data: Value, indices: Value, axis: int, name: str) -> Value | None:
    """A gather of one known position, or of consecutive ones, as a slice."""
    known_indices, dim = builder.array(indices), data.type.shape[axis]
    if known_indices is None or known_indices.size == 0 or known_indices.ndim > 1:
        return None
    first, *rest = (int(i) for i in known_indices.reshape(-1))
    if rest != list(range(first + 1, first + 1 + len(rest))) or (first < 0 and rest):
        return None
    if isinstance(dim, int) and not (-dim <= first and first + len(rest) < dim):
        return None
    starts: list[Dim] = [0] * data.type.rank
    sizes = list(data.type.shape)
    starts[axis], sizes[axis] = dim + first if first < 0 else first, 1 + len(rest)
    part = data
    if starts[axis] != 0 or sizes[axis] != dim:
        part = builder.emit("slice", data, name=name, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * len(starts))
    if known_indices.ndim == 1:
        return part
    return builder.emit("reshape", part, name=name, shape=(*data.type.shape[:axis], *data.type.shape[axis + 1 :]))


def gather(context: FormContext, data: Value, indices: Value, axis: int) -> Value:
    """A gather, as a slice where the positions are known and consecutive. Indices out of range are an error, now or in the run."""
    known_indices = context.builder.array(indices)
    for index in () if known_indices is None or not known_indices.size else {int(known_indices.min()), int(known_indices.max())}:
        message = f"index {index} is out of range for axis {axis} of size {{value}}"
        context.check(index + 1 if index >= 0 else -index, data.type.shape[axis], None, message)
    if context.builder.dims(data) is None:
        part = _as_slice(context.builder, data, indices, axis, context.name)
        if part is not None:
            return part
    attrs: dict[str, Attr] = {} if known_indices is not None else {"checked": True}
    return context.emit("gather", data, indices, axis=axis, **attrs)


def _gather(context: FormContext) -> Value:
    data = context.input(0)
    return gather(context, data, context.input(1), normalize_axis(int(context.attrs.get("axis", 0)), data.type.rank))


def wrapped(context: FormContext, indices: Value, dim: Dim) -> Value:
    """Indices with negative ones counted from the end."""
    negative = context.emit("less", indices, context.const(np.array(0, np.int64)))
    return context.emit("where", negative, context.emit("add", indices, number(context, dim)), indices)


def element_positions(context: FormContext, shape: Sequence[Dim], indices: Value, axis: int) -> Value:
    """The row-major positions, in a tensor of ``shape``, of the elements that are at ``indices`` (int64, not negative) along axis."""
    total = _times(context, indices, product(shape[axis + 1 :]))
    others: Value | None = None
    for other, length in enumerate(indices.type.shape):
        if other != axis and length != 1:
            along = reshape(context, _times(context, iota(context, length), product(shape[other + 1 :])), _along(other, length, indices.type.rank))
            others = along if others is None else context.emit("add", others, along)
    return total if others is None else context.emit("add", total, others)


def _times(context: FormContext, positions: Value, stride: Dim) -> Value:
    return positions if stride == 1 else context.emit("mul", positions, number(context, stride))


def _along(axis: int, length: Dim, rank: int) -> tuple[Dim, ...]:
    """The shape of a vector laid along one axis of a tensor of that rank."""
    return tuple(length if a == axis else 1 for a in range(rank))


def take_along(context: FormContext, data: Value, indices: Value, axis: int) -> Value:
    """The elements of data at ``indices`` (int64, not negative) along axis, in the shape of indices."""
    shape = data.type.shape
    return context.emit("gather", reshape(context, data, (product(shape),)), element_positions(context, shape, indices, axis), axis=0)


def _gather_elements(context: FormContext) -> Value:
    data = context.input(0)
    axis = normalize_axis(int(context.attrs.get("axis", 0)), data.type.rank)
    return take_along(context, data, checked(context, context.input(1), data.type.shape[axis], axis), axis)


def tuple_positions(context: FormContext, shape: tuple[Dim, ...], indices: Value, batch_dims: int) -> tuple[Value, tuple[Dim, ...], tuple[Dim, ...]]:
    """The rows of a tensor of ``shape`` that ``indices`` (tuples along the last axis) name after ``batch_dims`` axes.

    Gives their row-major positions, the axes that these count, and the shape of a row.
    """
    index_shape = indices.type.shape
    depth = known(index_shape[-1], "the length of an index")
    if not 1 <= depth <= len(shape) - batch_dims:
        raise UnsupportedForm(f"indices of {depth} numbers into data of rank {len(shape)} after {batch_dims} batch dims")
    indexed, rest = shape[batch_dims : batch_dims + depth], shape[batch_dims + depth :]
    flat: Value | None = None
    for position, dim in enumerate(indexed):
        part = slice_axis(context, indices, indices.type.rank - 1, position, 1)
        part = checked(context, reshape(context, part, index_shape[:-1]), dim, batch_dims + position)
        part = _times(context, part, product(indexed[position + 1 :]))
        flat = part if flat is None else context.emit("add", flat, part)
    if flat is None:
        raise UnsupportedForm("the indices are empty")
    batches = shape[:batch_dims]
    if batch_dims:
        offsets = _times(context, iota(context, product(batches)), product(indexed))
        flat = context.emit("add", flat, reshape(context, offsets, (*batches, *(1,) * (flat.type.rank - batch_dims))))
    return flat, (*batches, *indexed), rest


def _gather_nd(context: FormContext) -> Value:
    data, indices = context.input(0), context.input(1)
    positions, indexed, rest = tuple_positions(context, data.type.shape, indices, int(context.attrs.get("batch_dims", 0)))
    return context.emit("gather", reshape(context, data, (product(indexed), *rest)), positions, axis=0)


def _one_hot(context: FormContext) -> Value:
    indices, values = context.input(0), context.input(2)
    (depth,) = context.builder.bind(cast_to(context, reshape(context, context.input(1), ()), DType.INT64))
    rank = indices.type.rank + 1
    axis = normalize_axis(int(context.attrs.get("axis", -1)), rank)
    context.check(0, depth, None, "its depth is {value}")
    classes = context.settled((*indices.type.shape[:axis], depth, *indices.type.shape[axis:]))[axis]
    spread = cast_to(context, indices, DType.INT64)
    spread = reshape(context, wrapped(context, spread, classes), (*indices.type.shape[:axis], 1, *indices.type.shape[axis:]))
    positions = reshape(context, iota(context, classes), _along(axis, classes, rank))
    off, on = (reshape(context, slice_axis(context, values, 0, at, 1), ()) for at in (0, 1))
    return context.emit("where", context.emit("equal", spread, positions), on, off)


def _cumulative(op: str, identity: int) -> FormBuild:
    """A running ``op``. Where the axis is data, the one wanted is chosen among those along each axis."""

    def build(context: FormContext) -> Value:
        x, dims = context.input(0), context.dims(1)
        if dims is not None:
            return running(context, x, normalize_axis(known(dims[0], "the axis"), x.type.rank), op, identity)
        axis = wrapped(context, cast_to(context, context.input(1), DType.INT64), x.type.rank)
        chosen = running(context, x, 0, op, identity)
        for other in range(1, x.type.rank):
            wanted = context.emit("equal", axis, context.const(np.array(other, np.int64)))
            chosen = context.emit("where", wanted, running(context, x, other, op, identity), chosen)
        return chosen

    return build


def running(context: FormContext, x: Value, axis: int, op: str, identity: int) -> Value:
    """``op`` of all elements up to each, with the node's attributes ``exclusive`` and ``reverse``.

    log2(n) steps that each add a copy shifted by twice as far as the one before (Hillis and Steele, 1986).
    """
    length = x.type.shape[axis]
    if length == 0:
        return x
    reverse = bool(context.attrs.get("reverse", 0))
    total = _shifted(context, x, axis, minimum(length, 1), reverse, identity) if context.attrs.get("exclusive", 0) else x
    if not isinstance(length, int):
        return _running_loop(context, total, axis, op, identity)
    distance = 1
    while distance < length:
        total = context.emit(op, total, _shifted(context, total, axis, distance, reverse, identity))
        distance *= 2
    return total


def _running_loop(context: FormContext, x: Value, axis: int, op: str, identity: int) -> Value:
    """The steps of ``running`` as a loop, where only a run knows how many there are."""
    reverse, length = bool(context.attrs.get("reverse", 0)), x.type.shape[axis]

    def step(inner: FormContext, _: Dim, carried: Sequence[Value], __: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        total, distance = carried
        (moved,) = inner.builder.bind(distance, natural=True)
        following = inner.emit(op, total, _shifted(inner, total, axis, minimum(moved, length), reverse, identity))
        twice = inner.emit("add", distance, distance)
        return inner.emit("less", twice, number(inner, length)), [following, twice]

    one = context.const(np.array(1, np.int64))
    return repeat(context, None, context.emit("less", one, number(context, length)), (x, one), (), step)[0]


def _shifted(context: FormContext, x: Value, axis: int, distance: Dim, towards_begin: bool, fill: int) -> Value:
    """x moved along an axis, ``fill`` moving in."""
    forward: list[Dim] = [0] * x.type.rank
    backward: list[Dim] = [0] * x.type.rank
    forward[axis], backward[axis] = distance, -distance
    begins, ends = (backward, forward) if towards_begin else (forward, backward)
    return context.emit("pad", x, begins=tuple(begins), ends=tuple(ends), mode="constant", value=fill)


def _reverse_sequence(context: FormContext) -> Value:
    """A gather whose position along the time axis is ``length - 1 - t`` within the sequence, ``t`` behind it."""
    x, lengths = context.input(0), cast_to(context, context.input(1), DType.INT64)
    shape = x.type.shape
    batch, time = (normalize_axis(int(context.attrs.get(name, default)), len(shape)) for name, default in (("batch_axis", 1), ("time_axis", 0)))
    if batch == time:
        raise UnsupportedForm(f"axis {batch} is both batch and time")
    order = (batch, time, *(a for a in range(len(shape)) if a not in (batch, time)))
    ordered = transpose(context, x, order)
    batches, steps, *rest = (shape[a] for a in order)
    count = reshape(context, lengths, (batches, 1))
    step = reshape(context, iota(context, steps), (1, steps))
    mirrored = context.emit("sub", context.emit("sub", count, context.const(np.array(1, np.int64))), step)
    within = context.emit("where", context.emit("less", step, count), mirrored, step)
    rows = element_positions(context, (batches, steps), within, 1)
    taken = context.emit("gather", reshape(context, ordered, (batches * steps, *rest)), rows, axis=0)
    return transpose(context, taken, tuple(int(a) for a in np.argsort(order)))


def trilu(context: FormContext) -> Value:
    """The elements on one side of a diagonal, zeros on the other."""
    x = context.input(0)
    rows, columns = x.type.shape[-2:]
    down, across = reshape(context, iota(context, rows), (rows, 1)), reshape(context, iota(context, columns), (1, columns))
    offset = context.emit("sub", across, down)
    given = context.optional(1)
    least = context.const(np.zeros((), np.int64)) if given is None else reshape(context, given, ())
    keep = context.emit("greater_or_equal" if context.attrs.get("upper", 1) else "less_or_equal", offset, least)
    return context.emit("where", keep, x, context.const(np.zeros((), x.type.dtype.numpy)))


Gather.forms = (
    OnnxForm("Gather", _gather),
    OnnxForm("GatherElements", _gather_elements),
    OnnxForm("GatherND", _gather_nd),
    OnnxForm("OneHot", _one_hot),
    OnnxForm("CumSum", _cumulative("add", 0)),
    OnnxForm("CumProd", _cumulative("mul", 1)),
    OnnxForm("ReverseSequence", _reverse_sequence),
    OnnxForm("GridSample", grid_sample),
    OnnxForm("Trilu", trilu),
)
