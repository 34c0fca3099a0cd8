"""Simplifications of what only moves elements: reshapes, transposes, slices, padding and concatenations of each other's results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Node, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import lookup
from compiler.ir.regroup import runs
from compiler.ir.run_time import is_natural
from compiler.ir.types import is_coded
from compiler.ops.support import attr_dims, attr_int, attr_ints


def made_by(op: str, value: Value, builder: GraphBuilder) -> Node | None:
    """The node that makes a value where it is one of ``op``."""
    node = builder.producer(value)
    return node if node is not None and node.op == op else None


def unchanged(node: Node, _: GraphBuilder) -> Value | None:
    """A conversion to what its operand is, or a reshape or an expansion to the shape that it has."""
    x = node.present_inputs[0]
    return x if x.type == node.output.type else None


def twice(node: Node, builder: GraphBuilder) -> Value | None:
    """A reshape of a reshape, an expansion of an expansion: the last alone says what comes of it."""
    inner = made_by(node.op, node.present_inputs[0], builder)
    return None if inner is None else builder.emit(node.op, inner.present_inputs[0], name=node.name, **node.attrs)


def order_kept(node: Node, builder: GraphBuilder) -> Value | None:
    """A transpose that moves nothing but axes of one element: a reshape."""
    x, perm = node.present_inputs[0], attr_ints(node.attrs, "perm")
    moved = [axis for axis in perm if x.type.shape[axis] != 1]
    if moved != sorted(moved):
        return None
    return x if perm == tuple(range(len(perm))) else builder.emit("reshape", x, name=node.name, shape=node.output.type.shape)


def transposed_twice(node: Node, builder: GraphBuilder) -> Value | None:
    """A transpose of a transpose: one."""
    inner = made_by("transpose", node.present_inputs[0], builder)
    if inner is None:
        return None
    first = attr_ints(inner.attrs, "perm")
    perm = tuple(first[axis] for axis in attr_ints(node.attrs, "perm"))
    return builder.emit("transpose", inner.present_inputs[0], name=node.name, perm=perm)


def transposed_around(node: Node, builder: GraphBuilder) -> Value | None:
    """A transpose of what a reshape makes of another transpose by joining axes: one transpose, then the reshape."""
    reshape = made_by("reshape", node.present_inputs[0], builder)
    inner = None if reshape is None else made_by("transpose", reshape.present_inputs[0], builder)
    if reshape is None or inner is None:
        return None
    found = runs(inner.output.type.shape, reshape.output.type.shape)
    if not found or any(axes.stop - axes.start > 1 for _, axes in found):
        return None
    first, places, ones, at = attr_ints(inner.attrs, "perm"), list[tuple[int, ...]](), list[int](), 0
    for dims, axes in found:
        sources = first[at : at + len(dims)]
        if axes.start == axes.stop:
            ones += sources
        else:
            places.append(sources)
        at += len(dims)
    perm = (*ones, *(source for axis in attr_ints(node.attrs, "perm") for source in places[axis]))
    moved = builder.emit("transpose", inner.present_inputs[0], name=node.name, perm=perm)
    return builder.emit("reshape", moved, name=node.name, shape=node.output.type.shape)


def expanded_before(node: Node, builder: GraphBuilder) -> Value | None:
    """A transpose of an expansion: of what is expanded, which is smaller."""
    x = node.present_inputs[0]
    inner = made_by("expand", x, builder)
    if inner is None or inner.present_inputs[0].type.rank != x.type.rank:
        return None
    fewer = builder.emit("transpose", inner.present_inputs[0], name=node.name, **node.attrs)
    return builder.emit("expand", fewer, name=inner.name, shape=node.output.type.shape)


def whole_taken(node: Node, _: GraphBuilder) -> Value | None:
    """A slice that takes everything as it stands."""
    x = node.present_inputs[0]
    return x if x.type == node.output.type and set(attr_dims(node.attrs, "steps")) <= {1} else None


def slice_of_slice(node: Node, builder: GraphBuilder) -> Value | None:
    """A slice of a slice: one."""
    inner = made_by("slice", node.present_inputs[0], builder)
    if inner is None:
        return None
    (first, first_steps), (again, steps) = ((attr_dims(n.attrs, "starts"), attr_dims(n.attrs, "steps")) for n in (inner, node))
    starts = tuple(a + b * step for a, b, step in zip(first, again, first_steps, strict=True))
    merged = tuple(a * b for a, b in zip(first_steps, steps, strict=True))
    return builder.emit("slice", inner.present_inputs[0], name=node.name, starts=starts, sizes=node.attrs["sizes"], steps=merged)


def slice_of_operand(node: Node, builder: GraphBuilder) -> Value | None:
    """A slice of a concatenation that takes elements of one operand alone: a slice of that."""
    joined = made_by("concat", node.present_inputs[0], builder)
    if joined is None:
        return None
    axis, starts = attr_int(joined.attrs, "axis"), attr_dims(node.attrs, "starts")
    span = _span(starts[axis], attr_dims(node.attrs, "sizes")[axis], attr_dims(node.attrs, "steps")[axis])
    at = 0
    for operand in joined.present_inputs if span is not None else ():
        size = operand.type.shape[axis]
        if span is None or not isinstance(size, int):
            return None
        if at <= span[0] and span[1] < at + size:
            within = (*starts[:axis], starts[axis] - at, *starts[axis + 1 :])
            return builder.emit("slice", operand, name=node.name, **{**node.attrs, "starts": within})
        at += size
    return None


def slice_inside_padding(node: Node, builder: GraphBuilder) -> Value | None:
    """A slice of a padded value that takes no padding: a slice of what is padded."""
    padded = made_by("pad", node.present_inputs[0], builder)
    if padded is None:
        return None
    x = padded.present_inputs[0]
    starts = tuple(start - pad for start, pad in zip(attr_dims(node.attrs, "starts"), attr_dims(padded.attrs, "begins"), strict=True))
    around = zip(attr_dims(padded.attrs, "begins"), attr_dims(padded.attrs, "ends"), strict=True)
    taken = zip(starts, attr_dims(node.attrs, "sizes"), attr_dims(node.attrs, "steps"), strict=True)
    for dim, pads, numbers in zip(x.type.shape, around, taken, strict=True):
        span = _span(*numbers)
        if pads != (0, 0) and (span is None or not isinstance(dim, int) or span[0] < 0 or span[1] >= dim):
            return None
    return builder.emit("slice", x, name=node.name, **{**node.attrs, "starts": starts})


def _span(start: Dim, size: Dim, step: Dim) -> tuple[int, int] | None:
    """The first and the last position that a slice takes of an axis; None where that is not known, or it takes none."""
    if not (isinstance(start, int) and isinstance(size, int) and isinstance(step, int)) or size == 0:
        return None
    end = start + step * (size - 1)
    return min(start, end), max(start, end)


def no_padding(node: Node, builder: GraphBuilder) -> Value | None:
    """Padding by nothing; by less than nothing everywhere it is a slice."""
    x, begins, ends = node.present_inputs[0], attr_dims(node.attrs, "begins"), attr_dims(node.attrs, "ends")
    if set(begins + ends) <= {0}:
        return x
    if not all(isinstance(pad, int) and pad <= 0 for pad in begins + ends):
        return None
    starts = tuple(-begin for begin in begins)
    return builder.emit("slice", x, name=node.name, starts=starts, sizes=node.output.type.shape, steps=(1,) * len(starts))


def padded_twice(node: Node, builder: GraphBuilder) -> Value | None:
    """Padding with the same number around padding: one."""
    inner = made_by("pad", node.present_inputs[0], builder)
    if inner is None or any(n.attrs["mode"] != "constant" for n in (node, inner)) or node.attrs["value"] != inner.attrs["value"]:
        return None
    sides = {side: (attr_dims(inner.attrs, side), attr_dims(node.attrs, side)) for side in ("begins", "ends")}
    if not all(is_natural(pad, 0) for pair in sides.values() for pads in pair for pad in pads):
        return None
    pads = {side: tuple(a + b for a, b in zip(*pair, strict=True)) for side, pair in sides.items()}
    return builder.emit("pad", inner.present_inputs[0], name=node.name, **{**node.attrs, **pads})


def empty_operands(node: Node, builder: GraphBuilder) -> Value | None:
    """A concatenation without the operands that have no elements."""
    axis = attr_int(node.attrs, "axis")
    return _joined(node, [value for value in node.present_inputs if value.type.shape[axis] != 0], builder)


def neighbours(node: Node, builder: GraphBuilder) -> Value | None:
    """A concatenation of slices that are neighbours in what they are slices of: of one slice."""
    axis, found = attr_int(node.attrs, "axis"), list[Value]()
    for value in node.present_inputs:
        together = _together(found[-1], value, axis, builder) if found else None
        found[-1:] = [*found[-1:], value] if together is None else [together]
    return _joined(node, found, builder)


def _together(left: Value, right: Value, axis: int, builder: GraphBuilder) -> Value | None:
    """Two slices, of which the second begins along ``axis`` where the first ends, as one; None where they are something else."""
    first, second = made_by("slice", left, builder), made_by("slice", right, builder)
    if first is None or second is None or first.present_inputs[0] is not second.present_inputs[0]:
        return None
    (starts, sizes, steps), (next_starts, next_sizes, next_steps) = (
        tuple(attr_dims(n.attrs, name) for name in ("starts", "sizes", "steps")) for n in (first, second)
    )
    following = (*starts[:axis], starts[axis] + sizes[axis] * steps[axis], *starts[axis + 1 :])
    both = (*sizes[:axis], sizes[axis] + next_sizes[axis], *sizes[axis + 1 :])
    if steps != next_steps or next_starts != following or (*both[:axis], next_sizes[axis], *both[axis + 1 :]) != next_sizes:
        return None
    return builder.emit("slice", first.present_inputs[0], name=first.name, starts=starts, sizes=both, steps=steps)


def exchanged(node: Node, builder: GraphBuilder) -> Value | None:
    """A concatenation of all elements from one on and of those before it: a roll. Where parts are negated, as in rotary position embedding, the
    signs are factors of its elements."""
    axis, parts = attr_int(node.attrs, "axis"), [_negated(value, builder) for value in node.present_inputs]
    first, second = (_span_of(part, axis, builder) for part, _ in parts) if len(parts) == 2 else (None, None)
    if first is None or second is None or is_coded(node.output.type.dtype):
        return None
    x, start, end = first
    if not 0 < start < end or end != x.type.shape[axis] or second != (x, 0, start):
        return None
    rolled = builder.emit("roll", x, name=node.name, axis=axis, start=start)
    signs = np.repeat([-1 if negated else 1 for _, negated in parts], (end - start, start))
    if signs.min() == 1:
        return rolled
    factors = signs.astype(x.type.dtype.numpy).reshape(-1, *(1,) * (x.type.rank - 1 - axis))
    return builder.emit("mul", rolled, builder.constant(factors, name="signs"), name=node.name)


def _negated(value: Value, builder: GraphBuilder) -> tuple[Value, bool]:
    """What a value is but for its sign, and whether that is another one."""
    node = made_by("neg", value, builder)
    return (value, False) if node is None else (node.present_inputs[0], True)


def _span_of(value: Value, axis: int, builder: GraphBuilder) -> tuple[Value, int, int] | None:
    """What a value is a slice of, and from which element of an axis to which, where it takes all of the others and the numbers are known."""
    node = made_by("slice", value, builder)
    if node is None or set(attr_dims(node.attrs, "steps")) != {1}:
        return None
    x, starts = node.present_inputs[0], attr_dims(node.attrs, "starts")
    start, size = starts[axis], value.type.shape[axis]
    around = all(a == axis or (starts[a], value.type.shape[a]) == (0, dim) for a, dim in enumerate(x.type.shape))
    return (x, start, start + size) if around and isinstance(start, int) and isinstance(size, int) else None


def _joined(node: Node, operands: Sequence[Value], builder: GraphBuilder) -> Value | None:
    """The concatenation of fewer operands that give the same; None where they are not fewer, or their types do not say so."""
    if not 0 < len(operands) < max(len(node.inputs), 2):
        return None
    if lookup("concat").infer([value.type for value in operands], node.attrs)[0] != node.output.type:
        return None
    return operands[0] if len(operands) == 1 else builder.emit("concat", *operands, name=node.name, **node.attrs)
