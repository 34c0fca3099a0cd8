"""Where the values of a grouped graph lie: in memory of their own, in that of what they are views of, or in that of a join that holds them.

Elements of what a join holds are as far apart as those of its result, so they may lie in *strides*: rows with something of other operands
between them. Then the group that makes them stores so, and nothing reads them but the join.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim
from compiler.ir.op import lookup
from compiler.ir.strided import Strided, row_major
from compiler.ir.types import begins_with


@dataclass(frozen=True)
class Place:
    """The memory of a value: in that of ``root``, from byte ``offset`` on.

    ``strides`` are the distances of its elements along each physical axis; None: they lie together, as the value's type says.
    """

    root: Value
    offset: Dim = 0
    strides: tuple[Dim, ...] | None = None


def view_offset(node: Node) -> Dim | None:
    """The byte of its first input's memory at which a view begins; None for a node that is not one.

    Views are the ops that say so for their operands, and changes of layout that move no byte.
    """
    if node.op == "to_layout":
        return 0 if begins_with(node.present_inputs[0].type, node.output.type) else None
    if node.op == "group" or len(node.outputs) != 1:
        return None
    offset = lookup(node.op).view_offset([None if v is None else v.type for v in node.inputs], node.attrs, node.output.type)
    return None if offset is None else offset * node.output.type.dtype.itemsize


def held_starts(node: Node) -> tuple[tuple[Dim, ...], ...]:
    """The physical coordinates in its result at which the operands begin of a node that does nothing but hold them; none for any other node."""
    if node.op == "group" or len(node.outputs) != 1:
        return ()
    return lookup(node.op).held_starts([None if v is None else v.type for v in node.inputs], node.attrs, node.output.type) or ()


def memory_places(graph: Graph) -> Mapping[Value, Place]:
    """For every value where it lies. Raises InternalError for a join whose operands cannot lie where it holds them."""
    places, unfit = _places(graph)
    if unfit:
        raise InternalError("its operands cannot lie in its result", where=f"join %{unfit[0].output.name}")
    return places


def memory_roots(graph: Graph) -> Mapping[Value, Value]:
    """For every value the one whose memory it lies in."""
    return {value: place.root for value, place in memory_places(graph).items()}


def unfit_joins(graph: Graph) -> tuple[Node, ...]:
    """The joins that have operands which cannot lie where they hold them.

    What is to lie in strides must be made by a group whose kernels store so or be a join itself, and it must be read by nothing but the join
    and views on the way to it that keep all its elements in order.
    """
    return _places(graph)[1]


def _places(graph: Graph) -> tuple[dict[Value, Place], tuple[Node, ...]]:
    """Where values lie, and the joins that have operands which cannot lie there."""
    places = {value: Place(value) for value in (*graph.inputs, *graph.constants)}
    for node in graph.nodes:
        offset = view_offset(node)
        for value in node.outputs:
            viewed = None if offset is None else places[node.present_inputs[0]]
            places[value] = Place(value) if viewed is None or offset is None else Place(viewed.root, viewed.offset + offset)
    held: dict[Value, Place] = {}
    unfit: dict[Node, None] = {}
    for node in reversed(graph.nodes):
        around = held.get(node.output, Place(node.output)) if len(node.outputs) == 1 else None
        for value, start in zip(node.present_inputs, held_starts(node), strict=False):
            if around is None:
                continue
            seen = places[value]
            found = _inside(around, node.output, start, value, seen)
            if found is None or (found.strides is not None and not _is_made_there(graph, seen.root, node)):
                unfit[node] = None
            else:
                held[seen.root] = found
    if held:
        places = {value: _within(place, held, value) for value, place in places.items()}
    return places, tuple(unfit)


def _inside(around: Place, result: Value, start: tuple[Dim, ...], value: Value, seen: Place) -> Place | None:
    """Where the root of an operand lies of which the join finds ``value`` at ``start`` in its result; None where it cannot."""
    steps = row_major(result.type.physical_shape) if around.strides is None else around.strides
    begin: Dim = 0
    for at, step in zip(start, steps, strict=True):
        begin = begin + at * step
    offset = around.offset + begin * result.type.dtype.itemsize - seen.offset
    shape, root = value.type.physical_shape, seen.root.type.physical_shape
    if _lies_together(shape, steps):
        return Place(around.root, offset)
    view: Strided | None = Strided(shape, steps, 0, 0)
    if value is not seen.root:
        whole = seen.offset == 0 and seen.root.type.dtype.itemsize == value.type.dtype.itemsize
        view = view.reshaped(root) if view is not None and whole else None
    return None if view is None else Place(around.root, offset, view.strides)


def _lies_together(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> bool:
    own = row_major(shape)
    return 0 in shape or all(dim == 1 or have == step for dim, have, step in zip(shape, strides, own, strict=True))


def _is_made_there(graph: Graph, root: Value, join: Node) -> bool:
    """Whether a value can be made in strides and only ``join`` reads it, or reshapes of it that only the join reads."""
    maker = graph.producers.get(root)
    if maker is None or not (held_starts(maker) or stores_strided(maker)):
        return False
    pending = [root]
    for value in pending:
        users = graph.users.get(value, ())
        if value in graph.outputs or any(user is not join and view_offset(user) != 0 for user in users):
            return False
        pending += [user.output for user in users if user is not join]
    return True


def stores_strided(node: Node) -> bool:
    """Whether a node is a group of one result whose kernels can store it in strides, which shares are not cut in."""
    return (
        node.op == "group"
        and len(node.outputs) == 1
        and "shares" not in node.attrs
        and all(inner.op == "group" or lookup(inner.op).takes_epilogue for inner in node.regions[0].nodes)
    )


def _within(place: Place, held: Mapping[Value, Place], value: Value) -> Place:
    """A value's place in the memory that holds it in the end."""
    around = held.get(place.root)
    if around is None:
        return place
    if around.strides is None or value is place.root:
        return Place(around.root, around.offset + place.offset, around.strides)
    seen = Strided(place.root.type.physical_shape, around.strides, 0, 0).reshaped(value.type.physical_shape)
    return Place(around.root, around.offset, None if seen is None else seen.strides)
